"""The HTML report of an archive: one page, drawn from the rows of its results in one pass.

What is kept of the rows is counts in fixed bins, a few keys, and the rows of the photographs that
are shown: a million rows cost no more memory than a thousand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import ExifTags, Image, ImageOps

from segpipe.data.canvas import fit_fov
from segpipe.data.classes import VESSEL
from segpipe.data.codecs import MASK_PALETTE, decode_image
from segpipe.data.decoder import Decoder
from segpipe.data.fitting import Fitted
from segpipe.errors import RejectedImage, StarvedDecoder, StoreDown, UserError
from segpipe.html import jpeg, template
from segpipe.progress import duration
from segpipe.segment.compact import result_groups
from segpipe.segment.rows import posix_seconds
from segpipe.storage import Source, Store

OVERLAYS = 24  # photographs shown
REASONS = 20  # of rejections that are named; the others are summed up
EXAMPLES = 5  # rejected inputs named for each reason
COLUMNS = ["path", "status", "error", "error_code", "height", "width", "vessel_density", "finished"]
OF_REJECTED = ["path", "error", "error_code"]
OF_SHOWN = ["path", "version", "status", "height", "width", "vessel_density"]
OF_SHOWN += ["mask_path", "mask_png"]

OCTAVES = np.linspace(-12, 10, 89)  # log2 of megapixels: from 16x16 px to 1,024 megapixels
SHARES = np.linspace(0, 1, 201)  # vessel / field of view
MOST_MOMENTS = 1 << 14  # in which something was finished: seconds up to 4.5 h of work, then longer
MOST_BARS = 200  # of the throughput
BAR_PHOTOGRAPHS = 50  # on average, as groups of 16 finish at once
WORK_S, PAUSE_S = 60, 3600  # without a photograph: shorter is work, longer is none
USUAL_STEPS = 20  # between those two a pause is longer than so many of the usual steps

THUMBNAIL_PX = 300  # diameter of the field of view
DECODING_S = 60.0  # seconds of CPU for one photograph
VESSEL_COLOUR = (0, 255, 170)  # green-blue: the one hue a retina does not have

Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def archive_report(source: Source, output: Store, summary: dict[str, Any], overlays: int) -> bytes:
    """One self-contained HTML page about a finished run, with up to `overlays` photographs.

    Without any it names no key either: both may identify patients.
    """
    findings = Findings(summary["ok"], overlays)
    for read in result_groups(output, summary):
        findings.add(read)
    reasons = sorted(findings.rejections.values(), key=lambda one: -one.count)
    page = template("segment/report.html").render(
        summary=summary,
        reasons=reasons[:REASONS],
        other_reasons=[one.count for one in reasons[REASONS:]],
        examples=bool(overlays),
        plots=findings.plots(),
        sheet=_contact_sheet(source, output, findings.shown),
    )
    return page.encode()


# ---- what is kept of the rows


class Findings:
    """What the page tells of all rows."""

    def __init__(self, num_ok: int, num_shown: int) -> None:
        self.sizes, self.densities = Histogram(OCTAVES), Histogram(SHARES)
        self.timeline = Timeline()
        self.rejections: dict[str, Rejections] = {}
        self.shown: list[dict[str, Any]] = []
        spread = np.linspace(0, num_ok - 1, min(num_shown, num_ok))
        self._wanted = spread.astype(int)  # of the rows with a mask, evenly over the archive
        self._num_ok = 0

    def add(self, read: Callable[[list[str]], pa.Table]) -> None:
        """Count a row group, which `read` reads columns of."""
        rows = read(COLUMNS)
        ok = rows.filter(pc.equal(rows["status"], "ok"))
        pixels = pc.multiply(ok["height"].cast(pa.int64()), ok["width"].cast(pa.int64()))
        self.sizes.add(np.log2(_numbers(pixels) / 1e6))
        self.densities.add(_numbers(ok["vessel_density"]))
        self.timeline.add(posix_seconds(rows["finished"]))
        whys = rows.filter(pc.is_valid(rows["error"])).select(OF_REJECTED)
        for row in whys.to_pylist():
            code, sentence = row["error_code"], row["error"]
            group = self.rejections.setdefault(code or sentence, Rejections(code, sentence))
            group.count += 1
            if len(group.paths) < EXAMPLES:
                group.paths.append(row["path"])
        here = self._wanted - self._num_ok
        here = here[(here >= 0) & (here < len(ok))]
        if len(here):
            rows = read(OF_SHOWN)  # with masks, of this group alone
            self.shown += rows.filter(pc.equal(rows["status"], "ok")).take(here).to_pylist()
        self._num_ok += len(ok)

    def plots(self) -> list[Plot]:
        """Those for which there are numbers."""
        drawn: list[tuple[Callable[[Any], Plot], Any]] = [
            (_throughput, self.timeline),
            (_image_sizes, self.sizes),
            (_vessel_densities, self.densities),
        ]
        return [draw(kept) for draw, kept in drawn if kept.counts.any()]


def _numbers(column: pa.ChunkedArray) -> Numbers:
    return np.asarray(pc.drop_null(column).to_numpy(), np.float64)


@dataclass
class Rejections:
    """Inputs that were rejected for one fault."""

    code: str | None
    """None in rows of 0.1.0, which are one group for each sentence."""
    sentence: str
    """Of the first of them: those of one code may differ in a number."""
    count: int = 0
    paths: list[str] = field(default_factory=list)
    """A few of them."""


class Histogram:
    """Counts of values in fixed bins; the outermost take what lies beyond them."""

    def __init__(self, edges: Numbers) -> None:
        self.edges, self.counts = edges, np.zeros(len(edges) - 1, np.int64)

    def add(self, values: Numbers) -> None:
        self.counts += np.histogram(values.clip(self.edges[0], self.edges[-1]), self.edges)[0]

    def filled(self, step: int) -> slice:
        """From the first bin with a count to the last, widened to whole steps of bins."""
        filled = np.flatnonzero(self.counts)
        return slice(filled[0] // step * step, (filled[-1] // step + 1) * step)

    def median(self) -> float:
        """The upper edge of the bin in which the middle value lies."""
        half = np.searchsorted(self.counts.cumsum(), self.counts.sum() / 2)
        return float(self.edges[half + 1])


class Timeline:
    """How many photographs were finished when: counts of the moments that have any.

    A moment is a second, and twice as long whenever there would be more than MOST_MOMENTS.
    """

    def __init__(self) -> None:
        self.moment_s = 1
        self.moments = np.zeros(0, np.int64)  # in moment_s since 1970, ascending
        self.counts = np.zeros(0, np.int64)

    def add(self, finished: Numbers) -> None:
        """`finished` in seconds since 1970."""
        self.moments = np.append(self.moments, (finished // self.moment_s).astype(np.int64))
        self.counts = np.append(self.counts, np.ones(len(finished), np.int64))
        self._merge()
        while len(self.moments) > MOST_MOMENTS:
            self.moment_s *= 2
            self.moments //= 2
            self._merge()

    def _merge(self) -> None:
        self.moments, where = np.unique(self.moments, return_inverse=True)
        self.counts = np.bincount(where, self.counts).astype(np.int64)

    def worked(self) -> Worked:
        """The same without the pauses between attempts, in few bins."""
        steps = np.diff(self.moments)
        usual = np.median(steps) if len(steps) else 0
        longest = np.clip(USUAL_STEPS * usual, WORK_S / self.moment_s, PAUSE_S / self.moment_s)
        paused = steps > longest
        place = np.append(0, np.where(paused, 1, steps)).cumsum()  # in moments of work
        num_moments = int(place[-1]) + 1
        num_bins = np.clip(self.counts.sum() // BAR_PHOTOGRAPHS, 10, MOST_BARS)
        width = -(-num_moments // num_bins)
        counts = np.bincount(place // width, self.counts).astype(np.int64)
        edges = np.minimum(np.arange(len(counts) + 1) * width, num_moments)
        pauses = zip(place[1:][paused], (steps - 1)[paused], strict=True)
        return Worked(
            edges * float(self.moment_s),
            counts,
            [(float(at) * self.moment_s, float(pause) * self.moment_s) for at, pause in pauses],
        )


class Worked(NamedTuple):
    """Photographs over the time worked."""

    edges: Numbers
    """Of the bins, in seconds of work since the first photograph."""
    counts: Counts
    pauses: list[tuple[float, float]]
    """(when, how long) in seconds; the first in seconds of work."""


# ---- plots


class Plot(NamedTuple):
    """A bar chart; lengths in % of its width and height."""

    title: str
    text: str
    bars: list[tuple[float, float, float, str]]
    """(left, width, height, what it stands for)"""
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[tuple[float, str]]
    """Places on the x axis, and what is there."""


def _plot(
    title: str,
    text: str,
    edges: Numbers,
    heights: npt.NDArray[Any],
    meanings: list[str],
    ticks: dict[float, str],
    marks: list[tuple[float, str]] | None = None,
) -> Plot:
    """A bar from each edge to the next; ticks and marks are on the same scale as the edges."""
    level = _round_step(heights.max(), 3)
    levels = level * np.arange(np.ceil(heights.max() / level) + 1)

    def across(value: float) -> float:
        return float(100 * (value - edges[0]) / (edges[-1] - edges[0]))

    bars = [
        (across(left), across(right) - across(left), 100 * float(height / levels[-1]), meaning)
        for left, right, height, meaning in zip(
            edges[:-1], edges[1:], heights, meanings, strict=True
        )
        if height
    ]
    return Plot(
        title,
        text,
        bars,
        [(across(value), label) for value, label in ticks.items()],
        [(100 * float(level / levels[-1]), f"{level:,.6g}") for level in levels],
        [(across(value), label) for value, label in marks or []],
    )


def _round_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 5, 10, ... and their tenths with which `most` steps reach `span`."""
    tens = 10.0 ** np.floor(np.log10(span / most))
    return float(next(step for step in tens * np.array([1, 2, 5, 10]) if step * most >= span))


def _throughput(timeline: Timeline) -> Plot:
    edges, counts, pauses = timeline.worked()
    seconds = np.diff(edges)
    rates = counts / seconds
    total = edges[-1]
    text = f"{counts.sum():,} photographs in {duration(total)} of work"
    if pauses:
        away = duration(sum(pause for _, pause in pauses))
        text += f", without {len(pauses)} pause{'s' * (len(pauses) > 1)} of {away} (dashed)"
    unit, length = next(
        (unit, length)
        for unit, length in (("h", 3600), ("min", 60), ("s", 1))
        if total >= 3 * length or length == 1
    )
    step = length * max(1.0, _round_step(total / length, 6))
    longest = sorted(pauses, key=lambda pause: -pause[1])[:REASONS]
    return _plot(
        "Throughput, photographs per second",
        text,
        edges,
        rates,
        [
            f"{duration(left)} to {duration(right)}: {count:,} photographs, {rate:.3g} per second"
            for left, right, count, rate in zip(edges[:-1], edges[1:], counts, rates, strict=True)
        ],
        {float(at): f"{at / length:g} {unit}" for at in np.arange(0, total + 1e-9, step)},
        [(at, f"pause of {duration(pause)}") for at, pause in longest],
    )


def _image_sizes(sizes: Histogram) -> Plot:
    part = sizes.filled(4)  # whole octaves
    edges, counts = sizes.edges[part.start : part.stop + 1], sizes.counts[part]
    every = 4 * -(-len(counts) // 32)
    return _plot(
        "Image size, megapixels",
        f"{counts.sum():,} photographs, half of them below {2 ** sizes.median():.2g} megapixels",
        edges,
        counts,
        [
            f"{2**low:.3g} to {2**high:.3g} megapixels: {count:,} photographs"
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ],
        {float(edge): f"{round(2.0**edge, 3):g}" for edge in edges[::every]},
    )


def _vessel_densities(densities: Histogram) -> Plot:
    part = densities.filled(10)  # whole steps of 5 %
    edges, counts = densities.edges[part.start : part.stop + 1], densities.counts[part]
    every = 10 * -(-len(counts) // 80)
    return _plot(
        "Vessel density, % of the field of view",
        f"{counts.sum():,} photographs, half of them below {densities.median():.1%}",
        edges,
        counts,
        [
            f"{low:.1%} to {high:.1%}: {count:,} photographs"
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ],
        {float(edge): f"{edge:.0%}" for edge in edges[::every]},
    )


# ---- the contact sheet


def _contact_sheet(
    source: Source, output: Store, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Each photograph beside its vessels; without those that are not what they were any more."""
    most = 1 + max((row["height"] * row["width"] / 1e6 for row in rows), default=0)
    sheet = []
    with Decoder(THUMBNAIL_PX, most, DECODING_S) as decoder:
        for row in rows:
            try:
                fitted = decoder.fit(source.get(row["path"], row["version"]))
                png = row["mask_png"] or output.get(row["mask_path"])
                mask = decode_image(png, most)[..., 0]
            except (StoreDown, UserError):  # the report can do without its pictures
                break
            except (OSError, RejectedImage, StarvedDecoder):
                continue
            image, drawn = overlay(fitted, mask == MASK_PALETTE[3 * VESSEL])
            sheet.append(row | {"image": jpeg(image), "overlay": jpeg(drawn)})
    return sheet


def overlay(fitted: Fitted, vessel: npt.NDArray[np.bool_]) -> tuple[Image.Image, Image.Image]:
    """A photograph and its vessel [H, W] bool -> the field upright, and with vessels drawn in."""
    geometry = fitted.geometry
    box = np.s_[: geometry.scaled_height, : geometry.scaled_width]
    image = Image.fromarray(fitted.canvas[box])
    drawn = image.copy()
    share = fit_fov(vessel, geometry, len(fitted.canvas))[box]
    drawn.paste(VESSEL_COLOUR, (0, 0), Image.fromarray(share))
    return _upright(image, fitted.orientation), _upright(drawn, fitted.orientation)


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(picture)

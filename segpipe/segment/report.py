"""The HTML report of an archive: one page, drawn from the rows of its results in one pass.

What is kept of the rows is counts in fixed bins, a few keys, and the rows of the photographs that
are shown: a million rows cost no more memory than a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from segpipe import plots
from segpipe.data.arrays import Mask
from segpipe.data.canvas import fit_fov
from segpipe.data.classes import VESSEL
from segpipe.data.codecs import MASK_PALETTE, decode_image
from segpipe.data.decoder import DECODING_S, Decoder
from segpipe.data.fitting import Fitted
from segpipe.data.mask_files import kinds_in
from segpipe.errors import RejectedImage, StarvedDecoder, StoreDown, UserError
from segpipe.html import embedded, jpeg, template
from segpipe.progress import duration
from segpipe.segment.compact import result_groups
from segpipe.segment.cut import Cut
from segpipe.segment.overlay import KIND_COLOURS, VESSEL_COLOUR, drawn, upright
from segpipe.segment.rows import posix_seconds
from segpipe.storage import Source, Store

OVERLAYS = 24  # photographs shown
REASONS = 20  # of rejections that are named; the others are summed up
EXAMPLES = 5  # rejected inputs named for each reason
COLUMNS = ["path", "status", "error", "error_code", "height", "width", "vessel_density", "finished"]
COLUMNS += ["quality", "ungradable"]
REJECTED_COLUMNS = ["path", "error", "error_code"]
SHOWN_COLUMNS = ["path", "version", "status", "height", "width", "vessel_density"]
SHOWN_COLUMNS += ["mask_path", "mask_png", "arteries_veins_path", "arteries_veins_png"]
SHOWN_COLUMNS += ["quality"]
DISC = ["disc_x_px", "disc_y_px", "disc_width_px", "disc_height_px"]
SHOWN_COLUMNS += DISC

OCTAVES = np.linspace(-12, 10, 89)  # log2 of megapixels: from 16x16 px to 1,024 megapixels
SHARES = np.linspace(0, 1, 201)  # vessel / field of view
MOST_MOMENTS = 1 << 14  # in which something was finished: seconds up to 4.5 h of work, then longer
MOST_BARS = 200  # of the throughput
BAR_PHOTOGRAPHS = 50  # on average, as groups of 16 finish at once
WORK_S, PAUSE_S = 60, 3600  # without a photograph: shorter is work, longer is none
USUAL_STEPS = 20  # between those two a pause is longer than so many of the usual steps

THUMBNAIL_PX = 300  # diameter of the field of view

Colour = tuple[int, int, int]
Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def archive_report(source: Source, output: Store, summary: dict[str, Any], overlays: int) -> bytes:
    """One self-contained HTML page about a finished run, with up to `overlays` photographs.

    Without any it names no key either: both may identify patients.
    """
    stats = gather(output, summary, overlays)
    reasons = sorted(stats.rejections.values(), key=lambda one: -one.count)
    page = template("segment/report.html").render(
        summary=summary,
        reasons=reasons[:REASONS],
        other_reasons=[one.count for one in reasons[REASONS:]],
        examples=bool(overlays),
        plots=stats.plots(),
        sheet=_contact_sheet(source, output, stats.shown),
        cut=stats.cut,
        at_cut=_contact_sheet(source, output, stats.cut.shown),
    )
    return page.encode()


# ---- what is kept of the rows


def gather(output: Store, summary: dict[str, Any], overlays: int) -> ReportStats:
    """One pass over the rows of a finished run."""
    stats = ReportStats(summary["ok"], overlays)
    for read in result_groups(output, summary):
        stats.add(read)
    return stats


class ReportStats:
    """What the page tells of all rows."""

    def __init__(self, num_ok: int, num_shown: int) -> None:
        self.sizes, self.densities = Histogram(OCTAVES), Histogram(SHARES)
        self.qualities, self.cut = Histogram(SHARES), Cut(num_shown)
        self.timeline = Timeline()
        self.rejections: dict[str, Rejections] = {}
        self.shown: list[dict[str, Any]] = []
        spread = np.linspace(0, num_ok - 1, min(num_shown, num_ok))
        self._wanted = spread.astype(int)  # of the rows with a mask, evenly over the archive
        self._num_ok = 0

    def add(self, read: Callable[[list[str]], pa.Table]) -> None:
        """Count a row group, which `read` reads columns of."""
        rows = read(COLUMNS)
        ok = _of_masks(rows)
        pixels = pc.multiply(ok["height"].cast(pa.int64()), ok["width"].cast(pa.int64()))
        self.sizes.add(np.log2(_numbers(pixels) / 1e6))
        self.densities.add(_numbers(ok["vessel_density"]))
        quality = _numbers(ok["quality"])
        self.qualities.add(quality[~np.isnan(quality)])
        self.cut.add(ok, lambda: _of_masks(read(SHOWN_COLUMNS)))
        self.timeline.add(posix_seconds(rows["finished"]))
        whys = rows.filter(pc.is_valid(rows["error"])).select(REJECTED_COLUMNS)
        for row in whys.to_pylist():
            code, sentence = row["error_code"], row["error"]
            group = self.rejections.setdefault(code or sentence, Rejections(code, sentence))
            group.count += 1
            if len(group.paths) < EXAMPLES:
                group.paths.append(row["path"])
        here = self._wanted - self._num_ok
        here = here[(here >= 0) & (here < len(ok))]
        if len(here):
            rows = _of_masks(read(SHOWN_COLUMNS))  # with masks, of this group alone
            self.shown += rows.take(here).to_pylist()
        self._num_ok += len(ok)

    def plots(self) -> list[Plot]:
        """Those for which there are numbers."""
        drawn: list[tuple[Callable[[Any], Plot], Any]] = [
            (_throughput, self.timeline),
            (_image_sizes, self.sizes),
            (_vessel_densities, self.densities),
            (_mask_qualities, self.qualities),
        ]
        return [draw(kept) for draw, kept in drawn if kept.counts.any()]


def _of_masks(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows["status"], "ok"))


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

    def filled(self, step: int) -> tuple[Numbers, Counts]:
        """Edges and counts from the first bin with one to the last, in whole steps of bins."""
        filled = np.flatnonzero(self.counts)
        first, end = filled[0] // step * step, (filled[-1] // step + 1) * step
        return self.edges[first : end + 1], self.counts[first:end]

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

    def trace(self) -> RunTrace:
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
        return RunTrace(
            edges * float(self.moment_s),
            counts,
            [(float(at) * self.moment_s, float(pause) * self.moment_s) for at, pause in pauses],
        )


class RunTrace(NamedTuple):
    """Photographs over the time worked."""

    edges: Numbers
    """Of the bins, in seconds of work since the first photograph."""
    counts: Counts
    pauses: list[tuple[float, float]]
    """(when, how long) in seconds; the first in seconds of work."""


# ---- plots


class Plot(NamedTuple):
    title: str
    text: str
    uri: str
    """Of a PNG."""


def _throughput(timeline: Timeline) -> Plot:
    trace = timeline.trace()
    total = trace.edges[-1]
    text = f"{trace.counts.sum():,} photographs in {duration(total)} of work"
    if trace.pauses:
        num, away = len(trace.pauses), duration(sum(pause for _, pause in trace.pauses))
        text += f", without {num} pause{'s' * (num > 1)} of {away} (dashed)"
    unit, length = next(
        (unit, length)
        for unit, length in (("hours", 3600), ("minutes", 60), ("seconds", 1))
        if total >= 3 * length or length == 1
    )
    longest = sorted(trace.pauses, key=lambda pause: -pause[1])[:REASONS]
    png = plots.bars(
        trace.edges / length,
        trace.counts / np.diff(trace.edges),
        f"{unit} of work",
        [at / length for at, _ in longest],
        wide=True,
    )
    return Plot("Throughput, photographs per second", text, embedded(png, "png"))


def _image_sizes(sizes: Histogram) -> Plot:
    text = f"half of them below {2 ** sizes.median():.2g} megapixels"
    edges, counts = sizes.filled(4)  # whole octaves
    png = plots.bars(2.0**edges, counts, "megapixels", log=True)
    return _histogram("Image size, photographs", text, counts, png)


def _vessel_densities(densities: Histogram) -> Plot:
    text = f"half of them below {densities.median():.1%}"
    edges, counts = densities.filled(10)  # whole steps of 5 %
    png = plots.bars(100 * edges, counts, "vessels, % of the field of view")
    return _histogram("Vessel density, photographs", text, counts, png)


def _mask_qualities(qualities: Histogram) -> Plot:
    text = f"half of them below {qualities.median():.2f}"
    edges, counts = qualities.filled(10)  # whole steps of 0.05
    png = plots.bars(edges, counts, "quality")
    return _histogram("Quality, photographs", text, counts, png)


def _histogram(title: str, text: str, counts: Counts, png: bytes) -> Plot:
    return Plot(title, f"{counts.sum():,} photographs, {text}", embedded(png, "png"))


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
                layers = _layers(row, output, most)
            except (StoreDown, UserError):  # the report can do without its pictures
                break
            except (OSError, RejectedImage, StarvedDecoder):
                continue
            image, drawn = overlay(fitted, layers, [row[name] for name in DISC])
            sheet.append(row | {"image": jpeg(image), "overlay": jpeg(drawn)})
    return sheet


def _layers(row: dict[str, Any], output: Store, most: float) -> list[tuple[Colour, Mask]]:
    """What is drawn into a row's photograph: a colour, and where [H, W] bool."""
    if row["arteries_veins_path"] or row["arteries_veins_png"]:
        png = row["arteries_veins_png"] or output.get(row["arteries_veins_path"])
        kinds = kinds_in(decode_image(png, most))
        return [(colour, kinds == kind) for kind, colour in enumerate(KIND_COLOURS, start=1)]
    png = row["mask_png"] or output.get(row["mask_path"])
    mask = decode_image(png, most)[..., 0]
    return [(VESSEL_COLOUR, mask == MASK_PALETTE[3 * VESSEL])]


def overlay(
    fitted: Fitted, layers: Sequence[tuple[Colour, Mask]], disc: Sequence[float | None] = ()
) -> tuple[Image.Image, Image.Image]:
    """A photograph, layers [H, W] bool and the disc (centre x and y, width and height in its px) ->
    the field upright, and with them drawn in."""
    geometry = fitted.geometry
    box = np.s_[: geometry.scaled_height, : geometry.scaled_width]
    image, side = fitted.canvas[box], len(fitted.canvas)
    shares = [(colour, fit_fov(where, geometry, side)[box]) for colour, where in layers]
    place = None
    if disc and None not in disc:
        factor = geometry.scaled_width / geometry.box_width
        x, y, width, height = map(float, disc)  # type: ignore[arg-type]
        across = (x - geometry.left + 0.5) * factor - 0.5
        down = (y - geometry.top + 0.5) * factor - 0.5
        place = across, down, width * factor, height * factor
    plain = upright(Image.fromarray(image), fitted.orientation)
    return plain, drawn(image, shares, place, fitted.orientation)

"""How well `segment --structures all` tells arteries, veins and the optic disc, and what it costs.

    python benchmarks/structures.py

Needs DRIVE, DRIVE_AV, HRF, STARE and discs.csv below SEGPIPE_DATA. Photographs that nothing was
trained on, in their found field and at native size; uncertain pixels are left out, and a crossing
is right for either kind. Writes results/structures.md.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from av_labels import ARTERY, BACKGROUND, KIND_BITS, NONE, RIGHT, VEIN, disc_of, label_of
from common import data_folder, facts, run, write

from segpipe.data.canvas import fit_field, native_mask
from segpipe.data.classes import VESSEL
from segpipe.data.codecs import decode_photograph, encode_kinds
from segpipe.data.datasets import load_example
from segpipe.data.fov import find_fov
from segpipe.data.layouts import Example, open_labelled
from segpipe.measurement import kinds, quality, structures, vessels
from segpipe.models import checkpoint, engine
from segpipe.models import structures as networks
from segpipe.storage import open_store

SETS = {"HRF": "HRF 06 to 15", "DRIVE": "DRIVE test, labels of DRIVE_AV"}
NEAR = 0.25  # disc diameters: a centre is right so far from the label's
COPIES, MEASURES = 15, ("none", "full")
Counts = dict[str, float]
Result = TypeVar("Result")


class Finder:
    """The two networks, as `segment` runs them on one core."""

    def __init__(self) -> None:
        weights = checkpoint.read(None)
        self.card = checkpoint.load(weights, "default").card
        chosen = engine.select(engine.find_trials(weights, "cpu"), "auto", "auto").engine
        self.engine = chosen.name
        self.score = engine.open_score(weights, chosen, 1, "none")
        self.maps = networks.open_maps(networks.read(), chosen)


def examples(name: str) -> tuple[Example, ...]:
    return open_labelled(open_store(str(data_folder() / name))).examples("test")


def kinds_of(finder: Finder, name: str) -> dict[str, Counts]:
    """Counts of pixels, of the kinds that are told and of the map alone."""
    store = open_store(str(data_folder() / name))
    counts: defaultdict[str, Counts] = defaultdict(dict)
    for example in examples(name):
        one = load_example(store, example)
        image, fov, geometry = fit_field(one.image, one.fov, finder.card.diameter)
        score, maps = finder.score(image, fov), finder.maps(image, fov)
        threshold = finder.card.threshold
        mask = native_mask(score, fov, geometry, threshold)
        found = structures.find(score, maps, fov, geometry, threshold)
        plain = np.where(maps[structures.ARTERIES] >= 0.5, kinds.ARTERY, kinds.VEIN)
        label = label_of(name, example, one.fov.view(np.uint8)) & KIND_BITS
        for what, plane in (("told", found.plane), ("map alone", plain.astype(np.uint8))):
            told = structures.native_kinds(plane, mask, geometry)
            for key, value in counted(told, label).items():
                counts[what][key] = counts[what].get(key, 0) + value
    return counts


def alike(finder: Finder, name: str) -> float:
    """Of the vessels' pixels on the canvas the share that has the kind torch's fp32 gives it."""
    store, same, whole = open_store(str(data_folder() / name)), 0, 0
    reference = networks.open_maps(networks.read(), engine.REFERENCE)
    for example in examples(name)[::5]:
        one = load_example(store, example)
        image, fov, geometry = fit_field(one.image, one.fov, finder.card.diameter)
        score, threshold = finder.score(image, fov), finder.card.threshold
        planes = [
            structures.find(score, maps(image, fov), fov, geometry, threshold).plane
            for maps in (finder.maps, reference)
        ]
        vessel = vessels.canvas_mask(score, fov, threshold) == VESSEL
        same += int((planes[0] == planes[1])[vessel].sum())
        whole += int(vessel.sum())
    return same / whole


def counted(told: np.ndarray, label: np.ndarray) -> Counts:
    """Pixels of each outcome."""
    crossing = told == kinds.CROSSING
    values: Counts = {}
    for name, kind, code in (("artery", kinds.ARTERY, ARTERY), ("vein", kinds.VEIN, VEIN)):
        other = {ARTERY: VEIN, VEIN: ARTERY}[code]
        values[f"{name} hit"] = ((told == kind) | crossing)[label == code].sum()
        values[f"{name} missed"] = (label == code).sum() - values[f"{name} hit"]
        wrong = (told == kind)[(label == other) | (label == BACKGROUND)].sum()
        values[f"{name} wrong"] = wrong + crossing[label == BACKGROUND].sum()
    known = (label == ARTERY) | (label == VEIN)
    values["found"] = np.isin(told, (kinds.ARTERY, kinds.VEIN, kinds.CROSSING))[known].sum()
    values["known"] = known.sum()
    return values


def dice(counts: Counts, name: str) -> float:
    hit, missed, wrong = (counts[f"{name} {what}"] for what in ("hit", "missed", "wrong"))
    return 2 * hit / (2 * hit + missed + wrong)


def discs_of(finder: Finder, name: str) -> dict[str, list[float]]:
    """Of each photograph with a right label: distance of centres and ratio of diameters, in disc
    diameters; NaN where none is found. `none`: of those without a disc, whether one is found."""
    store = open_store(str(data_folder() / name))
    values: dict[str, list[float]] = {"apart": [], "ratio": [], "none": []}
    for example in examples(name):
        said = disc_of(name, example)
        if said is None or said[0] not in (RIGHT, NONE):
            continue
        image = decode_photograph(store.get(example.image)).image
        canvas, fov, geometry = fit_field(image, find_fov(image), finder.card.diameter)
        score, maps = finder.score(canvas, fov), finder.maps(canvas, fov)
        found = structures.find(score, maps, fov, geometry, finder.card.threshold).disc
        disc = found and found.in_photograph(geometry)
        if said[0] == NONE:
            values["none"].append(float(disc is not None))
            continue
        x, y, height, width = said[1]
        size = (height + width) / 2
        values["apart"].append(math.hypot(disc.x - x, disc.y - y) / size if disc else math.nan)
        values["ratio"].append(disc.diameter / size if disc else math.nan)
    return values


def milliseconds(finder: Finder, path: str) -> dict[str, float]:
    """CPU of one thread for one photograph, the least of several runs."""
    image = decode_photograph((data_folder() / path).read_bytes()).image
    canvas, fov, geometry = fit_field(image, find_fov(image), finder.card.diameter)
    threshold, values = finder.card.threshold, {}

    def timed(name: str, function: Callable[[], Result]) -> Result:
        seconds = []
        for _ in range(7):
            start = time.thread_time()
            result = function()
            seconds.append(time.thread_time() - start)
        values[name] = 1000 * min(seconds)
        return result

    score = timed("vessels' network", lambda: finder.score(canvas, fov))
    maps = timed("structures' network", lambda: finder.maps(canvas, fov))
    mask = native_mask(score, fov, geometry, threshold)
    found = timed("kinds and disc", lambda: structures.find(score, maps, fov, geometry, threshold))
    told = timed("picture", lambda: structures.native_kinds(found.plane, mask, geometry))
    timed("its PNG", lambda: encode_kinds(told))
    traced, zoom = found.traced, vessels.zoom_of(geometry)
    assert traced is not None
    timed("all vessels measured", lambda: vessels.measure_traced(traced, found.mask, zoom))
    timed("kinds and zones measured", lambda: structures.measure(found, zoom))
    timed("quality", lambda: quality.assess_quality(canvas, fov))
    timed(
        "vessels alone, measured", lambda: vessels.measure_canvas(score, fov, geometry, threshold)
    )
    return values


def rates() -> dict[str, list[float]]:
    """Steady images/s of `segpipe segment` on two cores, vessels alone and all structures, for
    each of MEASURES; DRIVE's test photographs COPIES times over."""
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder) / "photographs"
        photographs.mkdir()
        for path in sorted((data_folder() / "DRIVE/test/images").iterdir()):
            for number in range(COPIES):
                shutil.copy(path, photographs / f"{number}_{path.name}")
        found: dict[str, list[float]] = {}
        for measure in MEASURES:
            for what in ("vessels", "all"):
                output = Path(folder) / f"{measure}-{what}"
                words = ["-m", "segpipe", "segment", "--input", photographs, "--output", output]
                run([*words, "--measure", measure, "--structures", what])
                summary = json.loads((output / "summary.json").read_bytes())
                found.setdefault(measure, []).append(summary["images_per_second"])
    return found


def main() -> None:
    cv2.setNumThreads(1)
    finder = Finder()
    lines = [
        *facts("python benchmarks/structures.py"),
        f"- engine: {finder.engine}",
        "",
        "| photographs | artery Dice | vein Dice | artery against vein on found vessels | found |",
        "|---|---|---|---|---|",
    ]
    for name, title in SETS.items():
        for what, counts in kinds_of(finder, name).items():
            right = (counts["artery hit"] + counts["vein hit"]) / counts["found"]
            lines.append(
                f"| {title}, {what} | {dice(counts, 'artery'):.4f} | {dice(counts, 'vein'):.4f} | "
                f"{right:.4f} | {counts['found'] / counts['known']:.4f} |"
            )
    lines += [
        "",
        f"{alike(finder, 'HRF'):.2%} of the vessels' pixels have the kind that torch in fp32 gives",
        "them (every fifth photograph of HRF).",
        "",
        "Optic discs: photographs with a right label in discs.csv (those of STARE were looked at",
        "for this table alone).",
        "",
        f"| photographs | centre within {NEAR} disc diameters | diameter: median error | without "
        "a disc, said to have none |",
        "|---|---|---|---|",
    ]
    for name in ("DRIVE", "HRF", "STARE"):
        values = discs_of(finder, name)
        near = sum(apart <= NEAR for apart in values["apart"])
        error = np.nanmedian(np.abs(np.asarray(values["ratio"]) - 1))
        none = values["none"]
        lines.append(
            f"| {name}, {'all' if name == 'STARE' else 'test'} | {near} of {len(values['apart'])} "
            f"| {error:.1%} | {sum(not one for one in none)} of {len(none)} |"
        )
    small, large = (
        milliseconds(finder, path)
        for path in ("DRIVE/test/images/01_test.tif", "HRF/images/06_h.jpg")
    )
    lines += [
        "",
        "CPU of one thread, ms a photograph (the least of seven runs each):",
        "",
        "| | DRIVE 01_test (565x584) | HRF 06_h (3504x2336) |",
        "|---|---|---|",
        *(f"| {name} | {small[name]:.1f} | {large[name]:.1f} |" for name in small),
        "",
        f"`segpipe segment` on DRIVE's 20 test photographs {COPIES} times over, two workers,",
        "steady images/s:",
        "",
        "| | vessels alone | `--structures all` | times as long |",
        "|---|---|---|---|",
        *(
            f"| `--measure {measure}` | {one:.1f} | {both:.1f} | {one / both:.2f} |"
            for measure, (one, both) in rates().items()
        ),
    ]
    write("structures.md", lines)


if __name__ == "__main__":
    main()

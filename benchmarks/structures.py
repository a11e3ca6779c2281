"""How well `segment --structures all` tells arteries, veins and the optic disc, and what it costs.

    python benchmarks/structures.py

Needs DRIVE, DRIVE_AV, HRF, STARE and discs.csv below SEGPIPE_DATA. Photographs that nothing was
trained on, in their found field and at native size; uncertain pixels are left out, and a crossing
is right for either kind. Writes results/structures.md.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from common import data_folder, facts, run, write

from segpipe.data.canvas import fit_field, native_mask
from segpipe.data.classes import VESSEL
from segpipe.data.codecs import decode_photograph, encode_kinds
from segpipe.data.datasets import load_example, load_kinds
from segpipe.data.fov import find_fov
from segpipe.data.layouts import Example, open_labelled
from segpipe.evaluate import discs
from segpipe.evaluate.report import disc_titles
from segpipe.flags import STRUCTURES
from segpipe.measurement import kind_agreement, kinds, structures, trust, vessels
from segpipe.measurement.kind_agreement import KindCounts
from segpipe.models import checkpoint, engine
from segpipe.models import structures as networks
from segpipe.storage import Store, open_store

SETS = {"HRF": "HRF 06 to 15", "DRIVE": "DRIVE test, labels of DRIVE_AV"}
BESIDE = {"DRIVE": "."}  # where the folder of the labels lies beside that of the set
COPIES, ROUNDS, MEASURES = 10, 3, ("none", "full")
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


def opened(name: str) -> tuple[Store, tuple[Example, ...]]:
    """A set's store, and its test photographs."""
    store = open_store(str(data_folder() / BESIDE.get(name, name)))
    return store, open_labelled(store).examples("test")


def kinds_of(finder: Finder, name: str) -> dict[str, KindCounts]:
    """Counts of pixels, of the kinds that are told and of the map alone."""
    store, examples = opened(name)
    counts: defaultdict[str, KindCounts] = defaultdict(KindCounts)
    for example in examples:
        one = load_example(store, example)
        image, fov, geometry = fit_field(one.image, one.fov, finder.card.working)
        score, maps = finder.score(image, fov), finder.maps(image, fov)
        threshold = finder.card.threshold
        mask = native_mask(score, fov, geometry, threshold)
        found = structures.find(score, maps, fov, geometry, threshold)
        plain = np.where(maps.artery >= 0.5, kinds.ARTERY, kinds.VEIN)
        label = load_kinds(store, example, one)
        assert label is not None
        for what, plane in (("told", found.plane), ("map alone", plain.astype(np.uint8))):
            told = structures.native_kinds(plane, mask, geometry)
            counts[what] += kind_agreement.compare(told, label, one.fov)
    return counts


def alike(finder: Finder, name: str) -> float:
    """Of the vessels' pixels on the canvas the share that has the kind torch's fp32 gives it."""
    (store, examples), same, whole = opened(name), 0, 0
    reference = networks.open_maps(networks.read(), engine.REFERENCE)
    for example in examples[::5]:
        one = load_example(store, example)
        image, fov, geometry = fit_field(one.image, one.fov, finder.card.working)
        score, threshold = finder.score(image, fov), finder.card.threshold
        planes = [
            structures.find(score, maps(image, fov), fov, geometry, threshold).plane
            for maps in (finder.maps, reference)
        ]
        vessel = vessels.canvas_mask(score, fov, threshold) == VESSEL
        same += int((planes[0] == planes[1])[vessel].sum())
        whole += int(vessel.sum())
    return same / whole


def discs_of(finder: Finder, name: str) -> dict[str, Any]:
    """What evaluation tells of a set's discs, where fields are found."""
    store, examples = opened(name)
    file = str(data_folder() / "discs.csv")
    rows = discs.discs_of(discs.read_discs(file), file, store, examples, name)
    told = []
    for example in examples:
        row = rows.get(example.name)
        if row is None or row.ok == discs.WRONG:
            continue
        image = decode_photograph(store.get(example.image)).image
        canvas, fov, geometry = fit_field(image, find_fov(image), finder.card.working)
        score, maps = finder.score(canvas, fov), finder.maps(canvas, fov)
        found = structures.find(score, maps, fov, geometry, finder.card.threshold).disc
        told.append(discs.of_photograph(row.label, found and found.in_photograph(geometry)))
    return discs.summary(told)


def milliseconds(finder: Finder, path: str) -> dict[str, float]:
    """CPU of one thread for one photograph, the least of several runs."""
    image = decode_photograph((data_folder() / path).read_bytes()).image
    canvas, fov, geometry = fit_field(image, find_fov(image), finder.card.working)
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
    timed("quality", lambda: trust.assess_mask(canvas, fov, score, threshold, zoom))
    timed(
        "vessels alone, measured", lambda: vessels.measure_canvas(score, fov, geometry, threshold)
    )
    return values


def rates() -> dict[str, list[float]]:
    """Steady images/s of `segpipe segment` on two cores, vessels alone and all structures, for
    each of MEASURES: the best of ROUNDS, in turns; DRIVE's test photographs COPIES times over."""
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder) / "photographs"
        photographs.mkdir()
        for path in sorted((data_folder() / "DRIVE/test/images").iterdir()):
            for number in range(COPIES):
                shutil.copy(path, photographs / f"{number}_{path.name}")
        found = {measure: [0.0, 0.0] for measure in MEASURES}
        for number, measure in itertools.product(range(ROUNDS), MEASURES):
            for place, what in enumerate(STRUCTURES):
                output = Path(folder) / f"{measure}-{what}-{number}"
                words = ["-m", "segpipe", "segment", "--input", photographs, "--output", output]
                run([*words, "--measure", measure, "--structures", what])
                summary = json.loads((output / "summary.json").read_bytes())
                rate = summary["images_per_second"]
                found[measure][place] = max(found[measure][place], rate)
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
            figures = " | ".join(f"{value:.4f}" for value in counts.summary().values())
            lines.append(f"| {title}, {what} | {figures} |")
    lines += [
        "",
        f"{alike(finder, 'HRF'):.2%} of the vessels' pixels have the kind that torch in fp32 gives",
        "them (every fifth photograph of HRF).",
        "",
        "Optic discs: photographs with a right label in discs.csv (those of STARE were looked at",
        "for this table alone).",
        "",
        f"| photographs | centre within {discs.NEAR} disc diameters | diameter: median error | "
        "without a disc, said to have none |",
        "|---|---|---|---|",
    ]
    for name in ("DRIVE", "HRF", "STARE"):
        cells = " | ".join(disc_titles(discs_of(finder, name)).values())
        lines.append(f"| {name}, {'all' if name == 'STARE' else 'test'} | {cells} |")
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
        f"steady images/s, the best of {ROUNDS} in turns:",
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

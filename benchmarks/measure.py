"""What measuring a mask costs, what it finds, and how little that depends on size.

    python benchmarks/measure.py

DRIVE's training photographs: labels of the first observer, and masks of the shipped default at
half, native and double size of the photograph. A minute on 2 cores. Writes results/measure.md.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from common import drive, facts, write
from PIL import Image

from segpipe.data.arrays import Image8
from segpipe.data.canvas import Diameter
from segpipe.data.classes import classes_of
from segpipe.data.fitting import Fitted, fit
from segpipe.measurement import vessels
from segpipe.measurement.quality import assess_quality
from segpipe.models import checkpoint, engine
from segpipe.segment import stages

REPEATS = 5
NAMES = (
    *("vessel_density", "length_density", "calibre_mean", "calibre_std", "fractal_dimension"),
    *("tortuosity", "mean_squared_curvature", "branch_angle_mean_deg"),
    *("num_branch_points", "num_components"),
)
SIZES = (0.5, 1.0, 2.0)

Rows = list[dict[str, Any]]


def grey(path: Path) -> npt.NDArray[np.bool_]:
    return np.asarray(Image.open(path).convert("L")) > 127


def label_of(image: Path) -> Image8:
    split, number = image.parents[1], image.name[:2]
    fov = grey(split / f"mask/{image.stem}_mask.gif")
    return classes_of(grey(split / f"1st_manual/{number}_manual1.gif"), fov)


def fitted_at(image: Path, zoom: float, working: Diameter) -> Fitted:
    """The photograph as the decoder hands it on when it comes at another size."""
    picture = Image.open(image).convert("RGB")
    size = round(picture.width * zoom), round(picture.height * zoom)
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(file, "PNG")
    return fit(file.getvalue(), working, 200.0)


def cpu_ms(work: Callable[[], object]) -> float:
    """The quickest of some times, ms of CPU."""
    spent = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        spent.append(1000 * (time.process_time() - start))
    return min(spent)


def row(name: str, rows: Rows) -> str:
    shown = [f"{np.mean([found[column] for found in rows]):.4g}" for column in NAMES]
    return f"| {name} | {' | '.join(shown)} |"


def change(rows: Rows, native: Rows) -> str:
    """Median and largest change of each column; of the dimension as a difference."""
    shown = []
    for name in NAMES:
        pairs = np.array([(a[name], b[name]) for a, b in zip(rows, native, strict=True)])
        moved = np.abs(pairs[:, 0] - pairs[:, 1])
        if name == "fractal_dimension":
            shown.append(f"{np.median(moved):.3f}, {moved.max():.3f}")
        else:
            moved = moved / pairs[:, 1]
            shown.append(f"{np.median(moved):.1%}, {moved.max():.1%}")
    return " | ".join(shown)


def main() -> None:
    cv2.setNumThreads(1)
    stages.keep_pages()  # as the process that measures does
    images = sorted(drive().glob("training/images/*.tif"))
    weights = checkpoint.read(None)
    card = checkpoint.load(weights, checkpoint.DEFAULT).card
    score_of = engine.open_score(weights, engine.REFERENCE, 1, card.tta)
    masks: dict[float, list[Image8]] = {zoom: [] for zoom in SIZES}
    found: dict[float, Rows] = {zoom: [] for zoom in SIZES}
    fits = []
    for zoom in SIZES:
        for image in images:
            fitted = fitted_at(image, zoom, card.working)
            score = score_of(fitted.canvas, fitted.fov)
            mask = classes_of(score >= np.float32(card.threshold), fitted.fov > 127)
            scale = fitted.geometry.box_height / fitted.geometry.scaled_height
            masks[zoom].append(mask)
            found[zoom].append(asdict(vessels.measure(mask, scale)))
            if zoom == 1:
                fits.append(fitted)
    labels = [label_of(image) for image in images]
    times = {
        "vessels, first observer's labels": [cpu_ms(partial(vessels.measure, x)) for x in labels],
        f"vessels, masks of {card.model}": [cpu_ms(partial(vessels.measure, x)) for x in masks[1]],
        "quality hints": [cpu_ms(partial(assess_quality, x.canvas, x.fov)) for x in fits],
    }
    lines = [
        *facts("python benchmarks/measure.py"),
        f"CPU time of `--measure full` for each of DRIVE's {len(images)} training photographs, one "
        f"thread, the quickest of {REPEATS}:",
        "",
        "| ms | mean | largest |",
        "|---|---|---|",
        *(f"| {name} | {np.mean(ms):.1f} | {max(ms):.1f} |" for name, ms in times.items()),
        "",
        "Means over the photographs, lengths in field diameters:",
        "",
        f"| | {' | '.join(NAMES)} |",
        "|---|" + "---|" * len(NAMES),
        row("first observer's labels", [asdict(vessels.measure(label)) for label in labels]),
        *(row(f"{card.model}, photograph at {zoom:g} of its size", found[zoom]) for zoom in SIZES),
        "",
        "The same photograph at another size: how much each measurement changes (median, largest; "
        "relative, of the dimension the difference). The network's masks change too:",
        "",
        f"| photograph at | {' | '.join(NAMES)} |",
        "|---|" + "---|" * len(NAMES),
        *(f"| {zoom:g} of its size | {change(found[zoom], found[1])} |" for zoom in (0.5, 2.0)),
    ]
    write("measure.md", lines)


if __name__ == "__main__":
    main()

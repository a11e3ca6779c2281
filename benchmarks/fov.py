"""How well and how fast the field of view is found, on drawn cameras, DRIVE, HRF and STARE.

    python benchmarks/fov.py [--before COMMIT]

Each camera of tests/support/apertures.py is drawn in three views, some also with 12 megapixels.
The worst overlap and the worst error of the diameter are told, and the most CPU time of find_fov
(best of three), once by the module as it was at COMMIT and once as it is. DRIVE, HRF and STARE
only where they are at hand, against the masks that lie beside them: nothing is tuned on STARE or
on DRIVE's test images. Five minutes on 2 cores. Writes results/fov.md.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
from common import ROOT, drive, facts, tree_at, write
from PIL import Image

from segpipe.data import fov

sys.path.insert(0, str(ROOT / "tests" / "support"))
import apertures

VIEWS = ((480, 640, False), (480, 640, True), (960, 999, False))
LARGE = (2848, 4288, False)
DRAWN_LARGE = (
    "round",
    "round, cut on all sides inside the frame",
    "shadow on one side",
    "octagon",
    "white frame",
)
HEAD = "overlap before | overlap | diameter off before, % | diameter off, %"
MS = "ms before | ms"
RULE = "|---|---|---|---|---|"


def fov_at(commit: str, folder: Path) -> ModuleType:
    """The module that finds the field of view as it was, from the package as it was."""
    package = (tree_at(commit, folder, "segpipe") / "segpipe").rename(
        folder / "before"
    )  # beside the one as it is
    for file in package.rglob("*.py"):
        file.write_text(re.sub(r"\b(from|import) segpipe\b", r"\1 before", file.read_text()))
    (package / "__init__.py").write_text("")
    sys.path.insert(0, str(folder))
    was_split = (package / "data" / "fov.py").exists()  # until 0.1.0 it was data/fundus.py
    return import_module("before.data.fov" if was_split else "before.data.fundus")


def measure(module: ModuleType, drawn: apertures.Drawn) -> tuple[float, float, float]:
    """-> overlap, diameter off by a share, CPU ms."""
    times = []
    for _ in range(3):
        start = time.process_time()
        try:
            found = module.find_fov(drawn.image)
        except module.RejectedImage:
            found = np.zeros(drawn.fov.shape, bool)
        times.append(time.process_time() - start)
    overlap = (found & drawn.fov).sum() / (found | drawn.fov).sum()
    off = module.fov_diameter(found) / drawn.diameter - 1 if found.any() else -1.0
    return float(overlap), float(off), 1000 * min(times)


def drawn_rows(modules: tuple[ModuleType, ModuleType]) -> list[str]:
    rows = [f"| camera | {HEAD} | {MS} |", RULE + "---|---|"]
    for seed, (name, camera) in enumerate(apertures.CAMERAS.items()):
        views = [apertures.draw(camera, *view, seed=seed) for view in VIEWS]
        rows.append(
            drawn_row(name if camera.least >= 0.98 else f"{name} (falls short)", views, modules)
        )
    for name in DRAWN_LARGE:
        large = apertures.draw(apertures.CAMERAS[name], *LARGE)
        rows.append(drawn_row(f"{name}, 12 megapixels", [large], modules))
    return rows


def drawn_row(
    name: str, views: list[apertures.Drawn], modules: tuple[ModuleType, ModuleType]
) -> str:
    cells = []
    for module in modules:
        overlaps, offs, times = np.array([measure(module, view) for view in views]).T
        worst = 100 * offs[np.abs(offs).argmax()]
        cells.append((f"{overlaps.min():.3f}", f"{worst:+.1f}", f"{times.max():.1f}"))
    pairs = zip(*cells, strict=True)
    return f"| {name} | " + " | ".join(cell for pair in pairs for cell in pair) + " |"


def real_row(name: str, pairs: list[tuple[Path, Path]], modules: tuple[ModuleType, ...]) -> str:
    cells = []
    seen_by: list[list[tuple[float, float, float]]] = [[] for _ in modules]
    for image, mask in pairs:
        given = np.asarray(Image.open(mask).convert("L")) > 127
        pixels = np.asarray(Image.open(image).convert("RGB"))
        for module, seen in zip(modules, seen_by, strict=True):
            drawn = apertures.Drawn(pixels, given, module.fov_diameter(given))
            seen.append(measure(module, drawn))
    for seen in seen_by:
        overlaps, offs, times = np.array(seen).T
        worst = 100 * offs[np.abs(offs).argmax()]
        shares = f"{overlaps.mean():.4f}, {np.median(overlaps):.4f}, {overlaps.min():.4f}"
        cells.append((shares, f"{worst:+.1f}", f"{np.median(times):.1f}"))
    columns = zip(*cells, strict=True)
    return f"| {name} ({len(pairs)}) | " + " | ".join(c for pair in columns for c in pair) + " |"


def real_rows(modules: tuple[ModuleType, ModuleType]) -> list[str]:
    rows = [
        "| photographs | "
        + HEAD.replace("overlap", "overlap (mean, median, least)")
        + f" | {MS} |",
        RULE + "---|---|",
    ]
    for split in ("training", "test"):
        images = sorted((drive() / split / "images").glob("*.tif"))
        masks = [drive() / split / "mask" / f"{image.stem}_mask.gif" for image in images]
        rows.append(real_row(f"DRIVE {split}", [*zip(images, masks, strict=True)], modules))
    hrf = drive().parent / "HRF"
    if pairs := [
        (image, hrf / "mask" / f"{image.stem}_mask.tif") for image in sorted(hrf.glob("images/*"))
    ]:
        rows.append(real_row("HRF", pairs, modules))
    stare = drive().parent / "STARE"
    images = sorted((stare / "stare-images").glob("*.ppm"))
    pairs = [(image, stare / "mask" / f"{image.stem}_mask.gif") for image in images]
    if pairs := [pair for pair in pairs if pair[1].exists()]:
        rows.append(real_row("STARE", pairs, modules))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", default="b6af692", help="commit to compare with")
    before = parser.parse_args().before
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        modules = fov_at(before, Path(folder)), fov
        lines = [
            "# The field of view",
            "",
            *facts(f"python benchmarks/fov.py --before {before}"),
            "Overlap is intersection over union. Drawn cameras: the worst of three views of each.",
            f"Load of the machine at the end: {os.getloadavg()[0]:.1f} (times are of CPU).",
            "",
            *drawn_rows(modules),
            "",
            *real_rows(modules),
        ]
    write("fov.md", lines)


if __name__ == "__main__":
    main()

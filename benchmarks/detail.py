"""Whether a photograph's size changes the vessels that are found: HRF whole, halved and quartered.

    python benchmarks/detail.py [--checkpoints resunet fineunet] [--photographs 30]

Needs HRF below SEGPIPE_DATA; its photographs 06 to 15, which no shipped checkpoint was trained on.
Each is reduced by the mean of 2x2 and of 4x4 px and segmented in this process; the labels are
measured as the masks are. Two minutes of a core a checkpoint. Writes results/detail.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from common import drive, facts, write
from PIL import Image

import segpipe
from segpipe.data.arrays import Image8
from segpipe.measurement.vessels import Measurements

SIZES = (1, 2, 4)  # by what width and height are divided
FIRST_OF_TEST = "06"
COLUMNS = ("calibre_mean", "length_density", "vessel_density")


def photographs(count: int) -> Iterator[tuple[Image8, npt.NDArray[np.bool_]]]:
    """(image [H, W, 3] uint8, vessels of its label [H, W] bool) of the test's first ones."""
    folder = drive().parent / "HRF"
    names = sorted(path for path in (folder / "images").iterdir() if path.name >= FIRST_OF_TEST)
    for path in names[:count]:
        label = np.asarray(Image.open(folder / "manual1" / f"{path.stem}.tif").convert("L"))
        yield np.asarray(Image.open(path).convert("RGB")), label > 127


def reduced(image: Image8, by: int) -> Image8:
    return np.asarray(Image.fromarray(image).reduce(by))


def row(measured: list[Measurements]) -> list[float]:
    """The median over photographs of each column."""
    return [float(np.median([getattr(one, name) for one in measured])) for name in COLUMNS]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoints", nargs="+", default=["resunet", "fineunet"])
    parser.add_argument("--photographs", type=int, default=30)
    given = parser.parse_args()
    models = {name: segpipe.load_model(name) for name in given.checkpoints}
    found: dict[str, dict[int, list[Measurements]]] = {
        name: {size: [] for size in SIZES} for name in models
    }
    labels: list[Measurements] = []
    for image, vessels in photographs(given.photographs):
        labels.append(segpipe.measure(vessels, segpipe.find_fov(image)))
        for size in SIZES:
            picture = reduced(image, size)
            for name, model in models.items():
                found[name][size].append(model.segment(picture).measurements)
    lines = [
        "| median over photographs | calibre, 1/1,000 field diameters | vessel length a diameter | "
        "vessel density |",
        "|---|---|---|---|",
    ]
    truth = row(labels)
    lines.append(f"| the labels | {1000 * truth[0]:.2f} | {truth[1]:.2f} | {truth[2]:.4f} |")
    for name, sizes in found.items():
        for size, measured in sizes.items():
            calibre, length, density = row(measured)
            lines.append(
                f"| {name}, 1/{size} | {1000 * calibre:.2f} | {length:.2f} | {density:.4f} |"
            )
    lines += [
        "",
        "| calibre of each photograph against that of the whole one | median | least | most |",
        "|---|---|---|---|",
    ]
    for name, sizes in found.items():
        whole = np.array([one.calibre_mean for one in sizes[1]])
        for size in SIZES[1:]:
            ratio = np.array([one.calibre_mean for one in sizes[size]]) / whole
            cells = " | ".join(f"{of(ratio):.3f}" for of in (np.median, np.min, np.max))
            lines.append(f"| {name}, 1/{size} | {cells} |")
        ratio = whole / np.array([one.calibre_mean for one in labels])
        cells = " | ".join(f"{of(ratio):.3f}" for of in (np.median, np.min, np.max))
        lines.append(f"| {name}, whole against its label | {cells} |")
    command = f"python benchmarks/detail.py --checkpoints {' '.join(given.checkpoints)}"
    write("detail.md", [*facts(f"{command} --photographs {given.photographs}"), *lines])


if __name__ == "__main__":
    main()

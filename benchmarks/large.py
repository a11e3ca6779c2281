"""Where the time goes with large photographs, and how many a second are segmented.

    python benchmarks/large.py [--images 400]

DRIVE's TIFFs, and the same photographs enlarged to JPEGs of quality 90 with seeded noise of 4
levels: 2,048x2,048 px and 4,288x2,848 px, the field filling the height. Four minutes on 2 cores.
Writes results/large.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import drive, facts, many_images, run, write
from PIL import Image

STAGES = (
    *("list", "fetch", "decode", "field", "resize", "handover", "model", "mask", "encode"),
    *("write", "commit", "waiting for work"),
)
KINDS = {"2,048x2,048 px JPEG": (2048, 2048), "4,288x2,848 px JPEG": (4288, 2848)}


def enlarged(folder: Path, count: int, width: int, height: int) -> Path:
    """The folder of so many photographs, drawn where it is not there."""
    if folder.exists():
        return folder
    begun = folder.with_name(folder.name + ".begun")
    begun.mkdir(parents=True, exist_ok=True)
    originals = sorted(drive().glob("*/images/*.tif"))
    for number in range(count):
        data = _enlarge(originals[number % len(originals)], width, height, number)
        data.save(begun / f"{number:05d}.jpg", quality=90)
    return begun.rename(folder)


def _enlarge(original: Path, width: int, height: int, seed: int) -> Image.Image:
    picture = Image.open(original)
    size = round(height * picture.width / picture.height), height
    frame = Image.new("RGB", (width, height))
    frame.paste(picture.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, 0))
    noise = np.random.default_rng(seed).normal(0, 4, (height, width, 1)).astype(np.float32)
    lit = np.asarray(frame, np.float32)
    return Image.fromarray((lit + noise * (lit > 20)).clip(0, 255).astype(np.uint8))


def segmented(images: Path, output: Path) -> tuple[dict[str, Any], float]:
    """The run's summary, and bytes a mask."""
    words = ["-m", "jobs.segment", "--input", images, "--output", output]
    run([*words, "--checkpoint", "segnet-lite", "--report-images", "off"])
    masks = list((output / "masks").iterdir())
    summary = json.loads((output / "summary.json").read_text())
    assert summary["ok"] == len(masks) == len(list(images.iterdir())), summary
    return summary, sum(mask.stat().st_size for mask in masks) / len(masks)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400)
    count = parser.parse_args().images
    lines = [
        *facts(f"python benchmarks/large.py --images {count}"),
        f"{count} photographs each. Stages: ms on the clock of a worker per photograph. JPEGs are "
        "decoded at a part of their size where the field keeps 1.1 times the working diameter. "
        "The rate of a run this short has its start in it: see segmentation.md for a long one.",
        "",
        f"| | images/s | {' | '.join(STAGES)} | KB a mask |",
        "|---|---|" + "---|" * (len(STAGES) + 1),
    ]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        folders = {"565x584 px TIFF": many_images(work / "drive", count)}
        for name, (width, height) in KINDS.items():
            folders[name] = enlarged(work / str(width), count, width, height)
        for number, (name, images) in enumerate(folders.items()):
            summary, size = segmented(images, work / f"out{number}")
            shown = [f"{1000 * summary['stages'][stage] / count:.2f}" for stage in STAGES]
            rate = summary["images_per_second"]
            lines.append(f"| {name} | {rate:.1f} | {' | '.join(shown)} | {size / 1e3:.0f} |")
    write("large.md", lines)


if __name__ == "__main__":
    main()

"""Peak memory does not grow with the data: training over 200 and 2,000 images, segmentation over
2,000 and 20,000, and photographs of 100 and 250 megapixels among small ones.

    python benchmarks/memory.py [--only training|segmentation]

Photographs are drawn and given many names; both trainings take 2,000 crops in one epoch. Memory is
the sum of PSS (what processes share is counted once) of the command and all its descendants,
sampled every second. Ten minutes on 2 cores. Writes results/memory-training.md and
results/memory-segmentation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from common import facts, write
from PIL import Image
from usage import measure

from segpipe.data import synthetic
from segpipe.data.synthetic_sets import write_labelled

CROPS, DRAWN = 2000, 50
SMALL_PX = 200
GIANTS = {"100-megapixels.jpg": 10_000, "250-megapixels.jpg": 15_812}  # px a side


def labelled_set(drawn: Path, root: Path, num_training: int) -> Path:
    """`num_training` training images and 10 test images under names of their own."""
    for split, first, count in (("test", 1, 10), ("training", 11, num_training)):
        for number in range(first, first + count):
            original = f"{1 + number % DRAWN + 10:02d}"
            for pattern in ("images/{}_{}.tif", "1st_manual/{}_manual1.gif", "mask/{}_{}_mask.gif"):
                target = root / split / pattern.format(f"{number:02d}", split)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(drawn / "training" / pattern.format(original, "training"), target)
    return root


def training(work: Path) -> list[str]:
    lines = ["| images | crops | peak, MiB | seconds |", "|---|---|---|---|"]
    peaks = []
    write_labelled(work / "drawn", num_training=DRAWN, num_test=10)
    for count in (200, 2000):
        data = labelled_set(work / "drawn", work / f"set{count}", count)
        words = [
            "-m",
            "jobs.train",
            "--recipe",
            "lecture",
            "--epochs",
            "1",
            "--workers",
            "2",
            "--crops-per-image",
        ]
        words += [str(CROPS // count), "--data", str(data), "--output", str(work / f"out{count}")]
        used = measure(words, memory=True)
        peaks.append(used.peak_mib)
        lines.append(f"| {count} | {CROPS} | {used.peak_mib:.0f} | {used.wall_s:.0f} |")
    whole = 2000 * 565 * 584 * 4 / 2**20
    return [
        *lines,
        "",
        f"Ratio {peaks[1] / peaks[0]:.3f}; the decoded set would be {whole:.0f} MiB.",
    ]


def small_photographs(folder: Path, count: int) -> Path:
    """Drawn once, and linked under many names."""
    folder.mkdir(parents=True)
    image, _, _ = synthetic.draw_fundus(0, SMALL_PX, SMALL_PX)
    original = folder.parent / f"{folder.name}.jpg"
    Image.fromarray(image).save(original, quality=90)
    for number in range(count):
        os.link(original, folder / f"{number:06d}.jpg")
    return folder


def segmentation(work: Path) -> list[str]:
    lines = ["| images | peak, MiB | seconds | images/s |", "|---|---|---|---|"]
    peaks = []
    for count in (2000, 20_000):
        images, output = small_photographs(work / f"small{count}", count), work / f"masks{count}"
        words = ["-m", "jobs.segment", "--input", str(images), "--output", str(output)]
        words += ["--checkpoint", "segnet-lite"]
        used = measure(words, memory=True)
        peaks.append(used.peak_mib)
        rate = json.loads((output / "summary.json").read_text())["images_per_second"]
        lines.append(f"| {count} | {used.peak_mib:.0f} | {used.wall_s:.0f} | {rate:.0f} |")
    return [*lines, "", f"Ratio {peaks[1] / peaks[0]:.3f}.", "", *giants(work)]


def giants(work: Path) -> list[str]:
    """100 megapixels pass, 250 are rejected, and no photograph beside them is lost."""
    images, output = small_photographs(work / "mixed", 100), work / "mixed-masks"
    picture, _, _ = synthetic.draw_fundus(1, 2000, 2000)
    for name, side in GIANTS.items():
        Image.fromarray(picture).resize((side, side)).save(images / name, quality=80)
    words = ["-m", "jobs.segment", "--input", str(images), "--output", str(output)]
    words += ["--checkpoint", "segnet-lite"]
    used = measure(words, memory=True)
    rows = {row["path"]: row for row in pq.read_table(output / "results").to_pylist()}
    told = [
        f"{name}: {rows[name]['status']}, {rows[name]['error'] or 'no error'}" for name in GIANTS
    ]
    others = sum(row["status"] == "ok" for name, row in rows.items() if name not in GIANTS)
    kinds = ("Ray Data's workers of ours", "decoders")
    seen = ", ".join(f"{used.processes[kind]} {kind}" for kind in kinds)
    return [
        f"Among 100 small photographs: {'; '.join(told)}; of the others {others} have masks; exit "
        f"code 0, peak {used.peak_mib:.0f} MiB. Processes there were in all, replaced ones counted "
        f"again: {seen}; without a death there is one of each for each of the {os.cpu_count()} "
        "cores, and the report's decoder."
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts = {"training": training, "segmentation": segmentation}
    parser.add_argument("--only", choices=parts)
    only = parser.parse_args().only
    for name in [only] if only else parts:
        with tempfile.TemporaryDirectory() as folder:
            lines = facts(f"python benchmarks/memory.py --only {name}")
            write(f"memory-{name}.md", lines + parts[name](Path(folder)))


if __name__ == "__main__":
    main()

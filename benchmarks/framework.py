"""What segpipe itself costs: CPU per image around a network that does nothing, and start-up.

    python benchmarks/framework.py [--images 100000]

The images are 32x32 px PNGs of a drawn disc; the working diameter is 24 px, and a stage whose
network answers zeros takes the place of the real one. Everything else is done: listed, fetched,
decoded in the child process, fitted, encoded, written, committed, compacted. CPU seconds are of all
processes together, less those of a run over 100 images (start-up and end). Start-up is the time
from the command to the first mask in place, beside that of importing torch and starting Ray alone.
About five minutes on 2 cores. Writes results/framework.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, facts, many_images, write
from PIL import Image, ImageDraw
from usage import Usage, measure

SIDE, DIAMETER, FOLDER = 32, 24.0, 1000  # px, px, images in one folder
FEW = 100
STARTS = 5
TORCH_AND_RAY = (
    "import ray, torch\n"
    "ray.init(include_dashboard=False, logging_level='ERROR', log_to_driver=False)"
)


def segment_with_nothing(words: list[str]) -> None:
    """`segpipe segment` with a network that answers zeros."""
    from segpipe import cli
    from segpipe.models.engine import REFERENCE
    from segpipe.segment import pipeline, stages
    from segpipe.segment.job import SegmentJob

    class Nothing(stages.Segmenter):
        def __init__(self, job: SegmentJob, *_: Any) -> None:
            self.job, self.engine = job, REFERENCE
            self.score = lambda canvas, fov: np.zeros(fov.shape, np.float32)

    setattr(pipeline, "Segmenter", Nothing)  # noqa: B010  pickled by value, as this is no module
    cli.run_verb("segment", words)


def tiny_images(folder: Path, count: int) -> Path:
    picture = Image.new("RGB", (SIDE, SIDE))
    ImageDraw.Draw(picture).ellipse((4, 4, 27, 27), fill=(180, 90, 40))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    for number in range(count):
        path = folder / f"{number // FOLDER:04d}" / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    return folder


def tiny_checkpoint(path: Path) -> Path:
    """The shipped weights, which are not used, at a working diameter of 24 px."""
    from dataclasses import replace

    from segpipe.models import checkpoint

    shipped = checkpoint.load(checkpoint.read("segnet-lite"), "")
    path.write_bytes(checkpoint.dump(shipped.state, replace(shipped.card, diameter=DIAMETER)))
    return path


def cost(work: Path, count: int) -> tuple[Usage, dict[str, Any]]:
    output = work / "out"
    shutil.rmtree(output, ignore_errors=True)
    words = [__file__, "--nothing", "--input", str(work / "images"), "--output", str(output)]
    words += ["--checkpoint", str(work / "tiny.safetensors"), "--limit", str(count)]
    used = measure([*words, "--report-images", "off"])
    return used, json.loads((output / "summary.json").read_text())


def seconds_to_first_mask(images: Path, work: Path) -> float:
    output = work / "first"
    shutil.rmtree(output, ignore_errors=True)
    words = ["-m", "jobs.segment", "--input", str(images), "--output", str(output)]
    words += ["--checkpoint", "segnet-lite"]
    start = time.monotonic()
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        while not list((output / "masks").glob("*.png")):
            if process.poll():
                raise SystemExit("no mask")
            time.sleep(0.02)
        seconds = time.monotonic() - start
    return seconds


def started(code: str) -> float:
    """Seconds until this code is through, its own shutdown left out."""
    told = code + "\nimport sys; sys.stdout.write('x'); sys.stdout.flush()"
    start = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", told], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.read(1)
        seconds = time.monotonic() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tiny_images(work / "images", count)
        tiny_checkpoint(work / "tiny.safetensors")
        cost(work, FEW)  # tries the engines for this checkpoint
        few, _ = cost(work, FEW)
        many, summary = cost(work, count)
        photographs = many_images(work / "photographs", 40)
        cold = {"SEGPIPE_CACHE": str(work / "cache")}
        os.environ |= cold
        cold_s = seconds_to_first_mask(photographs, work)
        pairs = [
            (started(TORCH_AND_RAY), seconds_to_first_mask(photographs, work))
            for _ in range(STARTS)
        ]
    write("framework.md", table(count, few, many, summary, pairs, cold_s))


def table(
    count: int,
    few: Usage,
    many: Usage,
    summary: dict[str, Any],
    pairs: list[tuple[float, float]],
    cold_s: float,
) -> list[str]:
    def per_image(seconds: float) -> str:
        return f"{1000 * seconds / (count - FEW):.2f}"

    spent = many.cpu_s - few.cpu_s
    plain, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    stages = {name: seconds for name, seconds in summary["stages"].items() if seconds >= 0.001}
    return [
        *facts(f"python benchmarks/framework.py --images {count}"),
        f"CPU around a network that does nothing, {count} images of {SIDE}x{SIDE} px, "
        f"{summary['images_per_second']:.0f} images/s:",
        "",
        "| processes | ms of CPU per image |",
        "|---|---|",
        *(f"| {kind} | {per_image(seconds)} |" for kind, seconds in spent.most_common()),
        f"| **all** | **{per_image(spent.total())}** |",
        "",
        "| stage, in our workers | ms on the clock per image |",
        "|---|---|",
        *(f"| {name} | {1000 * seconds / count:.2f} |" for name, seconds in stages.items()),
        "",
        f"Start-up, median of {STARTS}: importing torch and starting Ray alone {plain:.1f} s; from "
        f"the command to the first mask {ours:.1f} s, {ours / plain:.2f} times as long; "
        f"{cold_s:.1f} s with nothing in the cache (the engines are tried).",
    ]


if __name__ == "__main__":
    if "--nothing" in sys.argv:
        sys.argv.remove("--nothing")
        segment_with_nothing(sys.argv[1:])
    else:
        main()

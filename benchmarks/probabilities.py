"""What `--probabilities` costs: a score enlarged to its photograph's size and packed as a PNG.

    python benchmarks/probabilities.py [--images 60]

HRF's photographs (3,504 x 2,336 px): first every third in one process, by CPU time; then so many,
under several names, segmented whole with the flag and without, in turns, twice. Ten minutes on 2
cores that have nothing else to do. Writes results/probabilities.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import drive, facts, run, write
from PIL import Image

from segpipe.data import codecs
from segpipe.data.arrays import Image8
from segpipe.data.canvas import native_mask, native_score, plain_native_score
from segpipe.data.fitting import fit
from segpipe.models import checkpoint, engine

REPEATS = 3
WAYS: dict[str, Callable[[Image8], bytes]] = {
    "Pillow, level 1 (until 0.1.0)": lambda grey: by_pillow(grey, 1),
    "Pillow, level 0, nothing packed": lambda grey: by_pillow(grey, 0),
    "OpenCV, level 1, filters by row": lambda grey: by_opencv(
        grey, cv2.IMWRITE_PNG_STRATEGY_FILTERED
    ),
    "OpenCV, runs alone, filters by row": lambda grey: by_opencv(
        grey, cv2.IMWRITE_PNG_STRATEGY_RLE
    ),
    "zlib, level 1, no filter": lambda grey: zlib.compress(plain_rows(grey).data, 1),
    "zlib, runs alone, no filter": lambda grey: by_zlib(plain_rows(grey), zlib.Z_RLE),
    "zlib, codes alone, differences upwards": lambda grey: by_zlib(
        upwards(grey), zlib.Z_HUFFMAN_ONLY
    ),
    "zlib, runs alone, differences upwards": lambda grey: by_zlib(upwards(grey), zlib.Z_RLE),
    "zlib, level 1, differences upwards (without kernels)": lambda grey: by_zlib(
        upwards(grey), zlib.Z_DEFAULT_STRATEGY
    ),
    "kernels: runs alone, Paeth's filter": codecs.encode_grey,
}


def by_pillow(grey: Image8, level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG", compress_level=level)
    return file.getvalue()


def by_opencv(grey: Image8, strategy: int) -> bytes:
    flags = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, strategy]
    return cv2.imencode(".png", grey, flags)[1].tobytes()


def plain_rows(grey: Image8) -> Image8:
    return np.pad(grey, ((0, 0), (1, 0)))


def upwards(grey: Image8) -> Image8:
    return codecs._differences(grey)


def by_zlib(rows: Image8, strategy: int) -> bytes:
    return codecs._deflated(rows, strategy)


def ms_of(step: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, Any]:
    """Of this process's CPU, the quickest, and what came of it."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        done = step()
        times.append(1000 * (time.process_time() - start))
    return min(times), done


def parts(photographs: list[Path]) -> list[str]:
    """Each step of a photograph in one process, and each way to pack its score."""
    weights = checkpoint.read(None)
    card = checkpoint.load(weights, "default").card
    trials = engine.find_trials(weights, "cpu")
    chosen = engine.select(trials, "auto", "auto").engine
    network = engine.open_score(weights, chosen, 1, card.tta)
    steps, ways, sizes = defaultdict(list), defaultdict(list), defaultdict(list)
    for path in photographs:
        data = path.read_bytes()
        ms, fitted = ms_of(partial(fit, data, card.working, 200.0))
        steps["decode, field, resize"].append(ms)
        ms, score = ms_of(partial(network, fitted.canvas, fitted.fov), 1)
        steps[f"network ({card.model}, {chosen.name}, --tta {card.tta})"].append(ms)
        place = fitted.geometry
        ms, mask = ms_of(partial(native_mask, score, fitted.fov, place, card.threshold))
        steps["mask, enlarged"].append(ms)
        steps["mask, packed"].append(ms_of(partial(codecs.encode_mask, mask))[0])
        ms, old = ms_of(partial(plain_native_score, score, mask, place))
        steps["score, enlarged by Pillow and numpy"].append(ms)
        ms, grey = ms_of(partial(native_score, score, mask, place))
        steps["score, enlarged by kernels"].append(ms)
        assert np.array_equal(old, grey)
        for name, way in WAYS.items():
            ms, packed = ms_of(partial(way, grey))
            ways[name].append(ms)
            sizes[name].append(len(packed) / 1e6)
    lines = [
        f"{len(photographs)} photographs of HRF, means, CPU time of one process:",
        "",
        "| step | ms |",
        "|---|---|",
        *(f"| {name} | {np.mean(ms):.1f} |" for name, ms in steps.items()),
        "",
        "| score, packed by | ms | MB |",
        "|---|---|---|",
        *(f"| {name} | {np.mean(ways[name]):.1f} | {np.mean(sizes[name]):.2f} |" for name in ways),
    ]
    return lines


def whole(photographs: list[Path], count: int) -> list[str]:
    """Runs of `segpipe segment` with scores and without, in turns."""
    rows = [
        "| `segpipe segment` | load before | whole process, s | stages but waiting, ms an image | "
        "of these model | encode | write, commit |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.mkdir()
        for number in range(count):
            path = photographs[number % len(photographs)]
            shutil.copy(path, source / f"{number:04d}_{path.name}")
        for flags in 2 * ((), ("--probabilities",)):
            output, load = Path(folder) / "out", os.getloadavg()[0]
            run(["-m", "segpipe", "segment", "--input", source, "--output", output, *flags])
            summary = json.loads((output / "summary.json").read_text())
            ms = {name: 1000 * s / count for name, s in summary["stages"].items()}
            told = (
                sum(ms.values()) - ms["waiting for work"],
                ms["model"],
                ms["encode"],
                ms["write"] + ms["commit"],
            )
            rows.append(
                f"| {' '.join(flags) or 'masks alone'} | {load:.1f} | {summary['seconds']} | "
                + " | ".join(f"{one:.0f}" for one in told)
                + " |"
            )
            shutil.rmtree(output)
    return [f"{count} photographs; stages are on the clock of a worker:", "", *rows]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=60)
    images = parser.parse_args().images
    cv2.setNumThreads(1)
    photographs = sorted((drive().parent / "HRF" / "images").iterdir())
    lines = parts(photographs[::3])
    if images:
        lines += ["", *whole(photographs, images)]
    write(
        "probabilities.md",
        [*facts(f"python benchmarks/probabilities.py --images {images}"), *lines],
    )


if __name__ == "__main__":
    main()

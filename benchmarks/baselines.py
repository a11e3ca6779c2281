"""Speed beside the plain loops that people write without segpipe, all in one run.

    make bench            (or: python benchmarks/baselines.py --images 400 --epochs 3)

Needs DRIVE below SEGPIPE_DATA and the loops (lecture_train.py, plain_segment.py,
ray_docs_segment.py) in SEGPIPE_BASELINES. About ten minutes on 2 cores. Writes results/bench.json
and results/bench.md. Rates are steady ones, start-up apart; seconds are of whole processes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run(words: list[str]) -> tuple[float, str]:
    """Run a process -> its wall seconds and what it printed."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return time.monotonic() - start, done.stdout


def last_json(text: str) -> dict[str, Any]:
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def many_images(drive: Path, folder: Path, count: int) -> Path:
    """`count` DRIVE photographs, each under several names, in one flat folder."""
    folder.mkdir()
    originals = sorted(drive.glob("*/images/*.tif"))
    for number in range(count):
        original = originals[number % len(originals)]
        shutil.copy(original, folder / f"{number:05d}_{original.name}")
    return folder


def bench_training(drive: Path, loops: Path, work: Path, epochs: int) -> dict[str, Any]:
    plain_s, printed = run([str(loops / "lecture_train.py"), str(drive), "--epochs", str(epochs)])
    plain = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    output = work / "model"
    words = ["-m", "jobs.train", "--workers", "2", "--epochs", str(epochs)]
    ours_s, _ = run([*words, "--data", str(drive), "--output", str(output)])
    with (output / "history.csv").open() as file:
        history = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    waits, steps = [], []
    for path in sorted((output / "_segpipe" / "steps").iterdir())[1:]:
        with path.open() as file:
            for row in csv.DictReader(file):
                waits.append(float(row["wait_s"]))
                steps.append(float(row["step_s"]))
    batch = 10
    return {
        "plain_loop": {
            "crops_per_s": statistics.median(row["crops_per_second"] for row in plain[1:]),
            "process_s": plain_s,
        },
        "segpipe": {
            "crops_per_s": statistics.median(row["crops_per_second"] for row in history[1:]),
            "process_s": ours_s,
            "step_alone_crops_per_s": batch / statistics.mean(steps),
            "data_stall_share": sum(waits) / (sum(waits) + sum(steps)),
            "startup_s": ours_s - sum(row["seconds"] for row in history),
        },
        "losses": {
            "plain_loop": [row["train_loss"] for row in plain],
            "segpipe": [row["train_loss"] for row in history],
        },
    }


def bench_segmentation(drive: Path, loops: Path, work: Path, count: int) -> dict[str, Any]:
    images = many_images(drive, work / "images", count)
    results: dict[str, Any] = {"images": count}
    process_s, printed = run([str(loops / "plain_segment.py"), str(images), str(work / "plain")])
    rate = last_json(printed)["images_per_second"]
    results["plain_loop"] = {"images_per_s": rate, "process_s": process_s}
    process_s, printed = run([str(loops / "ray_docs_segment.py"), str(images), str(work / "docs")])
    rate = last_json(printed)["steady_images_per_second"]
    results["ray_documentation"] = {"images_per_s": rate, "process_s": process_s}
    output = work / "masks"
    process_s, _ = run(["-m", "jobs.segment", "--input", str(images), "--output", str(output)])
    summary = json.loads((output / "summary.json").read_text())
    assert summary["ok"] == count, summary
    rate = summary["images_per_second"]
    results["segpipe"] = {
        "images_per_s": rate,
        "process_s": process_s,
        "startup_and_end_s": process_s - count / rate,
    }
    return results


def machine() -> dict[str, str]:
    with open("/proc/cpuinfo") as file:
        model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "pillow", "numpy"))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {model}",
        "versions": f"Python {platform.python_version()}, {packages}",
        "commit": commit,
        "command": "make bench",
    }


def table(result: dict[str, Any]) -> str:
    train, segment = result["training"], result["segmentation"]
    ours, docs, plain = segment["segpipe"], segment["ray_documentation"], segment["plain_loop"]
    stall = train["segpipe"]["data_stall_share"]
    lines = [
        *(f"- {name}: {value}" for name, value in result["machine"].items()),
        "",
        "| training, segnet-lite, 2 cores | crops/s | whole process, s |",
        "|---|---|---|",
        *(
            f"| {name} | {train[key]['crops_per_s']:.1f} | {train[key]['process_s']:.0f} |"
            for name, key in (("plain loop", "plain_loop"), ("segpipe, 2 workers", "segpipe"))
        ),
        "",
        f"The step alone: {train['segpipe']['step_alone_crops_per_s']:.1f} crops/s; data stall "
        f"{stall:.1%} of step time; start-up and end {train['segpipe']['startup_s']:.0f} s. Ratio "
        f"{train['segpipe']['crops_per_s'] / train['plain_loop']['crops_per_s']:.1f}.",
        "",
        f"| segmentation of {segment['images']} DRIVE-size images | images/s, steady | "
        "whole process, s |",
        "|---|---|---|",
        *(
            f"| {name} | {row['images_per_s']:.1f} | {row['process_s']:.0f} |"
            for name, row in (
                ("plain loop", plain),
                ("Ray's documentation", docs),
                ("segpipe", ours),
            )
        ),
        "",
        "Ratios steady / whole process: "
        f"{ours['images_per_s'] / plain['images_per_s']:.1f} / "
        f"{plain['process_s'] / ours['process_s']:.1f} to the plain loop, "
        f"{ours['images_per_s'] / docs['images_per_s']:.1f} / "
        f"{docs['process_s'] / ours['process_s']:.1f} to Ray's documentation. "
        f"Start-up and end {ours['startup_and_end_s']:.0f} s.",
        "",
        "The loops run as a user runs them, under glibc's allocator; segpipe preloads jemalloc in "
        "its model processes.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    flags = parser.parse_args()
    drive = Path(os.environ.get("SEGPIPE_DATA", "../shared/data")).resolve() / "DRIVE"
    loops = Path(os.environ.get("SEGPIPE_BASELINES", "../shared/baselines")).resolve()
    for needed, variable in ((drive, "SEGPIPE_DATA"), (loops, "SEGPIPE_BASELINES")):
        if not needed.is_dir():
            raise SystemExit(f"bench: {needed} is missing, set {variable}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        result = {
            "machine": machine(),
            "training": bench_training(drive, loops, work, flags.epochs),
            "segmentation": bench_segmentation(drive, loops, work, flags.images),
        }
    (ROOT / "results" / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    (ROOT / "results" / "bench.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()

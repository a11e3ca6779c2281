"""Training beside the lecture's loop in plain PyTorch, both in one run.

    python benchmarks/training.py [--epochs 3]        (a part of `make bench`)

Needs DRIVE below SEGPIPE_DATA and lecture_train.py in SEGPIPE_BASELINES. Five minutes on 2 cores.
Writes results/training.md. Rates are steady ones, start-up apart; seconds are of whole processes.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from pathlib import Path

from common import drive, facts, loops, run, write

BATCH = 10


def rows_of(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3)
    epochs = parser.parse_args().epochs
    plain_s, printed = run([loops() / "lecture_train.py", drive(), "--epochs", epochs])
    plain = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model"
        words = ["-m", "jobs.train", "--workers", "2", "--epochs", epochs]
        ours_s, _ = run([*words, "--data", drive(), "--output", output])
        history = rows_of(output / "history.csv")
        files = sorted((output / "_segpipe" / "steps").iterdir())[1:]
        steps = [row for path in files for row in rows_of(path)]
    rates = [
        statistics.median(row["crops_per_second"] for row in rows[1:]) for rows in (plain, history)
    ]
    wait, work = (sum(row[name] for row in steps) for name in ("wait_s", "step_s"))
    start_up = ours_s - sum(row["seconds"] for row in history)
    write(
        "training.md",
        [
            *facts(f"python benchmarks/training.py --epochs {epochs}"),
            "| training, segnet-lite, 2 cores | crops/s | whole process, s |",
            "|---|---|---|",
            f"| plain loop | {rates[0]:.1f} | {plain_s:.0f} |",
            f"| segpipe, 2 workers | {rates[1]:.1f} | {ours_s:.0f} |",
            "",
            f"The step alone: {BATCH * len(steps) / work:.1f} crops/s; data stall "
            f"{wait / (wait + work):.1%} of step time; start-up and end {start_up:.0f} s. Ratio "
            f"{rates[1] / rates[0]:.1f}.",
        ],
    )


if __name__ == "__main__":
    main()

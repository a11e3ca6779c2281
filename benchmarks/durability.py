"""What syncing costs a whole run: `segpipe segment` as it is, and with fsync made to do nothing.

    python benchmarks/durability.py [--images 1000] [--repeats 3]

DRIVE's photographs under many names, the quickest network, so that the share is the largest. Both
ways take turns. A `sitecustomize.py` first on PYTHONPATH replaces os.fsync in every process of
the second. Five minutes on 2 cores. Writes results/durability.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from common import facts, many_images, run, write

WITHOUT = "import os\nos.fsync = lambda handle: None\n"


def _median(values: tuple[float, ...]) -> str:
    return f"{statistics.median(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    words = ["--checkpoint", "segnet-lite", "--report-images", "off"]
    taken: dict[str, list[tuple[float, float]]] = {"synced": [], "not synced": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        archive = many_images(root / "archive", options.images)
        (root / "without").mkdir()
        (root / "without" / "sitecustomize.py").write_text(WITHOUT)
        for number in range(options.repeats):
            for name, runs in taken.items():
                output = root / f"{name.replace(' ', '-')}-{number}"
                env = {"PYTHONPATH": str(root / "without")} if name == "not synced" else None
                job = ["-m", "jobs.segment", "--input", archive, "--output", output, *words]
                seconds, _ = run(job, env)
                summary = json.loads((output / "summary.json").read_text())
                runs.append((seconds, summary["images_per_second"]))
    command = f"python benchmarks/durability.py --images {options.images}"
    what = f"{options.images:,} photographs of DRIVE, segnet-lite"
    lines = [
        *facts(f"{command} --repeats {options.repeats}"),
        f"| {what} | s, whole process | images/s, steady |",
        "|---|---|---|",
    ]
    for name, runs in taken.items():
        whole, steady = zip(*runs, strict=True)
        lines.append(f"| {name} | {_median(whole)} | {_median(steady)} |")
    write("durability.md", lines)


if __name__ == "__main__":
    main()

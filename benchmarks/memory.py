"""Peak memory of a training, all processes together, over 200 images and over 2,000.

    python benchmarks/memory.py

Draws 50 photographs and gives each many names; both trainings take 2,000 crops in one epoch. Memory
is the sum of PSS (what processes share is counted once) of the command and all its descendants,
sampled every second. About five minutes on 2 cores. Writes results/memory.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from baselines import ROOT, machine

from segpipe.data import synthetic

CROPS, DRAWN, SAMPLE_S = 2000, 50, 1.0


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


def pss_mib(pid: int) -> float:
    """PSS of a process and all its descendants, MiB."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended
            children.setdefault(parent, []).append(int(entry.name))
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def peak(data: Path, output: Path, num_images: int) -> tuple[float, float]:
    """Train one epoch -> peak memory in MiB and seconds."""
    words = ["-m", "jobs.train", "--epochs", "1", "--workers", "2", "--crops-per-image"]
    words += [str(CROPS // num_images), "--data", str(data), "--output", str(output)]
    start, highest = time.monotonic(), 0.0
    with subprocess.Popen([sys.executable, *words], cwd=ROOT) as process:
        while process.poll() is None:
            highest = max(highest, pss_mib(process.pid))
            time.sleep(SAMPLE_S)
    if process.returncode:
        raise SystemExit(f"training on {num_images} images failed")
    return highest, time.monotonic() - start


def main() -> None:
    lines = [f"- {name}: {value}" for name, value in machine().items() if name != "command"]
    lines += ["- command: python benchmarks/memory.py", ""]
    lines += ["| images | crops | peak, MiB | seconds |", "|---|---|---|---|"]
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        synthetic.write_labelled(work / "drawn", num_training=DRAWN, num_test=10)
        for count in (200, 2000):
            data = labelled_set(work / "drawn", work / f"set{count}", count)
            highest, seconds = peak(data, work / f"out{count}", count)
            peaks.append(highest)
            lines.append(f"| {count} | {CROPS} | {highest:.0f} | {seconds:.0f} |")
    lines += [
        "",
        f"Ratio {peaks[1] / peaks[0]:.3f}; the decoded set would be "
        f"{2000 * 565 * 584 * 4 / 2**20:.0f} MiB.",
    ]
    text = "\n".join(lines) + "\n"
    (ROOT / "results" / "memory.md").write_text(text)
    print(text)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()

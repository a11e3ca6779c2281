"""What a command and all that it starts use: CPU seconds by kind of process, and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass

import psutil
from common import ROOT

SAMPLE_S = 0.1
MEMORY_EVERY = 10  # samples: PSS takes the kernel some time
KINDS = {  # what a process's command line holds -> what it is
    "segpipe.data.decoder": "decoders",
    "ray::MapWorker": "Ray Data's workers of ours",
    "ray::": "Ray's other workers and agents",
    "gcs_server": "Ray's GCS",
    "raylet/raylet": "raylet",
    "site-packages/ray/": "Ray's other workers and agents",
}


@dataclass(frozen=True)
class Usage:
    wall_s: float
    cpu_s: Counter[str]
    """By kind of process; what one used in its last tenth of a second may be missing."""
    peak_mib: float
    """Highest sum of PSS: what processes share is counted once."""
    processes: Counter[str]
    """How many there were of each kind; one that died and was replaced counts twice."""


def measure(words: list[str], memory: bool = False) -> Usage:
    """Run `python WORDS` to its end. Raises SystemExit where it fails."""
    start, peak, samples = time.monotonic(), 0.0, 0
    used: dict[int, tuple[str, float]] = {}
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, env=os.environ) as process:
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            found = [driver, *_descendants(driver)]
            for one in found:
                if sample := _cpu(one, driver):
                    used[one.pid] = sample
            if memory and samples % MEMORY_EVERY == 0:
                peak = max(peak, sum(map(_pss, found)))
            samples += 1
            time.sleep(SAMPLE_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    total: Counter[str] = Counter()
    for kind, seconds in used.values():
        total[kind] += seconds  # type: ignore[assignment]  # typed for whole
    processes = Counter(kind for kind, _ in used.values())
    return Usage(time.monotonic() - start, total, peak / 2**20, processes)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _cpu(process: psutil.Process, driver: psutil.Process) -> tuple[str, float] | None:
    try:
        words, times = " ".join(process.cmdline()), process.cpu_times()
    except psutil.Error:
        return None
    if not words:  # it has ended
        return None
    kind = next((kind for part, kind in KINDS.items() if part in words), "driver")
    return ("driver" if process == driver else kind), times.user + times.system


def _pss(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except psutil.Error:
        return 0.0

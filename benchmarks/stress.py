"""Kill runs of `segpipe segment` at random moments and see whether anything is lost or doubled.

    python benchmarks/stress.py [--trials 20]

Runs the test of tests/test_kill.py that often: the driver, an actor, a node of three raylets, one
of Ray's other workers, a decoder's process and the only raylet in turn, each after a random number
of parts, with others in flight. About half a minute a trial on 2 cores. Writes results/stress.md.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import Counter

from common import ROOT, facts, write

VICTIMS = ("driver", "actor", "node", "worker", "decoder", "raylet")  # as in the test
TEST = "tests/test_kill.py::test_a_run_in_which_something_is_killed_ends_as_an_undisturbed_one"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    trials = parser.parse_args().trials
    start = time.monotonic()
    words = ["-m", "pytest", "-v", "-m", "cluster", TEST, "--trials", str(trials)]
    ended = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    outcomes = re.findall(r"one\[(\d+)\] (PASSED|FAILED|ERROR)", ended.stdout)
    counts = Counter((VICTIMS[int(trial) % len(VICTIMS)], outcome) for trial, outcome in outcomes)
    lines = facts(f"python benchmarks/stress.py --trials {trials}")
    lines += ["| killed | trials | ended as an undisturbed run |", "|---|---|---|"]
    for victim in VICTIMS:
        of_it = {outcome: number for (name, outcome), number in counts.items() if name == victim}
        lines.append(f"| {victim} | {sum(of_it.values())} | {of_it.get('PASSED', 0)} |")
    lines += ["", f"{time.monotonic() - start:.0f} s."]
    write("stress.md", lines)
    if ended.returncode:
        print(ended.stdout[-5000:], file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

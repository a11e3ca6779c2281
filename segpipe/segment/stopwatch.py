"""Where the time of a bulk run goes, and so what its bottleneck is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

STAGES = (
    "fetch",  # waited for the input's bytes
    "decode",
    "field",  # of view, found
    "resize",  # to the canvas
    "handover",  # to the decoder's process and back
    "model",
    "mask",  # canvas -> native size
    "encode",
    "structures",  # told apart: arteries, veins, disc
    "measure",
    "write",  # waited for the last masks to be in place
    "commit",
)
LISTING, IDLE = "list", "waiting for work"


class Stopwatch:
    """Wall seconds by stage of one process."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def as_array(self) -> npt.NDArray[np.float64]:
        """In order of STAGES."""
        return np.asarray(list(self.seconds.values()))


class StageTimes:
    """The stages' seconds of all groups, and what their workers did between them."""

    def __init__(self, num_workers: int, listing_s: float) -> None:
        self.num_workers, self.listing_s = num_workers, listing_s
        self.seconds = np.zeros(len(STAGES))
        self.first, self.last, self.in_groups = float("inf"), 0.0, 0.0

    def add(self, seconds: npt.NDArray[np.float64], started: float, finished: float) -> None:
        """One group: its stages in order of STAGES, and when it was worked on (seconds)."""
        self.seconds += seconds
        self.in_groups += finished - started
        self.first, self.last = min(self.first, started), max(self.last, finished)

    def summary(self) -> dict[str, Any]:
        """`stages`: seconds of all workers, who wait while the input is listed; `bottleneck`: the
        stage that took most of them.
        """
        if not self.in_groups:
            return {"stages": None, "bottleneck": None}
        stages = {LISTING: round(self.num_workers * self.listing_s, 3)}
        stages |= {name: round(float(s), 3) for name, s in zip(STAGES, self.seconds, strict=True)}
        idle = self.num_workers * (self.last - self.first) - self.in_groups
        stages[IDLE] = round(max(0.0, idle), 3)
        return {"stages": stages, "bottleneck": max(stages, key=lambda name: stages[name])}

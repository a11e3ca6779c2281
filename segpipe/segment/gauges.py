"""What Prometheus sees of a bulk run, through Ray's exporter on the driver's node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray.util.metrics import Counter, Gauge

from segpipe.segment.stopwatch import STAGES


class Gauges:
    def __init__(self) -> None:
        self.images = Counter("segpipe_images", "Inputs that ended.", tag_keys=("status",))
        self.seconds = Counter("segpipe_stage_seconds", "Of all workers.", tag_keys=("stage",))
        self.open = Gauge("segpipe_images_open", "Inputs that are still to do.")
        self.rate = Gauge("segpipe_images_per_second", "Steady rate of this run.")

    def add(self, counts: Mapping[str, int], seconds: Sequence[float]) -> None:
        """One group: inputs by status, and the stages' seconds in order of STAGES."""
        for status, count in counts.items():
            if count:
                self.images.inc(count, {"status": status})
        for stage, spent in zip(STAGES, seconds, strict=True):
            if spent:
                self.seconds.inc(float(spent), {"stage": stage})

    def set(self, num_open: int, rate: float | None) -> None:
        self.open.set(num_open)
        self.rate.set(rate or 0.0)

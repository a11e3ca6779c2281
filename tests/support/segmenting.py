"""The job of a run of `segpipe segment` that no verb has started."""

from segpipe.data.classes import CLASSES
from segpipe.models.checkpoint import Card
from segpipe.segment.config import SegmentConfig
from segpipe.segment.job import SegmentJob
from segpipe.segment.started import Started
from segpipe.storage import Store


def job_of(
    source: Store,
    output: Store,
    diameter: float = 540.0,
    threshold: float = 0.24,
    stand_in_allowed: bool = True,
    **flags: object,
) -> SegmentJob:
    """`flags` are fields of SegmentConfig."""
    card = Card("segnet-lite", diameter, threshold, "drawn", CLASSES, "0")
    config = SegmentConfig(source.uri(), output.uri(), **flags)
    started = Started.of(config, source.uri(), "sha", card.tta)
    return SegmentJob(source, output, card, started, stand_in_allowed)

"""What the stages of a run need to know, in every process."""

from __future__ import annotations

from dataclasses import dataclass, field

from segpipe.data.fitting import PIXELS
from segpipe.models.checkpoint import Card
from segpipe.progress import LogSettings, log_settings
from segpipe.segment.started import Started
from segpipe.storage import Source, Store


@dataclass(frozen=True)
class SegmentJob:
    source: Source
    output: Store
    card: Card
    """Of the checkpoint."""
    started: Started
    stand_in_allowed: bool = True
    """Whether a worker that cannot run the engine uses a stand-in."""

    log: LogSettings | None = field(default_factory=log_settings)
    """How the tasks of this run log: as the driver does."""

    def log_alike(self) -> None:
        """Have this process log as the driver does."""
        if self.log and self.log != log_settings():
            self.log.apply()

    @property
    def settings(self) -> str:
        """Hash of all that the masks of this run depend on."""
        return self.started.mask_hash(fields_of=PIXELS)

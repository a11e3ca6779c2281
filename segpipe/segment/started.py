"""What an output of `segpipe segment` was started with: all that its masks and rows depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from segpipe.errors import UserError
from segpipe.models.engine import IN_SETTINGS, Engine
from segpipe.models.tta import num_scores, tta_of
from segpipe.segment.config import SegmentConfig
from segpipe.storage import Store
from segpipe.storage.files import damaged_file
from segpipe.storage.settings import REMEDY, SETTINGS, read_settings, refuse_changed

MATCHED = "engine matches the reference"
FOUND = "fields are found as of"
STRUCTURES = "structures checkpoint"
ROW_FLAGS = (
    *("--measure", "--min-quality", "--probabilities"),
    *("--overlays", "--structures", STRUCTURES),
)
"""What no mask depends on."""


@dataclass(frozen=True)
class Started:
    """Written to `_segpipe/settings.json`, which keeps the keys that 0.1.0 gave it."""

    input: str
    """URI of the photographs."""
    checkpoint: str
    """sha256 of the checkpoint's file."""
    format: str
    measure: str
    probabilities: bool
    tta: str
    max_megapixels: float
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    engine: Engine | None = None
    """With which the first masks are made; None until it is chosen."""
    matched: bool = True
    """Whether that engine matches the reference; else a flag named it."""
    overlays: bool = False
    structures: str = ""
    """sha256 of the checkpoint that finds arteries, veins and the disc; "": vessels alone."""
    min_quality: float | None = None
    fields_of: int = 1
    """Which way of finding fields of view (fitting.PIXELS) its masks began with."""

    @classmethod
    def of(
        cls, config: SegmentConfig, input: str, checkpoint: str, tta: str, structures: str = ""
    ) -> Started:
        """What these flags start; `tta` where none is named."""
        return cls(
            input,
            checkpoint,
            config.format,
            config.measure,
            config.probabilities,
            config.tta or tta,
            config.max_megapixels,
            config.include,
            config.exclude,
            overlays=config.overlays,
            structures=structures,
            min_quality=config.min_quality,
        )

    @property
    def assesses(self) -> bool:
        """Whether rows tell of quality, for which a photograph's canvas is kept."""
        return self.measure != "none" or self.min_quality is not None

    def refuse_changed(self, place: str, before: Started) -> None:
        """Raise UserError where an output was started with something else; the engine aside."""
        refuse_changed(place, before._by_flag(), self._by_flag())
        if before.structures != self.structures:
            raise UserError(
                f"--structures all: {place} was started with another release's network of "
                "arteries and veins, choose another --output"
            )

    def _by_flag(self) -> dict[str, Any]:
        """As the command line names them."""
        return {
            "--input": self.input,
            "--checkpoint": self.checkpoint,
            "--format": self.format,
            "--measure": self.measure,
            "--min-quality": self.min_quality,
            "--probabilities": self.probabilities,
            "--overlays": self.overlays,
            "--structures": "all" if self.structures else "vessels",
            "--tta": self.tta,
            "--max-megapixels": self.max_megapixels,
            "--include": list(self.include),
            "--exclude": list(self.exclude),
        }

    def to_json(self) -> dict[str, Any]:
        values = self._by_flag()
        values["--flips"] = num_scores(values.pop("--tta"))
        if self.structures:
            values[STRUCTURES] = self.structures
        else:  # as it was before there were these flags
            del values["--structures"]
        if not self.overlays:
            del values["--overlays"]
        if self.engine is not None:
            values["--compile"] = IN_SETTINGS[self.engine.backend]
            values["--precision"] = self.engine.precision
        return values | {MATCHED: self.matched, FOUND: self.fields_of}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Started:
        """Raises KeyError, TypeError or ValueError for what no release wrote.

        What is missing came with a later release: it is as it was without.
        """
        backends = {word: name for name, word in IN_SETTINGS.items()}
        engine = None
        if "--compile" in values:
            engine = Engine(backends[values["--compile"]], str(values["--precision"]))
        return cls(
            input=str(values["--input"]),
            checkpoint=str(values["--checkpoint"]),
            format=str(values["--format"]),
            measure=str(values.get("--measure", "none")),
            probabilities=bool(values.get("--probabilities", False)),
            tta=tta_of(values.get("--flips", 1)),
            max_megapixels=float(values["--max-megapixels"]),
            include=tuple(values["--include"]),
            exclude=tuple(values["--exclude"]),
            engine=engine,
            matched=bool(values.get(MATCHED, True)),
            overlays=bool(values.get("--overlays", False)),
            structures=str(values.get(STRUCTURES, "")),
            min_quality=None if (least := values.get("--min-quality")) is None else float(least),
            fields_of=int(values.get(FOUND, 1)),
        )

    def mask_hash(self, fields_of: int) -> str:
        """For the column `settings`: 16 digits of a hash of all that a mask depends on, where its
        field was found the way of `fields_of`.
        """
        values = replace(self, fields_of=fields_of).to_json()
        for key in (*ROW_FLAGS, MATCHED):
            values.pop(key, None)
        if values["--flips"] == 1:  # as it was before there was that flag
            del values["--flips"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def read_started(output: Store) -> Started | None:
    """What an output was started with; None where nothing was.

    Raises Damaged for a file that tells something else, as that of another verb.
    """
    values = read_settings(output, "--input", "--checkpoint")
    if not values:
        return None
    try:
        return Started.from_json(values)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_file(output, SETTINGS, REMEDY) from error

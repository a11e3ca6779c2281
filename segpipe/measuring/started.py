"""What an output of `segpipe measure` was started with: all that its rows depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from segpipe.data.fitting import PIXELS
from segpipe.storage import Store
from segpipe.storage.settings import read_settings, refuse_changed

VERB, FOUND = "verb", "fields are found as of"


@dataclass(frozen=True)
class Started:
    """Written to `_segpipe/settings.json`."""

    input: str
    """URIs of the masks, of their fields of view and of their photographs."""
    fov: str | None
    photographs: str | None
    av_colours: str | None
    max_megapixels: float
    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def refuse_changed(self, place: str, output: Store) -> None:
        """Raise UserError where the output was started with something else.

        Raises Damaged for settings of another verb.
        """
        before = read_settings(output, "--input", VERB)
        refuse_changed(place, before, self._by_flag())

    def _by_flag(self) -> dict[str, Any]:
        """As the command line names them."""
        return {
            "--input": self.input,
            "--fov": self.fov,
            "--photographs": self.photographs,
            "--av-colours": self.av_colours,
            "--max-megapixels": self.max_megapixels,
            "--include": list(self.include),
            "--exclude": list(self.exclude),
        }

    def to_json(self) -> dict[str, Any]:
        return self._by_flag() | {VERB: "measure", FOUND: PIXELS}

    def row_hash(self) -> str:
        """For the column `settings`: 16 digits of a hash of all that a row depends on."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

"""What an output was started with."""

from __future__ import annotations

from typing import Any

from segpipe.errors import UserError
from segpipe.storage import Store
from segpipe.storage.files import (
    read_json,
)

SETTINGS = "_segpipe/settings.json"
REMEDY = (
    "or of another verb; it says what was started here: put it back from a copy, or choose another "
    "--output"
)


def read_settings(output: Store, *flags: str) -> dict[str, Any]:
    """What an output was started with, by flag; {} where nothing was started.

    Raises Damaged where one of these flags is not told, which this verb has always written.
    """
    return read_json(output, SETTINGS, dict.fromkeys(flags, str), REMEDY) or {}


def refuse_changed(place: str, before: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise UserError where an output was started with other settings; both by flag."""
    for flag, value in settings.items():
        if before.get(flag, value) != value:
            given = f"without {flag}" if value is None else f"{flag} {value}"
            started = "without it" if before[flag] is None else f"with {before[flag]}"
            raise UserError(f"{given}: {place} was started {started}, choose another --output")

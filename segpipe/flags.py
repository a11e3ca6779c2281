"""What flags of all verbs have in common: their names, and the lines that refuse a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from segpipe.errors import UserError


def flag(name: str) -> str:
    """Of a config's field."""
    return f"--{name.replace('_', '-')}"


def check_choices(config: Any, choices: Mapping[str, Iterable[object]]) -> None:
    """Raise UserError where a field is none of its choices; None will do."""
    for name, known in choices.items():
        known = tuple(known)
        if getattr(config, name) not in (None, *known):
            told = ", ".join(map(str, known))
            raise UserError(f"{flag(name)} {getattr(config, name)}: choose from {told}")


def check_at_least(config: Any, least: int, *names: str) -> None:
    """Raise UserError where one of these fields is less or NaN; None will do."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise UserError(f"{flag(name)} {value}: must be {least} or more")


def check_above_0(config: Any, *names: str) -> None:
    """Raise UserError where one of these fields is 0, less, infinite or NaN; None will do."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{flag(name)} {value}: must be above 0")


def check_anonymous(
    anonymous: bool, name: str, uris: Iterable[str], lists: tuple[str, ...] = ()
) -> None:
    """Raise UserError where --anonymous is given and nothing of this flag lies on S3.

    What ends in one of `lists` may name objects there.
    """
    told = list(uris)
    if anonymous and not any(
        uri.startswith("s3://") or uri.lower().endswith(lists) for uri in told
    ):
        raise UserError(f"--anonymous: {name} {' '.join(told)} is not on S3, leave it out")

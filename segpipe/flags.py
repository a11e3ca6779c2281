"""What flags of all verbs have in common: their names, and the lines that refuse a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from segpipe.errors import UserError

DEVICES = ("auto", "cpu", "gpu")
MOST = 2**53  # of a number; up to it, whole ones are exact as floats too
LARGEST_SEED = 2**63 - 1  # torch holds seeds in 64 bits
RENAMED = {
    "train": {
        "--average": "--ema-decay DECAY",
        "--flips": "--tta none|flip4",
        "--compile": "--backend auto|native|torch",
        "--place": "--crop-sampling uniform|fov|whole",
    },
}
"""By verb, flags of 0.1.0, and what they are today."""


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
    """Raise UserError where one of these fields is less, infinite or NaN; None will do."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not least <= value <= MOST:
            raise UserError(f"{flag(name)} {value}: must be {least} or more{_finite(value)}")


def check_seed(config: Any) -> None:
    """Raise UserError where `seed` is none that numpy and torch take."""
    if not 0 <= config.seed <= LARGEST_SEED:
        raise UserError(f"--seed {config.seed}: must be from 0 to {LARGEST_SEED}")


def check_globs(config: Any, *names: str) -> None:
    """Raise UserError where one of the globs of these fields is empty, as a shell leaves it."""
    for name in names:
        if not all(map(str.strip, getattr(config, name))):
            raise UserError(f'{flag(name)} "": is empty, name a glob or leave the flag out')


def check_above_0(config: Any, *names: str) -> None:
    """Raise UserError where one of these fields is 0, less, infinite or NaN; None will do."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{flag(name)} {value}: must be above 0{_finite(value)}")


def _finite(value: float) -> str:
    return "" if abs(value) <= MOST else f", and a finite number of at most {MOST:g}"


def unknown_flag(verb: str, words: Sequence[str], known: Sequence[str]) -> str | None:
    """What is wrong with the first of these words that is a flag and not known; None if none is."""
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name.replace("_", "-") not in known:
            if new := RENAMED.get(verb, {}).get(name):
                return f"{name}: is now {new}"
            near = get_close_matches(name, known, 1)
            return f"{name}: unknown flag" + (f", did you mean {near[0]}?" if near else "")
    return None


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

"""What flags of all verbs have in common: their names, and the lines that refuse a value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from segpipe.errors import UserError, some_of

DEVICES = ("auto", "cpu", "gpu")
STRUCTURES = ("vessels", "all")  # that are found; all: arteries, veins and the optic disc too
MOST = 2**53  # of a number; up to it, whole ones are exact as floats too
EMPTY = '""'  # a value, as it is told
NUMBERS: dict[type[int | float], str] = {int: "a whole number", float: "a number"}
LARGEST_SEED = 2**63 - 1  # torch holds seeds in 64 bits
TTA_FLAG = "--tta none|flip4"
BACKEND_FLAG = "--backend auto|native|torch"
RENAMED: dict[str, dict[str, str]] = {  # by verb, flags of 0.1.0, and what they are now
    "train": {
        "--average": "--ema-decay DECAY",
        "--flips": TTA_FLAG,
        "--compile": BACKEND_FLAG,
        "--place": "--crop-sampling uniform|fov|whole",
    },
    "segment": {"--flips": TTA_FLAG, "--compile": BACKEND_FLAG},
    "evaluate": {"--flips": TTA_FLAG},
    "plan": {"--flips": TTA_FLAG, "--batch-size": "--group-size N"},
}
GONE = {"plan": ("--spread", "--seed")}  # by verb, flags of 0.1.0 without a successor


def flag(name: str) -> str:
    """Of a config's field."""
    return f"--{name.replace('_', '-')}"


def check_choices(config: Any, choices: Mapping[str, Iterable[object]]) -> None:
    """Raise UserError where a field is none of its choices; None will do."""
    for name, known in choices.items():
        known = tuple(known)
        if getattr(config, name) not in (None, *known):
            text = ", ".join(map(str, known))
            raise UserError(f"{flag(name)} {getattr(config, name)}: choose from {text}")


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
            if name in GONE.get(verb, ()):
                return f"{name}: is gone since 0.2.0, leave it out"
            if new := RENAMED.get(verb, {}).get(name.replace("_", "-")):
                return f"{name}: is now {new}"
            near = get_close_matches(name, known, 1, cutoff=0.75)
            return f"{name}: unknown flag" + (f", did you mean {near[0]}?" if near else "")
    return None


def wrong_value(words: Sequence[str], kinds: Mapping[str, str]) -> str | None:
    """What is wrong with the first flag of these words whose values are not what it takes.

    `kinds`: the annotation of each flag's field, as "int | None". None where nothing is wrong.
    """
    name, groups = "", dict[str, list[str]]()
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            groups[name] = [value] if equals else []  # the last of several counts
        else:
            groups.setdefault(name, []).append(word)
    for name, values in groups.items():
        if name in kinds and (wrong := _wrong(name, values, kinds[name])):
            return wrong
    if strays := groups.get("", []):
        return f"{some_of(strays)}: no flag before it, wanted --flag value"
    return None


def _wrong(name: str, values: list[str], kind: str) -> str | None:
    several = kind.startswith("tuple")
    if kind == "bool":
        return f"{name} {some_of(values)}: is a switch, leave the value out" if values else None
    number, wanted = next(
        (one for one in NUMBERS.items() if re.search(rf"\b{one[0].__name__}\b", kind)),
        (str, "a value"),
    )
    if not values and not several:
        return f"{name}: wanted {wanted} after it"
    for value in values if several else values[:1]:
        try:
            if value != "None" or "None" not in kind:
                number(value)
        except ValueError:
            return f"{name} {some_of([value]) or EMPTY}: wanted {wanted}"
    if len(values) > 1 and not several:
        return f"{name} {some_of(values)}: wanted one value, quote globs and paths with spaces"
    return None


def check_anonymous(
    anonymous: bool, name: str, uris: Iterable[str], lists: tuple[str, ...] = ()
) -> None:
    """Raise UserError where --anonymous is given and nothing of this flag lies on S3.

    What ends in one of `lists` may name objects there.
    """
    text = list(uris)
    if anonymous and not any(
        uri.startswith("s3://") or uri.lower().endswith(lists) for uri in text
    ):
        raise UserError(f"--anonymous: {name} {some_of(text)} is not on S3, leave it out")

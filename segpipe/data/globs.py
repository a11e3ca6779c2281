"""Sets that the user describes: which files are photographs, labels and masks, by globs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from segpipe.data.colours import Scheme
from segpipe.errors import UserError
from segpipe.flags import flag

Stars = tuple[str, ...]  # what each star of a glob stands for in a key


@dataclass(frozen=True)
class Globs:
    """Globs of keys, from the set's folder: * within a folder, ** across them, ?, [abc].

    Files belong together where the stars stand for the same.
    """

    images: str
    labels: str
    masks: str | None = None

    def pairs(
        self, keys: Iterable[str], uri: Callable[[str], str]
    ) -> list[tuple[str, str, str, str | None]]:
        """-> (name, image, label, mask) of each photograph, in order of their keys.

        The name is that of the image's key without its extension. Raises UserError where a glob
        matches nothing, or not one label and, with `masks`, one mask for each photograph.
        """
        keys = list(keys)
        images = _matching("--images", self.images, keys, uri)
        labels = _matching("--labels", self.labels, keys, uri)
        masks = _matching("--masks", self.masks, keys, uri) if self.masks else {}
        for glob, flag_name, found in (
            (self.labels, "--labels", labels),
            *([(self.masks, "--masks", masks)] if self.masks else []),
        ):
            for stars, key in images.items():
                if stars not in found:
                    wanted = _filled(glob, stars)
                    raise UserError(
                        f"{flag_name} {glob!r}: none belongs to {uri(key)}, wanted {wanted}"
                    )
        for stars, key in labels.items():
            if stars not in images:
                wanted = _filled(self.images, stars)
                raise UserError(
                    f"--images {self.images!r}: none belongs to {uri(key)}, wanted {wanted}"
                )
        ordered = sorted(images.items(), key=lambda pair: pair[1])
        stems = {key: re.sub(r"\.[^./]+$", "", key) for _, key in ordered}
        seen = Counter(stems.values())
        return [
            (stems[key] if seen[stems[key]] == 1 else key, key, labels[stars], masks.get(stars))
            for stars, key in ordered
        ]


@dataclass(frozen=True)
class Reading:
    """What the user says of a set beside its place."""

    globs: Globs | None = None
    colours: str = ""
    """What the labels' colours mean, as colours.Scheme.parse takes it; "": as the layout says."""
    by_number: bool = True
    """Whether photographs' numbers may tell training and test, as HRF's do since 0.2.0."""

    @classmethod
    def of(cls, config: Any) -> Reading:
        """By the flags --images, --labels, --masks and --av-colours of a verb.

        Raises UserError for what cannot be meant.
        """
        given = {name: getattr(config, name) for name in ("images", "labels", "masks")}
        for name, glob in given.items():
            if glob is not None and not glob.strip():
                raise UserError(f'{flag(name)} "": is empty, name a glob or leave the flag out')
        if (given["images"] is None) != (given["labels"] is None):
            there, lacks = ("images", "labels") if given["images"] else ("labels", "images")
            raise UserError(
                f"{flag(there)} {given[there]!r}: needs {flag(lacks)}, give both or none"
            )
        if given["masks"] is not None and given["images"] is None:
            raise UserError(f"--masks {given['masks']!r}: needs --images and --labels")
        globs = Globs(**given) if given["images"] is not None else None
        if globs:
            _check_stars(globs)
        colours = config.av_colours
        return cls(globs, "" if colours is None else str(Scheme.parse(colours)))


WILD = re.compile(r"(\*\*/|\*\*|\*)|\?|\[[^\]]+\]")


def _num_stars(glob: str) -> int:
    return sum(match[1] is not None for match in WILD.finditer(glob))


def _check_stars(globs: Globs) -> None:
    wanted = _num_stars(globs.images)
    if not wanted:
        raise UserError(f"--images {globs.images!r}: has no star, use one where names differ")
    for flag_name, glob in (("--labels", globs.labels), ("--masks", globs.masks)):
        if glob is not None and _num_stars(glob) != wanted:
            raise UserError(
                f"{flag_name} {glob!r}: has {_num_stars(glob)} stars, and --images "
                f"{globs.images!r} has {wanted}, give both as many"
            )


def _expression(glob: str) -> re.Pattern[str]:
    """Of whole keys; its groups are the stars."""
    parts, last = [], 0
    for match in WILD.finditer(glob):
        parts.append(re.escape(glob[last : match.start()]))
        wild = match[0]
        if wild == "**/":
            parts.append("((?:.*/)?)")
        elif wild == "**":
            parts.append("(.*)")
        elif wild == "*":
            parts.append("([^/]*)")
        elif wild == "?":
            parts.append("[^/]")
        else:
            inside = wild[1:-1].replace("\\", r"\\").replace("[", r"\[")
            parts.append(f"[{'^' if inside.startswith('!') else ''}{inside.removeprefix('!')}]")
        last = match.end()
    return re.compile("".join(parts) + re.escape(glob[last:]), re.DOTALL)


def _matching(
    flag_name: str, glob: str, keys: list[str], uri: Callable[[str], str]
) -> dict[Stars, str]:
    """The key of each match, by what its stars stand for."""
    try:
        expression = _expression(glob)
    except re.error as error:
        raise UserError(f"{flag_name} {glob!r}: is no glob ({error}), change it") from error
    found: dict[Stars, str] = {}
    for key in keys:
        if match := expression.fullmatch(key):
            if match.groups() in found:
                raise UserError(
                    f"{flag_name} {glob!r}: matches {found[match.groups()]} and {key} with the "
                    "same stars, use a star where they differ"
                )
            found[match.groups()] = key
    if not found:
        some = f"as {keys[0]}" if keys else "none of which is an image"
        raise UserError(
            f"{flag_name} {glob!r}: matches nothing in {uri('')}, {some}; use a glob from there"
        )
    return found


def _filled(glob: str, stars: Stars) -> str:
    """The glob with what its stars should stand for."""
    left = iter(stars)
    return WILD.sub(lambda match: match[0] if match[1] is None else next(left), glob)

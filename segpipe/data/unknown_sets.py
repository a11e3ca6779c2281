"""What is said of a folder that is no labelled set in a known layout, and what to do with it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from segpipe.data.known_sets import LAYOUTS, PLAIN
from segpipe.errors import UserError

if TYPE_CHECKING:
    from segpipe.storage import Source  # its libraries stay out of processes that only decode

PACKED = (".zip", ".gz", ".bz2", ".xz", ".tar", ".tgz", ".7z", ".rar")
MEDICAL = (".nii.gz", ".nii", ".mha", ".nrrd", ".npz", ".b2nd")  # volumes: not read


def unknown(store: Source, found: list[str]) -> UserError:
    """`found`: the keys of its files, in order."""
    more = f"{found[0]} and {len(found) - 1} more" if len(found) > 1 else "".join(found)
    names = ", ".join(dict.fromkeys(one.name for one in LAYOUTS if one.name != PLAIN))
    wanted = (
        f" (wanted {names}, or images/ beside labels/ of the same names: docs/training-data.md has "
        "all; or name files by --images and --labels)"
    )
    return UserError(
        f"{store.uri()}: no labelled set in a known layout, found {more or 'no files'}"
        f"{_advice(store, found) or wanted}"
    )


def _advice(store: Source, keys: Iterable[str]) -> str:
    """What to do with files in no known layout, where that can be seen; else nothing."""
    for key in keys:
        above, _, below = key.partition("/")
        while below:
            if any(re.match(one.mark, below) for one in LAYOUTS):
                return f", name {store.uri(above)} instead"
            folder, _, below = below.partition("/")
            above = f"{above}/{folder}"
        if key.lower().endswith(MEDICAL):
            return f", volumes as {key} are not read: save photographs as PNG"
        if key.lower().endswith(PACKED):
            return f", unpack {key}"
    return ""

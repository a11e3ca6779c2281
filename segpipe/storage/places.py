"""An output inside the input, or the other way round."""

from __future__ import annotations

import re

from segpipe.errors import UserError
from segpipe.storage import Source, Store
from segpipe.storage.local import LocalStore


def inside(source: Source, output: Store) -> str | None:
    """The prefix of the output's keys where it lies inside the input.

    Folders are compared by what they are, not by their names: links lead to one folder by many.
    Raises UserError where they are the same.
    """
    if isinstance(source, LocalStore) and isinstance(output, LocalStore):
        below = source.key_of(output.root)
    else:
        root, target = _plain(source.uri()), _plain(output.uri())
        below = target[len(root) :] if target.startswith(root) else None
    if below == "":
        raise UserError(f"--output {output.uri()}: is the input itself, choose another folder")
    return below and f"{below.rstrip('/')}/"


def refuse_inside(source: Source, output: Store) -> None:
    """Raise UserError where an output would lie among what it is made of."""
    if inside(source, output) is not None:
        raise UserError(
            f"--output {output.uri()}: lies inside {source.uri()}, choose another folder"
        )


def _plain(uri: str) -> str:
    """With single slashes, as some servers see it, and one at the end."""
    kind, _, path = uri.rpartition("://")
    return f"{kind}://{re.sub('/+', '/', path).rstrip('/')}/"

"""What every store has in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

PATIENCE_S = 600.0  # seconds for which a store that does not answer is tried again
PREFLIGHT_S = 8.0  # seconds of patience before anything was started; four requests end within 30 s
TIMED = re.compile(r"bytes=[0-9]+,modified=\S+")


class Listed(NamedTuple):
    """What a list says of a file in columns of its own."""

    columns: pa.Schema
    values: tuple[Any, ...]
    """One for each column."""


@dataclass(frozen=True)
class Entry:
    """One stored object. `version` changes when its content does."""

    key: str
    bytes: int
    version: str
    list_id: str | None = None
    """Of a file that a list names: its value in the list's column `id`."""
    listed: Listed | None = None
    """Of such a file: its values in the list's other columns, where there are any."""


def timed_version(bytes: int, modified: datetime | None) -> str:
    """The version of an object whose store keeps no etags: size and second of its last change.

    Headers tell seconds, listings fractions of them.
    """
    moment = f"{modified.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if modified else "unknown"
    return f"bytes={bytes},modified={moment}"


def is_timed(version: str) -> bool:
    """Whether a version is no etag, but one of `timed_version`."""
    return TIMED.fullmatch(version) is not None


class Source(Protocol):
    """What can be listed and read. Keys have `/` between their components."""

    def __hash__(self) -> int: ...
    def uri(self, key: str = "") -> str: ...
    def get(self, key: str, version: str | None = None) -> bytes:
        """The object's bytes.

        Raises FileNotFoundError where there is none, PermissionError where it may not be read,
        ChangedObject where it is not `version` any more, StoreDown where patience ran out.
        """

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose key starts with `prefix`, page by page, in the store's own order.

        Folders, and most stores, list in order of their keys; some stores do not.
        """

    def check_readable(self) -> None:
        """Raise UserError within seconds for what the user must change."""

    def answers(self, key: str = "") -> bool:
        """Whether the store that holds this key answers now, if it was only to say no."""


class Store(Source, Protocol):
    """A source that can also be written. Keys are relative to the store's URI."""

    def exists(self) -> bool:
        """Whether the folder is there, or the prefix holds an object. Raises UserError."""

    def head(self, key: str) -> Entry | None:
        """The object's entry, None where there is none."""

    def put(self, key: str, data: bytes, durable: bool = True) -> None:
        """Write the whole object or nothing; readers never see half of it.

        It survives a power cut: at once, or where not `durable` after `sync`. Raises Unfinished
        where a disk is full.
        """

    def sync(self, keys: Iterable[str]) -> None:
        """Wait until these objects, which were put not durable, would survive a power cut."""

    def put_new(self, key: str, data: bytes) -> bool:
        """Write the object unless there is one -> whether it was written; not durable.

        Exact on local disks and on stores that honour If-None-Match.
        """

    def below(self, folder: str) -> Store:
        """What lies in a folder of this store, or below a prefix, as a store."""

    def with_patience(self, seconds: float) -> Store:
        """The same store, which gives up after so many seconds without a good answer."""

    def delete(self, key: str) -> None:
        """Remove the object if there is one."""

    def check_writable(self) -> None:
        """Raise UserError where nothing can be written; leaves nothing behind."""

    def missing_folders(self) -> tuple[str, ...]:
        """The folder of this store and those above it that are not there yet, the deepest first."""

    def remove_folders(self, missing: Iterable[str] = ()) -> None:
        """Remove our own folders, then those that were missing, where nothing was written to them,
        as of a run that is refused.
        """

    def sweep(self) -> None:
        """Remove what killed writers left behind; only where nobody else writes."""

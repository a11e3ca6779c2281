"""Which photograph, and which field of view, belongs to a mask: those that are named like it.

A file goes by its key, and by its key without extensions and without an ending such as `_mask`: the
fewer are taken off the surer the name. A mask's pair is the file that shares its surest name, so
that `a/x.jpg.png`, `a/x.png` and `a/x_mask.png` find `a/x.jpg`. Folders must be the same; only a
mask of a list, whose key is a whole path, is paired by the end of it, the longest that there is.
"""

from __future__ import annotations

import json
import posixpath
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from segpipe.data.codecs import EXTENSIONS
from segpipe.storage import Entry

ENDINGS = ("_mask", "_label", "_vessels", "_fov")  # of a name, which both files may have
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Pair:
    """What was found for a mask below one of the flags."""

    flag: str
    """photographs or fov."""
    entry: Entry | None
    problem: str = ""
    """Why there is none."""


def names_of(key: str) -> list[str]:
    """What a file may go by, the surest first: a/x_mask.jpg.png -> itself, a/x_mask.jpg, a/x_mask,
    a/x.
    """
    names, stem = [key], key
    while True:
        stem, suffix = posixpath.splitext(stem)
        if suffix.lower() not in EXTENSIONS or posixpath.basename(stem) == "":
            break
        names.append(stem)
    for name in list(names):
        for ending in ENDINGS:
            if name.endswith(ending) and not name.endswith(f"/{ending}") and name != ending:
                names.append(name.removesuffix(ending))
    return list(dict.fromkeys(names))


class PairIndex:
    """The files below a flag by all their names, in a temporary file: memory does not grow."""

    def __init__(self, flag: str, files: Iterable[Entry]) -> None:
        self.flag = flag
        self.database = sqlite3.connect("")  # gone with the connection
        self.database.execute("create table names (name, rank, key, bytes, version)")
        rows: list[tuple[object, ...]] = []
        for file in files:
            told = _held(file.key), file.bytes, file.version
            rows += [(_held(name), rank, *told) for rank, name in enumerate(names_of(file.key))]
            if len(rows) >= ROWS_AT_ONCE:
                self._add(rows)
                rows = []
        self._add(rows)
        self.database.execute("create index by_name on names (name, rank)")

    def _add(self, rows: list[tuple[object, ...]]) -> None:
        self.database.executemany("insert into names values (?, ?, ?, ?, ?)", rows)

    def find(self, key: str, by_end: bool = False) -> Pair:
        """The file for a mask of this key, of which only an end must agree `by_end`."""
        names = names_of(key)
        for depth in range(key.count("/") + 1 if by_end else 1):
            for name in names:
                found = self._named(name.split("/", depth)[-1] if depth else name)
                if len(found) == 1:
                    return Pair(self.flag, found[0])
                if found:
                    both = " and ".join(one.key for one in found)
                    return Pair(self.flag, None, f"{both} are named alike below --{self.flag}")
        wanted = posixpath.basename(names[1] if len(names) > 1 else key)
        return Pair(self.flag, None, f"nothing is named like {wanted} below --{self.flag}")

    def _named(self, name: str) -> list[Entry]:
        """The files for which this name is surest; two tell that there are several."""
        query = "select rank, key, bytes, version from names where name = ? order by rank limit 2"
        rows = self.database.execute(query, (_held(name),)).fetchall()
        return [Entry(_key(row[1]), row[2], row[3]) for row in rows if row[0] == rows[0][0]]


def _held(key: str) -> bytes:
    """SQLite holds no text that is not Unicode, as a file's name may be."""
    return key.encode("utf-8", "surrogateescape")


def _key(held: bytes) -> str:
    return held.decode("utf-8", "surrogateescape")


def paired(entries: Iterable[Entry], indices: list[PairIndex], by_end: bool) -> Iterator[Entry]:
    """Masks with versions that tell their pairs too: where one of these changes the mask is
    measured anew.
    """
    for entry in entries:
        found = [index.find(entry.key, by_end) for index in indices]
        told = [
            [one.flag, one.entry.key, one.entry.bytes, one.entry.version]
            if one.entry
            else [one.flag, one.problem]
            for one in found
        ]
        yield replace(entry, version=json.dumps([entry.version, *told]))


def parted(entry: Entry) -> tuple[Entry, list[Pair]]:
    """A mask of `paired` as it is stored, and its pairs."""
    version, *told = json.loads(entry.version)
    pairs = [
        Pair(flag, Entry(*where)) if len(where) == 3 else Pair(flag, None, *where)
        for flag, *where in told
    ]
    return replace(entry, version=version), pairs

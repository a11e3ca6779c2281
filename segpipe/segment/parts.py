"""The parts that are done."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segpipe.segment.keys import input_id
from segpipe.segment.manifest import Ids
from segpipe.segment.output import (
    PARTS,
    fetch_ahead,
    list_own,
)
from segpipe.segment.rows import ROW, conform, schema_of
from segpipe.storage import Store
from segpipe.storage.files import (
    Damaged,
    damaged_file,
    read_parquet,
    write_parquet,
)

logger = logging.getLogger(__name__)

INDEX = schema_of(["path", "version", "status", "finished"])
Numbers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def commit_part(output: Store, rows: list[dict[str, Any]]) -> None:
    """Make rows count as done. Their masks must be in place."""
    names = sorted(input_id(row["path"], row["version"]) for row in rows)
    digest = hashlib.sha256(b"".join(names)).hexdigest()[:32]
    write_parquet(output, f"{PARTS}{digest}.parquet", pa.Table.from_pylist(rows, schema=ROW))


@dataclass(frozen=True)
class Parts:
    """What is done: where the row of each id lies, sorted by id; 40 bytes a row."""

    keys: list[str]
    ids: Ids
    """S16, each once."""
    part: Numbers
    """Index into keys."""
    row: Numbers
    """Within its part."""
    ok: npt.NDArray[np.bool_]
    paths: Hashes
    """Hash of each path that ever had a row, to count the vanished ones."""
    row_bytes: int
    """A row's mean size."""

    def find(self, ids: Ids) -> Numbers:
        """Where each id lies in this index, -1 where it is not done."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[place] == ids, place, -1)


def read_parts(output: Store, damaged: Callable[[str], None] | None = None) -> Parts:
    """Index all parts. Of two rows of one id the mask wins over the rejection, then the newer.

    `damaged` is told the keys of parts that cannot be read, whose rows then count as not done.
    Raises Damaged where nobody is to be told.
    """
    entries = list(list_own(output, PARTS))
    keys = [entry.key for entry in entries]
    columns: list[list[npt.NDArray[Any]]] = [[] for _ in range(5)]
    for number, table in enumerate(fetch_ahead(partial(_index, output), keys)):
        if isinstance(table, Damaged):
            if damaged is None:
                raise table
            damaged(keys[number])
            continue
        paths = table["path"].to_pylist()
        ids = map(input_id, paths, table["version"].to_pylist())
        for column, values in zip(
            columns,
            (
                np.array(list(ids), "S16"),
                np.full(len(table), number),
                pc.equal(table["status"], "ok").to_numpy(zero_copy_only=False),
                table["finished"].cast(pa.int64()).fill_null(0).to_numpy(),
                path_hashes(paths),
            ),
            strict=True,
        ):
            column.append(values)
    empty = [np.zeros(0, kind) for kind in ("S16", int, bool, int, np.uint64)]
    ids_, part, ok, finished, paths_ = (
        np.concatenate([none, *column]) for none, column in zip(empty, columns, strict=True)
    )
    row = _row_numbers(part)
    best = np.lexsort((-finished, ~ok, ids_))
    first = np.ones(len(best), bool)
    first[1:] = ids_[best][1:] != ids_[best][:-1]
    best = best[first]
    row_bytes = sum(entry.bytes for entry in entries) // max(1, len(ids_))
    return Parts(keys, ids_[best], part[best], row[best], ok[best], np.unique(paths_), row_bytes)


def _index(output: Store, key: str) -> pa.Table | Damaged:
    """What is indexed of a part."""
    try:
        return read_rows(output, key, INDEX, INDEX.names)
    except Damaged as error:
        return error


def read_rows(
    output: Store, key: str, schema: pa.Schema = ROW, columns: list[str] | None = None
) -> pa.Table:
    """Rows of a part that any release wrote, with the columns of this schema.

    Raises Damaged where one lacks one of `columns`, or holds what is none of its type.
    """
    table = read_parquet(output, key, columns)
    try:
        return conform(table, schema)
    except pa.ArrowException as error:
        raise damaged_file(output, key) from error


def drop_part(output: Store, key: str, verb: str = "segment") -> None:
    """Delete a part that cannot be read: its inputs are done again."""
    place = output.uri(key)
    logger.warning("%s: warning: %s is damaged, its inputs are done again", verb, place)
    output.delete(key)


def _row_numbers(part: Numbers) -> Numbers:
    """0, 1, 2, ... within each run of equal part numbers."""
    numbers = np.arange(len(part))
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    return numbers - np.repeat(starts, np.diff(starts, append=len(part)))


def path_hashes(paths: list[str]) -> Hashes:
    digests = [hashlib.sha256(path.encode()).digest()[:8] for path in paths]
    return np.frombuffer(b"".join(digests), np.uint64)

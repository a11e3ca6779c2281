"""The inputs of this attempt."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from segpipe.segment.keys import input_id
from segpipe.segment.output import (
    MANIFEST,
    PAGES,
    list_own,
    read_marker,
    read_tables,
)
from segpipe.storage import Entry, Listed, Store, naming_space
from segpipe.storage.files import (
    Damaged,
    parquet_bytes,
    read_parquet,
    write_json,
)

PAGE_ROWS = 4096  # inputs in a page of the manifest
INPUT = pa.schema(
    [
        ("id", pa.binary(16)),
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("version", pa.string()),
        ("list_id", pa.string()),
    ]
)
Ids = npt.NDArray[np.bytes_]
LISTED = "listed"  # a page's column of structs: what a list says of its files, if it says more
NO_COLUMNS = pa.schema([])
NO_IDS: Ids = np.zeros(0, "S16")


@dataclass
class Manifest:
    """All inputs in order of their listing, in pages of Parquet in a temporary file.

    The driver holds a page at a time, whatever their number.
    """

    spool: IO[bytes]
    pages: list[tuple[int, int]]
    """(start, stop) of each page in the temporary file."""
    num_inputs: int
    num_bytes: int
    digest: str
    """Of all ids in order, and of a list's columns: equal digests are equal inputs."""
    columns: pa.Schema = NO_COLUMNS
    """Of the list, beside its names and ids."""

    def page(self, number: int) -> pa.Table:
        return pq.read_table(io.BytesIO(self._bytes(number)))

    def _bytes(self, number: int) -> bytes:
        start, stop = self.pages[number]
        self.spool.seek(start)
        return self.spool.read(stop - start)

    def key(self, number: int) -> str:
        """Of a page in the output. Another listing has other keys, which no worker mixes up."""
        return f"{PAGES}{self.digest[:16]}-{number:06d}.parquet"

    def write(self, output: Store) -> None:
        """Where the workers read it; its marker, which `status` reads, comes last."""
        keys = {self.key(number): number for number in range(len(self.pages))}
        for key, number in keys.items():
            output.put(key, self._bytes(number), durable=False)  # each attempt lists anew
        write_json(output, MANIFEST, {"inputs": self.num_inputs, "digest": self.digest})
        for entry in list(list_own(output, PAGES)):
            if entry.key not in keys:
                output.delete(entry.key)

    def ids(self) -> Ids:
        """Of all inputs, in their order."""
        pages = (page_ids(self.page(number)) for number in range(len(self.pages)))
        return np.concatenate([NO_IDS, *pages])


def list_inputs(inputs: Iterable[Entry]) -> Manifest:
    """List once, from the first input to the last."""
    manifest = Manifest(tempfile.TemporaryFile(), [], 0, 0, "")  # noqa: SIM115  closed with its manifest
    digest, stop, entries = hashlib.sha256(), 0, iter(inputs)
    while page := list(islice(entries, PAGE_ROWS)):
        ids = [input_id(entry.key, entry.version) for entry in page]
        names = ("key", "bytes", "version", "list_id")
        fields = [[getattr(entry, name) for entry in page] for name in names]
        table = pa.table([ids, *fields], INPUT)
        if listed := [entry.listed for entry in page if entry.listed]:  # of none, or of all
            manifest.columns = listed[0].columns
            table = table.append_column(LISTED, _structs(listed))
        with naming_space(tempfile.gettempdir()):
            written = manifest.spool.write(parquet_bytes(table))
            manifest.spool.flush()
        start, stop = stop, stop + written
        manifest.pages.append((start, stop))
        manifest.num_inputs += len(page)
        manifest.num_bytes += sum(fields[1])
        digest.update(b"".join(ids))
        if any(fields[3]):  # they go into the rows
            digest.update(json.dumps(fields[3]).encode())
        if listed:
            values = [one.values for one in listed]
            digest.update(json.dumps([str(manifest.columns), values], default=str).encode())
    manifest.digest = digest.hexdigest()
    return manifest


def _structs(listed: Sequence[Listed]) -> pa.StructArray:
    """What a list says of the files of a page, one struct of its columns each."""
    columns = listed[0].columns
    values = zip(*(one.values for one in listed), strict=True)
    arrays = [pa.array(some, field.type) for field, some in zip(columns, values, strict=True)]
    return pa.StructArray.from_arrays(arrays, fields=list(columns))


def of_list(page: pa.Table) -> pa.Table:
    """A list's own columns of a page's inputs, `id` first; null where no list names them."""
    columns, names = [page["list_id"]], ["id"]
    if LISTED in page.column_names:
        columns += page.select([LISTED]).flatten().columns
        names += [field.name for field in page.schema.field(LISTED).type]
    return pa.table(columns, names)


def is_written(output: Store, manifest: Manifest, pages: bool) -> bool:
    """Whether the output's marker is that of this manifest, and all its `pages` are there too."""
    with suppress(Damaged):
        marker = read_marker(output, digest=str)
        same = marker is not None and marker["digest"] == manifest.digest
        return same and not (pages and len(written_ids(output)) < manifest.num_inputs)
    return False


def written_ids(output: Store) -> Ids:
    """Of the inputs whose pages of the manifest lie in the output, in their order."""
    marker = read_marker(output, digest=str) or {"digest": ""}
    first = f"{PAGES}{marker['digest'][:16]}-"
    keys = [entry.key for entry in list_own(output, PAGES) if entry.key.startswith(first)]
    return np.concatenate([NO_IDS, *map(page_ids, read_tables(output, keys, ["id"]))])


@lru_cache(maxsize=4)
def _page(output: Store, key: str) -> pa.Table:
    return read_parquet(output, key, ["path", "bytes", "version"])


def group_entries(output: Store, page: str, rows: Sequence[int]) -> list[Entry]:
    """The inputs at these rows of a page of the manifest."""
    found = _page(output, page).take(pa.array(rows)).to_pylist()
    return [Entry(row["path"], row["bytes"], row["version"]) for row in found]


def page_ids(page: pa.Table) -> Ids:
    return np.array(page["id"].to_pylist(), "S16")

"""What is listed, in order of keys, whatever the order in which a store lists it.

Entries wait in a temporary file, 4096 in memory. As long as they come in order nothing else is
done. Else runs of 64 pages are sorted, and merged: of ten million entries 38 pages are held.

Nothing here knows Ray or torch.
"""

from __future__ import annotations

import heapq
import io
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from segpipe.storage import Entry, naming_space

PAGE_ROWS = 4096  # entries in a page
RUN_PAGES = 64  # pages that are sorted at once
LISTED = pa.schema([("key", pa.string()), ("bytes", pa.int64()), ("version", pa.string())])


class Spool:
    """Pages of entries in a temporary file, gone with it."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  closed with its spool
        self.ends = [0]

    def __len__(self) -> int:
        return len(self.ends) - 1

    def extend(self, entries: Iterable[Entry]) -> None:
        """Add these, page by page."""
        entries = iter(entries)
        while page := list(islice(entries, PAGE_ROWS)):
            columns = [[getattr(entry, name) for entry in page] for name in LISTED.names]
            self.add(pa.table(columns, LISTED))

    def add(self, page: pa.Table) -> None:
        buffer = io.BytesIO()
        pq.write_table(page, buffer)
        with naming_space(tempfile.gettempdir()):
            self.file.seek(self.ends[-1])
            self.file.write(buffer.getbuffer())
            self.file.flush()
        self.ends.append(self.file.tell())

    def page(self, number: int) -> pa.Table:
        self.file.seek(self.ends[number])
        return pq.read_table(io.BytesIO(self.file.read(self.ends[number + 1] - self.ends[number])))

    def entries(self, first: int = 0, last: int | None = None) -> Iterator[Entry]:
        """Those of these pages; a page is held."""
        for number in range(first, len(self) if last is None else last):
            columns = [column.to_pylist() for column in self.page(number).columns]
            yield from map(Entry, *columns)


def in_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    """These entries in order of their keys, by the bytes of their UTF-8; of equal keys in the order
    in which they were listed. All are listed when this returns.
    """
    ordered, last, listed = True, "", Spool()

    def watched() -> Iterator[Entry]:
        nonlocal ordered, last
        for entry in entries:
            ordered, last = ordered and last <= entry.key, entry.key
            yield entry

    listed.extend(watched())
    return listed.entries() if ordered else _sorted(listed)


def _sorted(listed: Spool) -> Iterator[Entry]:
    """Stable: of one key those that were listed later come later."""
    runs, starts = Spool(), []
    for first in range(0, len(listed), RUN_PAGES):
        starts.append(len(runs))
        pages = [listed.page(n) for n in range(first, min(first + RUN_PAGES, len(listed)))]
        run = pa.concat_tables(pages)
        run = run.take(_stable_order(run["key"]))
        for at in range(0, len(run), PAGE_ROWS):
            runs.add(run.slice(at, PAGE_ROWS))
    ends = [*starts[1:], len(runs)]
    parts = [runs.entries(*run) for run in zip(starts, ends, strict=True)]
    return heapq.merge(*parts, key=lambda entry: entry.key)


def _stable_order(keys: pa.ChunkedArray) -> pa.Array:
    """Of equal keys Arrow promises no order, so that their place is sorted by too."""
    table = pa.table({"key": keys, "place": pa.array(range(len(keys)))})
    return table.sort_by([("key", "ascending"), ("place", "ascending")])["place"]

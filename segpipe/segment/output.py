"""What lies in the output of a bulk run, under which name, and in which order it is written.

    _segpipe/settings.json              what the masks were made with
    _segpipe/lease.json                 who writes here now, and how far it is
    _segpipe/manifest/*-NNNNNN.parquet  pages of the inputs as this attempt found them
    _segpipe/manifest.json              their number and digest; written after the pages
    _segpipe/parts/<hash>.parquet       one finished group of rows; a part is its own commit record
    masks/<key>.png                     in place before the part that names them
    results/part-NNNNN-<hash>.parquet   one row for each input, made from the parts
    tables/part-NNNNN-<hash>.csv        the same without pictures, with --table csv or both
    columns.json                        what each column of them holds, a list's own included
    summary.json                        written last; `results` and `tables` list what counts

A file of rows is named by its content: one that changes gets another name, one that does not is
left as it is. summary.json goes first, then new files come beside the old ones, then the old ones
go, and summary.json comes last. So at any moment all old or all new files are there, where
summary.json lies there are no others, and a run that was killed in between is not finished: the
next one makes the same files and resumes. Releases up to 0.1.0 named them part-NNNNN.parquet.

Whatever has another name than these, in any folder, is the user's: never read, replaced or deleted.

Nothing here knows Ray or torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import NoneType
from typing import Any, TypeVar

import pyarrow as pa

from segpipe.storage import Entry, Store
from segpipe.storage.files import (
    Damaged,
    read_json,
    read_parquet,
)

SUMMARY = "summary.json"
REPORT = "report.html"
MANIFEST = "_segpipe/manifest.json"
PAGES = "_segpipe/manifest/"
MANIFEST_REMEDY = "run the same `segpipe segment` again, which writes it anew"
PARTS = "_segpipe/parts/"
RESULTS = "results/"
TABLES = "tables/"
COLUMNS = "columns.json"
OWN = {  # what segpipe writes into a folder
    PAGES: re.compile(PAGES + r"[0-9a-f]{16}-[0-9]{6,}\.parquet"),
    PARTS: re.compile(PARTS + r"[0-9a-f]{32}\.parquet"),
    RESULTS: re.compile(RESULTS + r"part-[0-9]{5,}(-[0-9a-f]{16})?\.parquet"),
    TABLES: re.compile(TABLES + r"part-[0-9]{5,}-[0-9a-f]{16}\.csv"),
}
FETCHES = 16  # parts that are read at once
Fetched = TypeVar("Fetched")


def list_own(output: Store, folder: str) -> Iterator[Entry]:
    """Files of one of these folders that segpipe wrote, known by their names, in order of them,
    whatever that of the listing. All are listed when this returns.
    """
    prefix = f"{folder}part-" if folder in (RESULTS, TABLES) else folder  # not others' folders
    own = [entry for entry in output.list(prefix) if OWN[folder].fullmatch(entry.key)]
    return iter(sorted(own, key=lambda entry: entry.key))


def read_marker(output: Store, **fields: type) -> dict[str, Any] | None:
    """Number and digest of the inputs; None where no run has written them.

    Raises Damaged where it lacks one of these fields.
    """
    return read_json(output, MANIFEST, fields, MANIFEST_REMEDY)


def read_summary(output: Store) -> dict[str, Any] | None:
    """What a finished run told; None before, and where it cannot be read: it is written again."""
    counts = dict.fromkeys(("inputs", "ok", "rejected", "open"), int)
    with suppress(Damaged):
        return read_json(
            output,
            SUMMARY,
            counts | {"inputs_digest": str, "images_per_second": int | float | NoneType},
        )
    return None


def read_tables(
    output: Store, keys: Sequence[str], columns: list[str] | None
) -> Iterator[pa.Table]:
    """These Parquet files in order; some are fetched ahead."""
    return fetch_ahead(partial(read_parquet, output, columns=columns), keys)


def fetch_ahead(fetch: Callable[[str], Fetched], keys: Sequence[str]) -> Iterator[Fetched]:
    """What is fetched of these keys, in their order; some at once."""
    with ThreadPoolExecutor(FETCHES) as pool:
        for start in range(0, len(keys), FETCHES):
            yield from pool.map(fetch, keys[start : start + FETCHES])

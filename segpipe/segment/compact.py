"""The end of a run: parts -> results/ and tables/, in order of the manifest, and what their rows
add up to.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from segpipe.progress import Progress, time_left
from segpipe.segment.manifest import PAGE_ROWS, Manifest, of_list, page_ids
from segpipe.segment.output import COLUMNS, RESULTS, TABLES, fetch_ahead, list_own
from segpipe.segment.parts import Numbers, Parts, path_hashes, read_parts, read_rows
from segpipe.segment.rows import (
    conform,
    described,
    schema_of,
    with_columns,
    without_pictures,
)
from segpipe.storage import Store
from segpipe.storage.files import write_json

RESULT_BYTES = 128 << 20  # of a file of results, where the archive allows: 64 to 256 MiB is usual
ROW_GROUP_BYTES = 16 << 20  # of results that a reader holds at once
NAMED = {"results": RESULTS, "tables": TABLES}  # what the summary lists of them
UNCODED = "unknown"  # in the summary: rejections in rows of 0.1.0, which had no codes


def compact(
    output: Store, manifest: Manifest, table: str = "parquet", verb: str = "segment"
) -> dict[str, Any]:
    """Parts -> results/ in order of the manifest, one row an input -> what the rows add up to.

    `results` are the keys of the files that count, and `tables` those of the same rows as CSV,
    where `table` is csv or both; older ones stay until `delete_old_results`. A list's own columns
    are joined here: parts have none, so that rows show the list of today.
    Inputs that no part holds are counted as `open`. Rows of vanished or changed inputs stay behind
    in their parts. The same parts give the same bytes.
    """
    parts = read_parts(output)
    schema = with_columns(manifest.columns)
    totals, files = Totals(), {"results": Rows(output, PARQUET, schema)}
    if table != "parquet":
        files["tables"] = Rows(output, CSV, schema)
    progress, start, num_done = Progress(verb), time.monotonic(), 0
    current, num_open = [np.zeros(0, np.uint64)], 0
    for number in range(len(manifest.pages)):
        page = manifest.page(number)
        place = parts.find(page_ids(page))
        num_open += int((place < 0).sum())
        current.append(path_hashes(page["path"].to_pylist()))
        listed = of_list(page).filter(pa.array(place >= 0))
        for rows in _rows_at(output, parts, place[place >= 0]):
            own, listed = listed.slice(0, len(rows)), listed.slice(len(rows))
            rows = _joined(own, rows, schema)
            totals.add(rows)
            for one in files.values():
                one.add(rows)
        num_done += len(page)
        if len(manifest.pages) > 1:  # else it takes a second
            rate = num_done / max(time.monotonic() - start, 1e-3)
            left = time_left(num_done, manifest.num_inputs, rate)
            text = f"{num_done} of {manifest.num_inputs} rows, {rate:.0f}/s, {left}"
            progress.show(f"compacting, {text}")
    keys = {name: files[name].close() if name in files else [] for name in NAMED}
    write_json(output, COLUMNS, described(manifest.columns))
    gone = np.setdiff1d(parts.paths, np.concatenate(current), assume_unique=False)
    return totals.summary() | {"open": num_open, "gone": len(gone)} | keys


def _rows_at(output: Store, parts: Parts, place: Numbers) -> Iterator[pa.Table]:
    """The rows at these places of the index, in this order, some at a time."""
    step = int(np.clip(ROW_GROUP_BYTES // max(1, parts.row_bytes), 1, PAGE_ROWS))
    for start in range(0, len(place), step):
        some = place[start : start + step]
        needed, which = np.unique(parts.part[some], return_inverse=True)
        keys = [parts.keys[number] for number in needed]
        tables = list(fetch_ahead(partial(read_rows, output), keys))
        first = np.cumsum([0, *(len(table) for table in tables)])[:-1]
        rows = first[which] + parts.row[some]
        yield pa.concat_tables(tables).take(pa.array(rows))


def _joined(own: pa.Table, rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """A list's own columns beside the rows of its files, in this schema's order."""
    named = set(own.column_names)
    columns = [(own if name in named else rows)[name] for name in schema.names]
    return pa.table(columns, schema=schema)


class Form(NamedTuple):
    """A kind of file that rows are written into."""

    folder: str
    suffix: str
    pictures: bool
    """Whether it has room for them."""
    writer: Callable[[io.BytesIO, pa.Schema], Any]


PARQUET = Form(RESULTS, ".parquet", True, partial(pq.ParquetWriter, compression="zstd"))
CSV = Form(TABLES, ".csv", False, csv.CSVWriter)


class Rows:
    """Files of rows, closed when they are large enough, in parts that a reader can hold."""

    def __init__(self, output: Store, form: Form, schema: pa.Schema) -> None:
        self.output, self.form = output, form
        self.schema = schema if form.pictures else without_pictures(schema)
        self.keys: list[str] = []
        self.before = {entry.key: entry.bytes for entry in list_own(output, form.folder)}
        self.held: list[pa.Table] = []
        self._begin()

    def _begin(self) -> None:
        self.buffer, self.num_rows = io.BytesIO(), 0
        self.writer = self.form.writer(self.buffer, self.schema)

    def add(self, table: pa.Table) -> None:
        """Rows that have all columns of the schema."""
        self.held.append(table.select(self.schema.names))
        self.num_rows += len(table)
        if sum(one.nbytes for one in self.held) >= ROW_GROUP_BYTES:
            self._flush()
            if self.buffer.tell() >= RESULT_BYTES:
                self._finish()
                self._begin()

    def _flush(self) -> None:
        if self.held:
            self.writer.write_table(pa.concat_tables(self.held).combine_chunks())
            self.held = []

    def _finish(self) -> None:
        self.writer.close()
        data = self.buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()[:16]
        key = f"{self.form.folder}part-{len(self.keys):05d}-{digest}{self.form.suffix}"
        if self.before.get(key) != len(data):
            self.output.put(key, data)
        self.keys.append(key)

    def close(self) -> list[str]:
        """Write the last file -> the keys of all."""
        self._flush()
        if self.num_rows or not self.keys:
            self._finish()
        return self.keys


def delete_old_results(output: Store, keys: Sequence[str]) -> None:
    """Delete the files of rows that are not among these."""
    for folder in NAMED.values():
        for entry in list(list_own(output, folder)):
            if entry.key not in keys:
                output.delete(entry.key)


def count_missing_results(output: Store, summary: dict[str, Any]) -> int:
    """How many files of rows the summary names and the output lacks, or has empty."""
    missing = 0
    for name, folder in NAMED.items():
        if (named := summary.get(name, [])) != []:
            there = {entry.key for entry in list_own(output, folder) if entry.bytes}
            missing += sum(k not in there for k in named) if isinstance(named, list) else 1
    return missing


def has_rows(summary: dict[str, Any], table: str) -> bool:
    """Whether a run that ended left those files of rows that --table asks for, and no others."""
    there = {name for name in NAMED if summary.get(name, name == "results")}  # 0.1.0 named none
    return there == {"parquet": {"results"}, "csv": {"tables"}, "both": set(NAMED)}[table]


class Totals:
    """Counts over all rows of a result."""

    def __init__(self) -> None:
        self.status: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.engines: Counter[str] = Counter()
        self.ungradable = 0

    def add(self, table: pa.Table) -> None:
        self.status.update(table["status"].to_pylist())
        rejected = table.filter(pc.is_valid(table["error"]))
        self.reasons.update(rejected["error"].to_pylist())
        self.codes.update(rejected["error_code"].fill_null(UNCODED).to_pylist())
        self.ungradable += pc.sum(table["ungradable"]).as_py() or 0
        self.engines.update(pc.drop_null(table["engine"]).to_pylist())

    def summary(self) -> dict[str, Any]:
        ok, rejected = self.status["ok"], self.status["rejected"]
        return {
            "inputs": ok + rejected,
            "ok": ok,
            "rejected": rejected,
            "ungradable": self.ungradable,
            "rejected_by_code": dict(self.codes.most_common()),
            "rejected_by_reason": dict(self.reasons.most_common()),
            "masks_by_engine": dict(self.engines.most_common()),
        }


def result_groups(
    output: Store, summary: dict[str, Any]
) -> Iterator[Callable[[list[str]], pa.Table]]:
    """For each row group of the results, in order of path, a function that reads columns of it.

    Two files at most are held. Older results are read as `conform` says. A summary of 0.1.0 lists
    no results: all are read.
    """
    listed: list[str] | None = summary.get("results")
    for key in [e.key for e in list_own(output, RESULTS)] if listed is None else listed:
        file = pq.ParquetFile(io.BytesIO(output.get(key)))
        for number in range(file.num_row_groups):
            yield partial(_read_group, file, number)


def _read_group(file: pq.ParquetFile, number: int, columns: list[str]) -> pa.Table:
    return conform(file.read_row_group(number, columns=columns), schema_of(columns))

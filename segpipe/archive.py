"""What a bulk run knows: its inputs, the parts that are done, and how they become the result.

    _segpipe/settings.json              what the masks were made with
    _segpipe/todo/NNNNN.parquet         pages of the inputs that this attempt has to do
    _segpipe/parts/<hash>.parquet       one finished group of rows; a part is its own commit record
    masks/<key>.png                     in place before the part that names them
    results/part-NNNNN.parquet          all rows by path, made from the parts when all is done
    summary.json                        written last

Nothing here knows Ray or torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segpipe.data.codecs import EXTENSIONS
from segpipe.errors import UserError
from segpipe.storage import Entry, Store

SETTINGS, SUMMARY, REPORT = "_segpipe/settings.json", "summary.json", "report.html"
TODO, PARTS, RESULTS, MASKS = "_segpipe/todo/", "_segpipe/parts/", "results/", "masks/"
PAGE_ROWS = 4096  # inputs in a page of the list of what is to do
RESULT_BYTES = 128 << 20  # of rows, before a file of results is closed
LONGEST_NAME = 200  # bytes of a component of a mask's key; file systems hold 255

ROW = pa.schema(
    [
        ("path", pa.string()),  # key relative to the input
        ("mask_path", pa.string()),  # key relative to the output, null without a mask file
        ("bytes", pa.int64()),
        ("version", pa.string()),
        ("status", pa.string()),  # ok | rejected
        ("error", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mask_png", pa.binary()),  # null where only files are written
        ("fov_fraction", pa.float32()),  # field of view / image
        ("vessel_density", pa.float32()),  # vessel / field of view
        ("model", pa.string()),
        ("checkpoint_sha256", pa.string()),
        ("threshold", pa.float32()),
        ("settings", pa.string()),  # hash of what the mask depends on
        ("finished", pa.float64()),  # seconds since 1970, for the rate
    ]
)
INPUT = pa.schema([("path", pa.string()), ("bytes", pa.int64()), ("version", pa.string())])


def input_id(path: str, version: str) -> str:
    """What is done once: this path with this content."""
    return hashlib.sha256(f"{path}\0{version}".encode()).hexdigest()[:32]


def mask_key(path: str) -> str:
    """Where the mask of an input goes; collision-free, and never outside masks/.

    The input's key and extension are kept and `.png` added; a component that a file system cannot
    hold, or that would climb, is replaced by its hash.
    """
    parts = [_safe(part) for part in f"{path}.png".split("/")]
    return MASKS + "/".join(parts)


def _safe(part: str) -> str:
    harmless = part not in ("", ".", "..") and "\0" not in part and "\\" not in part
    if harmless and len(part.encode()) <= LONGEST_NAME:
        return part
    stem, extension = posixpath.splitext(part)
    digest = hashlib.sha256(part.encode()).hexdigest()[:16]
    return f"{stem.strip('.')[:40].replace(chr(92), '_')}~{digest}{extension[:8]}".replace(
        "\0", "_"
    )


@dataclass
class Inputs:
    """What a listing found: photographs, and how many other files by extension."""

    store: Store
    inside: str | None
    """Keys below this prefix are an output inside the input, and are left out."""
    limit: int | None
    skipped: Counter[str]

    def __iter__(self) -> Iterator[Entry]:
        taken = 0
        for entry in self.store.list():
            if self.inside is not None and entry.key.startswith(self.inside):
                continue
            extension = posixpath.splitext(entry.key)[1].lower()
            if extension and extension not in EXTENSIONS:
                self.skipped[extension] += 1
                continue
            if taken == self.limit:
                return
            taken += 1
            yield entry


def open_inputs(source: Store, output: Store, limit: int | None) -> Inputs:
    root, target = source.uri().rstrip("/") + "/", output.uri().rstrip("/") + "/"
    if root == target:
        raise UserError(f"--output {output.uri()}: is the input itself, choose another folder")
    inside = target[len(root) :] if target.startswith(root) else None
    return Inputs(source, inside, limit, Counter())


def write_parquet(store: Store, key: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    store.put(key, buffer.getvalue())


def read_parquet(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(io.BytesIO(store.get(key)), columns=columns)


def done_ids(output: Store) -> dict[str, str]:
    """Id -> part key of every input that a part holds."""
    done: dict[str, str] = {}
    for entry in output.list(PARTS):
        table = read_parquet(output, entry.key, ["path", "version"])
        for path, version in zip(*(column.to_pylist() for column in table.columns), strict=True):
            done[input_id(path, version)] = entry.key
    return done


@dataclass(frozen=True)
class Todo:
    """What this attempt has to do: pages in the output, cut into groups of rows."""

    num_inputs: int
    num_done: int
    pages: tuple[tuple[str, int], ...]
    """(key, rows) of each page."""

    @property
    def num_rows(self) -> int:
        return sum(rows for _, rows in self.pages)

    def groups(self, group_rows: int) -> list[dict[str, Any]]:
        """Rows `page, start, stop`: at most group_rows inputs each."""
        return [
            {"page": page, "start": start, "stop": min(start + group_rows, rows)}
            for page, rows in self.pages
            for start in range(0, rows, group_rows)
        ]


def plan_todo(inputs: Iterable[Entry], output: Store, done: dict[str, str]) -> Todo:
    """Write the pages of inputs that no part holds. Streams: a page at a time is in memory."""
    forget_todo(output)
    pages: list[tuple[str, int]] = []
    page: list[Entry] = []
    num_inputs = num_done = 0

    def flush() -> None:
        if page:
            key = f"{TODO}{len(pages):05d}.parquet"
            columns = [
                [getattr(entry, name) for entry in page] for name in ("key", "bytes", "version")
            ]
            write_parquet(output, key, pa.table(columns, schema=INPUT))
            pages.append((key, len(page)))
            page.clear()

    for entry in inputs:
        num_inputs += 1
        if input_id(entry.key, entry.version) in done:
            num_done += 1
            continue
        page.append(entry)
        if len(page) == PAGE_ROWS:
            flush()
    flush()
    return Todo(num_inputs, num_done, tuple(pages))


def forget_todo(output: Store) -> None:
    for entry in list(output.list(TODO)):
        output.delete(entry.key)


@lru_cache(maxsize=2)
def _page(output: Store, key: str) -> pa.Table:
    return read_parquet(output, key)


def group_entries(output: Store, page: str, start: int, stop: int) -> list[Entry]:
    rows = _page(output, page).slice(start, stop - start).to_pylist()
    return [Entry(row["path"], row["bytes"], row["version"]) for row in rows]


def commit_part(output: Store, rows: list[dict[str, Any]]) -> None:
    """Make rows count as done. Their masks must be in place."""
    names = sorted(input_id(row["path"], row["version"]) for row in rows)
    digest = hashlib.sha256("".join(names).encode()).hexdigest()[:32]
    write_parquet(output, f"{PARTS}{digest}.parquet", pa.Table.from_pylist(rows, schema=ROW))


def compact(output: Store, current: set[str]) -> dict[str, Any]:
    """Parts -> results/ by path, one row for each current input -> what the rows add up to.

    `current` holds the ids of the inputs of today; rows of vanished or changed ones stay behind in
    their parts. The same parts give the same bytes.
    """
    index: dict[str, tuple[str, int]] = {}  # path -> part, row
    known: set[str] = set()
    for entry in output.list(PARTS):
        table = read_parquet(output, entry.key, ["path", "version"])
        columns = (column.to_pylist() for column in table.columns)
        for row, (path, version) in enumerate(zip(*columns, strict=True)):
            known.add(path)
            if input_id(path, version) in current:
                index[path] = (entry.key, row)
    totals = Totals()
    part = lru_cache(maxsize=8)(lambda key: read_parquet(output, key))
    number, held, held_bytes = 0, [], 0
    for path in sorted(index):
        key, row = index[path]
        held.append(part(key).slice(row, 1))
        held_bytes += 512 + len(held[-1]["mask_png"][0].as_py() or b"")
        if held_bytes >= RESULT_BYTES:
            _write_results(output, number, held, totals)
            number, held, held_bytes = number + 1, [], 0
    if held:
        _write_results(output, number, held, totals)
        number += 1
    for entry in list(output.list(RESULTS)):
        if entry.key >= _result_key(number):
            output.delete(entry.key)
    return totals.summary() | {"gone": len(known - set(index))}


def _result_key(number: int) -> str:
    return f"{RESULTS}part-{number:05d}.parquet"


def _write_results(output: Store, number: int, rows: list[pa.Table], totals: Totals) -> None:
    table = pa.concat_tables(rows).combine_chunks()
    totals.add(table)
    write_parquet(output, _result_key(number), table)


class Totals:
    """Counts over all rows of a result."""

    def __init__(self) -> None:
        self.status: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        self.status.update(table["status"].to_pylist())
        self.reasons.update(pc.drop_null(table["error"]).to_pylist())

    def summary(self) -> dict[str, Any]:
        ok, rejected = self.status["ok"], self.status["rejected"]
        return {
            "inputs": ok + rejected,
            "ok": ok,
            "rejected": rejected,
            "rejected_by_reason": dict(self.reasons.most_common()),
        }


def result_rows(output: Store, columns: list[str]) -> pa.Table:
    """These columns of all result files, in order of path."""
    keys = [entry.key for entry in output.list(RESULTS)]
    return pa.concat_tables([read_parquet(output, key, columns) for key in keys])


def steady_rate(finished: Sequence[float]) -> float | None:
    """Images a second after the first finished group, which only starts the clock."""
    times = np.sort(np.asarray(finished))
    if not len(times) or times[-1] == times[0]:
        return None
    return float((times > times[0]).sum() / (times[-1] - times[0]))


def read_json(store: Store, key: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(store.get(key))
    except FileNotFoundError:
        return None
    return found


def write_json(store: Store, key: str, value: dict[str, Any]) -> None:
    store.put(key, json.dumps(value, indent=1, ensure_ascii=False).encode())

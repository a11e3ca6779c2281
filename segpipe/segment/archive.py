"""What a bulk run knows: its inputs, the parts that are done, and how they become the result.

    _segpipe/settings.json              what the masks were made with
    _segpipe/lease.json                 who writes here now, and how far it is
    _segpipe/manifest/*-NNNNNN.parquet  pages of the inputs as this attempt found them
    _segpipe/manifest.json              their number and digest; written after the pages
    _segpipe/parts/<hash>.parquet       one finished group of rows; a part is its own commit record
    masks/<key>.png                     in place before the part that names them
    results/part-NNNNN-<hash>.parquet   one row for each input, made from the parts
    summary.json                        written last; `results` lists the files that count

A file of results is named by its content: one that changes gets another name, one that does not is
left as it is. summary.json goes first, then new files come beside the old ones, then the old ones
go, and summary.json comes last. So at any moment all old or all new files are there, where
summary.json lies there are no others, and a run that was killed in between is not finished: the
next one makes the same files and goes on. Releases up to 0.1.0 named them part-NNNNN.parquet.

Whatever has another name than these, in any folder, is the user's: never read, replaced or deleted.

Nothing here knows Ray or torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from types import NoneType, UnionType
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segpipe.errors import UserError
from segpipe.segment.rows import ROW, conform, schema_of
from segpipe.storage import Entry, Store, space_told

SETTINGS, SUMMARY, REPORT = "_segpipe/settings.json", "summary.json", "report.html"
MANIFEST, PAGES = "_segpipe/manifest.json", "_segpipe/manifest/"
PARTS, RESULTS = "_segpipe/parts/", "results/"
MASKS, PROBABILITIES = "masks/", "probabilities/"
OWN = {  # what segpipe writes into a folder
    PAGES: re.compile(PAGES + r"[0-9a-f]{16}-[0-9]{6,}\.parquet"),
    PARTS: re.compile(PARTS + r"[0-9a-f]{32}\.parquet"),
    RESULTS: re.compile(RESULTS + r"part-[0-9]{5,}(-[0-9a-f]{16})?\.parquet"),
}
PAGE_ROWS = 4096  # inputs in a page of the manifest
RESULT_BYTES = 128 << 20  # of a file of results, where the archive allows: 64 to 256 MiB is usual
ROW_GROUP_BYTES = 16 << 20  # of results that a reader holds at once
FETCHES = 16  # parts that are read at once
TURNS = 32  # groups for each worker where inputs are few: at the end it waits for one group at most
FEWEST = 4  # inputs in a group, unless that would leave a worker without any
UNCODED = "unknown"  # in the summary: rejections in rows of 0.1.0, which had no codes


INPUT = pa.schema(
    [
        ("id", pa.binary(16)),
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("version", pa.string()),
        ("list_id", pa.string()),
    ]
)
INDEX = schema_of(["path", "version", "status", "finished"])

Ids = npt.NDArray[np.bytes_]
Numbers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
NO_IDS: Ids = np.zeros(0, "S16")
Fetched = TypeVar("Fetched")


# ---- names


def input_id(path: str, version: str) -> bytes:
    """16 bytes for what is done once: this path with this content."""
    return hashlib.sha256(f"{path}\0{version}".encode()).digest()[:16]


LONGEST_NAME = 200  # bytes of a component of a mask's key; file systems hold 255
LONGEST_KEY = 800  # bytes of a mask's key; S3 holds 1,024 with the output's prefix
ESCAPED = re.compile(r"~[0-9a-f]{32}")


def mask_key(name: str) -> str:
    """Where the mask of an input goes; collision-free, and never outside masks/.

    The input's key and extension are kept and `.png` added. A component that a file system cannot
    hold, that would climb, or that could be taken for an escaped one gets a hash, and so does a
    folder whose name ends in .png, because a mask could have that name.
    """
    *folders, file = name.split("/")
    key = MASKS + "/".join([*map(_folder, folders), _safe(file) + ".png"])
    return key if len(key.encode()) <= LONGEST_KEY else f"{MASKS}{_hashed(name)}.png"


def _folder(part: str) -> str:
    return _hashed(part) if part.lower().endswith(".png") else _safe(part)


def _safe(part: str) -> str:
    harmless = part not in ("", ".", "..") and part.isprintable() and "\\" not in part
    short = len(part.encode()) <= LONGEST_NAME
    return part if harmless and short and not ESCAPED.search(part) else _hashed(part)


def _hashed(part: str) -> str:
    """The part's first letters, for people, and a hash that no two parts share."""
    readable = re.sub(r"[^\w -]", "_", part)[:30]
    return f"{readable}~{hashlib.sha256(part.encode()).hexdigest()[:32]}"


# ---- files


def list_own(output: Store, folder: str) -> Iterator[Entry]:
    """Files of one of these folders that segpipe wrote, known by their names, in order of them,
    whatever that of the listing. All are listed when this returns.
    """
    prefix = f"{folder}part-" if folder == RESULTS else folder  # spares folders of others
    own = [entry for entry in output.list(prefix) if OWN[folder].fullmatch(entry.key)]
    return iter(sorted(own, key=lambda entry: entry.key))


def write_parquet(store: Store, key: str, table: pa.Table) -> None:
    store.put(key, _parquet(table))


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


class Damaged(UserError):
    """A file of ours that is empty, cut off, or holds something else."""


def read_parquet(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    """Raises Damaged where it is none, or lacks one of these columns."""
    data = store.get(key)
    try:
        table = pq.read_table(io.BytesIO(data), columns=columns)
        return table if columns is None else table.select(columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _damaged(store, key) from error


def _damaged(store: Store, key: str) -> Damaged:
    return Damaged(f"{store.uri(key)}: damaged, {REMEDIES.get(key, REMEDY)}")


def read_json(
    store: Store, key: str, fields: Mapping[str, type | UnionType] | None = None
) -> dict[str, Any] | None:
    """A JSON object, None where there is none. Raises Damaged where it lacks one of these fields,
    or is no such object.
    """
    try:
        data = store.get(key)
    except FileNotFoundError:
        return None
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
        if isinstance(found, dict) and all(
            name in found and isinstance(found[name], kind) for name, kind in (fields or {}).items()
        ):
            return found
    raise _damaged(store, key)


REMEDY = "delete it and run the same again"
REMEDIES = {
    SETTINGS: "or of another verb; it says what was begun here: put it back from a copy, or choose "
    "another --output",
    MANIFEST: "run the same `segpipe segment` again, which writes it anew",
}


def read_settings(output: Store, *flags: str) -> dict[str, Any]:
    """What an output was begun with, by flag; {} where nothing was begun.

    Raises Damaged where one of these flags is not told, which this verb has always written.
    """
    return read_json(output, SETTINGS, dict.fromkeys(flags, str)) or {}


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


def write_json(store: Store, key: str, value: dict[str, Any]) -> None:
    store.put(key, json.dumps(value, indent=1, ensure_ascii=False).encode())


def refuse_changed(place: str, before: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise UserError where an output was begun with other settings; both by flag."""
    for flag, value in settings.items():
        if before.get(flag, value) != value:
            given = f"without {flag}" if value is None else f"{flag} {value}"
            begun = "without it" if before[flag] is None else f"with {before[flag]}"
            raise UserError(f"{given}: {place} was begun {begun}, choose another --output")


# ---- the inputs of this attempt


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
    """Of all ids in order, and of a list's own: equal digests are equal inputs."""

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
        pages = (_ids(self.page(number)) for number in range(len(self.pages)))
        return np.concatenate([NO_IDS, *pages])


def list_inputs(inputs: Iterable[Entry]) -> Manifest:
    """List once, from the first input to the last."""
    manifest = Manifest(tempfile.TemporaryFile(), [], 0, 0, "")  # noqa: SIM115  closed with its manifest
    digest, stop, entries = hashlib.sha256(), 0, iter(inputs)
    while page := list(islice(entries, PAGE_ROWS)):
        ids = [input_id(entry.key, entry.version) for entry in page]
        names = ("key", "bytes", "version", "list_id")
        fields = [[getattr(entry, name) for entry in page] for name in names]
        with space_told(tempfile.gettempdir()):
            written = manifest.spool.write(_parquet(pa.table([ids, *fields], INPUT)))
            manifest.spool.flush()
        start, stop = stop, stop + written
        manifest.pages.append((start, stop))
        manifest.num_inputs += len(page)
        manifest.num_bytes += sum(fields[1])
        digest.update(b"".join(ids))
        if any(fields[3]):  # they go into the rows
            digest.update(json.dumps(fields[3]).encode())
    manifest.digest = digest.hexdigest()
    return manifest


def is_written(output: Store, manifest: Manifest, pages: bool) -> bool:
    """Whether the output's marker is that of this manifest, and all its `pages` are there too."""
    with suppress(Damaged):
        marker = read_json(output, MANIFEST, {"digest": str})
        same = marker is not None and marker["digest"] == manifest.digest
        return same and not (pages and len(written_ids(output)) < manifest.num_inputs)
    return False


def written_ids(output: Store) -> Ids:
    """Of the inputs whose pages of the manifest lie in the output, in their order."""
    marker = read_json(output, MANIFEST, {"digest": str}) or {"digest": ""}
    first = f"{PAGES}{marker['digest'][:16]}-"
    keys = [entry.key for entry in list_own(output, PAGES) if entry.key.startswith(first)]
    return np.concatenate([NO_IDS, *map(_ids, _tables(output, keys, ["id"]))])


@lru_cache(maxsize=4)
def _page(output: Store, key: str) -> pa.Table:
    return read_parquet(output, key, ["path", "bytes", "version"])


def group_entries(output: Store, page: str, rows: Sequence[int]) -> list[Entry]:
    """The inputs at these rows of a page of the manifest."""
    found = _page(output, page).take(pa.array(rows)).to_pylist()
    return [Entry(row["path"], row["bytes"], row["version"]) for row in found]


# ---- the parts that are done


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
    for number, table in enumerate(_at_once(partial(_index, output), keys)):
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
                _path_hashes(paths),
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
        return _read_rows(output, key, INDEX, INDEX.names)
    except Damaged as error:
        return error


def _read_rows(
    output: Store, key: str, schema: pa.Schema = ROW, columns: list[str] | None = None
) -> pa.Table:
    """Rows of a part that any release wrote, with the columns of this schema.

    Raises Damaged where one lacks one of `columns`, or holds what is none of its type.
    """
    table = read_parquet(output, key, columns)
    try:
        return conform(table, schema)
    except pa.ArrowException as error:
        raise _damaged(output, key) from error


def drop_part(output: Store, key: str) -> None:
    """Delete a part that cannot be read: its inputs are done again."""
    place = output.uri(key)
    print(f"segment: warning: {place} is damaged, its inputs are done again", file=sys.stderr)
    output.delete(key)


def _row_numbers(part: Numbers) -> Numbers:
    """0, 1, 2, ... within each run of equal part numbers."""
    numbers = np.arange(len(part))
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    return numbers - np.repeat(starts, np.diff(starts, append=len(part)))


def _path_hashes(paths: list[str]) -> Hashes:
    digests = [hashlib.sha256(path.encode()).digest()[:8] for path in paths]
    return np.frombuffer(b"".join(digests), np.uint64)


NO_FILE = _path_hashes([""])[0]  # of a row that names no mask


def _tables(output: Store, keys: Sequence[str], columns: list[str] | None) -> Iterator[pa.Table]:
    """These Parquet files in order; some are fetched ahead."""
    return _at_once(partial(read_parquet, output, columns=columns), keys)


def _at_once(fetch: Callable[[str], Fetched], keys: Sequence[str]) -> Iterator[Fetched]:
    """What is fetched of these keys, in their order; some at once."""
    with ThreadPoolExecutor(FETCHES) as pool:
        for start in range(0, len(keys), FETCHES):
            yield from pool.map(fetch, keys[start : start + FETCHES])


@dataclass(frozen=True)
class Todo:
    """What this attempt has to do: rows of the manifest's pages."""

    num_ok: int
    num_rejected: int
    pages: list[tuple[str, npt.NDArray[np.int32]]]
    """(key, rows) of each page that is not done yet."""

    @property
    def num_rows(self) -> int:
        return sum(len(rows) for _, rows in self.pages)

    @property
    def num_done(self) -> int:
        return self.num_ok + self.num_rejected

    def progress(self, counts: Counter[str], rate: float | None) -> dict[str, Any]:
        """What a heartbeat tells, when `counts` of ok and rejected were added to what was done."""
        return {
            "ok": self.num_ok + counts["ok"],
            "rejected": self.num_rejected + counts["rejected"],
            "open": self.num_rows - counts["ok"] - counts["rejected"],
            "images_per_second": rate,
        }


def plan_todo(
    manifest: Manifest, parts: Parts, retry_rejected: bool = False, again: Ids = NO_IDS
) -> Todo:
    """The manifest minus what is done; `again` is done once more."""
    pages, num_ok, num_rejected = [], 0, 0
    for number in range(len(manifest.pages)):
        ids = _ids(manifest.page(number))
        place = parts.find(ids)
        ok = np.append(parts.ok, False)[place]  # -1, what is not done, is not ok
        open_ = (~ok if retry_rejected else place < 0) | np.isin(ids, again)
        num_ok += int((ok & ~open_).sum())
        num_rejected += int((~ok & ~open_).sum())
        if open_.any():
            pages.append((manifest.key(number), np.flatnonzero(open_).astype(np.int32)))
    return Todo(num_ok, num_rejected, pages)


def _ids(page: pa.Table) -> Ids:
    return np.array(page["id"].to_pylist(), "S16")


def group_rows(num_rows: int, workers: int, batch_size: int) -> int:
    """Inputs in a group: as many as --batch-size says, fewer where that left workers without."""
    shares = -(-num_rows // (TURNS * workers)), -(-num_rows // workers)
    return min(batch_size, max(FEWEST, shares[0]), shares[1])


# ---- what was deleted since


def find_missing(
    output: Store, ids: Ids, damaged: Callable[[str], None] | None = None
) -> dict[str, Ids]:
    """Of these inputs those without a row (`rows`), and those whose mask is gone (`masks`, and
    `probabilities` where the output has such): their row names a file that a listing does not show,
    or shows empty.

    Rows are read before the listing, so that what a run adds meanwhile is not missing. Held are 8
    bytes for each row and each file. `damaged` is as in `read_parts`.
    """
    settings = read_json(output, SETTINGS) or {}
    parts = read_parts(output, damaged)
    place = parts.find(ids)
    missing = {"rows": ids[place < 0]}
    place = place[place >= 0]
    named = _named_masks(output, parts)[place]
    place, named = place[named != NO_FILE], named[named != NO_FILE]
    for folder in (MASKS, PROBABILITIES) if settings.get("--probabilities") else (MASKS,):
        listed = _listed_masks(output, folder) if len(named) else np.zeros(0, np.uint64)
        missing[folder.rstrip("/")] = parts.ids[place[~np.isin(named, listed)]]
    return missing


def _named_masks(output: Store, parts: Parts) -> Hashes:
    """Hash of each row's mask_path in order of the index, NO_FILE where it has none."""
    used = np.unique(parts.part)  # a damaged one is not
    tables = _tables(output, [parts.keys[number] for number in used], ["mask_path"])
    hashes = [_path_hashes(pc.fill_null(table["mask_path"], "").to_pylist()) for table in tables]
    first = np.cumsum([0, *map(len, hashes)])
    return np.concatenate([np.zeros(0, np.uint64), *hashes])[
        first[np.searchsorted(used, parts.part)] + parts.row
    ]


def _listed_masks(output: Store, folder: str) -> Hashes:
    """Hash of the key of each mask that lies in masks/, or whose score lies in probabilities/."""
    listing, hashes = output.list(folder), [np.zeros(0, np.uint64)]
    while page := list(islice(listing, PAGE_ROWS)):
        keys = [MASKS + entry.key.removeprefix(folder) for entry in page if entry.bytes]
        hashes.append(_path_hashes(keys))
    return np.concatenate(hashes)


# ---- the end


def compact(output: Store, manifest: Manifest) -> dict[str, Any]:
    """Parts -> results/ in order of the manifest, one row an input -> what the rows add up to.

    `results` are the keys of the files that count; older ones stay until `delete_old_results`.
    Inputs that no part holds are counted as `open`. Rows of vanished or changed inputs stay behind
    in their parts. The same parts give the same bytes.
    """
    parts = read_parts(output)
    totals, results = Totals(), Results(output)
    current, num_open = [np.zeros(0, np.uint64)], 0
    for number in range(len(manifest.pages)):
        page = manifest.page(number)
        place = parts.find(_ids(page))
        num_open += int((place < 0).sum())
        current.append(_path_hashes(page["path"].to_pylist()))
        list_ids = page["list_id"].filter(pa.array(place >= 0))
        for table in _rows_at(output, parts, place[place >= 0]):
            own, list_ids = list_ids.slice(0, len(table)), list_ids.slice(len(table))
            table = table.set_column(table.schema.get_field_index("id"), ROW.field("id"), own)
            totals.add(table)
            results.add(table)
    keys = results.close()
    gone = np.setdiff1d(parts.paths, np.concatenate(current), assume_unique=False)
    return totals.summary() | {"open": num_open, "gone": len(gone), "results": keys}


def _rows_at(output: Store, parts: Parts, place: Numbers) -> Iterator[pa.Table]:
    """The rows at these places of the index, in this order, some at a time."""
    step = int(np.clip(ROW_GROUP_BYTES // max(1, parts.row_bytes), 1, PAGE_ROWS))
    for start in range(0, len(place), step):
        some = place[start : start + step]
        needed, which = np.unique(parts.part[some], return_inverse=True)
        keys = [parts.keys[number] for number in needed]
        tables = list(_at_once(partial(_read_rows, output), keys))
        first = np.cumsum([0, *(len(table) for table in tables)])[:-1]
        rows = first[which] + parts.row[some]
        yield pa.concat_tables(tables).take(pa.array(rows))


class Results:
    """Files of rows, closed when they are large enough, in row groups that a reader can hold."""

    def __init__(self, output: Store) -> None:
        self.output = output
        self.keys: list[str] = []
        self.before = {entry.key: entry.bytes for entry in list_own(output, RESULTS)}
        self.held: list[pa.Table] = []
        self._begin()

    def _begin(self) -> None:
        self.buffer = io.BytesIO()
        self.writer = pq.ParquetWriter(self.buffer, ROW, compression="zstd")

    def add(self, table: pa.Table) -> None:
        self.held.append(conform(table))
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
        key = f"{RESULTS}part-{len(self.keys):05d}-{digest}.parquet"
        if self.before.get(key) != len(data):
            self.output.put(key, data)
        self.keys.append(key)

    def close(self) -> list[str]:
        """Write the last file -> the keys of all."""
        self._flush()
        if self.buffer.tell() > len(b"PAR1") or not self.keys:
            self._finish()
        return self.keys


def delete_old_results(output: Store, keys: Sequence[str]) -> None:
    """Delete the files of results that are not among these."""
    for entry in list(list_own(output, RESULTS)):
        if entry.key not in keys:
            output.delete(entry.key)


def count_missing_results(output: Store, summary: dict[str, Any]) -> int:
    """How many files of results the summary names and the output lacks, or has empty."""
    there = {entry.key for entry in list_own(output, RESULTS) if entry.bytes}
    named = summary.get("results", [])
    return sum(key not in there for key in named) if isinstance(named, list) else 1


class Totals:
    """Counts over all rows of a result."""

    def __init__(self) -> None:
        self.status: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.engines: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        self.status.update(table["status"].to_pylist())
        rejected = table.filter(pc.is_valid(table["error"]))
        self.reasons.update(rejected["error"].to_pylist())
        self.codes.update(rejected["error_code"].fill_null(UNCODED).to_pylist())
        self.engines.update(pc.drop_null(table["engine"]).to_pylist())

    def summary(self) -> dict[str, Any]:
        ok, rejected = self.status["ok"], self.status["rejected"]
        return {
            "inputs": ok + rejected,
            "ok": ok,
            "rejected": rejected,
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

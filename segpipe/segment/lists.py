"""Lists: CSV and Parquet files that name photographs.

Names and ids are read as text. What else a list says of a file goes into its row: columns of CSV as
text, those of Parquet as numbers, truths and days where they hold such, and else as text.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import repeat
from multiprocessing.pool import ThreadPool

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from segpipe.errors import StoreDown, UserError, some_of
from segpipe.segment.columns import TEXT
from segpipe.segment.rows import COLUMNS
from segpipe.storage import (
    PREFLIGHT_S,
    Entry,
    Listed,
    Service,
    Store,
    local_path,
    open_store,
    read_uri,
    s3_service,
)

LISTS = (".csv", ".parquet")
COLUMN, ID = "path", "id"
TEMPLATE = re.compile(r"([^{}]*)\{([^{}]+)\}([^{}]*)|([^{}]+)")
ASKED_AT_ONCE = 16  # files of a list whose size and version are asked for at the same time
LIST_ROWS = 4096
DELIMITERS = ";", "\t"  # beside the comma: of Excel where commas are decimal, of its Unicode text
REPEATED = "named again in the list"  # a kind of skipped files
NAMELESS = "rows without a name"
OWN = frozenset(column.name for column in COLUMNS)  # in lower case
Names = list[str]
Rows = list[Entry]
SAME = (pa.float32(), pa.float64(), pa.bool_(), pa.date32())  # types that come back as they are


@dataclass(frozen=True)
class ListedFiles:
    """The files that a column of a CSV or Parquet file names.

    Keys are `bucket/key` or absolute paths; relative paths start at the list's own place.
    """

    list_uri: str
    patience_s: float
    anonymous: bool = False
    column: str = COLUMN
    """Its name; or a path with it in braces, as `train/{image}.jpeg`."""
    service: Service | None = None
    """The S3 of its files, on every node."""
    skipped: Counter[str] = field(default_factory=Counter, compare=False)
    """Rows that the last listing left out."""
    left_out: Names = field(default_factory=list, compare=False)
    """Columns that it left out."""

    def uri(self, key: str = "") -> str:
        if not key:
            return self.list_uri
        return key if key.startswith("/") else f"s3://{key}"

    def _place(self, key: str) -> tuple[Store, str]:
        if key.startswith("/"):
            return open_store("/", self.patience_s), key[1:]
        bucket, _, name = key.partition("/")
        return open_store(f"s3://{bucket}", self.patience_s, self.anonymous, self.service), name

    def get(self, key: str, version: str | None = None) -> bytes:
        store, name = self._place(key)
        return store.get(name, version or None)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The listed files that start with `prefix`, each once, in the list's order; the id of one
        that is named twice is that of its first row.
        """
        seen: set[bytes] = set()
        local: set[bool] = set()
        self.skipped.clear()
        # Its threads do not keep a process that is stopped, as an executor's do, while a store
        # that does not answer is waited for.
        with ThreadPool(ASKED_AT_ONCE) as pool:
            for rows in self._rows():
                fresh: Rows = []
                for row in rows:
                    key = self._key(row.key)
                    if not key.startswith(prefix):
                        continue
                    if (digest := _digest(key)) in seen:
                        self.skipped[REPEATED] += 1
                        continue
                    seen.add(digest)
                    local.add(key.startswith("/"))
                    fresh.append(replace(row, key=key))
                if len(local) > 1:  # their masks could get one name
                    raise UserError(f"{self.list_uri}: local paths beside s3://, use two lists")
                yield from pool.imap(self._entry, fresh)

    def _entry(self, entry: Entry) -> Entry:
        """With its size and version."""
        store, name = self._place(entry.key)
        found = None
        with _of_one(), suppress(UserError):  # reading it will tell
            found = store.head(name)
        # What is not there is an input all the same: it ends as a rejection.
        return replace(entry, bytes=found.bytes, version=found.version) if found else entry

    def _key(self, path: str) -> str:
        if path.startswith("s3://"):
            if not path.removeprefix("s3://").partition("/")[0]:
                raise UserError(f"{self.list_uri}: {path}: no bucket named, use s3://bucket/key")
            return path.removeprefix("s3://")
        if "://" in path:
            raise UserError(f"{self.list_uri}: {path}: use local paths or s3://bucket/key")
        if not path.startswith("/") and self.list_uri.startswith("s3://"):
            return self._beside(path)
        return os.path.normpath(os.path.join(os.path.dirname(self.list_uri), path))

    def _beside(self, path: str) -> str:
        """The key that a relative path names, from the place of a list on S3."""
        folder = posixpath.dirname(self.list_uri).removeprefix("s3://")
        if not {".", ".."}.intersection(path.split("/")):
            return f"{folder}/{path}"
        key = posixpath.normpath(f"{folder}/{path}")
        if not key.startswith(f"{folder.partition('/')[0]}/"):
            raise UserError(f"{self.list_uri}: {path}: leaves the bucket, use s3://bucket/key")
        return key

    def check_readable(self) -> None:
        try:
            first: Rows = next(self._rows(), [])
            for row in first[:1]:  # its store, before all others are asked for
                store, name = self._place(self._key(row.key))
                with _of_one():  # a row will tell
                    store.with_patience(PREFLIGHT_S).head(name)
        except UserError as error:
            raise UserError(f"--input {error}") from error
        except StoreDown as error:
            raise UserError(
                f"--input {error} (is the store up, and is AWS_ENDPOINT_URL right?)"
            ) from error

    def answers(self, key: str = "") -> bool:
        return self._place(key)[0].answers()

    def notes(self) -> Names:
        """What is worth a line, though nothing is wrong, after a listing."""
        if not self.left_out:
            return []
        names = some_of(self.left_out)
        why = "of bytes or nested values, or named as segpipe's own"
        return [f"{self.list_uri}: rows leave out {names}, {why}"]

    def _rows(self) -> Iterator[Rows]:
        """The list's rows in batches, paths as they stand there; those without a name are left
        out.
        """
        before, name, after = split_column(self.column)
        for batch in _read_list(self.list_uri, self.anonymous, name, self.left_out):
            names = batch[name].cast(TEXT).to_pylist()
            ids = batch[ID].cast(TEXT).to_pylist() if ID in batch.schema.names else repeat(None)
            if num_nameless := sum(not path for path in names):
                self.skipped[NAMELESS] += num_nameless
            yield [
                Entry(f"{before}{path}{after}", 0, "", list_id, listed)
                for path, list_id, listed in zip(names, ids, _listed(batch), strict=False)
                if path
            ]


@contextmanager
def _of_one() -> Iterator[None]:
    """Errors of one object go by; StoreDown does not."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreDown):
            raise


def open_list(uri: str, patience_s: float, anonymous: bool, column: str) -> ListedFiles:
    place = uri if uri.startswith("s3://") else local_path(uri)
    return ListedFiles(place, patience_s, anonymous, column, s3_service())


def split_column(column: str) -> tuple[str, str, str]:
    """What stands before a column's value, the column's name, and what stands after it."""
    found = TEMPLATE.fullmatch(column)
    if found is None or not column.strip():
        raise UserError(
            f'--column "{column}": name a column, or a path with one in braces, as '
            "train/{image}.jpeg"
        )
    before, name, after, alone = found.groups()
    return (before, name, after) if alone is None else ("", alone, "")


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _listed(batch: pa.RecordBatch) -> Iterator[Listed | None]:
    """What each row says beside name and id; without end where these are all."""
    columns = pa.schema(
        [(one.name, _type_of(one.type)) for one in batch.schema if not _is_own(one.name)]
    )
    if not len(columns):
        return repeat(None)
    values = (batch[one.name].cast(one.type).to_pylist() for one in columns)
    return (Listed(columns, row) for row in zip(*values, strict=True))


def _type_of(kind: pa.DataType) -> pa.DataType:
    """Of a list's column in the rows: one that every reader of them knows."""
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return pa.int64()
    return kind if kind in SAME else TEXT


def _check_names(uri: str, names: list[str], name: str) -> None:
    """Raise UserError unless a column has this name, and no two have one; letters' case makes no
    other name, as for many a reader.
    """
    if name not in names:
        raise _no_column(uri, name, names)
    counts = Counter(one.lower() for one in names if one)
    if twice := [one for one in names if counts[one.lower()] > 1]:
        raise UserError(
            f"{uri}: has columns of one name: {some_of(twice)}; rename or delete all but one"
        )


def _read_list(
    uri: str, anonymous: bool, name: str, left_out: list[str]
) -> Iterator[pa.RecordBatch]:
    """A list in batches; the file itself is held. `left_out` becomes the names of columns that
    rows cannot have; those without a name are left out too.
    """
    data = read_uri(uri, anonymous)
    try:
        if uri.lower().endswith(".parquet"):
            yield from _of_parquet(uri, data, name, left_out)
        else:
            yield from _of_csv(uri, data, name, left_out)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        first = str(error).splitlines()[0]
        if "UTF8" in first:
            raise _not_text(uri) from error
        raise UserError(
            f"{uri}: cannot be read as a list ({first}), save it anew as CSV or Parquet"
        ) from error


def _of_parquet(uri: str, data: bytes, name: str, left_out: list[str]) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(io.BytesIO(data))
    schema = file.schema_arrow
    _check_names(uri, schema.names, name)
    left_out[:] = [
        one.name
        for one in schema
        if one.name not in (name, ID) and (_is_own(one.name) or not _is_text(one.type))
    ]
    wanted = [one for one in schema.names if one and one not in left_out]
    for batch in file.iter_batches(LIST_ROWS, columns=wanted):
        yield batch.select(wanted)  # a name with a dot may bring others


def _is_own(name: str) -> bool:
    """Whether segpipe has a column of this name, and another value in it."""
    return name.lower() in OWN


def _is_text(kind: pa.DataType) -> bool:
    """Whether each value of this type can be written as text."""
    if "binary" in str(kind):
        return False
    try:
        return bool(pa.nulls(0, kind).cast(TEXT).type == TEXT)
    except pa.ArrowNotImplementedError:
        return False


def _of_csv(uri: str, data: bytes, name: str, left_out: list[str]) -> Iterator[pa.RecordBatch]:
    data = _as_utf8(uri, data)
    if not data.removeprefix(codecs.BOM_UTF8).strip():
        raise UserError(f"{uri}: is empty, wanted a header with {name!r} and a row for each file")
    with _open_csv(data, []) as reader:
        names = reader.schema.names
    _check_names(uri, names, name)
    left_out[:] = [one for one in names if one not in (name, ID) and _is_own(one)]
    with _open_csv(data, [one for one in names if one and one not in left_out]) as reader:
        yield from reader


def _open_csv(data: bytes, wanted: list[str]) -> pyarrow.csv.CSVStreamingReader:
    """These columns as text; all of them, of types that are guessed, where none is wanted."""
    return pyarrow.csv.open_csv(
        io.BytesIO(data),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=_delimiter(data),
            newlines_in_values=True,  # of notes, say
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())
        ),
    )


def _delimiter(data: bytes) -> str:
    """What parts the names of the first line: a comma, unless there is none but another."""
    header = data.lstrip().split(b"\n", 1)[0]
    others = (mark for mark in DELIMITERS if mark.encode() in header and b"," not in header)
    return next(others, ",")


def _as_utf8(uri: str, data: bytes) -> bytes:
    """A list's text in UTF-8: of UTF-16 where it says so, as Excel's Unicode text does."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise _not_text(uri) from error
    if b"\0" in data[:4]:  # UTF-16 that does not say so, or UTF-32
        raise _not_text(uri)
    if (place := data.find(b"\0")) >= 0:
        line = 1 + data.count(b"\n", 0, place)
        raise UserError(
            f"{uri}: has a NUL byte in line {line}, wanted text, save it anew as CSV in UTF-8"
        )
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise _not_text(uri) from error
    return data if data.endswith(b"\n") else data + b"\n"  # Arrow finds no header without


def _not_text(uri: str) -> UserError:
    return UserError(
        f"{uri}: is neither UTF-8 nor UTF-16 with a byte order mark, save it anew as CSV in UTF-8"
    )


def _no_column(uri: str, name: str, names: list[str]) -> UserError:
    text = some_of(names) or "nothing"
    return UserError(f"{uri}: has no column {name!r}, only {text}: name one so, or give --column")

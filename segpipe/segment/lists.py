"""Lists: CSV and Parquet files that name photographs.

Of a list only the column of names counts, and `id` where there is one; both are read as text.
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
from multiprocessing.pool import ThreadPool

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from segpipe.errors import StoreDown, UserError, some_of
from segpipe.storage import (
    PREFLIGHT_S,
    Entry,
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

Named = tuple[str, str | None]
"""A path, or the key of one, and its id."""
Rows = list[Named]


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
                for path, list_id in rows:
                    key = self._key(path)
                    if not key.startswith(prefix):
                        continue
                    if (digest := _digest(key)) in seen:
                        self.skipped[REPEATED] += 1
                        continue
                    seen.add(digest)
                    local.add(key.startswith("/"))
                    fresh.append((key, list_id))
                if len(local) > 1:  # their masks could get one name
                    raise UserError(f"{self.list_uri}: local paths beside s3://, use two lists")
                yield from pool.imap(self._entry, fresh)

    def _entry(self, named: Named) -> Entry:
        key, list_id = named
        store, name = self._place(key)
        found = None
        with _of_one(), suppress(UserError):  # reading it will tell
            found = store.head(name)
        # What is not there is an input all the same: it ends as a rejection.
        entry = Entry(key, found.bytes, found.version) if found else Entry(key, 0, "")
        return replace(entry, list_id=list_id)

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
            for path, _ in first[:1]:  # its store, before all others are asked for
                store, name = self._place(self._key(path))
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

    def _rows(self) -> Iterator[Rows]:
        """Paths and ids in batches; those without a name are left out."""
        before, name, after = split_column(self.column)
        for names, ids in _read_list(self.list_uri, self.anonymous, name):
            if num_nameless := sum(not path for path in names):
                self.skipped[NAMELESS] += num_nameless
            yield [
                (f"{before}{path}{after}", list_id)
                for path, list_id in zip(names, ids, strict=True)
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


Columns = tuple[list[str | None], list[str | None]]


def _read_list(uri: str, anonymous: bool, name: str) -> Iterator[Columns]:
    """Names and ids of a list in batches; the file itself is held, some 100 bytes a row."""
    data = read_uri(uri, anonymous)
    try:
        batches = _of_parquet if uri.lower().endswith(".parquet") else _of_csv
        for batch in batches(uri, data, name):
            texts = {one: batch[one].cast(pa.string()).to_pylist() for one in batch.schema.names}
            yield texts[name], texts.get(ID, [None] * batch.num_rows)
    except (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowNotImplementedError) as error:
        first = str(error).splitlines()[0]
        if "UTF8" in first:
            raise _not_text(uri) from error
        raise UserError(
            f"{uri}: cannot be read as a list ({first}), save it anew as CSV or Parquet"
        ) from error


def _of_parquet(uri: str, data: bytes, name: str) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(io.BytesIO(data))
    wanted = [one for one in dict.fromkeys((name, ID)) if one in file.schema_arrow.names]
    if name not in wanted:
        raise _no_column(uri, name, file.schema_arrow.names)
    yield from file.iter_batches(LIST_ROWS, columns=wanted)


def _of_csv(uri: str, data: bytes, name: str) -> Iterator[pa.RecordBatch]:
    data = _as_utf8(uri, data)
    if not data.removeprefix(codecs.BOM_UTF8).strip():
        raise UserError(f"{uri}: is empty, wanted a header with {name!r} and a row for each file")
    for wanted in (list(dict.fromkeys((name, ID))), [name]):
        # Columns that are not asked for are neither guessed at nor converted.
        with suppress(pa.ArrowKeyError):  # without an id
            reader = _open_csv(data, wanted)
            break
    else:
        with suppress(UnicodeDecodeError):
            raise _no_column(uri, name, _open_csv(data, []).schema.names)
        raise _not_text(uri)
    with reader:
        yield from reader


def _open_csv(data: bytes, wanted: list[str]) -> pyarrow.csv.CSVStreamingReader:
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
    return data if data.endswith(b"\n") else data + b"\n"  # Arrow finds no header without


def _not_text(uri: str) -> UserError:
    return UserError(
        f"{uri}: is neither UTF-8 nor UTF-16 with a byte order mark, save it anew as CSV in UTF-8"
    )


def _no_column(uri: str, name: str, names: list[str]) -> UserError:
    text = some_of(names) or "nothing"
    return UserError(f"{uri}: has no column {name!r}, only {text}: name one so, or give --column")

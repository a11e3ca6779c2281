"""Which photographs a bulk run takes: a folder, an S3 prefix, or a list of single files."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from multiprocessing.pool import ThreadPool

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from segpipe.data.codecs import EXTENSIONS
from segpipe.errors import StoreDown, UserError
from segpipe.storage import (
    PREFLIGHT_S,
    Entry,
    Source,
    Store,
    check_there,
    local_path,
    open_store,
    read_uri,
)

LISTS = (".csv", ".parquet")
COLUMN = "path"  # of a list
ASKED_AT_ONCE = 16  # files of a list whose size and version are asked for at the same time
LIST_ROWS = 4096
LISTED = 1000  # files between two words on how far a listing is: a page of S3
BY_GLOB = "by --include or --exclude"


def open_source(uri: str, patience_s: float, anonymous: bool = False) -> Source:
    """Where the photographs of --input lie; `anonymous` reads a public bucket unsigned.

    Raises UserError where there is nothing.
    """
    if uri.lower().endswith(LISTS):
        place = uri if uri.startswith("s3://") else local_path(uri)
        return ListedFiles(place, patience_s, anonymous)
    store = open_store(uri, patience_s, anonymous)
    if not store.exists():
        folder, _, name = store.uri().rpartition("/")
        if folder != "s3:/" and name:
            above = open_store(folder or "/", patience_s, anonymous)
            if above.with_patience(PREFLIGHT_S).head(name) is not None:
                return OneFile(above, name)
        check_there(store, "--input")
    return store


@dataclass(frozen=True)
class OneFile:
    """A single photograph, whatever its suffix. Its key is its name."""

    folder: Store
    name: str

    def uri(self, key: str = "") -> str:
        return self.folder.uri(key or self.name)

    def get(self, key: str, version: str | None = None) -> bytes:
        return self.folder.get(key, version)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        entry = self.folder.head(self.name) if self.name.startswith(prefix) else None
        if entry is not None:
            yield entry

    def check_readable(self) -> None:
        self.folder.check_readable()

    def answers(self, key: str = "") -> bool:
        return self.folder.answers(key)


@dataclass(frozen=True)
class ListedFiles:
    """The files that the column `path` of a CSV or Parquet file names.

    Keys are `bucket/key` or absolute paths; relative paths start at the list's own place.
    """

    list_uri: str
    patience_s: float
    anonymous: bool = False

    def uri(self, key: str = "") -> str:
        if not key:
            return self.list_uri
        return key if key.startswith("/") else f"s3://{key}"

    def _place(self, key: str) -> tuple[Store, str]:
        if key.startswith("/"):
            return open_store("/", self.patience_s), key[1:]
        bucket, _, name = key.partition("/")
        return open_store(f"s3://{bucket}", self.patience_s, self.anonymous), name

    def get(self, key: str, version: str | None = None) -> bytes:
        store, name = self._place(key)
        return store.get(name, version or None)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The listed files that start with `prefix`, each once, in the list's order."""
        seen: set[bytes] = set()
        local: set[bool] = set()
        # Its threads do not keep a process that is stopped, as an executor's do, while a store
        # that does not answer is waited for.
        with ThreadPool(ASKED_AT_ONCE) as pool:
            for paths in _read_list(self.list_uri, self.anonymous):
                keys = dict.fromkeys(self._key(path) for path in paths)
                new = {_digest(k): k for k in keys if k.startswith(prefix)}
                fresh = [key for digest, key in new.items() if digest not in seen]
                seen.update(new)
                local.update(key.startswith("/") for key in fresh)
                if len(local) > 1:  # their masks could get one name
                    raise UserError(f"{self.list_uri}: local paths beside s3://, use two lists")
                yield from pool.imap(self._entry, fresh)

    def _entry(self, key: str) -> Entry:
        store, name = self._place(key)
        try:
            found = store.head(name)
        except (UserError, PermissionError):  # reading it will tell
            found = None
        # What is not there is an input all the same: it ends as a rejection.
        return Entry(key, found.bytes, found.version) if found else Entry(key, 0, "")

    def _key(self, path: str) -> str:
        if path.startswith("s3://"):
            if not path.removeprefix("s3://").partition("/")[0]:
                raise UserError(f"{self.list_uri}: {path}: no bucket named, use s3://bucket/key")
            return path.removeprefix("s3://")
        if "://" in path:
            raise UserError(f"{self.list_uri}: {path}: use local paths or s3://bucket/key")
        if not path.startswith("/") and self.list_uri.startswith("s3://"):
            return f"{posixpath.dirname(self.list_uri).removeprefix('s3://')}/{path}"
        return os.path.normpath(os.path.join(os.path.dirname(self.list_uri), path))

    def check_readable(self) -> None:
        try:
            first = next(_read_list(self.list_uri, self.anonymous), [])
            for key in map(self._key, first[:1]):  # its store, before all others are asked for
                store, name = self._place(key)
                with suppress(PermissionError):  # of this one: a row will tell
                    store.with_patience(PREFLIGHT_S).head(name)
        except UserError as error:
            raise UserError(f"--input {error}") from error
        except StoreDown as error:
            raise UserError(
                f"--input {error} (is the store up, and is AWS_ENDPOINT_URL right?)"
            ) from error

    def answers(self, key: str = "") -> bool:
        return self._place(key)[0].answers()


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _read_list(uri: str, anonymous: bool) -> Iterator[list[str]]:
    """The paths of a list in batches; the file itself is held, some 100 bytes a row."""
    data = io.BytesIO(read_uri(uri, anonymous))
    try:
        for batch in _batches(data, uri):
            column = batch.column(batch.schema.get_field_index(COLUMN))
            yield [path for path in column.cast(pa.string()).to_pylist() if path]
    except (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowNotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{uri}: cannot be read as a list ({first}), save it anew as CSV or Parquet"
        ) from error


def _batches(data: io.BytesIO, uri: str) -> Iterator[pa.RecordBatch]:
    if uri.lower().endswith(".parquet"):
        file = pq.ParquetFile(data)
        _check_column(uri, file.schema_arrow.names)
        yield from file.iter_batches(LIST_ROWS, columns=[COLUMN])
        return
    convert = pyarrow.csv.ConvertOptions(column_types={COLUMN: pa.string()})
    with pyarrow.csv.open_csv(data, convert_options=convert) as reader:
        _check_column(uri, reader.schema.names)
        yield from reader


def _check_column(uri: str, names: list[str]) -> None:
    if COLUMN not in names:
        raise UserError(
            f"{uri}: has no column {COLUMN!r}, only {', '.join(names) or 'nothing'}, name one so"
        )


@dataclass
class Inputs:
    """The photographs of a source; other files are counted by their extension."""

    source: Source
    inside: str | None = None
    """Keys below this prefix are an output inside the input, and are left out."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    on_listed: Callable[[int], None] | None = None
    """Called now and then while the source is listed, with the number of files seen."""

    def __iter__(self) -> Iterator[Entry]:
        self.skipped.clear()
        taken = 0
        any_suffix = isinstance(self.source, OneFile)
        for number, entry in enumerate(self.source.list(), start=1):
            if self.on_listed is not None and number % LISTED == 0:
                self.on_listed(number)
            if self.inside is not None and entry.key.startswith(self.inside):
                continue
            extension = posixpath.splitext(entry.key)[1].lower()
            if extension and extension not in EXTENSIONS and not any_suffix:
                self.skipped[extension] += 1
            elif not self._wanted(entry.key):
                self.skipped[BY_GLOB] += 1
            elif taken == self.limit:
                return
            else:
                taken += 1
                yield entry

    def nothing(self, name: str) -> UserError:
        """The error for a listing without a photograph; `name` is that of --input."""
        globs = [
            f"--{flag} {' '.join(map(repr, given))}"
            for flag, given in (("include", self.include), ("exclude", self.exclude))
            if given
        ]
        if left_out := self.skipped[BY_GLOB]:
            many = f"{left_out} photograph{'s' * (left_out > 1)}"
            matches = "none matches" if self.include else "none is left by"
            return UserError(f"--input {name}: {many}, {matches} {' and '.join(globs)}, change it")
        others = self.skipped.total()
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.skipped.most_common(5))
        told = f"{others} other file{'s' * (others != 1)}" + (f": {kinds}" if others else "")
        wanted = " ".join(sorted(EXTENSIONS))
        return UserError(
            f"--input {name}: no photographs there ({told}), wanted {wanted}, "
            "or a .csv list with a column path"
        )

    def _wanted(self, key: str) -> bool:
        included = not self.include or any(fnmatchcase(key, glob) for glob in self.include)
        return included and not any(fnmatchcase(key, glob) for glob in self.exclude)


def filed_as(source: Source, key: str) -> str:
    """The name that an input's mask goes by: its key, of a listed local file without the root."""
    return key.removeprefix("/") if isinstance(source, ListedFiles) else key


def inside(source: Source, output: Store) -> str | None:
    """The prefix of the output's keys where it lies inside the input."""
    root, target = source.uri().rstrip("/") + "/", output.uri().rstrip("/") + "/"
    if root == target:
        raise UserError(f"--output {output.uri()}: is the input itself, choose another folder")
    return target[len(root) :] if target.startswith(root) else None

"""A folder on a local or mounted disk."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_IFSOCK, S_ISDIR, S_ISREG

from segpipe.errors import ChangedObject, Unfinished, UserError
from segpipe.storage.entry import Entry

TEMPORARY = "_segpipe/tmp"  # where a file is written before it is renamed into its place
TEMPORARY_NAME = re.compile(r"tmp[a-z0-9_]{8}")  # as tempfile.mkstemp makes them
SYNCS = 8  # files that are synced at once: a network file system answers each after a while
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of file systems that cannot sync a folder
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_FILE = (errno.ELOOP, errno.ENAMETOOLONG)  # a link to itself, a name that no file can have
BROKEN_LINKS = "broken links"  # to nothing or to themselves: a kind of skipped files, as these are
SPECIAL = {S_IFIFO: "pipes", S_IFSOCK: "sockets", S_IFCHR: "devices", S_IFBLK: "devices"}
NO_FILES = (BROKEN_LINKS, *SPECIAL.values())
RAW_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")


@dataclass(frozen=True)
class LocalStore:
    root: str
    skipped: Counter[str] = field(default_factory=Counter, compare=False, repr=False)
    """What the last listing left out, as it can never be read, by kind."""

    def uri(self, key: str = "") -> str:
        return os.path.join(self.root, key) if key else self.root

    def _path(self, key: str) -> str:
        if ".." in key.split("/") or key.startswith("/") or "\0" in key:
            raise ValueError(f"key {key!r} leaves {self.root}")
        path = os.path.join(self.root, key)
        return path if "\\x" not in key or os.path.exists(path) else _raw(path)

    def key_of(self, path: str) -> str | None:
        """The key of what lies in this folder, "" for the folder itself; None for anything else.

        Folders are compared by device and inode: links, and mounts of this folder, are other names
        of it. A mount of a folder in this one is not seen through.
        """
        for at in (os.path.abspath(path), os.path.realpath(path)):
            names: list[str] = []
            name = "."
            while name:
                with suppress(OSError):  # what is not there yet
                    if os.path.samefile(at, self.root):
                        return "/".join(map(_key_of, reversed(names)))
                at, name = os.path.split(at)
                names.append(name)
        return None

    def exists(self) -> bool:
        try:
            return S_ISDIR(os.stat(self.root).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise UserError(
                f"{self.root}: may not be read ({error.strerror}), check the path and who may"
            ) from error

    def head(self, key: str) -> Entry | None:
        try:
            with self._no_file(key):
                stat = os.stat(self._path(key))
        except FileNotFoundError:
            return None
        # what is no regular file is not listed either: a pipe would be read for ever
        return Entry(key, stat.st_size, _version(stat)) if S_ISREG(stat.st_mode) else None

    def get(self, key: str, version: str | None = None) -> bytes:
        # A pipe without a writer would be waited for; what is no regular file is never read.
        with self._no_file(key), open(self._path(key), "rb", opener=_at_once) as file:
            stat = os.fstat(file.fileno())
            if not S_ISREG(stat.st_mode):
                raise FileNotFoundError(f"{self.uri(key)}: is no regular file")
            data = file.read()
            stat = os.fstat(file.fileno())
        if version is not None and _version(stat) != version:
            raise ChangedObject(f"{self.uri(key)}: changed since it was listed")
        return data

    @contextmanager
    def _no_file(self, key: str) -> Iterator[None]:
        """FileNotFoundError for each way in which no file can have this key."""
        try:
            if "\0" in key:
                raise FileNotFoundError(self.uri(key))
            yield
        except OSError as error:
            if isinstance(error, NotADirectoryError) or error.errno in NO_FILE:
                raise FileNotFoundError(self.uri(key)) from error
            raise

    def put(self, key: str, data: bytes, durable: bool = True) -> None:
        path = self._path(key)
        with naming_space(path), self._written(data, durable) as temporary:
            os.replace(temporary.name, self._parent(key))
            if durable:
                self._sync_folders([path])

    def sync(self, keys: Iterable[str]) -> None:
        paths = [self._path(key) for key in keys]
        with naming_space(self.root), ThreadPoolExecutor(SYNCS) as pool:
            list(pool.map(_sync, paths))
        self._sync_folders(paths)

    def _sync_folders(self, paths: Iterable[str]) -> None:
        """Make the names of these files last: their folders, and those above in this store."""
        folders = set[str]()
        for path in paths:
            folder = os.path.dirname(path)
            while len(folder) >= len(self.root) and folder not in folders:
                folders.add(folder)
                folder = os.path.dirname(folder)
        for folder in sorted(folders, reverse=True):  # the root last
            with suppress(PermissionError):  # a folder that may be written and not read
                _sync(folder)

    def put_new(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with naming_space(path), self._written(data) as temporary:
            path = self._parent(key)
            try:
                os.link(temporary.name, path)
            except OSError:  # it exists, or the file system has no links
                if os.path.lexists(path):
                    return False
                os.replace(temporary.name, path)
        return True

    def _written(self, data: bytes, durable: bool = False) -> _Temporary:
        if not os.path.isdir(self.root):
            _make_folder(self.root)
        return _Temporary(os.path.join(self.root, TEMPORARY), data, durable)

    def _parent(self, key: str) -> str:
        path = self._path(key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def below(self, folder: str) -> LocalStore:
        return LocalStore(self._path(folder))

    def with_patience(self, seconds: float) -> LocalStore:
        return self

    def delete(self, key: str) -> None:
        path = self._path(key)
        with suppress(FileNotFoundError):
            os.unlink(path)
            self._sync_folders([path])

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder, _, _ = prefix.rpartition("/")
        self.skipped.clear()
        yield from _walk(self._path(folder), folder, (), prefix, self.skipped)

    def check_readable(self) -> None:
        if os.path.exists(self.root) and not os.path.isdir(self.root):
            raise UserError(f"{self.root}: is a file, wanted a folder")

    def answers(self, key: str = "") -> bool:
        return os.path.isdir(self.root)

    def check_writable(self) -> None:
        existing = Path(self.root)
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise UserError(
                f"{self.root}: cannot write there, {existing} is not a folder, choose another "
                "--output"
            )
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise UserError(
                f"{self.root}: cannot write there ({error.strerror}), choose another --output"
            ) from error

    def missing_folders(self) -> tuple[str, ...]:
        missing, folder = [], self.root
        while not os.path.lexists(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        return tuple(missing)

    def remove_folders(self, missing: Iterable[str] = ()) -> None:
        ours = [os.path.join(self.root, name) for name in (TEMPORARY, os.path.dirname(TEMPORARY))]
        with suppress(OSError):  # one that holds anything
            for folder in [*ours, *missing]:
                os.rmdir(folder)

    def sweep(self) -> None:
        for path in Path(self.root, TEMPORARY).glob("*"):
            if TEMPORARY_NAME.fullmatch(path.name):  # others are the user's
                with suppress(OSError):
                    path.unlink()


class _Temporary:
    """A written file that waits to be renamed; gone afterwards, also when the renaming fails."""

    def __init__(self, folder: str, data: bytes, durable: bool) -> None:
        handle, self.name = _make_temporary(folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    _sync(self.name)
            os.chmod(self.name, 0o666 & ~_umask())
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> _Temporary:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.name)


def _make_temporary(folder: str) -> tuple[int, str]:
    """As tempfile.mkstemp, in a folder that is made, and that a run which ends may just remove."""
    while True:
        os.makedirs(folder, exist_ok=True)
        with suppress(FileNotFoundError):
            return tempfile.mkstemp(dir=folder)


@contextmanager
def naming_space(path: str) -> Iterator[None]:
    """What is written here: Unfinished, with the space that is left, where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        existing = path
        while not os.path.exists(existing):
            existing = os.path.dirname(existing)
        space = shutil.disk_usage(existing)
        free, total = (f"{number / 2**20:,.0f} MiB" for number in (space.free, space.total))
        raise Unfinished(
            f"{path}: {error.strerror}, {free} of {total} are free there; make room and "
            "run the same command again"
        ) from error


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _sync(path: str) -> None:
    """Wait until a file's content, or the names in a folder, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(handle)


def _make_folder(path: str) -> None:
    """A folder and those above it, which will survive a power cut."""
    above = os.path.dirname(path)
    if not os.path.isdir(above):
        _make_folder(above)
    os.makedirs(path, exist_ok=True)
    with suppress(PermissionError):
        _sync(above)


def _umask() -> int:
    """This process's umask, which only setting it tells; /proc tells it without a race."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("Umask:")[2].split()[0], 8)


def _version(stat: os.stat_result) -> str:
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _raw(path: str) -> str:
    """The name on disk of a key in which bytes that are not UTF-8 are written as \\xNN."""
    raw = RAW_BYTE.sub(lambda found: chr(0xDC00 + int(found[1], 16)), path)
    return raw if os.path.lexists(raw) else path


def _key_of(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _walk(
    path: str,
    key: str,
    above: tuple[tuple[int, int], ...],
    prefix: str,
    skipped: Counter[str],
) -> Iterator[Entry]:
    """Files below `path` whose keys start with `prefix`, in the order in which S3 lists their keys;
    links followed, but to a folder above. Folders that hold no such key are not looked into.

    What is neither file nor folder is counted as `skipped`, by kind, and never opened.

    Only names are kept while a folder is listed: a million cost 130 MiB.
    """
    try:
        with os.scandir(path) as scan:
            # a folder sorts as its name and a slash
            names = sorted(f"{item.name}/" if _is_dir(item) else item.name for item in scan)
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError as error:
        raise UserError(
            f"{path}: may not be listed ({error.strerror}), check who may read it"
        ) from error
    here = (stat.st_dev, stat.st_ino)
    if here in above:  # a link to a folder above
        return
    for name in names:
        full = os.path.join(path, name)
        below = f"{key}/{_key_of(name)}" if key else _key_of(name)
        if not below.startswith(prefix[: len(below)]):
            continue
        if name.endswith("/"):
            if below.rstrip("/") != TEMPORARY:
                deeper = full.rstrip("/"), below.rstrip("/"), (*above, here)
                yield from _walk(*deeper, prefix, skipped)
            continue
        if not below.startswith(prefix):
            continue
        try:
            stat = os.stat(full)
        except OSError as error:  # gone since, or a link to nothing or to itself
            no_file = isinstance(error, FileNotFoundError | NotADirectoryError)
            if not no_file and error.errno not in NO_FILE:
                raise
            if os.path.islink(full):
                skipped[BROKEN_LINKS] += 1
            continue
        if S_ISREG(stat.st_mode):
            yield Entry(below, stat.st_size, _version(stat))
        elif kind := SPECIAL.get(S_IFMT(stat.st_mode)):
            skipped[kind] += 1


def _is_dir(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself; listing it tells what else it may be
        return False

"""Which photographs a bulk run takes: a folder, an S3 prefix, or a list of single files."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from segpipe.data.codecs import EXTENSIONS
from segpipe.errors import UserError
from segpipe.segment.lists import COLUMN, LISTS, NAMELESS, ListedFiles, open_list
from segpipe.segment.spool import in_order
from segpipe.storage import PREFLIGHT_S, Entry, Source, Store, check_there, is_timed, open_store
from segpipe.storage.local import NO_FILES, LocalStore
from segpipe.storage.settings import SETTINGS

LISTED = 1000  # files between two words on how far a listing is: a page of S3

# kinds of files that are skipped, beside suffixes
BY_GLOB = "by --include or --exclude"
IN_OUTPUT = "of segpipe's outputs"
SYSTEM = "of the operating system"
OTHERS = "of other kinds"
LISTED_AGAIN = "listed again under the same name"
NAMED = (BY_GLOB, IN_OUTPUT, SYSTEM, LISTED_AGAIN)
KINDS = 30  # suffixes that are counted each; more are other kinds
TOLD = 5  # kinds that a line tells
SUFFIX = re.compile(r"\.[a-z0-9_+-]{1,12}")  # others may be parts of names, and of any length
DIGITS = re.compile(r"\.[0-9]+")  # the end of a DICOM UID, or of a numbered file: no suffix

OWN = "_segpipe/"
PICTURES = ("masks", "probabilities", "arteries_veins", "overlays")
"""Folders of an output that hold pictures."""
SYSTEM_FILES = frozenset(  # in lower case; AppleDouble files begin with ._
    (".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "dicomdir")
)
SYSTEM_FOLDERS = frozenset(
    (
        "__macosx",
        ".spotlight-v100",
        ".trashes",
        ".fseventsd",
        "$recycle.bin",
        "system volume information",
        "@eadir",  # thumbnails of a Synology disk
    )
)


def open_source(
    uri: str, patience_s: float, anonymous: bool = False, column: str = COLUMN
) -> Source:
    """Where the photographs of --input lie; `anonymous` reads a public bucket unsigned, `column`
    names the files of a list.

    Raises UserError where there is nothing.
    """
    if uri.lower().endswith(LISTS):
        return open_list(uri, patience_s, anonymous, column)
    store = open_store(uri, patience_s, anonymous)
    if not store.exists():
        folder, _, name = store.uri().rpartition("/")
        if folder != "s3:/" and name:
            above = open_store(folder or "/", patience_s, anonymous)
            found = above.with_patience(PREFLIGHT_S).head(name)
            if found is not None and not found.bytes and store.uri().startswith("s3://"):
                raise UserError(
                    f"--input {store.uri()}: is an empty object, as folders are marked with: some "
                    "servers hide what lies below one, delete it or check the path"
                )
            if found is not None:
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


@dataclass
class Inputs:
    """The photographs of a source, in order of their keys, or of the list.

    Other files are counted by kind. A folder that holds `_segpipe/settings.json` is an output:
    nothing in it is a photograph.
    """

    source: Source
    inside: str | None = None
    """Keys below this prefix are this run's own output inside the input, and are left out."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    on_listed: Callable[[int], None] | None = None
    """Called now and then while the source is listed, with the number of files seen."""
    outputs: set[str] = field(default_factory=set)
    """Prefixes of the outputs that were found in the input, "" for the input itself."""
    noun: str = "photograph"
    """What an input is called, as one file of it."""
    num_timed: int = 0
    """Photographs whose store keeps no etags."""

    def __iter__(self) -> Iterator[Entry]:
        self.skipped.clear()
        self.outputs.clear()
        self.num_timed = 0
        # What the user named comes in an order of his own, and each once.
        for entry in self._taken() if self._named() else self._each_once():
            self.num_timed += is_timed(entry.version)
            yield entry
        if isinstance(self.source, ListedFiles | LocalStore):
            self.skipped.update(self.source.skipped)

    def _each_once(self) -> Iterator[Entry]:
        """In order of their keys, whatever the store's own."""
        listed = in_order(self._taken())
        if self.limit is not None and self.outputs:  # found after what was taken of them, perhaps
            self.skipped.clear()
            listed = in_order(self._taken())
        before = None
        for entry in listed:
            if entry.key == before:
                self._skip(LISTED_AGAIN)
            elif self._of_output(entry.key):  # known by a file that was listed after this one
                self._skip(IN_OUTPUT)
            else:
                yield entry
            before = entry.key

    def _named(self) -> bool:
        """Whether the user has named each file."""
        return isinstance(self.source, OneFile | ListedFiles)

    def _taken(self) -> Iterator[Entry]:
        """What is a photograph as far as is known when it is listed."""
        taken, last, ordered = 0, "", True
        for number, entry in enumerate(self.source.list(), start=1):
            if self.on_listed is not None and number % LISTED == 0:
                self.on_listed(number)
            ordered, last = ordered and last < entry.key, entry.key
            if not self._named() and f"/{entry.key}".endswith(f"/{SETTINGS}"):
                self.outputs.add(entry.key.removesuffix(SETTINGS))
            if self.inside is not None and entry.key.startswith(self.inside):
                continue
            if kind := self._kind(entry.key):
                self._skip(kind)
            elif taken != self.limit:
                taken += 1
                yield entry
            elif ordered or self._named():
                return
            # else one of those that were taken may yet turn out to be of an output

    def _kind(self, key: str) -> str | None:
        """Why this is no photograph; None where it may be one."""
        if not self._named():
            *folders, name = key.lower().split("/")
            if self._of_output(key) or OWN.rstrip("/") in folders:
                return IN_OUTPUT
            if name.startswith("._") or name in SYSTEM_FILES or SYSTEM_FOLDERS & set(folders):
                return SYSTEM
            suffix = posixpath.splitext(name)[1]
            if suffix and suffix not in EXTENSIONS and not DIGITS.fullmatch(suffix):
                return suffix
        return None if self._wanted(key) else BY_GLOB

    def _skip(self, kind: str) -> None:
        named = kind in NAMED or kind in self.skipped
        if not named and (len(self.skipped) >= KINDS or not SUFFIX.fullmatch(kind)):
            kind = OTHERS
        self.skipped[kind] += 1

    def _of_output(self, key: str) -> bool:
        """Whether this lies in an output that was listed until now."""
        if not self.outputs:
            return False
        ends = (found.end() for found in re.finditer("/", key))
        return "" in self.outputs or any(key[:end] in self.outputs for end in ends)

    def notes(self) -> list[str]:
        """What is worth a line, though nothing is wrong, when all are listed."""
        notes = self.source.notes() if isinstance(self.source, ListedFiles) else []
        if not self.num_timed:
            return notes
        return [
            *notes,
            f"{self.source.uri()}: the store keeps no etags, an object counts as changed when its "
            "size or the second of its last change differs",
        ]

    def nothing(self, name: str) -> UserError:
        """The error for a listing without a photograph; `name` is that of --input."""
        globs = [
            f"--{flag} {' '.join(map(repr, given))}"
            for flag, given in (("include", self.include), ("exclude", self.exclude))
            if given
        ]
        if left_out := self.skipped[BY_GLOB]:
            many = f"{left_out} {self.noun}{'s' * (left_out > 1)}"
            matches = "none matches" if self.include else "none is left by"
            return UserError(f"--input {name}: {many}, {matches} {' and '.join(globs)}, change it")
        if "" in self.outputs:
            return UserError(
                f"--input {name}: is an output of segpipe (it holds {SETTINGS}), of which nothing "
                f"is a {self.noun}, name the folder of the {self.noun}s"
            )
        if isinstance(self.source, ListedFiles):
            rows = f"{num} {NAMELESS}" if (num := self.skipped[NAMELESS]) else "no row"
            return UserError(
                f"--input {name}: names no file ({rows} below its header), give each {self.noun} a "
                "row with its path"
            )
        others = self.skipped.total()
        text = f"{others} other file{'s' * (others != 1)}"
        text += f": {_kinds(self.skipped)}" if others else ""
        wanted = " ".join(sorted(EXTENSIONS))
        return UserError(
            f"--input {name}: no {self.noun}s there ({text}), wanted {wanted}, "
            "or a .csv list with a column path"
        )

    def _wanted(self, key: str) -> bool:
        included = not self.include or any(fnmatchcase(key, glob) for glob in self.include)
        return included and not any(fnmatchcase(key, glob) for glob in self.exclude)


def skipped_words(skipped: Mapping[str, int]) -> str:
    """ "3 files skipped (2 .txt, 1 of the operating system), ", or nothing."""
    number = sum(skipped.values())
    return f"{number} file{'s' * (number != 1)} skipped ({_kinds(skipped)}), " if number else ""


def _kinds(skipped: Mapping[str, int]) -> str:
    """The commonest kinds."""
    common = Counter(skipped).most_common()
    kinds = [
        f"{number} {kind[:-1] if number == 1 and kind in NO_FILES else kind}"
        for kind, number in common[:TOLD]
    ]
    if more := sum(number for _, number in common[TOLD:]):
        kinds.append(f"{more} more")
    return ", ".join(kinds)


def filed_as(source: Source, key: str) -> str:
    """The name that an input's mask goes by: its key, of a listed local file without the root."""
    return key.removeprefix("/") if isinstance(source, ListedFiles) else key


def refuse_pictures(source: Source, anonymous: bool = False) -> None:
    """Raise UserError where the input is a folder of masks, or of scores, that segpipe wrote.

    One request for each folder of such a name in its path. What a list names is taken.
    """
    if isinstance(source, ListedFiles):
        return
    uri = source.uri() if source.uri().startswith("s3://") else os.path.realpath(source.uri())
    found = False
    for folder in re.finditer(rf"(?<=[^:/])/({'|'.join(PICTURES)})(?=/|$)", uri):
        with suppress(OSError, UserError):  # of another's folder, which may not be read
            above = open_store(uri[: folder.start()], PREFLIGHT_S, anonymous)
            found = found or above.head(SETTINGS) is not None
    if found:
        raise UserError(
            f"--input {source.uri()}: holds what segpipe made of photographs, name their folder"
        )

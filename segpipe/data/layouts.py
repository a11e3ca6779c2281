"""Labelled sets: which files belong together, seen from the names alone.

    DRIVE      training/images/21_training.tif  training/1st_manual/21_manual1.gif
               training/mask/21_training_mask.gif, the same below test/, and there a second
               observer's test/2nd_manual/01_manual2.gif where there is one
    STARE      stare-images/im0001.ppm  labels-ah/im0001.ah.pgm  labels-vk/im0001.vk.pgm (second)
               mask/im0001_mask.gif where there are masks; photographs without a label are left out
    CHASE_DB1  Image_01L.jpg  Image_01L_1stHO.png  Image_01L_2ndHO.png (second)
    HRF        images/01_dr.JPG  manual1/01_dr.tif  mask/01_dr_mask.tif
    plain      images/a.jpg  labels/a.png  masks/a.png where there are masks; the same below
               training/ and test/ for a set with splits

Extensions may be those of any format that is read. Either all photographs of a split have a mask of
the field of view or none has.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from segpipe.data.codecs import EXTENSIONS
from segpipe.errors import UserError

if TYPE_CHECKING:
    from segpipe.storage import (
        Entry,
        Source,
    )  # its libraries stay out of processes that only decode

SPLITS = ("training", "test")
PACKED = (".zip", ".gz", ".bz2", ".xz", ".tar", ".tgz", ".7z", ".rar")


@dataclass(frozen=True)
class Example:
    """The keys of one labelled photograph."""

    name: str
    """Of the image's file, without its extension; no other of the set has it in its split."""
    image: str
    manual: str
    """The first observer's drawing of the vessels."""
    mask: str | None
    """The field of view; None where the set gives none and it is to be found."""
    second: str | None
    """A second observer's drawing, if any."""

    def as_row(self) -> dict[str, str]:
        """By field, as a row of a table; "" for None, which Ray's batches turn into NaN."""
        return {name: key or "" for name, key in asdict(self).items()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Example:
        """The example in a row that may have other columns too."""
        mask, second = row["mask"] or None, row["second"] or None
        return cls(row["name"], row["image"], row["manual"], mask, second)


@dataclass(frozen=True)
class Layout:
    """How a set names its files, the extensions as published.

    {number} is the part of a photograph's name that its drawings share, {split} its split.
    """

    name: str
    mark: str
    """Regular expression; a set is in this layout where it matches the start of any key."""
    wants: str
    """What a set in this layout has, for who gives something else."""
    image: str
    manual: str
    mask: str | None = None
    second: str | None = None
    split: bool = False
    """Whether all this lies below training/ and test/."""
    number: str = "(.+)"
    """Regular expression of a photograph's name; its group is {number}."""
    masked: bool = False
    """Whether every set has masks."""
    partly: bool = False
    """Whether photographs without a drawing are part of the set, and left out."""


PLAIN = "images/ with labels/ of the same names, at the top or below training/ and test/"
LAYOUTS = (
    Layout(
        "DRIVE",
        "(training|test)/(1st_manual|2nd_manual)/",
        "training/ and test/, each with images/, 1st_manual/ and mask/",
        "images/{number}_{split}.tif",
        "1st_manual/{number}_manual1.gif",
        "mask/{name}_mask.gif",
        "2nd_manual/{number}_manual2.gif",
        split=True,
        number="([^_]+).*",
        masked=True,
    ),
    Layout(
        "STARE",
        "(stare-images|labels-ah)/",
        "stare-images/ and labels-ah/",
        "stare-images/{number}.ppm",
        "labels-ah/{number}.ah.pgm",
        "mask/{number}_mask.gif",
        "labels-vk/{number}.vk.pgm",
        partly=True,
    ),
    Layout(
        "CHASE_DB1",
        r"Image_\d+[LR](_1stHO|_2ndHO)?\.",
        "Image_01L.jpg beside Image_01L_1stHO.png",
        "{number}.jpg",
        "{number}_1stHO.png",
        None,
        "{number}_2ndHO.png",
        number=r"(Image_\d+[LR])",
    ),
    Layout(
        "HRF",
        "manual1/",
        "images/, manual1/ and mask/",
        "images/{number}.JPG",
        "manual1/{number}.tif",
        "mask/{number}_mask.tif",
        masked=True,
    ),
    Layout(
        "plain",
        "(training|test)/(labels|masks)/",
        PLAIN,
        "images/{number}.png",
        "labels/{number}.png",
        "masks/{number}.png",
        split=True,
    ),
    Layout(
        "plain",
        "(labels|masks)/",
        PLAIN,
        "images/{number}.png",
        "labels/{number}.png",
        "masks/{number}.png",
    ),
)


@dataclass(frozen=True)
class LabelledSet:
    """The examples of a set, in order of their names."""

    uri: str
    layout: str
    """Its name: DRIVE, STARE, CHASE_DB1, HRF or plain."""
    split: bool
    """Whether the set itself says what is for training and what for the test."""
    training: tuple[Example, ...]
    """Without splits all examples."""
    test: tuple[Example, ...]
    """Without splits none."""
    entries: Mapping[str, Entry]
    """What was listed of each file of the set, by key."""

    def examples(self, split: str) -> tuple[Example, ...]:
        """What to measure on: the split's examples; without splits all, whichever is asked for.

        Raises UserError where there are none.
        """
        chosen = self.test if self.split and split == "test" else self.training
        if not chosen:
            folder = f" in {split}/images/" if self.split else ""
            raise UserError(
                f"{self.uri}: no images{folder} (the layout is {self.layout}), check the path"
            )
        return chosen


def open_labelled(store: Source, splits: Iterable[str] = SPLITS) -> LabelledSet:
    """Recognise the set in the store, from one listing, and pair the files of these splits.

    A split that is not asked for stays empty, and what may be missing in it is not looked for.
    Raises UserError for a set in no known layout, and for a file that is missing, by its name.
    """
    entries: dict[str, Entry] = {}
    others: list[str] = []
    for entry in store.list(""):
        if posixpath.splitext(entry.key)[1].lower() in EXTENSIONS:
            entries[entry.key] = entry
        else:
            others.append(entry.key)
    keys = list(entries)
    matching = (one for one in LAYOUTS if any(re.match(one.mark, key) for key in keys))
    layout = next(matching, None)
    if layout is None:
        found = sorted([*keys, *others])
        more = f"{found[0]} and {len(found) - 1} more" if len(found) > 1 else "".join(found)
        wanted = "; ".join(dict.fromkeys(f"{one.name}: {one.wants}" for one in LAYOUTS))
        raise UserError(
            f"{store.uri()}: no labelled set in a known layout, "
            f"found {more or 'no files'}{_advice(store, found)} (wanted {wanted})"
        )
    if not layout.split:
        examples = _Split(store, layout, "", keys).examples()
        return LabelledSet(store.uri(), layout.name, False, examples, (), entries)
    training, test = (
        _Split(store, layout, split, keys).examples() if split in splits else () for split in SPLITS
    )
    return LabelledSet(store.uri(), layout.name, True, training, test, entries)


def _advice(store: Source, keys: Iterable[str]) -> str:
    """What to do with files in no known layout, where that can be seen; else nothing."""
    for key in keys:
        above, _, below = key.partition("/")
        while below:
            if any(re.match(one.mark, below) for one in LAYOUTS):
                return f", name {store.uri(above)} instead"
            folder, _, below = below.partition("/")
            above = f"{above}/{folder}"
        if re.match("(1st_manual|2nd_manual)/", key):
            return ", a split of DRIVE: name the folder that holds training/ and test/"
        if key.lower().endswith(PACKED):
            return f", unpack {key}"
    return ""


class _Split:
    """The files of one split, or of a whole set without splits."""

    def __init__(self, store: Source, layout: Layout, split: str, keys: Iterable[str]) -> None:
        self.store, self.layout, self.split = store, layout, split
        self.keys: dict[str, list[str]] = {}  # by path: the key without its extension
        for key in keys:
            if not posixpath.basename(key).startswith("."):  # macOS leaves such beside files
                self.keys.setdefault(posixpath.splitext(key)[0], []).append(key)

    def examples(self) -> tuple[Example, ...]:
        """In order of their names. Raises UserError for a file that is missing."""
        layout, images, drawn = self.layout, self._images(), self._drawn()
        for number in sorted(drawn - set(images.values())):
            manual = self._find(layout.manual, number)
            raise self._missing(manual, "image", layout.image, number)
        if layout.partly and drawn:
            images = {name: number for name, number in images.items() if number in drawn}
        masked = layout.masked or any(
            self._find(layout.mask, number, name) for name, number in images.items()
        )
        return tuple(self._example(name, images[name], masked) for name in sorted(images))

    def _example(self, name: str, number: str, masked: bool) -> Example:
        layout = self.layout
        image = self._find(posixpath.join(posixpath.dirname(layout.image), "{name}."), number, name)
        manual = self._find(layout.manual, number, name)
        mask = self._find(layout.mask, number, name)
        if manual is None:
            raise self._missing(image, "label", layout.manual, number, name)
        if masked and mask is None:
            raise self._missing(image, "mask", layout.mask, number, name)
        assert image is not None
        return Example(name, image, manual, mask, self._find(layout.second, number, name))

    def _images(self) -> dict[str, str]:
        """Name -> number of each photograph."""
        folder = posixpath.dirname(self._key(self.layout.image, "", ""))
        found = {}
        for path in self.keys:
            above, name = posixpath.split(path)
            if above == folder and (match := re.fullmatch(self.layout.number, name)):
                found[name] = match[1]
        return found

    def _drawn(self) -> set[str]:
        """The numbers of all drawings by the first observer."""
        path, _ = posixpath.splitext(self._key(self.layout.manual, "*", ""))
        shape = re.escape(path).replace(re.escape("*"), "([^/]+)")
        numbers = {match[1] for path in self.keys if (match := re.fullmatch(shape, path))}
        return {number for number in numbers if re.fullmatch(self.layout.number, number)}

    def _key(self, template: str, number: str, name: str) -> str:
        key = template.format(number=number, name=name, split=self.split)
        return posixpath.join(self.split, key)

    def _find(self, template: str | None, number: str, name: str = "") -> str | None:
        """The key of the file that a template describes, whatever its extension, if there is one.

        Raises UserError where there are two.
        """
        if template is None:
            return None
        keys = self.keys.get(posixpath.splitext(self._key(template, number, name))[0], [])
        if len(keys) > 1:
            raise UserError(
                f"{self.store.uri(keys[0])}: {posixpath.basename(keys[1])} lies beside it, "
                "only one of them can be meant"
            )
        return keys[0] if keys else None

    def _missing(
        self, key: str | None, what: str, template: str | None, number: str, name: str = ""
    ) -> UserError:
        wanted = self.store.uri(self._key(template or "", number, name))
        return UserError(f"{self.store.uri(key or '')}: its {what} is missing, wanted {wanted}")

"""Labelled sets: which files belong together, seen from the names alone.

    DRIVE      training/images/21_training.tif  training/1st_manual/21_manual1.gif
               training/mask/21_training_mask.gif, the same below test/, and there a second
               observer's test/2nd_manual/01_manual2.gif where there is one; or one split alone.
               Artery/vein labels training/21_av.png where there is no 1st_manual/
    DRIVE_AV   DRIVE/ and DRIVE_AV/training/21_av.png, side by side
    RITE       training/images/21_training.tif  training/vessel/21_training.png, or else
               training/av/21_training.png; as VC-Net ships it, and LES-AV and HRF alike:
               training/images/0.png  training/vessel/0.png, or else training/label/0.png
               training/mask/0.png
    STARE      stare-images/im0001.ppm  labels-ah/im0001.ah.pgm  labels-vk/im0001.vk.pgm (second)
               mask/im0001_mask.gif where there are masks; photographs without a label are left out
    CHASE_DB1  Image_01L.jpg  Image_01L_1stHO.png  Image_01L_2ndHO.png (second)
    HRF        images/01_dr.JPG  manual1/01_dr.tif, or else manual_av/01_dr.png
               mask/01_dr_mask.tif; 01 to 05 are the training split, 06 to 15 the test
    LES-AV     images/27.png  vessel-segmentations/27.png, or else arteries-and-veins/27.png
               masks/27.png where there are masks
    FIVES      train/Original/1_A.png  train/Ground truth/1_A.png, the same below test/
    nnU-Net    imagesTr/case_0000.png  labelsTr/case.png, the same in imagesTs/ and labelsTs/;
               dataset.json where there is one
    plain      images/a.jpg  labels/a.png  masks/a.png where there are masks; the same below
               training/ (or train/) and test/ for a set with splits

Where both lie there, the label is the one named first, and the other tells arteries and veins.

Extensions may be those of any format that is read, and .gz after them. Below each folder there may
be more folders, the same for a photograph and its drawings. Either all photographs of a split have
a mask of the field of view or none has. A split without any label is left out.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from segpipe.data import nnunet
from segpipe.data.codecs import EXTENSIONS
from segpipe.data.colours import SCHEMES, tells_kinds
from segpipe.data.globs import Reading
from segpipe.data.known_sets import LAYOUTS, SPLITS, LabelPlace, Layout
from segpipe.data.unknown_sets import MEDICAL, PACKED, unknown
from segpipe.errors import UserError

if TYPE_CHECKING:
    from segpipe.storage import (
        Entry,
        Source,
    )  # its libraries stay out of processes that only decode

GZIPPED = ".gz"  # after the extension of an image: unpacked as it is read
GLOBS = "globs"  # the name of the layout that --images and --labels describe


@dataclass(frozen=True)
class Example:
    """The keys of one labelled photograph."""

    name: str
    """Of the image's file, without its extension, below the folder of images; no other of the set
    has it in its split."""
    image: str
    label: str
    """The first observer\'s label of the vessels."""
    mask: str | None
    """The field of view; None where the set gives none and it is to be found."""
    second: str | None
    """A second observer's label, if any."""
    colours: str = ""
    """What the colours of the drawings mean, as colours.Scheme.parse takes it; "": white on black
    alone."""
    kinds: str | None = None
    """A drawing of arteries and veins in colours, if any; it may be the label itself."""
    kind_colours: str = ""
    """What its colours mean, as `colours`; "" without one."""

    def as_row(self) -> dict[str, str]:
        """By field, as a row of a table; "" for None, which Ray's batches turn into NaN."""
        return {name: key or "" for name, key in asdict(self).items()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Example:
        """The example in a row that may have other columns too."""
        keys = {field.name: row[field.name] for field in fields(cls)}
        return cls(**keys | {name: keys[name] or None for name in ("mask", "second", "kinds")})


@dataclass(frozen=True)
class LabelledSet:
    """The examples of a set, in order of their names."""

    uri: str
    layout: str
    """Its name, of one in LAYOUTS or GLOBS."""
    split: bool
    """Whether it is known what is for training and what for the test."""
    training: tuple[Example, ...]
    """Without splits all examples."""
    test: tuple[Example, ...]
    """Without splits none."""
    entries: Mapping[str, Entry]
    """What was listed of each file of the set, by key."""
    folders: Mapping[str, str]
    """Where each split's photographs are."""
    unlabelled: Mapping[str, str]
    """Of each split that was asked for and has photographs but no label: both in words."""
    num_labels: Mapping[str, int]
    """Of every split, also one that was not asked for."""
    notes: tuple[str, ...]
    """What is left out, and what else is worth a line."""
    numbered: bool = False
    """Whether the photographs' numbers say so, and not their folders."""

    def examples(self, split: str) -> tuple[Example, ...]:
        """What to measure on: the split's examples; without splits all, whichever is asked for.

        Raises UserError where there are none.
        """
        chosen = self.test if self.split and split == "test" else self.training
        if chosen:
            return chosen
        folder = f" in {self.folders[split]}" if self.split else ""
        problem = self.unlabelled.get(split, f"no images{folder} (the layout is {self.layout})")
        raise UserError(f"{self.uri}: {problem}, check the path")


def open_labelled(
    store: Source, splits: Iterable[str] = SPLITS, reading: Reading | None = None
) -> LabelledSet:
    """Recognise the set in the store, from one listing, and pair the files of these splits.

    A split that is not asked for stays empty, and what may be missing in it is not looked for.
    `reading` says which files belong together where that is not the layout's, and what colours
    mean. Raises UserError for a set in no known layout, and for a missing file, by its name.
    """
    reading = reading or Reading()
    entries: dict[str, Entry] = {}
    others: list[str] = []
    for entry in store.list(""):
        if any(part.startswith(".") for part in entry.key.split("/")):
            continue  # what macOS, Jupyter and the like leave beside files
        if image_path(entry.key) is None:
            others.append(entry.key)
        else:
            entries[entry.key] = entry
    keys = list(entries)
    if reading.globs:
        pairs = reading.globs.pairs(keys, store.uri)
        meanings = reading.colours
        found = tuple(
            replace(
                Example(*pair, second=None, colours=meanings),
                kinds=pair[1] if tells_kinds(meanings) else None,
                kind_colours=meanings if tells_kinds(meanings) else "",
            )
            for pair in pairs
        )
        return LabelledSet(store.uri(), GLOBS, False, found, (), entries, {}, {}, {}, ())
    matching = (one for one in LAYOUTS if any(re.match(one.mark, key) for key in keys))
    layout = next(matching, None)
    if layout is None:
        raise unknown(store, sorted([*keys, *others]))
    notes = []
    if layout.channels:
        nnunet.check_channels(store.uri(), filter(None, map(image_path, keys)))
        if nnunet.DESCRIPTION in others:
            notes += nnunet.notes_of(store)
    names, numbers = layout.splits, _numbers(layout, keys) if reading.by_number else {}
    if numbers:
        notes.append(layout.protocol)
    parts = {
        split: _Split(
            store,
            replace(layout, number=numbers.get(split, layout.number)),
            names.get(split, ""),
            keys,
            reading.colours,
        )
        for split in names or numbers or ["training"]
    }
    asked = [split for split in parts if split in splits or len(parts) == 1]
    examples = {split: parts[split].examples() if split in asked else () for split in parts}
    unlabelled = {split: text for split in asked if (text := parts[split].unlabelled())}
    notes += [text for split in asked if (text := parts[split].left_out())]
    notes += [f"{text}, left out" for text in unlabelled.values()]
    notes += _strangers(layout, keys, others)
    return LabelledSet(
        uri=store.uri(),
        layout=layout.name,
        split=len(parts) > 1,
        training=examples["training"],
        test=examples.get("test", ()),
        entries=entries,
        folders={split: f"{part.folder}/" for split, part in parts.items()},
        unlabelled=unlabelled,
        num_labels={split: len(part.labelled) for split, part in parts.items()},
        notes=tuple(notes),
        numbered=bool(numbers),
    )


def image_path(key: str) -> str | None:
    """The key without its extension, where that is an image's, packed by gzip or not; else None."""
    if key.lower().endswith(GZIPPED):
        key = key[: -len(GZIPPED)]
    path, extension = posixpath.splitext(key)
    return path if extension.lower() in EXTENSIONS else None


# ---- what belongs to none


def _strangers(layout: Layout, keys: Iterable[str], others: Iterable[str]) -> list[str]:
    """A line for images beside the set that it has no place for, and one for archives."""
    templates = layout.image, layout.mask, layout.second, *(one.template for one in layout.labels)
    places = [
        _expression(layout, template, split)
        for template in filter(None, templates)
        for split in (layout.splits or {"": ""}).values()
    ]
    strange = sorted(
        key for key in keys if not any(place.fullmatch(image_path(key) or "") for place in places)
    )
    packed = sorted(
        key for key in others if key.lower().endswith(PACKED) and not key.lower().endswith(MEDICAL)
    )
    lines = []
    if strange:
        lines.append(f"images that have no place in {layout.name}, left out: {_counted(strange)}")
    if packed:
        lines.append(f"archives that are not unpacked, left out: {_counted(packed)}")
    return lines


def _counted(keys: list[str]) -> str:
    return f"{keys[0]} and {len(keys) - 1} more" if len(keys) > 1 else keys[0]


def _expression(layout: Layout, template: str, split: str) -> re.Pattern[str]:
    """Of the paths that a template describes; its groups are the folders below, and the number."""
    folder, name = posixpath.split(posixpath.splitext(template)[0])
    shape = re.escape(name).replace(r"\{", "{").replace(r"\}", "}")
    if template == layout.image:
        shape = layout.photograph
    for part, meaning in (
        ("{number}", f"({layout.number})"),
        ("{split}", re.escape(split)),
        ("{name}", "([^/]+)"),
    ):
        shape = shape.replace(part, meaning)
    above = re.escape(folder.replace("{split}", split)) + "/" if folder else ""
    return re.compile(f"{above}((?:.+/)?){shape}")


def _numbers(layout: Layout, keys: Iterable[str]) -> Mapping[str, str]:
    """The layout's numbers, where they split the files of these keys; else none."""
    places = [
        _expression(layout, template, "")
        for template in (layout.image, *(one.template for one in layout.labels))
    ]
    paths = [image_path(key) or "" for key in keys]
    found = {match[2] for path in paths for one in places if (match := one.fullmatch(path))}
    parts = [{one for one in found if re.fullmatch(n, one)} for n in layout.numbers.values()]
    return layout.numbers if all(parts) and found == set().union(*parts) else {}


# ---- pairs


@dataclass(frozen=True, order=True)
class _Place:
    """What a photograph and its drawings share."""

    below: str
    """The folders below that of the template, each with its slash."""
    number: str


class _Split:
    """The files of one split, or of a whole set without splits."""

    def __init__(
        self, store: Source, layout: Layout, split: str, keys: Iterable[str], colours: str
    ) -> None:
        self.store, self.layout, self.split = store, layout, split
        self.keys: dict[str, list[str]] = {}  # by path: the key without its extension
        for key in keys:
            if path := image_path(key):
                self.keys.setdefault(path, []).append(key)
        self.folder = posixpath.dirname(layout.image).replace("{split}", split)
        self.images = self._matching(layout.image)
        found = [(label, set(self._matching(label.template).values())) for label in layout.labels]
        self.label_place: LabelPlace
        self.label_place, self.labelled = next((one for one in found if one[1]), found[0])
        self.colours = colours or str(SCHEMES.get(self.label_place.colours, ""))
        coloured = [place for place, labelled in found if place.colours and labelled]
        self.kinds_place = coloured[0] if coloured else self.label_place
        self.kind_colours = colours or str(SCHEMES.get(self.kinds_place.colours, ""))

    def _matching(self, template: str) -> dict[str, _Place]:
        """Path -> place of each file that a template describes."""
        shape = _expression(self.layout, template, self.split)
        return {
            path: _Place(match[1], match[2])
            for path in self.keys
            if (match := shape.fullmatch(path))
        }

    def unlabelled(self) -> str:
        """That there are photographs and no label, in words; else ''."""
        if not self.images or self.labelled or not self.layout.splits:
            return ""
        first = min(self.images)
        wanted = self._key(self.layout.labels[0].template, self.images[first], first)
        return f"{len(self.images)} photographs in {self.folder}/ have no label such as {wanted}"

    def left_out(self) -> str:
        """That photographs have no label where that is as published; else ''."""
        num = len(self.images) - len(self.labelled)
        if not self.layout.partly or not num:
            return ""
        return f"photographs in {self.folder}/ without a label, left out: {num}"

    def examples(self) -> tuple[Example, ...]:
        """In order of their names; none where no photograph of a split has a label.

        Raises UserError for a file that is missing.
        """
        if self.unlabelled():
            return ()
        layout, images = self.layout, self.images
        for place in sorted(self.labelled - set(images.values())):
            drawing = self._find(self.label_place.template, place, "")
            raise self._missing(drawing, "image", layout.image, place, "")
        if layout.partly and self.labelled:
            images = {path: place for path, place in images.items() if place in self.labelled}
        masked = layout.masked or any(
            self._find(layout.mask, place, path) for path, place in images.items()
        )
        return tuple(self._example(path, images[path], masked) for path in sorted(images))

    def _example(self, path: str, place: _Place, masked: bool) -> Example:
        layout = self.layout
        image = self._only(path)
        label = self._find(self.label_place.template, place, path)
        mask = self._find(layout.mask, place, path)
        if label is None:
            raise self._missing(image, "label", self.label_place.template, place, path)
        if masked and mask is None:
            raise self._missing(image, "mask", layout.mask, place, path)
        assert image is not None
        name = path[len(self.folder) + 1 :] if self.folder else path
        second = self._find(layout.second, place, path)
        kinds, meanings = None, self.kind_colours
        if tells_kinds(meanings):
            kinds = self._find(self.kinds_place.template, place, path)
        return Example(
            name, image, label, mask, second, self.colours, kinds, meanings if kinds else ""
        )

    def _key(self, template: str, place: _Place, path: str) -> str:
        """The key of the file of a place; `path`: of its photograph."""
        name = posixpath.basename(path)
        key = template.format(number=place.number, name=name, split=self.split)
        return posixpath.join(posixpath.dirname(key), place.below, posixpath.basename(key))

    def _find(self, template: str | None, place: _Place, path: str) -> str | None:
        """The key of the file that a template describes, whatever its extension, if there is one.

        Raises UserError where there are two.
        """
        if template is None:
            return None
        return self._only(posixpath.splitext(self._key(template, place, path))[0])

    def _only(self, path: str) -> str | None:
        keys = self.keys.get(path, [])
        keys = [key for key in keys if key.removesuffix(GZIPPED) == key or key[:-3] not in keys]
        if len(keys) > 1:
            raise UserError(
                f"{self.store.uri(keys[0])}: {posixpath.basename(keys[1])} lies beside it, "
                "only one of them can be meant"
            )
        return keys[0] if keys else None

    def _missing(
        self, key: str | None, what: str, template: str | None, place: _Place, path: str
    ) -> UserError:
        wanted = self.store.uri(self._key(template or "", place, path))
        return UserError(f"{self.store.uri(key or '')}: its {what} is missing, wanted {wanted}")

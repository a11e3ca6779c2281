"""The table of layouts: how each published labelled set names its files.

Another set of this kind is a row more here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SPLITS = ("training", "test")
PLAIN = "plain"  # the layout of a set of one's own


@dataclass(frozen=True)
class LabelPlace:
    """Where a layout keeps labels."""

    template: str
    colours: str = ""
    """The scheme among colours.SCHEMES of labels there; "" for white on black."""


@dataclass(frozen=True)
class Layout:
    """How a set names its files, the extensions as published; any that is read will do.

    {split} is the split's own name, {number} the part of a photograph's name that its drawings
    share, {name} all of it without the extension. Below the folder of a template there may be
    more folders, the same for a photograph and its drawings.
    """

    name: str
    mark: str
    """Regular expression; a set is in this layout where it matches the start of any key."""
    image: str
    labels: tuple[LabelPlace, ...]
    """The first of them that holds any file of a split is where its labels are."""
    mask: str | None = None
    second: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    """{split} of training and of test; none where the set's folders do not say what is for what."""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Of a set without such folders: regular expressions of {number} in training and test, by the
    protocol that its users keep. They hold where each photograph is in one and none is empty."""
    protocol: str = ""
    """What those are, in words."""
    number: str = "[^/]+"
    """Regular expression of {number}."""
    photograph: str = "{number}"
    """Regular expression of a photograph's name, without its extension."""
    masked: bool = False
    """Whether every set has masks."""
    partly: bool = False
    """Whether photographs without a drawing are part of the set, and left out."""
    channels: bool = False
    """Whether photographs are numbered by channel, and dataset.json tells the classes (nnU-Net)."""


def _plain(mark: str, prefix: str, splits: Mapping[str, str]) -> Layout:
    return Layout(
        PLAIN,
        mark,
        f"{prefix}images/{{number}}.png",
        (LabelPlace(f"{prefix}labels/{{number}}.png"),),
        f"{prefix}masks/{{number}}.png",
        splits=splits,
    )


def _drive(mark: str, prefix: str, splits: Mapping[str, str]) -> Layout:
    return Layout(
        "DRIVE",
        mark,
        f"{prefix}images/{{number}}_{'{split}' if splits else 'training'}.tif",
        (
            LabelPlace(f"{prefix}1st_manual/{{number}}_manual1.gif"),
            LabelPlace(f"{prefix}{{number}}_av.png", "DRIVE_AV"),
        ),
        f"{prefix}mask/{{name}}_mask.gif",
        f"{prefix}2nd_manual/{{number}}_manual2.gif",
        splits=splits,
        number="[^_/]+",
        photograph="{number}[^/]*",
        masked=True,
    )


OWN_NAMES = {split: split for split in SPLITS}
TRAIN = {"training": "train", "test": "test"}
LAYOUTS = (
    _drive("(training|test)/(1st_manual/|2nd_manual/|[^/]+_av[.])", "{split}/", OWN_NAMES),
    _drive("(1st_manual|2nd_manual)/", "", {}),
    Layout(
        "DRIVE_AV",
        "DRIVE_AV/(training|test)/[^/]+_av[.]",
        "DRIVE/{split}/images/{number}_{split}.tif",
        (
            LabelPlace("DRIVE/{split}/1st_manual/{number}_manual1.gif"),
            LabelPlace("DRIVE_AV/{split}/{number}_av.png", "DRIVE_AV"),
        ),
        "DRIVE/{split}/mask/{name}_mask.gif",
        "DRIVE/{split}/2nd_manual/{number}_manual2.gif",
        splits=OWN_NAMES,
        number="[^_/]+",
        photograph="{number}[^/]*",
        masked=True,
    ),
    Layout(  # as VC-Net ships it, and LES-AV and HRF alike; before that whose vessel/ it has too
        "RITE",
        "(training|test)/label/",
        "{split}/images/{number}.png",
        (
            LabelPlace("{split}/vessel/{number}.png"),
            LabelPlace("{split}/label/{number}.png", "LES-AV"),
        ),
        "{split}/mask/{number}.png",
        splits=OWN_NAMES,
    ),
    Layout(
        "RITE",
        "(training|test)/(av|vessel)/",
        "{split}/images/{number}.tif",
        (
            LabelPlace("{split}/vessel/{number}.png"),
            LabelPlace("{split}/av/{number}.png", "RITE"),
        ),
        "{split}/mask/{number}_mask.gif",
        splits=OWN_NAMES,
    ),
    Layout(
        "STARE",
        "(stare-images|labels-ah)/",
        "stare-images/{number}.ppm",
        (LabelPlace("labels-ah/{number}.ah.pgm"),),
        "mask/{number}_mask.gif",
        "labels-vk/{number}.vk.pgm",
        partly=True,
    ),
    Layout(
        "CHASE_DB1",
        r"Image_\d+[LR](_1stHO|_2ndHO)?\.",
        "{number}.jpg",
        (LabelPlace("{number}_1stHO.png"),),
        None,
        "{number}_2ndHO.png",
        number=r"Image_\d+[LR]",
    ),
    Layout(
        "HRF",
        "(manual1|manual_av)/",
        "images/{number}.JPG",
        (LabelPlace("manual1/{number}.tif"), LabelPlace("manual_av/{number}.png", "HRF")),
        "mask/{number}_mask.tif",
        # Orlando et al., IEEE TBME 64 (2017), 16-27, and the default of bob.ip.binseg
        numbers={"training": "0[1-5]_(dr|g|h)", "test": "(0[6-9]|1[0-5])_(dr|g|h)"},
        protocol="01 to 05 of dr, g and h are for training, 06 to 15 for the test",
        masked=True,
    ),
    Layout(
        "LES-AV",
        "(vessel-segmentations|arteries-and-veins)/",
        "images/{number}.png",
        (
            LabelPlace("vessel-segmentations/{number}.png"),
            LabelPlace("arteries-and-veins/{number}.png", "LES-AV"),
        ),
        "masks/{number}.png",
    ),
    Layout(
        "FIVES",
        "(train|test)/(Original|Ground truth)/",
        "{split}/Original/{number}.png",
        (LabelPlace("{split}/Ground truth/{number}.png"),),
        splits=TRAIN,
    ),
    Layout(
        "nnU-Net",
        "(imagesTr|labelsTr|imagesTs|labelsTs)/",
        "images{split}/{number}_0000.png",
        (LabelPlace("labels{split}/{number}.png"),),
        splits={"training": "Tr", "test": "Ts"},
        photograph="{number}_0000",
        channels=True,
    ),
    _plain("train/(labels|masks)/", "{split}/", TRAIN),
    _plain("(training|test)/(labels|masks)/", "{split}/", OWN_NAMES),
    _plain("(labels|masks)/", "", {}),
)

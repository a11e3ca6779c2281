"""Labelled sets: classes, and which file does not fit.

Run: pytest tests/test_datasets.py
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segpipe import metrics
from segpipe.data.datasets import VESSEL, find_examples, load_example, load_second
from segpipe.errors import UserError
from segpipe.storage import open_store


def grey(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L")) > 127


def test_outside_wins_over_a_drawn_vessel(labelled):
    store = open_store(str(labelled))
    example = find_examples(store, "training")[0]
    loaded = load_example(store, example)
    fov, vessel = grey(labelled / example.mask), grey(labelled / example.manual)
    assert (loaded.label[~fov] == 0).all()
    assert (loaded.label[fov & vessel] == 1).all()
    assert (loaded.label[fov & ~vessel] == 2).all()


def test_drive_has_496_drawn_pixels_outside_its_fields(drive):
    store, outside = open_store(str(drive)), 0
    for split in ("training", "test"):
        for example in find_examples(store, split):
            vessel, label = grey(drive / example.manual), load_example(store, example).label
            outside += int((vessel & (label == 0)).sum())
    assert outside == 496


def test_the_second_observer_of_drive_reaches_the_published_figures(drive):
    """Dice 0.789 and accuracy 0.947, pooled inside the field of view."""
    store, counts = open_store(str(drive)), np.zeros(4, int)
    for example in find_examples(store, "test"):
        first = load_example(store, example)
        second, inside = load_second(store, example, first), first.fov
        found = metrics.confusion_of(second[inside] == VESSEL, first.label[inside] == VESSEL)
        counts += [found.tp, found.fp, found.fn, found.tn]
    total = metrics.Confusion(*counts.tolist())
    assert round(total.dice, 3) == 0.789
    assert round(total.accuracy, 3) == 0.947


def test_examples_come_in_order_with_their_own_files(labelled):
    examples = find_examples(open_store(str(labelled)), "test")
    assert [e.name for e in examples] == ["01_test", "02_test"]
    assert examples[1].manual == "test/1st_manual/02_manual1.gif"
    assert examples[1].second == "test/2nd_manual/02_manual2.gif"


def test_a_set_without_second_observers_has_none(labelled):
    store = open_store(str(labelled))
    example = find_examples(store, "training")[0]
    assert load_second(store, example, load_example(store, example)) is None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda root: (root / "test/mask/01_test_mask.gif").unlink(), "01_test_mask.gif"),
        (lambda root: (root / "test/1st_manual/02_manual1.gif").unlink(), "02_manual1.gif"),
        (lambda root: shutil.rmtree(root / "test/images"), "no images in test/images"),
        (lambda root: (root / "test/images/01_test.tif").write_bytes(b"x"), "01_test.tif"),
        (
            lambda root: Image.new("L", (565, 584)).save(root / "test/mask/01_test_mask.gif"),
            "the field of view is empty",
        ),
    ],
)
def test_what_does_not_fit_is_named(labelled, tmp_path, damage, told):
    root = shutil.copytree(labelled, tmp_path / "set")
    damage(root)
    store = open_store(str(root))
    with pytest.raises(UserError, match=told):
        [load_example(store, example) for example in find_examples(store, "test")]

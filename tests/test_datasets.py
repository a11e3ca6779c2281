"""Labelled sets: classes, and which file does not fit.

Run: pytest tests/test_datasets.py
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segpipe import metrics
from segpipe.data.classes import VESSEL
from segpipe.data.datasets import load_example, load_second
from segpipe.data.layouts import open_labelled
from segpipe.errors import UserError
from segpipe.storage import open_store


def grey(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L")) > 127


def test_outside_wins_over_a_drawn_vessel(labelled):
    store = open_store(str(labelled))
    example = open_labelled(store).examples("training")[0]
    loaded = load_example(store, example)
    fov, vessel = grey(labelled / example.mask), grey(labelled / example.label)
    assert (loaded.label[~fov] == 0).all()
    assert (loaded.label[fov & vessel] == 1).all()
    assert (loaded.label[fov & ~vessel] == 2).all()


def test_drive_has_496_drawn_pixels_outside_its_fields(drive):
    store, outside = open_store(str(drive)), 0
    for split in ("training", "test"):
        for example in open_labelled(store).examples(split):
            vessel, label = grey(drive / example.label), load_example(store, example).label
            outside += int((vessel & (label == 0)).sum())
    assert outside == 496


def test_the_second_observer_of_drive_reaches_the_published_figures(drive):
    """Dice 0.789 and accuracy 0.947, pooled inside the field of view."""
    store, counts = open_store(str(drive)), np.zeros(4, int)
    for example in open_labelled(store).examples("test"):
        first = load_example(store, example)
        second, inside = load_second(store, example, first), first.fov
        found = metrics.confusion_of(second[inside] == VESSEL, first.label[inside] == VESSEL)
        counts += [found.tp, found.fp, found.fn, found.tn]
    total = metrics.Confusion(*counts.tolist())
    assert round(total.dice, 3) == 0.789
    assert round(total.accuracy, 3) == 0.947


def test_examples_come_in_order_with_their_own_files(labelled):
    examples = open_labelled(open_store(str(labelled))).examples("test")
    assert [e.name for e in examples] == ["01_test", "02_test"]
    assert examples[1].label == "test/1st_manual/02_manual1.gif"
    assert examples[1].second == "test/2nd_manual/02_manual2.gif"


def test_a_set_without_second_observers_has_none(labelled):
    store = open_store(str(labelled))
    example = open_labelled(store).examples("training")[0]
    assert load_second(store, example, load_example(store, example)) is None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda root: (root / "test/mask/01_test_mask.gif").unlink(), "01_test_mask.gif"),
        (lambda root: (root / "test/1st_manual/02_manual1.gif").unlink(), "02_manual1.gif"),
        (lambda root: (root / "test/images/02_test.tif").unlink(), "02_test.tif"),
        (lambda root: shutil.rmtree(root / "test"), "no images in test/images"),
        (
            lambda root: Image.new("L", (565, 584), 2).save(
                root / "test/1st_manual/01_manual1.gif"
            ),
            r"01_manual1\.gif: holds 2, wanted 0 and 255, or 0 and 1",
        ),
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
        [load_example(store, example) for example in open_labelled(store).examples("test")]


def test_drives_496_pixels_follow_from_its_files_alone_and_all_become_outside(drive):
    """Counted with Pillow from paths written out, then looked up in the labels."""
    store, counted = open_store(str(drive)), 0
    for split, numbers in (("test", range(1, 21)), ("training", range(21, 41))):
        examples = {e.name: e for e in open_labelled(store).examples(split)}
        assert len(examples) == 20
        for number in numbers:
            fov = grey(drive / split / "mask" / f"{number:02d}_{split}_mask.gif")
            stray = grey(drive / split / "1st_manual" / f"{number:02d}_manual1.gif") & ~fov
            counted += int(stray.sum())
            label = load_example(store, examples[f"{number:02d}_{split}"]).label
            assert (label[stray] == 0).all()
    assert counted == 496


def test_drives_second_drawings_are_read_by_their_palette(drive):
    """Their indices are 0 and 1, so that a threshold on the raw bytes would find no vessel."""
    store = open_store(str(drive))
    for example in open_labelled(store).examples("test"):
        raw = np.asarray(Image.open(drive / example.second))
        assert set(np.unique(raw)) == {0, 1}
        first = load_example(store, example)
        second = load_second(store, example, first)
        np.testing.assert_array_equal(second == VESSEL, (raw == 1) & first.fov)


def test_a_second_observers_label_is_the_drawn_file(labelled):
    store = open_store(str(labelled))
    for example in open_labelled(store).examples("test"):
        first = load_example(store, example)
        fov, drawn = grey(labelled / example.mask), grey(labelled / example.second)
        wanted = np.where(fov, np.where(drawn, 1, 2), 0)
        np.testing.assert_array_equal(load_second(store, example, first), wanted)
        assert (load_second(store, example, first) != first.label).any()


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("1st_manual/01_manual1.gif", r"01_manual1\.gif: 564x584 px.*565x584 px"),
        ("mask/01_test_mask.gif", r"01_test_mask\.gif: 564x584 px.*565x584 px"),
        ("2nd_manual/01_manual2.gif", r"01_manual2\.gif: 564x584 px.*565x584 px"),
    ],
)
def test_a_drawing_of_another_size_is_named_with_both_sizes(labelled, tmp_path, file, says):
    root = shutil.copytree(labelled, tmp_path / "set")
    Image.new("L", (564, 584), 255).save(root / "test" / file)
    store = open_store(str(root))
    example = open_labelled(store).examples("test")[0]
    with pytest.raises(UserError, match=says):
        load_second(store, example, load_example(store, example))


def test_a_folder_that_is_no_labelled_set_is_told_what_is_wanted(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"wanted DRIVE, .* or images/ beside labels/") as told:
        open_labelled(open_store(str(tmp_path))).examples("training")
    assert str(tmp_path) in str(told.value)
    assert "\n" not in str(told.value)

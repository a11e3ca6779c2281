"""Labelled sets are recognised by their files' names, and what is missing is told by its name.

Run: SEGPIPE_DATA=folder-that-holds-STARE-and-HRF pytest tests/test_layouts.py
"""

import gzip
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from needs import real_set
from PIL import Image

from segpipe.data import synthetic
from segpipe.data.datasets import load_example, load_second
from segpipe.data.globs import Reading
from segpipe.data.known_sets import LAYOUTS
from segpipe.data.layouts import Example, open_labelled
from segpipe.errors import UserError
from segpipe.storage import open_store

HEIGHT, WIDTH = 96, 104  # px


@pytest.fixture(scope="session")
def stare() -> Path:
    """The real STARE, found by SEGPIPE_DATA."""
    return real_set("STARE")


DRAWN = [synthetic.draw_fundus(seed, HEIGHT, WIDTH) for seed in range(3)]
SECOND = np.roll(DRAWN[0][1], 1, axis=1)  # a second observer's, one pixel to the right

# for each layout: photograph -> its files, by what they show
SETS: dict[str, list[dict[str, str]]] = {
    "DRIVE": [
        {
            "image": f"{split}/images/{n}_{split}.tif",
            "label": f"{split}/1st_manual/{n}_manual1.gif",
            "mask": f"{split}/mask/{n}_{split}_mask.gif",
        }
        | ({"second": f"test/2nd_manual/{n}_manual2.gif"} if split == "test" else {})
        for split, n in (("training", "21"), ("training", "22"), ("test", "01"))
    ],
    "STARE": [
        {
            "image": f"stare-images/im{n}.ppm",
            "label": f"labels-ah/im{n}.ah.{extension}",
            "second": f"labels-vk/im{n}.vk.ppm",
        }
        for n, extension in (("0001", "pgm"), ("0002", "ppm"), ("0044", "ppm"))
    ],
    "CHASE_DB1": [
        {
            "image": f"Image_{n}.jpg",
            "label": f"Image_{n}_1stHO.png",
            "second": f"Image_{n}_2ndHO.png",
        }
        for n in ("01L", "01R", "14L")
    ],
    "HRF": [
        {"image": f"images/{n}.{e}", "label": f"manual1/{n}.tif", "mask": f"mask/{n}_mask.tif"}
        for n, e in (("01_dr", "JPG"), ("02_g", "JPG"), ("15_h", "jpg"))
    ],
    "plain": [
        {"image": f"images/{n}.png", "label": f"labels/{n}.{e}"}
        for n, e in (("a b", "png"), ("c.d", "tif"), ("e", "bmp"))
    ],
    "plain, masks": [
        {"image": f"images/{n}.tif", "label": f"labels/{n}.png", "mask": f"masks/{n}.gif"}
        for n in "abc"
    ],
    "plain, splits": [
        {"image": f"{s}/images/{n}.jpg", "label": f"{s}/labels/{n}.png"}
        for s, n in (("training", "a"), ("training", "b"), ("test", "a"))
    ],
    "plain, train": [
        {"image": f"{s}/images/{n}.jpg", "label": f"{s}/labels/{n}.png"}
        for s, n in (("train", "a"), ("train", "b"), ("test", "a"))
    ],
    "DRIVE, training alone": [
        {
            "image": f"images/{n}_training.tif",
            "label": f"1st_manual/{n}_manual1.gif",
            "mask": f"mask/{n}_training_mask.gif",
        }
        for n in (21, 22, 40)
    ],
    "RITE": [
        {"image": f"{s}/images/{n}_{s}.tif", "label": f"{s}/vessel/{n}_{s}.png"}
        for s, n in (("training", "21"), ("training", "22"), ("test", "01"))
    ],
    "LES-AV": [
        {
            "image": f"images/{n}.png",
            "label": f"vessel-segmentations/{n}.png",
            "mask": f"masks/{n}.png",
        }
        for n in (22, 27, 284)
    ],
    "FIVES": [
        {"image": f"{s}/Original/{n}.png", "label": f"{s}/Ground truth/{n}.png"}
        for s, n in (("train", "1_A"), ("train", "2_D"), ("test", "1_A"))
    ],
    "nnU-Net": [
        {"image": f"images{s}/{n}_0000.png", "label": f"labels{s}/{n}.png"}
        for s, n in (("Tr", "case_1"), ("Tr", "eye_0002"), ("Ts", "case_1"))
    ],
    "plain, folders below": [
        {
            "image": f"images/{n}.jpg",
            "label": f"labels/{n}.png",
            "mask": f"masks/{n}.png",
            "name": n,
        }
        for n in ("A/1", "B/1", "B/{x}/2")
    ],
    "DRIVE, folders below": [
        {
            "image": f"{s}/images/{n}_{s}.tif",
            "label": f"{s}/1st_manual/{n}_manual1.gif",
            "mask": f"{s}/mask/{n}_{s}_mask.gif",
            "name": f"{n}_{s}",
        }
        for s, n in (("training", "left/21"), ("training", "right/21"), ("test", "01"))
    ],
    "STARE, gzipped": [
        {
            "image": f"stare-images/im{n}.ppm.gz",
            "label": f"labels-ah/im{n}.ah.ppm.gz",
            "second": f"labels-vk/im{n}.vk.PPM.GZ",
            "name": f"im{n}",
        }
        for n in ("0001", "0002", "0044")
    ],
}
SPLIT = {  # the third photograph is the test
    *("DRIVE", "plain, splits", "plain, train", "RITE", "FIVES", "nnU-Net", "DRIVE, folders below"),
    "HRF",
}


def write_set(root: Path, layout: str) -> Path:
    for files, (image, vessel, fov) in zip(SETS[layout], DRAWN, strict=True):
        pixels = {"image": image, "label": vessel, "second": SECOND, "mask": fov}
        for what, key in files.items():
            if what == "name":
                continue
            path = root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            white = 1 if what == "image" or layout == "nnU-Net" else 255
            picture = Image.fromarray(pixels[what].astype(np.uint8) * np.uint8(white))
            if what == "mask" and path.suffix == ".tif":
                picture = picture.convert("RGB")  # as some of HRF's are
            packed = path.suffix.lower() == ".gz"
            extension = Path(path.stem if packed else path).suffix.lower()
            file = io.BytesIO()
            picture.save(file, Image.registered_extensions()[extension])
            path.write_bytes(gzip.compress(file.getvalue()) if packed else file.getvalue())
    (root / "README.txt").write_text("about this set")
    return root


def wanted(files: dict[str, str]) -> Example:
    name = files.get("name", Path(files["image"]).stem)
    return Example(name, files["image"], files["label"], files.get("mask"), files.get("second"))


@pytest.mark.parametrize("layout", SETS)
def test_a_set_is_recognised_and_its_files_are_paired(layout, tmp_path):
    found = open_labelled(open_store(str(write_set(tmp_path, layout))))
    assert found.layout == layout.split(",")[0]
    assert found.split == (layout in SPLIT)
    examples = [wanted(files) for files in SETS[layout]]
    if layout in SPLIT:
        assert (found.training, found.test) == (tuple(examples[:2]), tuple(examples[2:]))
        assert found.examples("training") == found.training
        assert found.examples("test") == found.test
    else:
        assert (found.training, found.test) == (tuple(examples), ())
        assert found.examples("training") == found.examples("test") == tuple(examples)


@pytest.mark.parametrize("layout", ["STARE", "DRIVE", "plain, splits"])
def test_a_set_on_s3_is_the_one_in_the_folder(layout, s3, tmp_path):
    store, root = open_store(f"{s3.uri}/{tmp_path.name}"), write_set(tmp_path, layout)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            store.put(str(path.relative_to(root)), path.read_bytes())
    found, local = open_labelled(store), open_labelled(open_store(str(root)))
    assert (found.training, found.test) == (local.training, local.test)
    example = found.examples("test")[0]
    there, here = load_example(store, example), DRAWN[2 if layout in SPLIT else 0]
    assert ((there.label == 1) == (here[1] & there.fov)).all()


@pytest.mark.parametrize("layout", SETS)
def test_the_classes_are_those_that_were_drawn(layout, tmp_path):
    store = open_store(str(write_set(tmp_path, layout)))
    found = open_labelled(store)
    for example, (image, vessel, fov) in zip(found.training + found.test, DRAWN, strict=True):
        loaded = load_example(store, example)
        if example.mask:
            np.testing.assert_array_equal(loaded.fov, fov)
        else:  # the found field: good to a pixel or two at its rim
            assert (loaded.fov & fov).sum() / (loaded.fov | fov).sum() > 0.93
        np.testing.assert_array_equal(loaded.label == 0, ~loaded.fov)
        np.testing.assert_array_equal(loaded.label == 1, vessel & loaded.fov)
        if not example.image.endswith((".jpg", ".JPG")):
            np.testing.assert_array_equal(loaded.image, image)
        if example.second:
            second = load_second(store, example, loaded)
            np.testing.assert_array_equal(second == 1, SECOND & loaded.fov)


@pytest.mark.parametrize("layout", SETS)
def test_an_example_comes_back_from_its_row(layout):
    """The row has strings alone, as Ray's batches turn None into NaN."""
    for example in map(wanted, SETS[layout]):
        row = example.as_row()
        assert all(isinstance(value, str) for value in row.values())
        assert Example.from_row(row | {"canvas": 0}) == example


MISSING = [
    (layout, place, what)
    for layout, photographs in SETS.items()
    for place, files in enumerate(photographs)
    for what in files
    if what not in ("second", "name")
]


@pytest.mark.parametrize(("layout", "place", "what"), MISSING)
def test_a_missing_file_is_named(layout, place, what, tmp_path):
    root = write_set(tmp_path, layout)
    key = SETS[layout][place][what]
    (root / key).unlink()
    store = open_store(str(root))
    if layout.startswith("STARE") and what == "label":  # most of STARE's photographs have none
        kept = [files for n, files in enumerate(SETS[layout]) if n != place]
        assert open_labelled(store).training == tuple(map(wanted, kept))
        return
    if layout in SPLIT - {"HRF"} and place == 2 and what == "label":  # as some are published
        assert open_labelled(store).test == ()
        return
    with pytest.raises(UserError) as told:
        open_labelled(store)
    path = os.path.splitext(key.removesuffix(".gz"))[0]
    assert f"wanted {root}/{path}." in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("layout", SETS)
def test_a_second_observer_may_have_drawn_some_only(layout, tmp_path):
    root = write_set(tmp_path, layout)
    files = SETS[layout][2]
    if "second" in files:
        (root / files["second"]).unlink()
    assert open_labelled(open_store(str(root))).examples("test")[-1].second is None


def test_what_is_missing_in_the_other_split_does_not_matter(tmp_path):
    root = write_set(tmp_path, "DRIVE")
    shutil.rmtree(root / "test/mask")
    store = open_store(str(root))
    assert len(open_labelled(store, ["training"]).examples("training")) == 2
    with pytest.raises(UserError, match=r"wanted .*/test/mask/01_test_mask\.gif$"):
        open_labelled(store, ["test"])


def test_drive_as_it_is_handed_out_today_has_a_test_without_labels(tmp_path):
    root = write_set(tmp_path, "DRIVE")
    shutil.rmtree(root / "test/1st_manual")
    shutil.rmtree(root / "test/2nd_manual")
    found = open_labelled(open_store(str(root)))
    assert (len(found.training), found.test, found.layout) == (2, (), "DRIVE")
    assert found.num_labels == {"training": 2, "test": 0}
    told = "1 photographs in test/images/ have no label such as test/1st_manual/01_manual1.gif"
    assert found.notes == (f"{told}, left out",)
    with pytest.raises(UserError, match=re.escape(told)):
        found.examples("test")


@pytest.mark.parametrize("layout", ["DRIVE", "plain, splits"])
def test_a_split_that_a_set_lacks_is_told_when_it_is_asked_for(layout, tmp_path):
    shutil.rmtree(write_set(tmp_path, layout) / "test")
    found = open_labelled(open_store(str(tmp_path)))
    assert len(found.examples("training")) == 2
    with pytest.raises(UserError, match="no images in test/images/") as told:
        found.examples("test")
    assert str(tmp_path) in str(told.value)


def test_stare_without_any_label_names_the_first(tmp_path):
    shutil.rmtree(write_set(tmp_path, "STARE") / "labels-ah")
    with pytest.raises(UserError, match=r"wanted .*/labels-ah/im0001\.ah\.pgm$"):
        open_labelled(open_store(str(tmp_path)))


def test_either_all_photographs_have_a_mask_or_none(tmp_path):
    """STARE's own masks do not exist, those of others are taken."""
    root = write_set(tmp_path, "STARE")
    (root / "mask").mkdir()
    for number in ("0001", "0002"):
        Image.fromarray(DRAWN[0][2]).save(root / f"mask/im{number}_mask.gif")
    with pytest.raises(UserError, match=r"wanted .*/mask/im0044_mask\.gif$"):
        open_labelled(open_store(str(root)))
    Image.fromarray(DRAWN[0][2]).save(root / "mask/im0044_mask.png")
    masks = [example.mask for example in open_labelled(open_store(str(root))).training]
    assert masks == ["mask/im0001_mask.gif", "mask/im0002_mask.gif", "mask/im0044_mask.png"]


def test_two_files_of_one_name_are_refused(tmp_path):
    root = write_set(tmp_path, "plain")
    shutil.copy(root / "labels/e.bmp", root / "labels/e.PNG")
    with pytest.raises(UserError, match=r"labels/e\.\w+: e\.\w+ lies beside it"):
        open_labelled(open_store(str(root)))


@pytest.mark.parametrize(
    ("layout", "others"),
    [
        ("HRF", ["images/._01_dr.JPG", "manual1/._01_dr.tif", "images/Thumbs.db", ".DS_Store"]),
        ("HRF", ["images/.ipynb_checkpoints/x.JPG", "mask/old/05_dr_mask.tif", "about.pdf"]),
    ],
)
def test_other_files_beside_a_set_do_not_count(tmp_path, layout, others):
    root = write_set(tmp_path, layout)
    for name in others:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    found = open_labelled(open_store(str(root)))
    assert len(found.training + found.test) == 3


@pytest.mark.parametrize(
    ("layout", "others", "told"),
    [
        ("CHASE_DB1", ["overview.jpg", "draft_1stHO.png"], "draft_1stHO.png and 1 more"),
        ("HRF", ["healthy/images/03_h.JPG"], "no place in HRF, left out: healthy/images/03_h.JPG"),
        ("nnU-Net", ["imagesTr/x.png"], "no place in nnU-Net, left out: imagesTr/x.png"),
        ("DRIVE", ["training/more.zip"], "archives that are not unpacked, left out: training/more"),
        ("STARE", ["stare-images/im0009.ppm.gz"], "in stare-images/ without a label, left out: 1"),
    ],
)
def test_what_is_left_out_is_told(tmp_path, layout, others, told):
    root = write_set(tmp_path, layout)
    for name in others:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    found = open_labelled(open_store(str(root)))
    assert len(found.training + found.test) == 3
    assert sum(told in note for note in found.notes) == 1
    assert len(found.notes) == 1 + (layout == "HRF")


@pytest.mark.parametrize(
    ("others", "told"),
    [
        (
            ["images/old/03_dr.JPG"],
            "images/old/03_dr.JPG: its label is missing, wanted .*/manual1/old/03_dr.tif",
        ),
        (
            ["manual1/old/04_dr.tif"],
            "manual1/old/04_dr.tif: its image is missing, wanted .*/images/old/04_dr.JPG",
        ),
    ],
)
def test_what_lies_in_a_folder_below_must_have_its_partner_in_the_same(tmp_path, others, told):
    root = write_set(tmp_path, "HRF")
    for name in others:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    with pytest.raises(UserError, match=told):
        open_labelled(open_store(str(root)))


def test_a_file_beside_the_archive_that_it_was_unpacked_from_is_taken(tmp_path):
    root = write_set(tmp_path, "STARE, gzipped")
    for file in sorted(root.glob("*/im0001*.gz")):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    found = open_labelled(open_store(str(root)))
    assert found.training[0].image == "stare-images/im0001.ppm"
    assert found.training[1].image == "stare-images/im0002.ppm.gz"


# ---- HRF's split


def bobs(kind: str, numbers: range) -> list[str]:
    """The names of HRF's photographs as bob.ip.binseg lists them for a split."""
    return [f"{number:02d}_{kind}" for number in numbers]


TRAINING = sorted(name for kind in ("dr", "g", "h") for name in bobs(kind, range(1, 6)))
TEST = sorted(name for kind in ("dr", "g", "h") for name in bobs(kind, range(6, 16)))


def write_hrf(root: Path, names: list[str]) -> Path:
    """Files of HRF's names, which say nothing."""
    for name in names:
        extension = "JPG" if name.endswith("_dr") else "jpg"
        for key in (f"images/{name}.{extension}", f"manual1/{name}.tif", f"mask/{name}_mask.tif"):
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            (root / key).write_bytes(b"x")
    return root


def test_hrf_is_split_as_those_who_use_it_split_it(tmp_path):
    store = open_store(str(write_hrf(tmp_path, TRAINING + TEST)))
    found = open_labelled(store)
    assert (found.split, found.numbered, len(TRAINING), len(TEST)) == (True, True, 15, 30)
    assert [example.name for example in found.training] == TRAINING
    assert [example.name for example in found.test] == TEST
    assert found.examples("test") == open_labelled(store, ["test"]).examples("test") == found.test
    assert open_labelled(store, ["training"]).test == ()
    before = open_labelled(store, reading=Reading(by_number=False))
    assert [example.name for example in before.training] == sorted(TRAINING + TEST)
    assert (before.split, before.numbered, before.test, before.notes) == (False, False, (), ())


@pytest.mark.parametrize(
    "names",
    [
        TRAINING,
        TEST,
        TEST[:1],
        ["01_dr", "06_x"],
        ["01_dr", "06_dr", "16_dr"],
        ["01_dr", "06_dr", "patient"],
        ["1_dr", "6_dr"],
    ],
)
def test_what_is_not_split_by_these_numbers_has_no_split(tmp_path, names):
    found = open_labelled(open_store(str(write_hrf(tmp_path, names))))
    assert (found.split, found.numbered, found.notes) == (False, False, ())
    assert {example.name for example in found.training} == set(names)
    assert found.examples("test") == found.examples("training") == found.training


def test_what_is_missing_in_hrfs_other_split_does_not_matter(tmp_path):
    root = write_hrf(tmp_path, TRAINING + TEST)
    (root / "mask/06_dr_mask.tif").unlink()
    store = open_store(str(root))
    assert len(open_labelled(store, ["training"]).training) == 15
    with pytest.raises(UserError, match=r"wanted .*/mask/06_dr_mask\.tif$"):
        open_labelled(store, ["test"])


def test_the_real_hrf_has_15_for_training_and_30_for_the_test():
    found = open_labelled(open_store(str(real_set("HRF"))))
    assert [example.name for example in found.training] == TRAINING
    assert [example.name for example in found.test] == TEST
    assert all((".JPG" in one.image) == ("_dr" in one.name) for one in found.test)


# ---- nnU-Net


@pytest.mark.parametrize(
    ("labels", "notes"),
    [
        ({"background": 0, "vessel": 1}, []),
        ({"background": 0, "Retinal Vessels": 1}, []),
        ({"0": "background", "1": "vessel"}, []),  # nnU-Net's first version
        ({"background": 0, "BV": 1}, ["dataset.json: its class BV is taken for the vessels"]),
    ],
)
def test_nnu_nets_description_has_one_class(tmp_path, labels, notes):
    root = write_set(tmp_path, "nnU-Net")
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "numTraining": 2}))
    assert list(open_labelled(open_store(str(root))).notes) == notes


@pytest.mark.parametrize(
    ("description", "told"),
    [
        ('{"labels": {"background": 0, "artery": 1, "vein": 2}}', "background 0, artery 1, vein 2"),
        (
            '{"labels": {"background": 0, "vessel": 1, "ignore": 2}}',
            "ignore 2; wanted background 0",
        ),
        ('{"labels": {"background": 0, "vessel": [1, 2]}}', r"vessel \[1, 2\]"),
        ('{"labels": {"vessel": 1}}', "its labels are vessel 1"),
        ('{"labels": ["vessel"]}', "has no labels as nnU-Net writes them"),
        ("{", "has no labels as nnU-Net writes them"),
        ("{}", "has no labels as nnU-Net writes them"),
    ],
)
def test_other_descriptions_are_refused_with_their_classes(tmp_path, description, told):
    root = write_set(tmp_path, "nnU-Net")
    (root / "dataset.json").write_text(description)
    with pytest.raises(UserError, match=rf"{root}/dataset\.json: .*{told}"):
        open_labelled(open_store(str(root)))


def test_channels_in_files_of_their_own_are_refused(tmp_path):
    root = write_set(tmp_path, "nnU-Net")
    for channel in (1, 2):
        shutil.copy(root / "imagesTr/case_1_0000.png", root / f"imagesTr/case_1_000{channel}.png")
    with pytest.raises(UserError, match=r"imagesTr/case_1_0001.*one RGB file case_1_0000"):
        open_labelled(open_store(str(root)))


# ---- what is no set


def test_a_damaged_gzip_is_named(tmp_path):
    root = write_set(tmp_path, "STARE, gzipped")
    file = root / "labels-ah/im0001.ah.ppm.gz"
    file.write_bytes(file.read_bytes()[:-20])
    store = open_store(str(root))
    with pytest.raises(UserError, match=r"im0001\.ah\.ppm\.gz: cannot be read as an image \(gzip"):
        load_example(store, open_labelled(store).training[0])


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "found no files"),
        (["photo.jpg"], r"found photo\.jpg \("),
        (["a/DRIVE/images/x.png", "b.txt"], r"found a/DRIVE/images/x\.png and 1 more"),
        (["images/a.png", "images/b.png"], r"found images/a\.png and 1 more"),
        (["two\nlines.png"], r"found two lines\.png \("),
        (["a/b/labels/x.png", "a/b/images/x.png"], r"more, name .*/a/b instead$"),
        (["a/imagesTr/x_0000.png", "a/labelsTr/x.png"], "more, name .*/a instead$"),
        (["b/set.nii.gz"], r"volumes as b/set\.nii\.gz are not read: save photographs as PNG$"),
        (["datasets.zip"], r"found datasets\.zip, unpack datasets\.zip$"),
        (["training/images/x.png", "training/mask/x.png"], r"and 1 more \("),
    ],
)
def test_no_known_layout_is_told_in_a_short_line_with_what_to_do(tmp_path, files, found):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=found) as told:
        open_labelled(open_store(str(tmp_path)))
    line = str(told.value)
    assert line.startswith(str(tmp_path))
    assert "\n" not in line
    assert len(line) - len(str(tmp_path)) * line.count(str(tmp_path)) < 300
    if line.endswith(")"):  # nothing better is known
        for name in (
            *({one.name for one in LAYOUTS} - {"plain"}),
            "docs/training-data.md",
            "images/ beside labels/",
            "--images",
        ):
            assert name in line


def test_a_description_of_many_classes_is_told_with_some(tmp_path):
    root = write_set(tmp_path, "nnU-Net")
    labels = {f"class {number} {'x' * 60}": number for number in range(99)}
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(UserError, match="and 94 more; wanted background 0") as told:
        open_labelled(open_store(str(root)))
    assert len(str(told.value)) - len(str(root)) < 300


def test_a_photograph_without_a_field_is_named(tmp_path):
    root = write_set(tmp_path, "plain")
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/a b.png")
    store = open_store(str(root))
    with pytest.raises(UserError, match=r"images/a b\.png: no field of view found.*no mask"):
        load_example(store, open_labelled(store).training[0])


def read_netpbm(path: Path) -> np.ndarray:
    """A raw PGM or PPM by its definition -> its first channel [H, W]."""
    data, words = path.read_bytes(), list[bytes]()
    at = 0
    while len(words) < 4:
        end = next(n for n in range(at, len(data)) if data[n : n + 1].isspace())
        if data[at : at + 1] == b"#":
            end = data.index(b"\n", at)
        elif end > at:
            words.append(data[at:end])
        at = end + 1
    width, height = int(words[1]), int(words[2])
    channels = {b"P5": 1, b"P6": 3}[words[0]]
    assert words[3] == b"255"
    return np.frombuffer(data, np.uint8, offset=at).reshape(height, width, channels)[..., 0]


def test_stare_has_twenty_labelled_photographs_with_a_second_observer(stare):
    found = open_labelled(open_store(str(stare)))
    assert (found.layout, found.split, found.test) == ("STARE", False, ())
    assert len(found.training) == len({e.name for e in found.training}) == 20
    assert [e.name for e in found.training][:2] == ["im0001", "im0002"]
    assert all(example.second for example in found.training)


def test_stares_second_observer_has_the_figures_of_the_files_alone(stare):
    store = open_store(str(stare))
    for example in open_labelled(store).training:
        first = load_example(store, example)
        second = load_second(store, example, first)
        number, inside = example.name, first.fov
        ah = read_netpbm(stare / f"labels-ah/{number}.ah.pgm") > 127
        vk = read_netpbm(next((stare / "labels-vk").glob(f"{number}.vk.*"))) > 127
        both = (ah & vk & inside).sum()
        dice = 2 * both / ((ah & inside).sum() + (vk & inside).sum())
        hit = ((first.label == 1) & (second == 1)).sum()
        assert dice == 2 * hit / ((first.label == 1).sum() + (second == 1).sum())
        assert 0.5 < dice < 0.95


def test_the_fields_found_in_stare_are_those_that_others_drew(stare):
    if not (stare / "mask").is_dir():
        pytest.skip("this copy of STARE has no masks")
    store, overlaps = open_store(str(stare)), []
    for example in open_labelled(store).training:
        given = np.asarray(Image.open(stare / example.mask).convert("L")) > 127
        bare = Example(example.name, example.image, example.label, None, None)
        fov = load_example(store, bare).fov
        overlaps.append((given & fov).sum() / (given | fov).sum())
    assert np.median(overlaps) > 0.99
    assert min(overlaps) > 0.9

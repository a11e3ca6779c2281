"""Labels that cannot be right are told by name before anything starts, and a changed set too.

Run: SEGPIPE_DATA=folder-that-holds-DRIVE-STARE-and-HRF pytest tests/test_survey.py
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from needs import real_set
from PIL import Image, ImageOps
from verbs import run

from segpipe import labels
from segpipe.data import survey, synthetic
from segpipe.data.datasets import load_example
from segpipe.data.layouts import open_labelled
from segpipe.errors import UserError
from segpipe.storage import open_store
from segpipe.storage.files import write_json
from segpipe.storage.settings import SETTINGS, read_settings
from segpipe.train import states
from segpipe.train.config import TrainConfig
from segpipe.train.settings import SET, Started
from segpipe.train.states import State

HEIGHT, WIDTH = 280, 300  # px
DRAWN = [synthetic.draw_fundus(seed, HEIGHT, WIDTH) for seed in range(3)]
NAMES = ("a", "b", "c")
TRAIN = ["train", "--recipe", "lecture"]


def white(drawn: np.ndarray) -> Image.Image:
    return Image.fromarray(drawn.astype(np.uint8) * np.uint8(255))


def write_set(root: Path) -> Path:
    """Three right pairs with masks, in the plain layout."""
    for folder in ("images", "labels", "masks"):
        (root / folder).mkdir(parents=True)
    for name, (image, vessel, fov) in zip(NAMES, DRAWN, strict=True):
        Image.fromarray(image).save(root / f"images/{name}.png")
        white(vessel).save(root / f"labels/{name}.png", compress_level=0)
        white(fov).save(root / f"masks/{name}.png")
    return root


def label(root: Path, n: int) -> Path:
    return root / f"labels/{NAMES[n]}.png"


def each(change: Callable[[np.ndarray], Image.Image]) -> Callable[[Path], None]:
    """What draws every label anew from its vessels [H, W] bool."""

    def damage(root: Path) -> None:
        for n, (_, vessel, _) in enumerate(DRAWN):
            change(vessel).save(label(root, n))

    return damage


def painted(*colours: tuple[int, int, int]) -> Callable[[np.ndarray], Image.Image]:
    """Vessels in these colours, in stripes."""

    def paint(vessel: np.ndarray) -> Image.Image:
        stripe = np.indices(vessel.shape)[1] // 20 % len(colours)
        return Image.fromarray(np.array(colours, np.uint8)[stripe] * vessel[..., None])

    return paint


def layered(hidden: int) -> Callable[[np.ndarray], Image.Image]:
    """Vessels in the alpha channel alone, of a picture that is all of one grey."""

    def paint(vessel: np.ndarray) -> Image.Image:
        picture = Image.new("RGBA", vessel.shape[::-1], (hidden,) * 3)
        picture.putalpha(white(vessel))
        return picture

    return paint


def swapped(root: Path) -> None:
    (root / "labels").rename(root / "x")
    (root / "masks").rename(root / "labels")
    (root / "x").rename(root / "masks")


def masks_as_labels(root: Path) -> None:
    for name in NAMES:
        shutil.copy(root / f"masks/{name}.png", root / f"labels/{name}.png")


def shifted(root: Path) -> None:
    for n in range(3):
        white(DRAWN[(n + 1) % 3][1]).save(label(root, n))


def masks_inverted(root: Path) -> None:
    for name, (_, _, fov) in zip(NAMES, DRAWN, strict=True):
        white(~fov).save(root / f"masks/{name}.png")


def masks_of_everything(root: Path) -> None:
    for name, (_, _, fov) in zip(NAMES, DRAWN, strict=True):
        white(fov | True).save(root / f"masks/{name}.png")


def turned_by_exif(root: Path) -> None:
    """The labels are those of mirrored photographs: they fit neither way."""
    for n, (image, vessel, _) in enumerate(DRAWN):
        save_turned(root, n, Image.fromarray(image), 3)
        white(vessel[:, ::-1]).save(label(root, n))
    shutil.rmtree(root / "masks")


def three_levels(vessel: np.ndarray) -> Image.Image:
    levels = vessel * np.uint8(255)
    levels[:, 100:160] //= 2
    return Image.fromarray(levels)


def as_jpegs(change: Callable[[np.ndarray], Image.Image], quality: int) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for n, (_, vessel, _) in enumerate(DRAWN):
            label(root, n).unlink()
            change(vessel).save(label(root, n).with_suffix(".jpg"), quality=quality)

    return damage


WRONG = {
    "inverted": (each(lambda v: white(~v)), r"labels/a\.png: vessels are 8\d\.\d % of the field"),
    "swapped": (swapped, r"labels/a\.png: is the field of view.*labels and masks are swapped"),
    "mask as label": (masks_as_labels, r"labels/a\.png: is the field of view, no vessels"),
    "empty": (each(lambda v: white(v & False)), r"labels/a\.png: no vessel is drawn"),
    "black on clear": (each(layered(0)), r"labels/a\.png: its transparency"),
    "white on clear": (each(layered(255)), r"labels/a\.png: its transparency"),
    "three levels": (each(three_levels), r"labels/a\.png: holds 0, 127, 255, wanted two"),
    "three levels, JPEG": (as_jpegs(three_levels, 90), r"labels/a\.jpg: holds .*, wanted two"),
    "shifted": (shifted, r"labels/a\.png: its vessels are no darker.*belong to images/a\.png"),
    "masks inverted": (masks_inverted, r"masks/a\.png: shares \d% with the field of view"),
    "masks of everything": (masks_of_everything, r"masks/a\.png: covers the whole picture, of wh"),
    "turned": (turned_by_exif, r"labels/a\.png: fits images/a\.jpg.*\(orientation 3\), neither"),
}
RIGHT = {
    "as drawn": lambda root: None,
    "JPEG": as_jpegs(white, 60),
    "masks of the middle": lambda root: [
        white(fov & (np.abs(np.indices(fov.shape) - 140) < 70).all(axis=0)).save(
            root / f"masks/{name}.png"
        )
        for name, (_, _, fov) in zip(NAMES, DRAWN, strict=True)
    ],
    "no masks": lambda root: shutil.rmtree(root / "masks"),
    "white on clear black": each(
        lambda v: Image.merge("RGBA", [white(v)] * 4),
    ),
    "white on opaque black": each(lambda v: white(v).convert("RGBA")),
    "two palette entries": each(lambda v: white(v).convert("P")),
    "one bit": each(lambda v: white(v).convert("1")),
    "nearly white": each(lambda v: Image.fromarray((v * 250 + 4).astype(np.uint8))),
}


def problems(root: Path) -> list[str]:
    store = open_store(str(root))
    looks = [survey.look(store, one, with_second=True)[0] for one in open_labelled(store).training]
    return survey.problem_lines(store.uri, [one.problem for one in looks])


@pytest.mark.parametrize("kind", WRONG)
def test_labels_that_cannot_be_right_are_told_in_one_line(tmp_path, kind):
    damage, told = WRONG[kind]
    root = write_set(tmp_path / "set")
    damage(root)
    [line] = problems(root)
    assert line.startswith(str(root))
    assert re.search(told, line), line
    assert line.endswith(" (and 2 more such)")
    assert "\n" not in line


@pytest.mark.parametrize("kind", RIGHT)
def test_right_labels_are_taken_however_they_are_saved(tmp_path, kind):
    root = write_set(tmp_path / "set")
    RIGHT[kind](root)
    assert problems(root) == []


def test_one_wrong_label_among_right_ones_is_named(tmp_path):
    root = write_set(tmp_path / "set")
    white(~DRAWN[1][1]).save(label(root, 1))
    [line] = problems(root)
    assert line.startswith(f"{label(root, 1)}: ")
    assert "more such" not in line


@pytest.mark.parametrize("name", ["DRIVE", "STARE", "HRF"])
def test_no_label_of_the_published_sets_is_refused(name):
    store = open_store(str(real_set(name)))
    found = open_labelled(store)
    every = 5 if name == "HRF" else 1  # of 8 megapixels each
    for example in (*found.training, *found.test)[::every]:
        seen, _ = survey.look(store, example, with_second=True)
        assert seen.problem is None
        assert seen.contrast > 0.6


# ---- EXIF


def save_turned(root: Path, n: int, shown: Image.Image, orientation: int) -> np.ndarray:
    """Write the photograph that viewers show as `shown` -> its pixels as stored [h, w, 3]."""
    (root / f"images/{NAMES[n]}.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = stored_of(shown, orientation)
    path = root / f"images/{NAMES[n]}.jpg"
    stored.save(path, exif=exif, quality=97, subsampling=0)
    with Image.open(path) as again:
        upright = ImageOps.exif_transpose(again)
    difference = np.asarray(upright).astype(int) - np.asarray(shown)
    assert np.abs(difference).mean() < 4  # Pillow shows it as it was meant
    return np.asarray(stored)


def stored_of(shown: Image.Image, orientation: int) -> Image.Image:
    """What a file with this EXIF orientation stores of it, by the standard's table."""
    a = np.asarray(shown)
    rows, columns = a[::-1], a[:, ::-1]
    turned = {
        1: a,
        2: columns,
        3: a[::-1, ::-1],
        4: rows,
        5: a.swapaxes(0, 1),
        6: np.rot90(a),
        7: a[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(a, -1),
    }[orientation]
    return Image.fromarray(np.ascontiguousarray(turned))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("as_shown", [True, False])
def test_a_label_meets_its_photograph_as_it_is_stored_or_as_it_is_shown(
    tmp_path, orientation, as_shown
):
    root = write_set(tmp_path / "set")
    shutil.rmtree(root / "masks")
    image, vessel, _ = DRAWN[0]
    save_turned(root, 0, Image.fromarray(image), orientation)
    if not as_shown:
        stored_of(white(vessel), orientation).save(label(root, 0))
    assert problems(root) == []
    store = open_store(str(root))
    loaded = load_example(store, open_labelled(store).training[0])
    assert loaded.shown == (as_shown and orientation != 1)
    wanted = Image.fromarray(image), white(vessel)
    if not as_shown:
        wanted = tuple(stored_of(one, orientation) for one in wanted)
    photograph, drawn = map(np.asarray, wanted)
    assert np.abs(loaded.image.astype(int) - photograph).mean() < 4
    np.testing.assert_array_equal(loaded.label == 1, (drawn > 127) & loaded.fov)


def test_a_tiff_label_with_an_orientation_lies_on_its_stored_pixels(tmp_path):
    """As its photograph's TIFF does; Pillow turns it on opening."""
    root = write_set(tmp_path / "set")
    shutil.rmtree(root / "masks")
    for n, (image, vessel, _) in enumerate(DRAWN):
        for folder, picture in (("images", Image.fromarray(image)), ("labels", white(vessel))):
            (root / folder / f"{NAMES[n]}.png").unlink()
            stored_of(picture, 6).save(root / folder / f"{NAMES[n]}.tif", tiffinfo={274: 6})
    assert problems(root) == []
    store = open_store(str(root))
    loaded = load_example(store, open_labelled(store).training[0])
    assert loaded.image.shape == (WIDTH, HEIGHT, 3)


# ---- segpipe check


def test_check_tells_a_right_set_and_draws_it(labelled, tmp_path, capfd):
    assert run("check", "--data", labelled, "--output", tmp_path / "out") == 0
    out, err = capfd.readouterr()
    assert not err
    assert "layout    DRIVE" in out
    assert "4 photographs, 565x584 px, vessels " in out
    found = json.loads((tmp_path / "out/check.json").read_text())
    assert found["problems"] == []
    assert len(found["photographs"]) == 6
    for row in found["photographs"]:
        fov, vessel = (
            np.asarray(Image.open(labelled / row[name]).convert("L")) > 127
            for name in ("mask", "manual")
        )
        assert row["vessel_share"] == pytest.approx((fov & vessel).sum() / fov.sum())
        assert (row["width"], row["height"], row["problem"]) == (565, 584, None)
    with Image.open(tmp_path / "out/contact-01.png") as sheet:
        assert sheet.size[0] > 1000
        colours = dict((colour, count) for count, colour in sheet.getcolors(1 << 24))
    assert colours[(255, 255, 0)] > 5000  # outlines


def test_check_tells_every_kind_of_problem_and_exits_with_1(tmp_path, capfd):
    root = write_set(tmp_path / "set")
    white(~DRAWN[0][1]).save(label(root, 0))
    layered(0)(DRAWN[1][1]).save(label(root, 1))
    (root / "images/c.png").write_bytes(b"x")
    assert run("check", "--data", root) == 1
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("problem")]
    assert len(lines) == 3
    wanted = "labels/a.png: vessels", "labels/b.png: its transparency", "images/c.png:"
    for line, told in zip(lines, wanted, strict=True):
        assert f"{root}/{told}" in line


def test_check_of_no_labelled_set_exits_with_2(tmp_path, capfd):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    assert run("check", "--data", tmp_path) == 2
    assert "no labelled set in a known layout" in capfd.readouterr().err


def test_check_tells_of_a_split_without_labels_and_looks_at_the_other(labelled, tmp_path, capfd):
    root = shutil.copytree(labelled, tmp_path / "set")
    shutil.rmtree(root / "test/1st_manual")  # as DRIVE is handed out today
    assert run("check", "--data", root) == 0
    out = capfd.readouterr().out
    assert "training  4 photographs" in out
    assert (
        "note      2 photographs in test/images/ have no label such as test/1st_manual/01_" in out
    )
    (root / "training/1st_manual/03_manual1.gif").unlink()
    assert run("check", "--data", root) == 2
    assert "03_training.tif: its label is missing" in capfd.readouterr().err
    shutil.copy(labelled / "training/1st_manual/03_manual1.gif", root / "training/1st_manual")
    shutil.rmtree(root / "test")  # nothing is missing in a set for training alone
    assert run("check", "--data", root) == 0


def test_check_needs_neither_ray_nor_torch(tmp_path):
    root = write_set(tmp_path / "set")
    code = (
        "import sys; from segpipe import cli\n"
        f"try: cli.main(['check', '--data', {str(root)!r}])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print(sorted({'ray', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


# ---- the files of a set


def write_started(root: Path, output: Path, epochs: int) -> None:
    """As a training that did so many epochs on the set leaves its output."""
    store, labelled = open_store(str(root)), open_labelled(open_store(str(root)))
    looks = [survey.look(store, example)[0] for example in labelled.training]
    place = open_store(str(output))
    settings = TrainConfig.by_recipe("lecture", str(root), str(output)).settings(store)
    Started(settings, survey.listing(labelled.entries, looks)).write(place)
    states.put(place, State({}, {"epoch": epochs, "history": [], "best": {}}))
    place.put("model.safetensors", b"x")


def add(root: Path) -> None:
    for folder in ("images", "labels", "masks"):
        shutil.copy(root / folder / "a.png", root / folder / "d.png")


def delete(root: Path) -> None:
    for folder in ("images", "labels", "masks"):
        (root / folder / "c.png").unlink()


def draw_anew(root: Path) -> None:
    """Another label, of the same size in bytes."""
    before = label(root, 0).stat().st_size
    white(DRAWN[0][1][::-1]).save(label(root, 0), compress_level=0)
    assert label(root, 0).stat().st_size == before


CHANGES = {
    "1 changed": draw_anew,
    "3 added": add,
    "3 deleted": delete,
}


@pytest.mark.parametrize("told", CHANGES)
def test_a_training_is_not_up_to_date_when_its_set_has_changed(tmp_path, capfd, told):
    root = write_set(tmp_path / "set")
    write_started(root, tmp_path / "out", epochs=2)
    CHANGES[told](root)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert run(*TRAIN, "--data", root, "--output", tmp_path / "out", "--epochs", 2) == 2
    assert f"has changed since {tmp_path / 'out'} was started ({told})" in capfd.readouterr().err
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}


def test_a_copy_of_the_same_files_is_the_same_set(tmp_path, capfd):
    root = write_set(tmp_path / "set")
    write_started(root, tmp_path / "out", epochs=2)
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    assert run(*TRAIN, "--data", root, "--output", tmp_path / "out", "--epochs", 2) == 0
    assert "2 epochs are finished" in capfd.readouterr().out


@pytest.mark.parametrize("before", ["nothing", "RITE"])
def test_a_training_resumes_with_the_meanings_of_colours_that_it_was_started_with(
    tmp_path, capfd, before
):
    """Before there were such flags, settings.json had none of them."""
    root = write_set(tmp_path / "set")
    write_started(root, tmp_path / "out", epochs=2)
    output = open_store(str(tmp_path / "out"))
    settings = read_settings(output)
    for name in ("--images", "--labels", "--masks", "--av-colours"):
        assert settings.pop(name) is None
    if before == "RITE":
        settings["--av-colours"] = "artery=FF0000,vein=0000FF,crossing=00FF00,uncertain=FFFFFF"
    write_json(output, SETTINGS, settings)
    words = [*TRAIN, "--data", root, "--output", tmp_path / "out", "--epochs", 2]
    rite = ["--av-colours", "RITE"]
    assert run(*words, *(rite if before == "RITE" else [])) == 0
    assert run(*words, *([] if before == "RITE" else rite)) == 2
    told = "without it" if before == "nothing" else "with artery=FF0000,vein"
    line = capfd.readouterr().err.splitlines()[-1]
    assert re.search(rf"{tmp_path / 'out'} was \w+ {told}", line)
    assert "--av-colours" in line


def test_an_output_started_without_a_list_of_files_is_accepted(tmp_path, capfd):
    """As 0.1.0 wrote it."""
    root = write_set(tmp_path / "set")
    write_started(root, tmp_path / "out", epochs=2)
    output = open_store(str(tmp_path / "out"))
    settings = read_settings(output)
    del settings[SET]
    write_json(output, SETTINGS, settings)
    assert run(*TRAIN, "--data", root, "--output", tmp_path / "out", "--epochs", 2) == 0
    assert "was started without a list of its set's files" in capfd.readouterr().err


# ---- train and evaluate


def test_evaluate_says_which_split_has_labels(labelled, tmp_path, capfd, no_ray):
    root = shutil.copytree(labelled, tmp_path / "set")
    shutil.rmtree(root / "test/1st_manual")
    words = ["evaluate", "--data", root, "--output", tmp_path / "out"]
    assert run(*words) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "--split test" in line
    assert "2 photographs in test/images/ have no label" in line
    assert line.endswith("give --split training, which has 4 labels")
    assert run(*words, "--split", "training") == 2
    assert "Ray was started" in capfd.readouterr().err
    shutil.rmtree(root / "test")
    assert run(*words) == 2
    assert "no images in test/images/; give --split training" in capfd.readouterr().err


def test_grey_edges_of_jpegs_are_told_with_their_share(tmp_path):
    root = write_set(tmp_path / "set")
    as_jpegs(white, 40)(root)
    shares = []
    for name in NAMES:
        levels = np.asarray(Image.open(root / f"labels/{name}.jpg"))
        shares.append(((levels >= 64) & (levels < 192)).sum() / (levels >= 64).sum())
    store = open_store(str(root))
    looks = [survey.look(store, one)[0] for one in open_labelled(store).training]
    [note] = survey.notes(looks)
    assert note.endswith(f"in the middle: 3, up to {100 * max(shares):.1f} % of what is drawn")


def test_each_kind_of_problem_gets_its_line_and_all_may_be_accepted(tmp_path, capfd):
    root = write_set(tmp_path / "set")
    white(~DRAWN[0][1]).save(label(root, 0))
    layered(0)(DRAWN[1][1]).save(label(root, 1))
    store = open_store(str(root))
    looks = [survey.look(store, one)[0] for one in open_labelled(store).training]
    looks = [survey.Look.from_json(one.as_json()) for one in looks]  # as Ray hands them on
    with pytest.raises(UserError, match=r"labels/b\.png: its transparency .*--accept-labels"):
        labels.settle("train", store.uri, looks, False, "never said")
    out, err = capfd.readouterr()
    assert not out
    assert [line.partition(" %")[0].split()[-4:-1] for line in err.splitlines()] == [
        [f"{root}/labels/a.png:", "vessels", "are"]
    ]
    labels.settle("train", store.uri, looks, True, "3 photographs", ["9 in test/ left out"])
    out, err = capfd.readouterr()
    assert out == "train: 3 photographs\n"
    told = ["warning", "warning", "9 in test/ left out"]
    assert [line.split(": ")[1] for line in err.splitlines()] == told


@pytest.mark.cluster
def test_train_and_evaluate_refuse_such_labels_unless_they_are_told(tmp_path, capfd, ray_cluster):
    root, output = write_set(tmp_path / "set"), tmp_path / "out"
    each(lambda v: white(~v))(root)
    for verb in ("train", "evaluate"):
        assert run(verb, "--data", root, "--output", output) == 2
        [line] = [x for x in capfd.readouterr().err.splitlines() if "segpipe" in x]
        assert f"{root}/labels/a.png: vessels are" in line
        assert "--accept-labels" in line
        assert not [path for path in output.rglob("*") if path.is_file()]
    flags = ["--epochs", 1, "--crops-per-image", 4, "--batch-size", 4, "--crop-size", 32]
    accepted = ["--data", root, "--output", output, *flags, "--accept-labels"]
    assert run(*TRAIN, *accepted) == 0
    out, err = capfd.readouterr()
    assert f"train: warning: {root}/labels/a.png: vessels are" in err
    assert "train: 3 photographs (plain), vessels 8" in out
    files = json.loads((output / SETTINGS).read_text())[SET]
    assert len(files) == 9
    white(DRAWN[0][1]).save(label(root, 0))
    assert run(*TRAIN, *accepted) == 2
    assert "(1 changed)" in capfd.readouterr().err

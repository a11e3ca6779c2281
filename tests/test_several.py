"""Several labelled sets as one: names, keys and splits, what is refused, trainings and checks.

Run: SEGPIPE_DATA=folder-that-holds-DRIVE-and-HRF pytest tests/test_several.py
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import ranks
from needs import real_set
from PIL import Image
from ranks import SMALL, steps
from verbs import run

from segpipe.data import survey, synthetic
from segpipe.data.datasets import load_example
from segpipe.data.globs import Reading
from segpipe.data.layouts import Example, LabelledSet, open_labelled
from segpipe.data.several import open_sets
from segpipe.evaluate.config import EvaluateConfig
from segpipe.evaluate.run import _open_sets
from segpipe.models import checkpoint
from segpipe.storage import open_store
from segpipe.storage.settings import read_settings
from segpipe.train.config import TrainConfig
from segpipe.train.settings import Started

NAMES = ("DRIVE", "HRF", "clinic/a")
HRF = ("01_h", "02_h", "06_h")  # two for training


@pytest.fixture(scope="module")
def sets(labelled: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three sets: 4 + 2 photographs as DRIVE, 2 + 1 smaller ones as HRF, 4 plain."""
    root = tmp_path_factory.mktemp("sets")
    (root / "DRIVE").symlink_to(labelled, target_is_directory=True)
    (root / "clinic").mkdir()
    (root / "clinic/a").symlink_to(plain, target_is_directory=True)
    for seed, name in enumerate(HRF):
        image, vessel, fov = synthetic.draw_fundus(seed, 280, 300)
        drawn = {f"images/{name}.jpg": image, f"manual1/{name}.tif": vessel}
        for key, pixels in (drawn | {f"mask/{name}_mask.tif": fov}).items():
            path = root / "HRF" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            white = 1 if pixels.dtype == np.uint8 else 255
            picture = Image.fromarray(pixels.astype(np.uint8) * np.uint8(white))
            picture.save(path, **({"quality": 95} if white == 1 else {}))
    return root


def opened(root: object, *names: str) -> LabelledSet:
    return open_sets(open_store(str(root)), names, Reading())


def keys_of(one: Example) -> list[str | None]:
    return [one.image, one.label, one.mask, one.second]


def alone(sets: Path, split: str) -> dict[str, tuple[Example, str]]:
    """Each set's examples of the split, by their names in all, with the set they are of."""
    found = {name: open_labelled(open_store(str(sets / name))) for name in NAMES}
    examples = {name: one.test if split == "test" else one.training for name, one in found.items()}
    return {f"{name}/{one.name}": (one, name) for name, some in examples.items() for one in some}


@pytest.mark.parametrize("split", ["training", "test"])
def test_each_sets_own_split_is_there_under_names_and_keys_of_its_own(sets, split):
    found, wanted = opened(sets, *NAMES), alone(sets, split)
    examples = found.test if split == "test" else found.training
    assert len(examples) == len(wanted) == {"training": 4 + 2 + 4, "test": 2 + 1}[split]
    assert {one.name for one in examples} == wanted.keys()
    for one in examples:
        of_set, name = wanted[one.name]
        assert keys_of(one) == [key and f"{name}/{key}" for key in keys_of(of_set)]
        assert all(found.entries[key].key == key for key in keys_of(one) if key)
        assert all((sets / key).is_file() for key in keys_of(one) if key)


def test_an_example_is_what_it_is_in_its_set_alone(sets):
    found, wanted = opened(sets, *NAMES), alone(sets, "training")
    for one in found.training[::3]:
        of_set, name = wanted[one.name]
        here, there = load_example(open_store(str(sets)), one), open_store(str(sets / name))
        np.testing.assert_array_equal(here.image, load_example(there, of_set).image)
        np.testing.assert_array_equal(here.label, load_example(there, of_set).label)


def test_the_last_photographs_are_of_each_set_in_proportion(sets):
    """They are held back with --validation-images."""
    names = [one.name for one in opened(sets, *NAMES).training]
    for name, (first, last) in zip(NAMES, [(3, 4), (2, 2), (3, 4)], strict=True):
        own = sorted(one for one in names if one.startswith(f"{name}/"))
        assert [one for one in names if one in own] == own
        assert len(set(names[-5:]) & set(own)) in (first - 1, last - 1)
    assert sum(one.startswith("HRF/") for one in names[-5:]) == 1


def test_the_sets_and_what_they_leave_out_are_told(sets, tmp_path):
    shutil.copytree(sets, tmp_path / "sets")
    shutil.rmtree(tmp_path / "sets/DRIVE/test/1st_manual")
    found = opened(tmp_path / "sets", *NAMES)
    assert found.layout == "DRIVE 4, HRF 2 + 1, clinic/a 4"
    assert [note.split(" ")[:2] for note in found.notes] == [["DRIVE:", "2"], ["HRF:", "01"]]
    assert found.numbered
    assert not opened(sets, "DRIVE").numbered


def test_sets_below_a_prefix_of_s3_are_those_in_the_folder(sets, s3, tmp_path):
    store = open_store(f"{s3.uri}/{tmp_path.name}")
    for path in sorted((sets / "HRF").rglob("*.*")):
        store.put(str(path.relative_to(sets)), path.read_bytes())
    for name in ("a", "b"):
        for folder in ("images", "labels"):
            store.put(f"clinic/a/{folder}/{name}.png", b"x")
    store.put("HRF-old/images/07_h.jpg", b"x")  # begins as HRF does
    found, local = open_sets(store, ("HRF", "clinic/a"), Reading()), opened(sets, "HRF")
    assert [one for one in found.training if one.name.startswith("HRF")] == [*local.training]
    assert found.test == local.test
    assert len(found.training) == 2 + 2
    assert all(store.head(key) == entry for key, entry in found.entries.items())
    example = found.test[0]
    there, here = load_example(store, example), load_example(open_store(str(sets)), example)
    np.testing.assert_array_equal(there.label, here.label)


REFUSED = [
    ((), "--sets: no folder named"),
    (("DRIVE", "nowhere"), "--sets {root}/nowhere: does not exist, check the path"),
    (("DRIVE", "clinic"), "--sets {root}/clinic: no labelled set in a known layout, found a/im"),
    (("DRIVE", "notes.txt"), "--sets {root}/notes.txt: is a file, wanted a folder"),
    (("DRIVE", "DRIVE/"), "--sets DRIVE DRIVE: DRIVE is named twice, name it once"),
    (("DRIVE/training", "HRF", "DRIVE"), "DRIVE/training lies in DRIVE, name one"),
    (("..",), "--sets ..: is no folder below --data, name one as DRIVE"),
    (("DRIVE/../HRF",), "--sets DRIVE/../HRF: is no folder below --data"),
    (("/DRIVE",), "--sets /DRIVE: is no folder below --data"),
    (("s3://bucket/DRIVE",), "--sets s3://bucket/DRIVE: is no folder below --data"),
    (("/",), "--sets /: is no folder below --data"),
    (("DRIVE//",), "--sets DRIVE//: is no folder below --data"),
    (("a", "a-b", "a/b/"), "--sets a-b a a/b: a/b lies in a, name one of them"),
    (("",), '--sets "": is no folder below --data'),
    (("HRF", "--images", "images/*.jpg", "--labels", "manual1/*.tif"), "--sets HRF: not with --i"),
]


@pytest.mark.parametrize("verb", ["train", "check"])
@pytest.mark.parametrize(("words", "told"), REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_line(
    no_ray, sets, capfd, tmp_path, verb, words, told
):
    (sets / "notes.txt").write_text("no set")
    output = tmp_path / "out"
    assert run(verb, "--data", sets, "--output", output, "--sets", *words) == 2
    out, err = capfd.readouterr()
    [line] = err.splitlines()
    assert told.format(root=sets) in line
    assert not out
    assert not [path for path in output.rglob("*") if path.is_file()]


def test_a_set_of_the_test_alone_has_nothing_to_train_on(no_ray, sets, capfd, tmp_path):
    shutil.copytree(sets / "DRIVE/test", tmp_path / "sets/DRIVE/test")
    words = ["--data", tmp_path / "sets", "--sets", "DRIVE", "--output", tmp_path / "out"]
    assert run("train", *words) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert f"--sets {tmp_path}/sets/DRIVE: no images in training/images/" in line


@pytest.mark.parametrize("verb", ["train", "check"])
def test_an_output_may_lie_beside_the_sets_and_in_none(no_ray, sets, capfd, tmp_path, verb):
    words = [verb, "--data", sets, "--sets", "HRF", "--output"]
    assert run(*words, sets / "HRF/out") == 2
    assert f"lies inside {sets}/HRF, choose another" in capfd.readouterr().err
    assert run(*words, sets / "out") == (2 if verb == "train" else 0)
    assert ("Ray was started" in capfd.readouterr().err) == (verb == "train")
    shutil.rmtree(sets / "out", ignore_errors=True)


# ---- check and evaluate


def test_check_tells_and_writes_each_set_by_itself(sets, tmp_path, capfd):
    output = tmp_path / "out"
    words = ["check", "--data", sets, "--sets", "HRF", "DRIVE"]
    assert run(*words, "--output", output) == 0
    out = capfd.readouterr().out
    for name in ("DRIVE", "HRF"):
        folder = output / name
        assert run("check", "--data", sets / name, "--output", tmp_path / name) == 0
        assert f"set       {name}\nlayout    {name}\ntraining  " in out
        told = capfd.readouterr().out.replace(str(tmp_path / name), str(folder))
        assert told in out
        for file in (tmp_path / name).glob("*.*"):
            assert (folder / file.name).read_bytes() == file.read_bytes()
    assert not list(output.glob("*.*"))
    assert "training  2 photographs" in out
    assert "test      1 photographs" in out


def test_a_problem_of_any_set_is_one_of_check(sets, tmp_path, capfd):
    root = shutil.copytree(sets, tmp_path / "sets")
    (root / "DRIVE/training/images/03_training.tif").write_bytes(b"x")
    assert run("check", "--data", root, "--sets", "DRIVE", "HRF") == 1
    lines = capfd.readouterr().out.splitlines()
    [problem] = [line for line in lines if line.startswith("problem")]
    assert f"{root}/DRIVE/training/images/03_training.tif: cannot be read" in problem
    assert lines.count("check: nothing is wrong with this set") == 1


@pytest.mark.parametrize("real", [False, True])
def test_evaluate_measures_hrfs_test_alone(sets, tmp_path, real):
    root = real_set("HRF") if real else sets / "HRF"
    counts = {}
    for split in ("test", "training"):
        config = EvaluateConfig((str(root),), str(tmp_path), split=split)
        [found] = _open_sets([open_store(str(root))], config)
        counts[split] = len(found.examples)
    assert counts == ({"test": 30, "training": 15} if real else {"test": 1, "training": 2})


def test_the_real_sets_are_together_what_they_are_alone():
    root = real_set("DRIVE").parent
    real_set("HRF")
    found = opened(root, "DRIVE", "HRF")
    assert found.layout == "DRIVE 20 + 20, HRF 15 + 30"
    assert (len(found.training), len(found.test)) == (20 + 15, 20 + 30)
    assert len({one.name for one in found.training + found.test}) == 85


# ---- train


def test_an_hrf_that_was_begun_without_its_split_resumes_without_it(no_ray, sets, tmp_path, capfd):
    """As releases before 0.2.0 did; three photographs are then for training, and not two."""
    root, place = sets / "HRF", open_store(str(tmp_path / "out"))
    store = open_store(str(root))
    flags = ["--recipe", "lecture", "--validation-images", 2, "--epochs", 3]
    config = TrainConfig.by_recipe("lecture", str(root), place.uri(), validation_images=2)
    found = open_labelled(store)
    looks = [survey.look(store, one)[0] for one in (*found.training, *found.test)]
    started = Started(config.settings(store), survey.listing(found.entries, looks))
    words = ["train", "--data", root, "--output", place.uri(), *flags]
    for numbered, told in ((False, "Ray was started"), (True, f"{root} has 2 training images")):
        dataclasses.replace(started, numbered=numbered).write(place)
        assert run(*words) == 2
        assert told in capfd.readouterr().err


def test_sets_are_trained_on_together_and_resumed(sets, tmp_path, ray_cluster, capfd):
    """By Ray and then by a rank without it, as in one go; crops are of all alike."""
    words = [*SMALL, "--sets", "HRF", "DRIVE"]
    whole = ranks.train(sets, tmp_path / "whole", *words, "--epochs", 2)
    train = ["train", "--data", sets, "--output", tmp_path / "out", *words, "--epochs"]
    assert run(*train, 1) == 0
    assert "train: 6 + 3 photographs (DRIVE 4 + 2, HRF 2 + 1), vessels" in capfd.readouterr().out
    others = [[], ["--sets", "DRIVE"], ["--sets", "DRIVE", "HRF", "clinic/a"]]
    for other in others:
        assert run("train", "--data", sets, "--output", tmp_path / "out", *SMALL, *other) == 2
        line = capfd.readouterr().err.splitlines()[-1]
        assert f"{tmp_path / 'out'} was started with DRIVE HRF, choose another --output" in line
    kept = read_settings(open_store(str(tmp_path / "out")))
    assert (kept["--sets"], kept["numbered"]) == ("DRIVE HRF", True)
    assert {key.partition("/")[0] for key in kept["set"]} == {"DRIVE", "HRF"}
    words = [*SMALL, "--sets", "DRIVE", "HRF"]  # in any order
    assert run("train", "--data", sets, "--output", tmp_path / "out", *words, "--epochs", 1) == 0
    assert "1 epochs are finished" in capfd.readouterr().out
    ranks.train(sets, tmp_path / "out", *words, "--epochs", 2)
    assert len(steps(tmp_path / "out")) == 2 * (4 + 2) * 10 // 10
    assert steps(tmp_path / "out") == steps(whole)
    card = checkpoint.load((tmp_path / "out/model.safetensors").read_bytes(), "out").card
    assert card.training_data.startswith("DRIVE + HRF, 6 images, 2 epochs of 60 crops")

"""Photographs, labels and masks are paired by what the stars of their globs stand for.

Run: pytest tests/test_globs.py
"""

import glob
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from verbs import run

from segpipe.data import synthetic
from segpipe.data.globs import Globs, Reading
from segpipe.data.layouts import Example, open_labelled
from segpipe.errors import UserError
from segpipe.storage import open_store

FILES = (
    "photos/clinA/1.jpg",
    "photos/clinA/2.jpg",
    "photos/clinB/1.jpg",
    "truth/clinA-1_manual.png",
    "truth/clinA-2_manual.png",
    "truth/clinB-1_manual.png",
    "fields/clinA/1.gif",
    "fields/clinA/2.gif",
    "fields/clinB/1.gif",
    "about.txt",
)
IMAGES, LABELS, MASKS = "photos/*/*.jpg", "truth/*-*_manual.png", "fields/*/*.gif"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "clinic"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def opened(root: Path, *globs: str | None, colours: str = ""):
    return open_labelled(open_store(str(root)), reading=Reading(Globs(*globs), colours))


def test_stars_that_stand_for_the_same_make_a_pair(root):
    found = opened(root, IMAGES, LABELS, MASKS, colours="artery=FF0000")
    assert (found.layout, found.split, found.test) == ("globs", False, ())
    assert found.training == tuple(
        Example(
            f"photos/{clinic}/{n}",
            f"photos/{clinic}/{n}.jpg",
            f"truth/{clinic}-{n}_manual.png",
            f"fields/{clinic}/{n}.gif",
            None,
            "artery=FF0000",
        )
        for clinic, n in (("clinA", 1), ("clinA", 2), ("clinB", 1))
    )
    assert opened(root, IMAGES, LABELS).training[0].mask is None


@pytest.mark.parametrize(
    ("images", "labels", "num"),
    [
        ("photos/clinA/*.jpg", "truth/clinA-*_manual.png", 2),
        ("**/1.jpg", "**/1.gif", None),
        ("photos/**.jpg", "fields/**.gif", 3),
        ("photos/**/1.jpg", "fields/**/1.gif", 2),
        ("photos/clin[A-A]/*.jpg", "truth/clin?-*_manual.png", None),
        ("photos/clin[!B]/*.jpg", "truth/clinA-*_manual.png", 2),
    ],
)
def test_globs_match_what_pythons_own_match(root, images, labels, num):
    """Those with as many pairs; the others' stars stand for different things."""
    if num is None:
        with pytest.raises(UserError):
            opened(root, images, labels)
        return
    found = opened(root, images, labels).training
    assert len(found) == num
    for pattern, keys in ((images, [e.image for e in found]), (labels, [e.label for e in found])):
        if not pattern.endswith("**.jpg") and not pattern.endswith("**.gif"):
            assert sorted(keys) == sorted(glob.glob(pattern, root_dir=root, recursive=True))


@pytest.mark.parametrize(
    ("globs", "told"),
    [
        (("photos/*.jpg", "truth/*.png"), r"--images 'photos/\*.jpg': matches nothing in "),
        ((IMAGES, "labels/*-*.png"), r"--labels 'labels/\*-\*.png': matches nothing in .*, as "),
        ((IMAGES, LABELS, "masks/*/*.gif"), r"--masks 'masks/\*/\*.gif': matches nothing"),
        (
            ("photos/*/*.jpg", "truth/*A-*_manual.png"),
            r"--labels .*clinA/1.jpg, wanted truth/clinA",
        ),
        (("photos/*/1.jpg", "truth/*-1_manual.png", "fields/*/2.gif"), "--masks .*fields/clinB/2"),
        (("photos/*A/*.jpg", LABELS), r"--labels .*wanted truth/clin-1_manual.png"),
        (("photos/clinA/*.jpg", "truth/*_manual.png"), r"--labels .*wanted truth/1_manual.png"),
        (("photos/*/1.jpg", "photos/clinA/*.jpg"), r"--labels .*wanted photos/clinA/clinA.jpg"),
        (
            ("photos/*/?.jpg", "truth/*-1_manual.png"),
            r"--images .*1.jpg and photos/clinA/2.jpg wit",
        ),
        (("photos/clinA/*.jpg", "fields/clinA/[2-1]*.gif"), r"--labels .*is no glob"),
    ],
)
def test_pairs_that_do_not_come_out_are_told_in_one_line(root, globs, told):
    with pytest.raises(UserError, match=told) as refused:
        opened(root, *globs)
    assert "\n" not in str(refused.value)


def test_a_label_without_a_photograph_is_named(root):
    os.remove(root / "photos/clinB/1.jpg")
    with pytest.raises(
        UserError, match=r"--images .*clinB-1_manual.png, wanted photos/clinB/1.jpg"
    ):
        opened(root, IMAGES, LABELS)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--images", "a/*.png"], "--images 'a/*.png': needs --labels"),
        (["--labels", "a/*.png"], "--labels 'a/*.png': needs --images"),
        (["--masks", "a/*.png"], "--masks 'a/*.png': needs --images and --labels"),
        (["--images", "a/x.png", "--labels", "b/x.png"], "--images 'a/x.png': has no star"),
        (["--images", "*/*.png", "--labels", "b/*.png"], "--labels 'b/*.png': has 1 stars"),
        (["--images", "*.png", "--labels", " "], '--labels "": is empty'),
    ],
)
@pytest.mark.parametrize("verb", ["train", "evaluate", "check"])
def test_globs_that_cannot_be_meant_are_refused_by_every_verb(
    no_ray, root, capfd, tmp_path, verb, flags, told
):
    assert run(verb, "--data", root, "--output", tmp_path / "out", *flags) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert told in line


@pytest.mark.parametrize("verb", ["train", "evaluate", "check"])
def test_a_glob_that_matches_nothing_is_refused_by_every_verb(no_ray, root, capfd, tmp_path, verb):
    globs = ["--images", "photos/*.tif", "--labels", "truth/*.png"]
    assert run(verb, "--data", root, "--output", tmp_path / "out", *globs) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert f"--images 'photos/*.tif': matches nothing in {root}" in line


def test_check_reads_a_set_by_its_globs(tmp_path, capfd):
    for n in (1, 2):
        image, vessel, fov = synthetic.draw_fundus(n, 280, 300)
        for name, pixels in (("p", image), ("q", vessel), ("r", fov)):
            file = tmp_path / f"set/case{n}/{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels if name == "p" else pixels.astype(np.uint8)).save(file)
    globs = ["--images", "*/p.png", "--labels", "*/q.png", "--masks", "*/r.png"]
    assert run("check", "--data", tmp_path / "set", *globs) == 0
    out = capfd.readouterr().out
    assert "layout    globs" in out
    assert "2 photographs, 300x280 px" in out
    assert "with masks" in out


def test_photographs_of_one_name_and_two_formats_keep_them_apart(tmp_path):
    for name in ("images/1.png", "images/1.jpg", "labels/1.png", "labels/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = opened(tmp_path, "images/*", "labels/*")
    assert [one.name for one in found.training] == ["images/1.jpg", "images/1.png"]

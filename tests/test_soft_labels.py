"""Soft labels and teachers: shares of pixels and mean scores, where they belong.

Run: pytest tests/test_soft_labels.py
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import SMALL, history, train

import segpipe
from segpipe.data.canvas import plan_fit
from segpipe.data.classes import BACKGROUND, CLASSES, OUTSIDE, VESSEL, classes_of
from segpipe.data.datasets import load_example
from segpipe.data.layouts import open_labelled
from segpipe.data.soft import LEVELS, soft_label
from segpipe.errors import UserError
from segpipe.models import checkpoint, networks
from segpipe.models.checkpoint import Card
from segpipe.storage import open_store
from segpipe.train.crop_plan import Cropper, CropPlan
from segpipe.train.settings import CropSettings
from segpipe.train.teachers import Teachers, resized


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.hypot(y - height / 2, x - width / 2) < min(height, width) / 2 - 2


def test_a_reduced_label_is_the_share_of_each_pixel_that_is_vessel():
    """Of 4x4 px, beside numpy's mean of them; outside is what its middle is."""
    vessel = np.random.default_rng(3).random((120, 160)) < 0.3
    label = classes_of(vessel, np.ones_like(vessel))
    label[:, :40] = OUTSIDE
    soft = soft_label(label, 30, 40)
    assert (soft[:, :10] == 0).all()
    share = (label == VESSEL).reshape(30, 4, 40, 4).mean(axis=(1, 3))[:, 10:]
    np.testing.assert_array_equal(soft[:, 10:], 1 + np.rint(LEVELS * share))


def test_an_enlarged_label_stays_as_sure_as_it_was_drawn():
    label = classes_of(np.eye(20, dtype=bool), np.ones((20, 20), bool))
    np.testing.assert_array_equal(
        soft_label(label, 60, 60), np.kron(np.where(label == VESSEL, 254, 1), np.ones((3, 3)))
    )


def test_teachers_have_their_share_and_nothing_outside():
    label = np.array([[OUTSIDE, VESSEL, BACKGROUND]], np.uint8)
    taught = np.array([[0.9, 0.5, 1.0]], np.float32)
    soft = soft_label(label, 1, 3, taught, share=0.25)
    np.testing.assert_array_equal(soft, [[0, 1 + round(253 * 0.875), 1 + round(253 * 0.25)]])


@pytest.mark.parametrize("size", [(300, 420), (150, 210), (431, 603)])
def test_a_score_comes_to_the_place_in_the_photograph_that_it_is_of(size):
    """A score that is linear over the photograph's px is so at any size of it."""
    fov = np.zeros((300, 420), bool)
    fov[20:270, 60:330] = disc(250, 270)
    geometry = plan_fit(fov, 200)
    g = geometry
    rows = g.top + (np.arange(g.scaled_height) + 0.5) * g.box_height / g.scaled_height
    columns = g.left + (np.arange(g.scaled_width) + 0.5) * g.box_width / g.scaled_width
    canvas = np.zeros((256, 256), np.float32)
    canvas[: g.scaled_height, : g.scaled_width] = rows[:, None] / 300 + columns / 840
    height, width = size
    found = resized(canvas, geometry, height, width)
    y = (np.arange(height) + 0.5) * 300 / height
    x = (np.arange(width) + 0.5) * 420 / width
    inside = np.ix_((y > 30) & (y < 260), (x > 70) & (x < 320))
    wanted = y[:, None] / 300 + x / 840
    np.testing.assert_allclose(found[inside], wanted[inside], atol=2e-3)  # an OpenCV place: 1/32 px


def drawn_checkpoint(seed: int, diameter: float) -> bytes:
    torch.manual_seed(seed)
    network = networks.build_model("segnet-lite", classes=3)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return checkpoint.dump(state, Card("segnet-lite", diameter, 0.5, "drawn", CLASSES, "0"))


def test_what_teachers_say_is_the_mean_of_what_the_library_scores(labelled, tmp_path):
    """Over mirror images too, at the photograph's own size, where the field is."""
    store = open_store(str(labelled))
    example = load_example(store, open_labelled(store).training[0])
    files = [drawn_checkpoint(seed, 90.0) for seed in (1, 2)]
    found = Teachers(files)(example, *example.fov.shape)
    scores = []
    for number, data in enumerate(files):
        path = tmp_path / f"{number}.safetensors"
        loaded = checkpoint.load(data, "")
        card = Card("segnet-lite", 90.0, 0.5, "drawn", CLASSES, "0", flips=4)
        path.write_bytes(checkpoint.dump(loaded.state, card))
        result = segpipe.load_model(path).segment(example.image)
        scores.append(result.score)
    inside = result.fov & example.fov
    inside[:, :-1] &= inside[:, 1:]
    difference = np.abs(found - np.mean(scores, axis=0))[inside]
    assert np.mean(difference) < 0.01  # two ways of resampling, and two fields
    assert np.mean(difference) < 0.1 * np.std(scores[0][inside])


def test_crops_have_soft_labels_where_they_are_asked_for(labelled):
    store = open_store(str(labelled))
    examples = tuple(open_labelled(store).training)
    hard, soft = (
        Cropper(CropPlan(store, examples, 50.0, 1, CropSettings(4, 32, 4, soft_labels=on)), 1)
        for on in (False, True)
    )
    for step in range(4):
        one, other = hard.share(step, 0), soft.share(step, 0)
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"] == OUTSIDE, other["label"] == 0)
    labels = np.concatenate([soft.share(step, 0)["label"] for step in range(4)])
    assert len(np.unique(labels)) > 10


def test_a_training_with_teachers_resumes_as_if_it_had_not_stopped(labelled, tmp_path):
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(paths):
        path.write_bytes(drawn_checkpoint(seed, 60.0))
    words = [*SMALL, "--teachers", paths[0], "--teachers-share", "0.7"]
    output = train(labelled, tmp_path / "out", *words, "--epochs", 1)
    train(labelled, tmp_path / "out", *words, "--epochs", 2)
    whole = train(labelled, tmp_path / "whole", *words, "--epochs", 2)
    columns = [[row["train_loss"] for row in history(one)] for one in (output, whole)]
    assert columns[0] == columns[1]
    hard = train(labelled, tmp_path / "hard", *SMALL, "--epochs", 2, "--backend", "torch")
    assert [row["train_loss"] for row in history(hard)] != columns[1]


@pytest.mark.parametrize("name", ["nowhere.safetensors", "unheard-of"])
def test_a_teacher_that_is_not_there_is_refused(labelled, tmp_path, name):
    with pytest.raises(UserError, match=f"--teachers .*{name}: neither a file nor"):
        train(labelled, tmp_path / "out", *SMALL, "--teachers", tmp_path / name)

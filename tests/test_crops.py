"""Crops are a pure function of (seed, epoch, image, k), each exactly once, everywhere.

Run: pytest tests/test_crops.py
"""

import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from segpipe.data.crops import Augmentation, crop, crop_corner, epoch_order, fov_corner


def test_every_crop_occurs_once_in_an_epoch():
    order = epoch_order(0, 3, num_images=20, crops_per_image=30)
    assert sorted(map(tuple, order)) == [(image, k) for image in range(20) for k in range(30)]


def test_another_process_draws_the_same_crops():
    program = (
        "from segpipe.data.crops import *;"
        "print(epoch_order(5, 2, 7, 3).tolist(), crop_corner(5, 2, 6, 1, 584, 565, 224))"
    )
    words = [sys.executable, "-c", program]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    here = f"{epoch_order(5, 2, 7, 3).tolist()} {crop_corner(5, 2, 6, 1, 584, 565, 224)}"
    assert printed == here


@pytest.mark.parametrize("other", [(1, 0), (0, 1)])
def test_another_seed_or_epoch_has_another_order_and_other_places(other):
    assert not np.array_equal(epoch_order(0, 0, 20, 30), epoch_order(*other, 20, 30))
    places = [[crop_corner(*at, n, 0, 584, 565, 224) for n in range(20)] for at in ((0, 0), other)]
    assert places[0] != places[1]


def test_corners_are_uniform_over_all_places():
    corners = np.array([crop_corner(0, 0, n, k, 40, 36, 32) for n in range(50) for k in range(40)])
    for column, places in ((0, 9), (1, 5)):
        counts = np.bincount(corners[:, column], minlength=places)
        assert len(counts) == places
        assert stats.chisquare(counts).pvalue > 0.001


def test_a_crop_of_the_images_size_is_the_image():
    assert crop_corner(0, 0, 0, 0, 32, 32, 32) == (0, 0)


def test_a_crop_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="33 px does not fit into 36x32 px"):
        crop_corner(0, 0, 0, 0, 32, 36, 33)


def test_corners_reach_both_ends_of_both_sides():
    corners = {crop_corner(3, 1, n, 0, 34, 33, 32) for n in range(200)}
    assert corners == {(top, left) for top in (0, 1, 2) for left in (0, 1)}


def test_top_and_left_do_not_depend_on_each_other():
    table = np.zeros((5, 5), int)
    for n in range(1500):
        table[crop_corner(9, 0, n % 30, n // 30, 36, 36, 32)] += 1
    assert stats.chi2_contingency(table).pvalue > 0.001
    assert stats.chisquare(table.ravel()).pvalue > 0.001


def test_no_two_of_seed_epoch_image_and_k_are_mixed_up():
    """Swapping any two of the four numbers gives other places."""
    places = {at: crop_corner(*at, 10**6, 10**6, 1) for at in permutations((1, 2, 3, 4))}
    assert len(set(places.values())) == 24


def test_an_epochs_order_is_shuffled_and_does_not_change():
    order = epoch_order(0, 0, 20, 30)
    np.testing.assert_array_equal(order, epoch_order(0, 0, 20, 30))
    assert not (order[:, 0] == np.repeat(np.arange(20), 30)).mean() > 0.2


# ---- crops around a pixel of the field


def test_field_crops_lie_around_every_pixel_of_the_field_alike():
    label = np.zeros((9, 12), np.uint8)
    label[2:5, 3:9] = 2
    label[3, 4] = 1
    corners = np.array([fov_corner(0, 0, n, k, label, 32) for n in range(60) for k in range(30)])
    counts = np.zeros_like(label, int)
    np.add.at(counts, tuple((corners + 16).T), 1)
    assert (counts > 0).tolist() == (label > 0).tolist()
    assert stats.chisquare(counts[label > 0]).pvalue > 0.001


@pytest.mark.parametrize("augmentation", [None, Augmentation(hflip=0, vflip=0)])
def test_what_lies_beyond_the_photograph_is_black_and_outside(augmentation):
    image, label = np.full((40, 50, 3), 200, np.uint8), np.full((40, 50), 2, np.uint8)
    for k in range(20):
        crop_image, crop_label = crop(image, label, 0, 0, 0, k, 64, augmentation, "field")
        assert crop_image.shape == (64, 64, 3)
        assert (crop_label == 0).any()
        assert not crop_image[crop_label == 0].max(axis=-1).min()
        assert (crop_label == 2)[27:37, 27:37].mean() > 0.2  # the middle is one of the field
    assert (crop_image[crop_label == 2] > 0).mean() > 0.95


def test_a_whole_crop_has_the_field_in_its_middle():
    label = np.zeros((70, 90), np.uint8)
    label[10:51, 20:81] = 2
    image = np.repeat(label[..., None] * np.uint8(100), 3, axis=2)
    crop_image, crop_label = crop(image, label, 0, 0, 0, 0, 101, None, "whole")
    np.testing.assert_array_equal(np.argwhere(crop_label).min(axis=0), (30, 20))
    np.testing.assert_array_equal(np.argwhere(crop_label).max(axis=0), (70, 80))
    np.testing.assert_array_equal(crop_image[..., 0], crop_label * 100)

"""Crops are a pure function of (seed, epoch, image, k), each exactly once, everywhere.

Run: pytest tests/test_crops.py
"""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from segpipe.data.crops import crop_corner, epoch_order


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

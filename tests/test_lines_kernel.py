"""The loops over lines, against scikit-image, SciPy and the plain path without a library.

Run: pytest tests/test_lines_kernel.py
"""

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import thin as independent_thin

from segpipe import kernels
from segpipe.data import synthetic
from segpipe.measurement import fractal, skeleton, traced

NEEDS_LIBRARY = pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing() or "-")


@pytest.fixture(params=["library", "plain"])
def path(request, monkeypatch) -> None:
    """Both ways that these are computed."""
    if request.param == "plain":
        monkeypatch.setattr(kernels, "missing", lambda: "switched off")
    elif kernels.missing():
        pytest.skip(kernels.missing())


def drawn() -> list[np.ndarray]:
    """Vessels [h, w] uint8, 0 or 1, empty along their border."""
    rng = np.random.default_rng(1)
    shapes = [synthetic.draw_fundus(5)[1], np.ones((90, 120), bool), np.zeros((7, 5), bool)]
    shapes += [rng.random((200, 300)) < share for share in (0.1, 0.4, 0.6, 0.9)]
    shapes += [np.tile(np.arange(80) % 2 == 0, (40, 1)), np.eye(60, dtype=bool)]
    return [np.pad(shape, 1).astype(np.uint8) for shape in shapes]


def test_centre_lines_are_those_of_scikit_image(path):
    for vessel in drawn():
        np.testing.assert_array_equal(skeleton.thin(vessel), independent_thin(vessel))


@pytest.mark.parametrize("diameter", [1.0, 400.0, 1000.0])
def test_what_is_large_enough_stays_as_scipy_counts_it(path, diameter):
    least = traced.SPECK * diameter**2
    for vessel in drawn():
        label, _ = ndimage.label(vessel, np.ones((3, 3)))
        sizes = np.bincount(label.ravel())
        sizes[0] = 0
        large, num = traced._without_specks(vessel.view(np.bool_), diameter)
        np.testing.assert_array_equal(large, (sizes >= least)[label] & (label > 0))
        assert num == np.count_nonzero(sizes[1:] >= least)


def test_vessels_that_reach_the_border_are_parts_too(path):
    """Diagonals, spirals and combs that join late, also along the first and last row and column."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        vessel = (rng.random((13, 11)) < rng.uniform(0.2, 0.7)).astype(np.uint8)
        _, num = ndimage.label(vessel, np.ones((3, 3)))
        assert traced._without_specks(vessel.view(np.bool_), 1.0)[1] == num


def test_boxes_are_those_of_a_count_by_hand(path):
    """Distinct boxes of the cells' own coordinates, over all places of the grid."""
    for cells in drawn():
        for side in (2, 3, 5, 16):
            places = sorted({side * place // fractal.OFFSETS for place in range(fractal.OFFSETS)})
            y, x = np.nonzero(cells)
            wanted = [
                len(set(zip((y - a) // side, (x - b) // side, strict=True)))
                for a in places
                for b in places
            ]
            assert fractal.box_counts(cells, [side])[0] == pytest.approx(np.mean(wanted), abs=1e-12)


@NEEDS_LIBRARY
def test_what_does_not_fit_is_refused():
    vessel = np.zeros((9, 9), np.uint8)
    vessel[0, 4] = 1
    with pytest.raises(ValueError, match="empty along its border"):
        kernels.thin_lines(vessel)
    with pytest.raises(ValueError, match=r"sides \[0\], offsets 4: wanted whole ones above 0"):
        kernels.box_counts(vessel, [0], 4)
    for refused in (kernels.thin_lines, lambda one: kernels.without_specks(one, 3)):
        with pytest.raises(ValueError, match=r"\(9, 9\) float32, wanted \(9, 9\) uint8"):
            refused(np.zeros((9, 9), np.float32))
        with pytest.raises(ValueError, match=r"\(9,\), wanted \[h, w\]"):
            refused(np.zeros(9, np.uint8))

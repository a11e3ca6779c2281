"""The loops over lines, against scikit-image, SciPy, OpenCV and the plain path without a library.

Run: pytest tests/test_lines_kernel.py
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import thin as independent_thin

from segpipe import kernels
from segpipe.data import synthetic
from segpipe.measurement import calibre, fractal, kinds, skeleton, traced, trust

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


def test_long_parts_are_as_scipy_counts_them(path):
    for vessel in [*drawn(), np.ones((9, 3), np.uint8)]:
        label, num = ndimage.label(vessel, np.ones((3, 3)))
        areas = np.bincount(label.ravel())[1:]
        for least in (1, 9, trust.LONG_PX):
            extents = [max(np.ptp(y), np.ptp(x)) + 1 for y, x in where_each(label, num)]
            long = np.array(extents, int) >= least
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(trust, "LONG_PX", least)
                assert trust._parts(vessel) == (num, areas[long].sum())


def where_each(label: np.ndarray, num: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of each of the parts 1 to `num`."""
    pixels = np.argsort(label, axis=None, kind="stable")
    parts = np.split(pixels, np.cumsum(np.bincount(label.ravel(), minlength=num + 1))[:-1])[1:]
    return [np.divmod(part, label.shape[1]) for part in parts]


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


def lines() -> list[np.ndarray]:
    """Centre lines [h, w] bool, and planes of pixels that meet in every way; rings among them."""
    rng = np.random.default_rng(3)
    shares = rng.uniform(0.1, 0.7, 200)
    tangles = [np.pad(rng.random((9, 8)) < share, 1) for share in shares]
    ring = np.pad(np.zeros((4, 3), bool), 1, constant_values=True)
    rings = np.tile(np.pad(ring, 1), (3, 4))
    return [independent_thin(vessel) for vessel in drawn()] + [rings, *tangles]


@pytest.fixture
def both_ways(monkeypatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """A function -> what it gives with the library, and without one."""
    if kernels.missing():
        pytest.skip(kernels.missing())

    def results(function):
        quick = function()
        with monkeypatch.context() as patched:
            patched.setattr(kernels, "missing", lambda: "switched off")
            return quick, function()

    return results


def test_segments_are_those_of_scipys_walk_in_its_order(both_ways):
    num_rings = 0
    for line in lines():
        (quick, forks), (plain, plain_forks) = both_ways(partial(skeleton.trace, line))
        for one, other in zip((*quick, forks), (*plain, plain_forks), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        num_rings += np.count_nonzero(quick.closed)
    assert num_rings > 10


def test_spurs_are_those_of_scipys_walk(both_ways):
    num_gone = 0
    for line in lines():
        depth = np.random.default_rng(4).uniform(0, 6, line.shape).astype(np.float32)
        quick, plain = both_ways(partial(skeleton.without_spurs, line, depth))
        np.testing.assert_array_equal(quick, plain)
        num_gone += np.count_nonzero(line & ~quick)
    assert num_gone > 1000


@pytest.mark.parametrize("size", [1, 5, 15])
def test_paths_are_filtered_as_numpy_convolves_them(both_ways, size):
    filters = np.random.default_rng(6).normal(size=(2, size))
    for line in lines():
        paths, _ = skeleton.trace(line)
        quick, plain = both_ways(partial(skeleton.filtered, paths, *filters))
        np.testing.assert_allclose(quick, plain, rtol=1e-12, atol=1e-9)


def test_cover_of_profiles_is_summed_as_numpy_does(both_ways):
    rng = np.random.default_rng(7)
    for size in (4, 9, 17):
        steps = rng.integers(-90, 40, (2000, size))  # most fall, some rise again
        levels = (255 + np.cumsum(steps, axis=1)).clip(0, 255).astype(np.uint8)
        for limits in ((calibre.RISE, calibre.INSIDE), (calibre.ANY, calibre.ANY)):
            np.testing.assert_array_equal(*both_ways(partial(calibre._sums, levels, *limits)))


def test_depths_are_those_of_opencv(both_ways):
    for vessel in drawn():
        quick, plain = both_ways(partial(traced._half_widths, np.pad(vessel, 1)))
        np.testing.assert_allclose(quick, plain, rtol=0, atol=1e-4)  # OpenCV 4 counts parts of a px


def test_the_nearest_is_the_one_that_opencv_finds(both_ways):
    rng = np.random.default_rng(5)
    for _ in range(100):
        label = np.zeros(rng.integers(1, 60, 2), np.int32)
        marked = rng.integers(0, label.size, rng.integers(1, 40))
        label.ravel()[marked] = rng.integers(1, 1000, len(marked))
        quick, plain = both_ways(partial(kinds._nearest, label))
        np.testing.assert_array_equal(quick, plain)


def test_kinds_of_labels_are_enlarged_as_by_opencv():
    rng = np.random.default_rng(6)
    for _ in range(50):
        height, width = rng.integers(1, 90, 2)
        label = rng.integers(0, 9, (-(-height // 2), -(-width // 2)), np.int32)
        kind = rng.integers(0, 5, 9, np.uint8)
        wanted = cv2.resize(kind[label], (width, height), interpolation=cv2.INTER_NEAREST)
        found = kinds._enlarged(kind, label, (height, width))
        np.testing.assert_array_equal(found, wanted)
        assert found.flags.c_contiguous


@NEEDS_LIBRARY
def test_what_does_not_fit_is_refused():
    vessel = np.zeros((9, 9), np.uint8)
    vessel[0, 4] = 1
    with pytest.raises(ValueError, match="empty along its border"):
        kernels.thin_lines(vessel)
    with pytest.raises(ValueError, match="empty along its border"):
        kernels.trace_lines(vessel.view(np.bool_))
    with pytest.raises(ValueError, match="empty along its border"):
        kernels.vessel_depth(np.roll(vessel, 1, axis=0))
    with pytest.raises(ValueError, match=r"depth: \(9, 8\) float32, wanted \(9, 9\) float32"):
        kernels.without_spurs(np.zeros((9, 9), np.bool_), np.zeros((9, 8), np.float32), 3, 1.5)
    points, ends = np.zeros(3, np.complex128), np.array([2])
    with pytest.raises(ValueError, match="paths: wanted one after the other"):
        kernels.filtered_paths(points, ends, ends, np.zeros(1, np.bool_), np.ones(3))
    with pytest.raises(ValueError, match=r"weights: \(2,\), wanted an odd number"):
        kernels.filtered_paths(points, ends - 2, ends, np.zeros(1, np.bool_), np.ones(2))
    with pytest.raises(ValueError, match=r"levels: \(9, 9\), wanted \[M, more than 9\]"):
        kernels.cover_sums(vessel, 9, 12, 127)
    with pytest.raises(ValueError, match=r"label: \(1, 9000\), wanted \[h, w\] of at most 8192"):
        kernels.nearest_labels(np.zeros((1, 9000), np.int32))
    with pytest.raises(ValueError, match=r"sides \[0\], offsets 4: wanted whole ones above 0"):
        kernels.box_counts(vessel, [0], 4)
    for refused in (kernels.thin_lines, lambda one: kernels.without_specks(one, 3)):
        with pytest.raises(ValueError, match=r"\(9, 9\) float32, wanted \(9, 9\) uint8"):
            refused(np.zeros((9, 9), np.float32))
        with pytest.raises(ValueError, match=r"\(9,\), wanted \[h, w\]"):
            refused(np.zeros(9, np.uint8))
    depth = np.ones((9, 9), np.float32)
    for refused in (kernels.trace_lines, lambda one: kernels.without_spurs(one, depth, 3, 1.5)):
        with pytest.raises(ValueError, match=r"line: \(9, 9\) int32, wanted \(9, 9\) bool"):
            refused(np.zeros((9, 9), np.int32))


@NEEDS_LIBRARY
def test_what_is_not_0_is_vessel():
    """Whatever the byte: 255 is what OpenCV and Pillow have for white."""
    vessel = np.zeros((40, 60), np.uint8)
    vessel[10:17, 5:50] = vessel[5:35, 30:33] = 1
    white, line = vessel * np.uint8(255), skeleton.thin(vessel)
    np.testing.assert_array_equal(kernels.thin_lines(white), line)
    np.testing.assert_array_equal(kernels.vessel_depth(white), kernels.vessel_depth(vessel))
    assert kernels.long_parts(white, 10) == (1, int(vessel.sum()))
    whites = (line.view(np.uint8) * np.uint8(255)).view(np.bool_)
    for one, other in zip(kernels.trace_lines(whites), kernels.trace_lines(line), strict=True):
        np.testing.assert_array_equal(one, other)

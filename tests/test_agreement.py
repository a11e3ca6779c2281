"""clDice and sensitivity by width, against scikit-image, brute force and shapes of known widths.

Run: pytest tests/test_agreement.py; with SEGPIPE_DATA=folder-that-holds-DRIVE also on DRIVE
"""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, rotate
from scipy.spatial.distance import cdist
from skimage.morphology import skeletonize
from skimage.morphology import thin as independent_thin

from segpipe.data.datasets import Labelled, load_example, load_second
from segpipe.data.layouts import Example, open_labelled
from segpipe.measurement import agreement
from segpipe.measurement.agreement import SHARES, compare, local_widths, summary
from segpipe.storage import open_store


def disc(side: int, diameter: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    return np.hypot(x, y) <= diameter / 2


def examples(root: Path, num: int) -> list[tuple[Labelled, np.ndarray]]:
    """Photographs of a set in DRIVE's layout, and the second observer's vessels."""
    store = open_store(str(root))
    some: tuple[Example, ...] = open_labelled(store, ["test"]).examples("test")[:num]
    loaded = [(example, load_example(store, example)) for example in some]
    return [(one, load_second(store, example, one) == 1) for example, one in loaded]


# ---- topology


def cldice_of(predicted: np.ndarray, vessel: np.ndarray, skeleton) -> tuple[float, float, float]:
    """As the paper writes it, of a skeleton of scikit-image's."""
    line, other = skeleton(predicted), skeleton(vessel)
    precision = (line & vessel).sum() / line.sum()
    sensitivity = (other & predicted).sum() / other.sum()
    return 2 * precision * sensitivity / (precision + sensitivity), precision, sensitivity


def check_cldice(one: Labelled, second: np.ndarray) -> None:
    found = summary(compare(second, one.label == 1, one.fov))
    three = [found[name] for name in ("cldice", "cldice_precision", "cldice_sensitivity")]
    vessel = one.label == 1
    assert three == pytest.approx(cldice_of(second, vessel, independent_thin), abs=1e-12)
    # another algorithm draws other lines through the same vessels, which tell much the same
    assert three == pytest.approx(cldice_of(second, vessel, skeletonize), abs=0.02)


def test_cldice_is_the_papers_formula_on_scikit_images_skeletons(labelled):
    for one, second in examples(labelled, 2):
        check_cldice(one, second)


def test_cldice_of_drives_second_observer_is_the_papers_formula(drive):
    for one, second in examples(drive, 3):
        check_cldice(one, second)


def test_a_gap_costs_its_length_and_a_lone_line_its_own():
    """Three lines of 100 px, 3 px wide: one whole, one with a gap of 20, one that nobody drew."""
    vessel, predicted = np.zeros((2, 160, 160), bool)
    vessel[[*range(40, 43), *range(80, 83)], 30:130] = True
    predicted |= vessel
    predicted[80:83, 70:90] = False
    predicted[120:123, 30:130] = True
    hits = compare(predicted, vessel, np.ones_like(vessel))
    (on_vessel, predicted_line), (held, line) = hits[:2]
    ends = 2  # px that thinning takes off a line, at most, at both ends together
    assert 200 - 2 * ends <= line <= 200
    assert held == line - 20
    assert 280 - 4 * ends <= predicted_line <= 280
    assert predicted_line - on_vessel == pytest.approx(100, abs=ends)
    found = summary(hits)
    both = found["cldice_precision"], found["cldice_sensitivity"]
    assert found["cldice"] == pytest.approx(2 / (1 / both[0] + 1 / both[1]))


def test_a_wider_prediction_with_the_same_lines_has_the_same_topology():
    """Where Dice falls."""
    vessel, predicted = np.zeros((2, 200, 200), bool)
    vessel[99:102, 20:180] = True
    predicted[97:104, 20:180] = True
    found = summary(compare(predicted, vessel, np.ones_like(vessel)))
    assert found["cldice"] == 1


def test_only_what_lies_in_the_field_counts(labelled):
    """The rest, drawn or predicted, is as if it were not there."""
    [(one, second)] = examples(labelled, 1)
    fov = disc(one.fov.shape[0], 300)[:, : one.fov.shape[1]] & one.fov
    vessel = one.label == 1
    cut = compare(second & fov, vessel & fov, fov)
    np.testing.assert_array_equal(compare(second, vessel, fov), cut)
    assert cut[2:, 1].sum() == (vessel & fov).sum()
    assert cut[2:, 0].sum() == (vessel & second & fov).sum()


# ---- widths


def by_brute_force(vessel: np.ndarray, diameter: float) -> np.ndarray:
    """Of each vessel pixel twice the depth at the nearest pixel of the skeleton, half a px less."""
    depth = distance_transform_edt(np.pad(vessel, 1))[1:-1, 1:-1]
    line = np.argwhere(independent_thin(vessel))
    apart = cdist(np.argwhere(vessel), line)
    near = apart <= apart.min(axis=1, keepdims=True) + 1e-9
    depths = depth[tuple(line.T)]
    lowest = np.where(near, depths, np.inf).min(axis=1)
    highest = np.where(near, depths, -np.inf).max(axis=1)
    return (2 * np.stack([lowest, highest]) - 0.5) * 1000 / diameter


@pytest.mark.parametrize("diameter", [2000, 3300])
def test_local_widths_are_those_of_brute_force(diameter):
    """A fork of a wide vessel and a narrow one, away from it one that grows; no enlargement."""
    vessel = np.zeros((150, 170), bool)
    vessel[20:31, 10:160] = True
    vessel[31:90, 60:65] = True
    for column in range(20, 150):
        half = 2 + column // 20
        vessel[120 - half : 120 + half + 1, column] = True
    lowest, highest = by_brute_force(vessel, diameter)
    found = local_widths(vessel, diameter)
    assert found.shape == (vessel.sum(),)
    assert (found >= lowest - 1e-3).all()
    assert (found <= highest + 1e-3).all()
    assert len(np.unique(np.rint(found * diameter / 1000))) > 5


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("diameter", [450, 540, 999, 1900, 3300])
def test_the_width_of_a_bar_along_pixels_is_exact(width, diameter):
    """To a quarter of a px told, whatever the photograph's size."""
    vessel = np.zeros((60, 200), bool)
    vessel[20 : 20 + width, 10:190] = True
    told = width * 1000 / diameter
    found = local_widths(vessel, diameter)
    away = np.tile(np.abs(np.arange(10, 190) - 99.5) < 60, width)  # from its ends
    assert np.abs(found[away] - told).max() <= 0.25


@pytest.mark.parametrize("angle", [10, 22.5, 45, 60, 77])
@pytest.mark.parametrize("width", [2, 3, 5, 9])
def test_the_width_of_an_oblique_bar_is_right_to_a_pixel(width, angle):
    """Drawn ten times as large and turned there by scipy, then reduced."""
    large = np.zeros((1000, 1000), np.float32)
    large[503 - 5 * width : 503 + 5 * width, 100:900] = 1
    turned = rotate(large, angle, reshape=False, order=1)
    vessel = turned.reshape(100, 10, 100, 10).mean(axis=(1, 3)) >= 0.5
    middle = np.hypot(*(np.argwhere(vessel) - 49.5).T) < 25
    px = local_widths(vessel, 540)[middle] * 0.54
    assert width - 1 <= np.median(px) <= width + 0.5


def test_a_rough_wall_makes_no_thin_vessel():
    """Bumps on a bar 31 px wide, from which thinning leaves lines of their own."""
    vessel = np.zeros((120, 400), bool)
    vessel[40:71, 20:380] = True
    for column in range(40, 370, 24):
        vessel[36:40, column : column + 4] = True
    away = np.abs(np.argwhere(vessel)[:, 1] - 199.5) < 140  # from its ends
    assert local_widths(vessel, 2000)[away].min() > 14


def test_a_field_twice_as_large_has_the_same_widths(labelled):
    for one, _ in examples(labelled, 2):
        vessel = one.label == 1
        larger = vessel.repeat(2, axis=0).repeat(2, axis=1)
        widths, same = local_widths(vessel, 540), local_widths(larger, 1080)
        assert np.median(same) == pytest.approx(np.median(widths), rel=0.1)
        classes, others = (
            np.bincount(np.digitize(found, agreement.WIDTHS, right=True), minlength=3) / len(found)
            for found in (widths, same)
        )
        np.testing.assert_allclose(others, classes, atol=0.05)


@pytest.mark.parametrize("scale", [1, 3])
def test_sensitivity_is_counted_for_each_class_of_widths(scale):
    """Bars 2, 4 and 10 px wide in a field of 1,000 px; of each another share is found."""
    side = 1000 * scale
    vessel, predicted = np.zeros((2, side, side), bool)
    for row, width, share in ((200, 2, 0.25), (500, 4, 0.5), (800, 10, 0.8)):
        rows, length = slice(row * scale, (row + width) * scale), 400 * scale
        start = 300 * scale
        vessel[rows, start : start + length] = True
        predicted[rows, start : start + int(share * length)] = True
    hits = compare(predicted, vessel, disc(side, side))
    assert hits[2:, 1].tolist() == [width * 400 * scale**2 for width in (2, 4, 10)]
    found = summary(hits)
    assert [found[name] for name in SHARES[2:]] == pytest.approx([0.25, 0.5, 0.8])


@pytest.mark.parametrize(
    ("width", "side", "place"),
    [
        *((2, 1000, 0), (3, 1000, 0), (4, 1000, 1), (6, 1000, 1), (7, 1000, 2)),
        *((7, 2500, 0), (13, 2250, 1)),  # which are measured as exactly 3 and 6 px
    ],
)
def test_a_class_holds_the_width_at_which_it_ends(width, side, place):
    vessel = np.zeros((side, side), bool)
    vessel[side // 2 : side // 2 + width, side // 4 : 3 * side // 4] = True
    of_class = compare(vessel, vessel, disc(side, side))[2:, 1]
    assert of_class.argmax() == place
    assert of_class.max() >= 0.97 * vessel.sum()


# ---- nothing


def test_without_vessels_nothing_is_told_of_them():
    nothing, some = np.zeros((2, 80, 80), bool)
    some[30:33, 10:60] = True
    fov = np.ones_like(some)
    assert all(math.isnan(value) for value in summary(compare(nothing, nothing, fov)).values())
    missed = summary(compare(nothing, some, fov))
    assert math.isnan(missed["cldice_precision"])
    assert missed["cldice_sensitivity"] == 0
    assert math.isnan(missed["cldice"])
    beside = summary(compare(np.roll(some, 20, axis=0), some, fov))
    assert beside["cldice"] == beside["cldice_precision"] == beside["cldice_sensitivity"] == 0


def test_hits_add_over_photographs(labelled):
    """A figure of two is that of their pixels together: of both pictures side by side."""
    one, two = examples(labelled, 2)
    alone = [compare(second, of.label == 1, of.fov) for of, second in (one, two)]
    gap = np.zeros((one[0].fov.shape[0], 10), bool)
    second = np.hstack([one[1], gap, two[1]])
    vessel = np.hstack([one[0].label == 1, gap, two[0].label == 1])
    fov = np.hstack([one[0].fov, gap, two[0].fov])
    np.testing.assert_array_equal(sum(alone)[:2], compare(second, vessel, fov)[:2])

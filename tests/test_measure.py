"""Measurements of shapes whose answer is known, of DRIVE's labels, and of drawn photographs.

Run: pytest tests/test_measure.py
"""

import math
from dataclasses import asdict, fields
from functools import cache
from itertools import pairwise
from pathlib import Path

import cv2
import drawn_vessels
import numpy as np
import pytest
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree
from skimage import measure as independent

from segpipe.data import synthetic
from segpipe.data.classes import BACKGROUND, VESSEL, classes_of
from segpipe.measurement import vessels
from segpipe.measurement.branching import components
from segpipe.measurement.calibre import measure_calibres
from segpipe.measurement.fractal import fractal_dimension
from segpipe.measurement.quality import Quality, assess_quality
from segpipe.measurement.skeleton import nearest, thin, trace
from segpipe.segment.rows import ROW

SIDE, CENTRE, DIAMETER = 560, 280 + 280j, 540
ANGLES = (0, 7, 22.5, 45, 71, 90, 135)
WIDTHS = (1.5, 2, 4, 7, 10)
SIZES = {  # how much each may change with the size of the photograph
    "vessel_density": 0.05,
    "length_density": 0.05,
    "calibre_mean": 0.10,
    "tortuosity": 0.05,
}


def in_field(vessel: np.ndarray) -> np.ndarray:
    """vessel [SIDE, SIDE] bool -> the mask of a round field."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    return classes_of(vessel, np.hypot(x - SIDE / 2, y - SIDE / 2) <= DIAMETER / 2)


def stroke(*lines: np.ndarray, width: float) -> np.ndarray:
    """Lines of points x + iy (px) -> the pixels with centres within half a width, as a mask."""
    dense = []
    for line in lines:
        at = np.append(0, np.abs(np.diff(line)).cumsum())
        dense.append(np.interp(np.arange(0, at[-1], 0.1), at, line))
    points = np.concatenate(dense)
    tree = cKDTree(np.stack([points.real, points.imag], axis=1))
    near = np.zeros((SIDE, SIDE), np.uint8)
    near[points.imag.astype(int), points.real.astype(int)] = 1
    y, x = np.nonzero(cv2.dilate(near, np.ones((2 * int(width) + 3,) * 2, np.uint8)))
    vessel = np.zeros((SIDE, SIDE), bool)
    vessel[y, x] = tree.query(np.stack([x + 0.5, y + 0.5], axis=1))[0] <= width / 2
    return in_field(vessel)


def straight(angle: float, length: float = 400, middle: complex = CENTRE + 0.3 - 0.4j):
    """Its two ends, `angle` in degrees."""
    return middle + np.array([-0.5, 0.5]) * length * np.exp(1j * math.radians(angle))


def square(side: int, at: int = 30) -> np.ndarray:
    vessel = np.zeros((SIDE, SIDE), bool)
    vessel[at : at + side, at : at + side] = True
    return np.where(vessel, VESSEL, BACKGROUND).astype(np.uint8)


# ---- vessels


@cache
def bar(angle: float, width: float) -> tuple[np.ndarray, vessels.Measurements]:
    mask = stroke(straight(angle), width=width)
    return mask, vessels.measure(mask)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("angle", ANGLES)
def test_a_straight_vessel_has_tortuosity_one(angle, width):
    _, found = bar(angle, width)
    assert found.tortuosity == pytest.approx(1, abs=0.012)
    assert found.measure_note is None
    assert (found.num_branch_points, found.num_components) == (0, 1)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("angle", ANGLES)
def test_the_calibre_of_a_bar_is_its_width_and_its_length_its_length(angle, width):
    """Width as drawn in pixels: the area over the length, since edges fall between pixels."""
    mask, found = bar(angle, width)
    drawn = (np.count_nonzero(mask == VESSEL) - math.pi * width**2 / 4) / 400
    assert drawn == pytest.approx(width, abs=0.75)
    assert found.calibre_mean_px == pytest.approx(drawn, abs=0.3)
    assert found.calibre_std_px < 0.6
    length = found.length_density_per_px * np.count_nonzero(mask)
    assert length == pytest.approx(400 + width / 2, abs=width / 2 + 5)


def test_where_a_profile_does_not_reach_the_wall_there_is_no_calibre():
    """A bar 20 px wide, whose half width is told right and too small by far."""
    line = np.zeros((60, 200), np.bool_)
    line[30, 10:190] = True
    cover = np.zeros(line.shape, np.uint8)
    cover[20:40] = 255
    paths, _ = trace(line)
    right, short = (
        measure_calibres(paths, paths.points, cover, np.full(line.shape, half, np.float32))
        for half in (10, 5)
    )
    np.testing.assert_allclose(right.widths, 20, atol=0.1)
    assert (len(right.widths) > 30, len(short.widths)) == (True, 0)


def test_the_spread_of_two_bars_is_half_their_difference():
    bars = [
        stroke(straight(20, middle=CENTRE + 60j * sign), width=w) for sign, w in ((1, 4), (-1, 10))
    ]
    found = vessels.measure(np.minimum(*bars))
    assert found.calibre_mean_px == pytest.approx(7, abs=0.4)
    assert found.calibre_std_px == pytest.approx(3, abs=0.3)
    assert found.num_components == 2


@pytest.mark.parametrize("radius", [50, 100, 200])
@pytest.mark.parametrize("width", [2, 4, 8])
def test_a_semicircle_has_tortuosity_half_pi(radius, width):
    arc = drawn_vessels.arc(width / DIAMETER, radius / DIAMETER, 180.0)
    found = vessels.measure(drawn_vessels.draw(arc, DIAMETER, 11.5))
    assert found.tortuosity == pytest.approx(math.pi / 2, rel=0.015)
    assert found.calibre_mean_px == pytest.approx(width, abs=0.3)


@pytest.mark.parametrize(("height", "period"), [(10, 100), (20, 100), (8, 40), (6, 60)])
def test_a_sine_curve_has_the_tortuosity_of_its_points(height, period):
    x = np.linspace(80, 480, 4000)
    curve = x + 1j * (280 + height * np.sin(2 * np.pi * x / period))
    true = np.abs(np.diff(curve)).sum() / abs(curve[-1] - curve[0])
    assert vessels.measure(stroke(curve, width=3)).tortuosity == pytest.approx(true, rel=0.02)


def test_tortuosity_is_the_length_of_all_segments_over_their_chords():
    """A straight vessel and a semicircle as long: (200 + 200) / (200 + 2/pi of it)."""
    arc = CENTRE + 100j + 200 / math.pi * np.exp(1j * np.linspace(0, math.pi, 500))
    found = vessels.measure(stroke(arc, straight(10, 200, CENTRE - 120j), width=3))
    assert found.tortuosity == pytest.approx(400 / (200 + 400 / math.pi), rel=0.01)


def test_a_ring_has_a_length_and_no_tortuosity():
    circle = CENTRE + 80 * np.exp(1j * np.linspace(0, 2 * math.pi, 700))
    mask = stroke(circle, width=4)
    found = vessels.measure(mask)
    length = found.length_density_per_px * np.count_nonzero(mask)
    assert length == pytest.approx(2 * math.pi * 80, rel=0.01)
    assert math.isnan(found.tortuosity)
    assert found.measure_note == "no segment is long enough"
    assert (found.num_branch_points, found.num_components) == (0, 1)


@pytest.mark.parametrize("width", [2, 4, 8, 16])
def test_branch_points_of_crosses_trees_and_grids_are_counted(width):
    cross = stroke(straight(10), straight(100), width=width)
    assert vessels.measure(cross).num_branch_points == 1
    lines = [straight(0, 300, CENTRE + 60j * k) for k in range(-2, 3)]
    lines += [straight(90, 300, CENTRE + 60 * k) for k in range(-2, 3)]
    found = vessels.measure(stroke(*lines, width=width))
    assert (found.num_branch_points, found.num_components) == (25, 1)
    assert found.tortuosity == pytest.approx(1, abs=0.01)


def branches(start: complex, angle: float, length: float, levels: int) -> list[np.ndarray]:
    end = start + length * np.exp(1j * angle)
    line = [np.array([start, end])]
    if levels:
        for turn in (-0.5, 0.5):
            line += branches(end, angle + turn, length * 0.75, levels - 1)
    return line


@pytest.mark.parametrize("width", [2, 4])
def test_a_tree_of_four_levels_has_seven_branch_points(width):
    tree = branches(CENTRE + 240j, -math.pi / 2, 150, 3)
    found = vessels.measure(stroke(*tree, width=width))
    assert (found.num_branch_points, found.num_components) == (7, 1)
    length = found.length_density_per_px * np.count_nonzero(stroke(*tree, width=width))
    assert length == pytest.approx(sum(abs(line[1] - line[0]) for line in tree), rel=0.03)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rough_walls_make_no_branches(seed):
    mask = stroke(straight(33), width=9)
    noise = np.random.default_rng(seed).standard_normal((SIDE, SIDE))
    rough = (mask == VESSEL) + 0.35 * cv2.GaussianBlur(noise, (0, 0), 1.2) / 0.23 > 0.5
    wall = cv2.dilate((mask == VESSEL).view(np.uint8), np.ones((3, 3), np.uint8)) == 1
    solid = cv2.erode((mask == VESSEL).view(np.uint8), np.ones((3, 3), np.uint8)) == 1
    found = vessels.measure(in_field(rough & wall | solid))
    assert found.num_branch_points == 0
    assert found.tortuosity == pytest.approx(1, abs=0.02)


def test_components_are_those_of_an_independent_count_without_specks():
    vessel = np.zeros((SIDE, SIDE), bool)
    for n in range(7):
        vessel[60 + 60 * n, 150:400] = True
    vessel[100, 100:104] = True  # a speck
    assert independent.label(vessel, connectivity=2).max() == 8
    assert vessels.measure(in_field(vessel)).num_components == 7


@pytest.mark.parametrize("side", [150, 256, 300, 400, 500])
def test_a_filled_square_has_dimension_two(side):
    found = [vessels.measure(square(side, at)).fractal_dimension for at in (17, 30)]
    assert found == pytest.approx([2, 2], abs=0.05)


@pytest.mark.parametrize("angle", ANGLES)
def test_a_line_has_dimension_one(angle):
    _, found = bar(angle, 1.5)
    assert found.fractal_dimension == pytest.approx(1, abs=0.06)


def test_the_sierpinski_triangle_has_its_dimension():
    """Pascal's triangle modulo 2: log 3 / log 2."""
    rows = np.arange(512)
    triangle = (rows[:, None] & rows[None, :]) == 0
    vessel = np.pad(triangle, 24)
    found = fractal_dimension(vessel.astype(np.uint8))
    assert found == pytest.approx(math.log2(3), abs=0.05)


def test_the_density_is_a_plain_count():
    _, vessel, fov = synthetic.draw_fundus(3)
    found = vessels.measure(classes_of(vessel, fov))
    assert found.vessel_density == (vessel & fov).sum() / fov.sum()
    assert found.field_diameter_px == max(np.ptp(np.nonzero(fov), axis=1)) + 1


def test_every_pixel_of_a_centre_line_is_traced_once_and_in_order():
    vessel = np.pad(synthetic.draw_fundus(6)[1], 2)
    line = thin(vessel.view(np.uint8))
    paths, forks = trace(line)
    inner = np.ones(len(paths.points), bool)
    inner[paths.start[paths.forks[:, 0]]] = inner[paths.last[paths.forks[:, 1]]] = False
    seen = np.concatenate([paths.points[inner], forks])
    assert len(seen) == len(set(seen)) == line.sum() - alone(line)
    steps = np.abs(np.diff(paths.points))
    steps[paths.last[:-1]] = 1
    assert set(np.round(steps, 3)) <= {1.0, 1.414}


def alone(line: np.ndarray) -> int:
    labels = independent.label(line, connectivity=2)
    return int((np.bincount(labels.ravel())[1:] == 1).sum())


# ---- what cannot be measured


def test_nothing_is_not_a_number_and_says_why():
    unknown = {"calibre_mean", "calibre_std_px", "fractal_dimension", "tortuosity"}
    for mask, note in (
        (np.zeros((100, 90), np.uint8), "no field of view"),
        (np.full((100, 90), BACKGROUND, np.uint8), "no vessel"),
    ):
        found = asdict(vessels.measure(mask))
        assert found["measure_note"] == note
        assert all(math.isnan(found[name]) for name in unknown)
        assert (found["num_branch_points"], found["num_components"]) == (0, 0)
    assert found["vessel_density"] == found["length_density"] == 0
    assert found["field_diameter_px"] == 100


def test_a_vessel_too_short_for_tortuosity_says_so():
    found = vessels.measure(stroke(straight(0, 9), width=6))
    assert math.isnan(found.tortuosity)
    assert math.isnan(found.fractal_dimension)
    assert found.measure_note == "too small for box counting; no segment is long enough"
    assert found.num_components == 1


def test_a_field_that_is_vessel_all_over_is_measured():
    found = vessels.measure(np.full((300, 400), VESSEL, np.uint8))
    assert found.vessel_density == 1
    assert found.fractal_dimension == pytest.approx(2, abs=0.05)


def test_more_vessels_than_opencv_takes_at_once_are_measured():
    mask = np.full((600, 600), BACKGROUND, np.uint8)
    mask[::2] = VESSEL
    found = vessels.measure(mask)
    assert found.num_components == 300
    assert found.length_density == pytest.approx(300, rel=1e-3)


def test_a_net_of_branch_points_alone_is_measured():
    """Its walk took longer than a test may, as long as it started from one root."""
    y, x = np.indices((280, 280))
    found = vessels.measure(np.where((x + y) % 2, VESSEL, BACKGROUND).astype(np.uint8))
    assert found.num_components == 1


# ---- size


def close(found: vessels.Measurements, reference: vessels.Measurements, zoom: float) -> None:
    for name, share in SIZES.items():
        wanted = pytest.approx(getattr(reference, name), rel=share)
        assert getattr(found, name) == wanted, name
    assert found.fractal_dimension == pytest.approx(reference.fractal_dimension, abs=0.05)
    for name, power in (("calibre_mean_px", 1), ("length_density_per_px", -1)):
        wanted = pytest.approx(getattr(reference, name) * zoom**power, rel=0.1)
        assert getattr(found, name) == wanted, name
    assert found.field_diameter_px == pytest.approx(zoom * reference.field_diameter_px, rel=0.01)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_eye_drawn_at_half_and_double_size_measures_the_same(seed):
    found = {}
    _, *drawn = synthetic.draw_fundus(seed, 2336, 2260)
    for zoom in (0.5, 1, 2):
        size = round(1130 * zoom), round(1168 * zoom)
        grey = [
            cv2.resize(part.view(np.uint8) * 255, size, None, 0, 0, cv2.INTER_AREA)
            for part in drawn
        ]
        vessel, fov = (np.asarray(part) > 127 for part in grey)
        found[zoom] = vessels.measure(classes_of(vessel, fov))
    for zoom in (0.5, 2):
        close(found[zoom], found[1], zoom)


def drive_labels(drive: Path) -> list[np.ndarray]:
    def bright(path: Path) -> np.ndarray:
        return np.asarray(Image.open(path).convert("L")) > 127

    return [
        classes_of(
            bright(label), bright(label.parents[1] / f"mask/{label.name[:2]}_training_mask.gif")
        )
        for label in sorted(drive.glob("training/1st_manual/*.gif"))
    ]


@pytest.mark.parametrize("zoom", [1.5, 2, 4])
def test_labels_of_drive_measure_the_same_at_larger_sizes(drive, zoom):
    for label in drive_labels(drive)[::4]:
        size = round(label.shape[1] * zoom), round(label.shape[0] * zoom)
        larger = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
        close(vessels.measure(larger), vessels.measure(label), zoom)


def test_labels_of_drive_measure_what_is_known_of_retinas(drive):
    """Published for DRIVE's labels: vessels 1 to 20 px wide, dimension 1.4 to 1.7 by plain boxes,
    to which the vessels' width adds up to 0.15."""
    for label in drive_labels(drive):
        found = vessels.measure(label)
        assert 2 < found.calibre_mean_px < 5
        assert 1.25 < found.fractal_dimension < 1.7
        assert 1 < found.tortuosity < 1.15
        assert 40 < found.num_branch_points < 300


def test_px_are_those_of_the_photograph_where_a_canvas_is_measured():
    mask = stroke(straight(20), width=6)
    on_canvas, plain = vessels.measure(mask, zoom=3), vessels.measure(mask)
    for name, factor in (("field_diameter_px", 3), ("calibre_mean_px", 3), ("calibre_std_px", 3)):
        assert getattr(on_canvas, name) == pytest.approx(factor * getattr(plain, name))
    assert on_canvas.length_density_per_px == pytest.approx(plain.length_density_per_px / 3)
    assert on_canvas.calibre_mean == plain.calibre_mean


# ---- quality


@pytest.fixture(scope="module")
def photograph() -> tuple[np.ndarray, np.ndarray]:
    image, _, fov = synthetic.draw_fundus(4)
    return image, fov.astype(np.uint8) * np.uint8(255)


def test_blur_lowers_focus_and_the_readable_share(photograph):
    image, fov = photograph
    found = [assess_quality(image, fov)]
    found += [assess_quality(cv2.GaussianBlur(image, (0, 0), s), fov) for s in (1, 2, 4)]
    for before, after in pairwise(found):
        assert after.focus < 0.9 * before.focus
        assert after.readable_fraction <= before.readable_fraction
    assert found[-1].readable_fraction < 0.9 * found[0].readable_fraction


def test_darkness_changes_exposure_and_what_is_readable_but_not_focus(photograph):
    image, fov = photograph
    found = [
        assess_quality(np.rint(image * share).astype(np.uint8), fov) for share in (1, 0.7, 0.3, 0.1)
    ]
    for before, after in pairwise(found):
        assert after.exposure < before.exposure
        assert after.underexposed_fraction >= before.underexposed_fraction
    assert found[1].focus == pytest.approx(found[0].focus, rel=0.03)
    assert found[2].focus == pytest.approx(found[0].focus, rel=0.10)
    assert found[3].readable_fraction < 0.5 < found[0].readable_fraction


@pytest.mark.parametrize("times", [1.9, 3])
def test_quality_is_that_of_a_usual_field_whatever_the_working_diameter(photograph, times):
    large = [cv2.resize(one, None, fx=times, fy=times) for one in photograph]
    found, plain = assess_quality(*large), assess_quality(*photograph)
    assert found.focus == pytest.approx(plain.focus, rel=0.25)  # enlarging costs some of it
    assert found.exposure == pytest.approx(plain.exposure, abs=0.002)
    assert found.readable_fraction == pytest.approx(plain.readable_fraction, abs=0.02)


def test_exposure_is_counted_in_green_inside_the_field():
    image, fov = np.zeros((200, 200, 3), np.uint8), np.zeros((200, 200), np.uint8)
    fov[20:180, 20:180] = 255
    image[20:100, 20:180, 1], image[100:180, 20:100, 1] = 255, 100
    found = assess_quality(image, fov)
    assert found.exposure == pytest.approx((0.5 * 255 + 0.25 * 100) / 255)
    assert (found.overexposed_fraction, found.underexposed_fraction) == (0.5, 0.25)
    flat = np.full_like(image, 100)
    assert assess_quality(flat, fov).readable_fraction == 0


def test_a_photograph_without_a_field_has_no_quality():
    found = assess_quality(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8))
    assert all(math.isnan(value) for value in asdict(found).values())


def test_every_measurement_is_a_column_of_the_rows():
    names = [f.name for kind in (vessels.Measurements, Quality) for f in fields(kind)]
    assert set(names) <= set(ROW.names)


def test_quality_of_drive_is_that_of_readable_photographs(drive):
    for path in sorted(drive.glob("training/images/*"))[::4]:
        number = path.name[:2]
        fov = np.asarray(
            Image.open(drive / f"training/mask/{number}_training_mask.gif").convert("L")
        )
        found = assess_quality(np.asarray(Image.open(path).convert("RGB")), fov)
        assert 0.45 < found.focus < 0.8
        assert found.readable_fraction > 0.95


def test_a_point_beyond_the_plane_has_the_pixel_at_its_edge():
    """As the tips of lines that run to the edge may lie."""
    plane = np.arange(12, dtype=np.float32).reshape(3, 4)
    points = np.array([-2 - 1j, 3.4 + 2.4j, 9 + 1j])
    np.testing.assert_array_equal(nearest(plane, points), [0, 11, 7])


def test_components_are_those_of_scipys_graphs():
    rng = np.random.default_rng(7)
    for _ in range(300):
        num = int(rng.integers(1, 60))
        pairs = rng.integers(0, num, (int(rng.integers(0, num)), 2))
        graph = sparse.coo_array((np.ones(len(pairs)), tuple(pairs.T)), (num, num))
        wanted = csgraph.connected_components(graph, directed=False)[1]
        np.testing.assert_array_equal(components(num, pairs), wanted)

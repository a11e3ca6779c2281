"""Measurements of drawn vessels against closed forms, at several widths and angles.

benchmarks/shapes.py has all shapes and sizes. Run: pytest tests/test_shapes.py
"""

import itertools
import math

import drawn_vessels
import numpy as np
import pytest
from drawn_vessels import SHAPES, Shape

from segpipe.measurement.vessels import Measurements, measure
from segpipe.measuring.measured import measured_vessels

DIAMETER = 1024  # px
WIDTHS = (1 / 128, 1 / 64)  # field diameters: 8 and 16 px
ANGLES = (0.0, 27.0, 45.0, 121.0)
OFFSET = 0.3 - 0.4j  # px
AREA = math.pi / 4  # of the field, in squared diameters


def measured(shape: Shape, diameter: int = DIAMETER) -> list[Measurements]:
    """At each of ANGLES."""
    return [measure(drawn_vessels.draw(shape, diameter, angle, OFFSET)) for angle in ANGLES]


def of(found: list[Measurements], name: str) -> np.ndarray:
    return np.array([getattr(one, name) for one in found])


@pytest.mark.parametrize("name", ["straight", "arc", "sine", "Y"])
@pytest.mark.parametrize("width", WIDTHS)
def test_width_length_tortuosity_and_density_are_within_a_percent_of_arithmetic(name, width):
    shape = SHAPES[name](width)
    found = measured(shape)
    for column, true in {
        "calibre_mean": shape.width,
        "length_density": shape.length / AREA,
        "tortuosity": shape.length / shape.chord,
        "vessel_density": shape.area / AREA,
    }.items():
        error = of(found, column) / true - 1
        assert abs(np.median(error)) <= 0.01, column
        assert np.abs(error).max() <= 0.05, column
    assert (of(found, "num_branch_points") == shape.branch_points).all()
    assert (of(found, "num_components") == 1).all()
    assert (of(found, "calibre_std") < 0.1 * width).all()


@pytest.mark.parametrize(
    ("name", "width", "diameter"),
    [
        *itertools.product(drawn_vessels.PAIRS, [1 / 256, 1 / 64], [1024]),
        ("straight", 1 / 256, 2048),
        pytest.param("arc", 1 / 256, 2048, marks=pytest.mark.nightly),
    ],
)
def test_an_artery_beside_a_vein_is_measured_as_if_it_were_alone(name, width, diameter):
    """Against the pixels drawn: 4, 16 and 8 px, the last measured at half its size; the light
    between walls 4 px apart is not all gone where both are blurred."""
    pair, errors = drawn_vessels.beside(name, width), []
    for angle in ANGLES:
        picture = drawn_vessels.draw_kinds(pair, diameter, angle, OFFSET)
        mask = np.where(picture == 0, 0, np.where(picture < 3, 1, 2)).astype(np.uint8)
        found = measured_vessels(mask, picture)
        for code, (kind, shape) in enumerate(pair.items(), start=1):
            drawn = np.count_nonzero(picture == code) / diameter**2
            true = {
                "calibre_mean": shape.width * drawn / shape.area,
                "length_density": shape.length / AREA,
                "tortuosity": shape.length / shape.chord,
                "density": drawn / AREA,
            }
            errors.append([found[f"{kind}_{column}"] / of - 1 for column, of in true.items()])
    assert (np.abs(np.median(errors, axis=0)) <= (0.025, 0.01, 0.01, 0.01)).all()
    assert np.abs(errors).max() <= 0.05


def test_thin_vessels_keep_their_width_in_a_field_of_512_px():
    """2 px; against the width of the pixels drawn, as the raster itself is up to 16 % off."""
    shape = SHAPES["Y"](1 / 256)
    for angle in ANGLES:
        mask = drawn_vessels.draw(shape, 512, angle, OFFSET)
        drawn = np.count_nonzero(mask == 1) / 512**2 / shape.area * shape.width
        assert measure(mask).calibre_mean == pytest.approx(drawn, rel=0.03)


@pytest.mark.parametrize(("radius", "degrees"), [(0.3, 150.0), (0.2, 120.0), (0.1, 180.0)])
def test_the_total_squared_curvature_of_an_arc_is_its_angle_over_its_radius(radius, degrees):
    shape = drawn_vessels.arc(1 / 128, radius, degrees)
    found = measured(shape)
    true = math.radians(degrees) / radius
    assert of(found, "total_squared_curvature") == pytest.approx(true, rel=0.05)
    assert of(found, "mean_squared_curvature") == pytest.approx(radius**-2, rel=0.05)
    per_px = of(found, "total_squared_curvature_per_px")
    assert per_px == pytest.approx(true / DIAMETER, rel=0.05)
    per_px2 = of(found, "mean_squared_curvature_per_px2")
    assert per_px2 == pytest.approx((radius * DIAMETER) ** -2, rel=0.05)


def test_the_squared_curvature_of_a_straight_vessel_is_next_to_none():
    """Below that of an arc with the field's own radius, 4 / diameter^2."""
    for width in WIDTHS:
        assert (of(measured(SHAPES["straight"](width)), "mean_squared_curvature") < 0.5).all()


def test_a_whole_circle_has_its_squared_curvature_and_no_tortuosity():
    shape = drawn_vessels.arc(1 / 128, 0.2, 360.0)
    [found, *_] = measured(shape)
    assert found.total_squared_curvature == pytest.approx(2 * math.pi / 0.2, rel=0.03)
    assert math.isnan(found.tortuosity)


def test_squared_curvature_in_px_is_that_of_the_photograph():
    mask = drawn_vessels.draw(SHAPES["arc"](1 / 128), 512, 20)
    plain, zoomed = measure(mask), measure(mask, zoom=3)
    for name, factor in (
        ("total_squared_curvature_per_px", 3),
        ("mean_squared_curvature_per_px2", 9),
    ):
        assert getattr(zoomed, name) * factor == pytest.approx(getattr(plain, name))
    assert zoomed.mean_squared_curvature == plain.mean_squared_curvature


@pytest.mark.parametrize("between", [50.0, 70.0, 90.0, 110.0])
def test_the_branch_angle_is_that_between_the_daughters(between):
    found = measured(drawn_vessels.fork(1 / 128, between))
    assert of(found, "branch_angle_mean_deg") == pytest.approx(between, abs=3)


def test_there_is_no_branch_angle_without_a_branch_point_of_three():
    for name in ("straight", "spokes"):
        assert np.isnan(of(measured(SHAPES[name](1 / 128)), "branch_angle_mean_deg")).all()


@pytest.mark.parametrize("width", [1 / 256, 1 / 128, 1 / 64])
def test_the_koch_curve_has_its_dimension_whatever_its_width(width):
    shape = SHAPES["Koch"](width)
    found = of(measured(shape, 512), "fractal_dimension")
    assert np.median(found) == pytest.approx(math.log(4) / math.log(3), abs=0.05)

"""The field of view is found, fitted to the canvas, and every step is undone exactly.

Run: pytest tests/test_fundus.py
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from segpipe.data import fundus
from segpipe.errors import RejectedImage

DIAMETER = 540.0


def photograph(height: int, width: int, radius: float, noise: float = 3.0, cut: float = 1.0):
    """A bright disc in a dark frame, cut off above and below at `cut` radii -> image, fov."""
    rows, columns = np.mgrid[:height, :width]
    rows, columns = rows - (height - 1) / 2, columns - (width - 1) / 2
    fov = (np.hypot(rows, columns) <= radius) & (np.abs(rows) <= cut * radius)
    rng = np.random.default_rng(0)
    image = np.where(fov[..., None], (190, 100, 50), (4, 4, 6)) + rng.normal(
        0, noise, (height, width, 3)
    )
    return image.clip(0, 255).astype(np.uint8), fov


def overlap(a, b) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(
    ("height", "width", "radius", "cut"),
    [(584, 565, 270, 1.0), (500, 700, 240, 1.0), (600, 800, 330, 0.85), (2000, 3000, 950, 1.0)],
)
def test_a_drawn_field_is_found(height, width, radius, cut):
    image, fov = photograph(height, width, radius, noise=6.0, cut=cut)
    assert overlap(fundus.find_fov(image), fov) > 0.98


def test_a_field_with_a_bright_speck_outside_and_a_dark_spot_inside_is_one_disc():
    image, fov = photograph(600, 600, 260)
    image[5:12, 5:12] = 255
    image[280:320, 280:320] = 2
    assert overlap(fundus.find_fov(image), fov) > 0.98


def test_a_photograph_without_a_frame_is_field_all_over():
    assert fundus.find_fov(np.full((300, 400, 3), (150, 80, 40), np.uint8)).all()


def test_a_black_image_is_rejected():
    with pytest.raises(RejectedImage, match="black"):
        fundus.find_fov(np.zeros((300, 300, 3), np.uint8))


def test_the_official_fields_of_drive_are_found(drive: Path):
    for path in sorted(drive.glob("*/images/*.tif")):
        mask = path.parent.parent / "mask" / f"{path.stem}_mask.gif"
        official = np.asarray(Image.open(mask).convert("L")) > 127
        found = fundus.find_fov(np.asarray(Image.open(path)))
        assert overlap(found, official) > 0.97, path.name


@pytest.mark.parametrize("size", [(500, 500), (584, 565), (700, 500), (1000, 1500), (4000, 3000)])
def test_fit_gives_the_working_diameter_on_a_canvas_of_one_size(size):
    height, width = size
    image, fov = photograph(height, width, 0.45 * min(size))
    geometry = fundus.plan_fit(fov, DIAMETER)
    side = fundus.canvas_side(DIAMETER)
    canvas = fundus.fit_fov(fov, geometry, side)
    assert canvas.shape == (side, side)
    assert fundus.fit_image(image, geometry, side).shape == (side, side, 3)
    diameter = fundus.fov_diameter(canvas > 127)
    if geometry.resampled:
        assert abs(diameter - DIAMETER) <= 2
    else:
        assert abs(diameter / DIAMETER - 1) <= fundus.SAME_SCALE


@pytest.mark.parametrize("size", [(500, 500), (584, 565), (700, 500), (1000, 1500), (4000, 3000)])
def test_fit_then_restore_gives_the_original_geometry(size):
    """Five drawn spots come back where they were, to a pixel of the coarser grid."""
    height, width = size
    _, fov = photograph(height, width, 0.45 * min(size))
    spots = np.zeros(size, np.uint8)
    radius = max(3, min(size) // 100)
    for row, column in [(0.5, 0.5), (0.3, 0.4), (0.7, 0.6), (0.4, 0.7), (0.6, 0.3)]:
        r, c = int(row * height), int(column * width)
        spots[r - radius : r + radius + 1, c - radius : c + radius + 1] = 255
    geometry = fundus.plan_fit(fov, DIAMETER)
    side = fundus.canvas_side(DIAMETER)
    canvas = fundus.fit_image(np.repeat(spots[..., None], 3, axis=2), geometry, side)[..., 0]
    native = fundus.restore(canvas.astype(np.float32), geometry)
    assert native.shape == size
    centres = [
        ndimage.center_of_mass(x, *ndimage.label(x > 100)[:1], range(1, 6)) for x in (spots, native)
    ]
    scale = max(1.0, geometry.box_width / geometry.scaled_width)
    np.testing.assert_allclose(centres[0], centres[1], atol=scale)


def test_where_nothing_is_resampled_restore_is_exact():
    image, fov = photograph(584, 565, 270)
    geometry = fundus.plan_fit(fov, DIAMETER)
    assert not geometry.resampled
    canvas = fundus.fit_image(image, geometry, fundus.canvas_side(DIAMETER))
    native = fundus.restore(canvas[..., 0].astype(np.float32), geometry)
    np.testing.assert_array_equal(native[fov], image[..., 0][fov])


def test_the_geometry_survives_its_row():
    geometry = fundus.plan_fit(photograph(700, 500, 240)[1], DIAMETER)
    assert fundus.Geometry.from_array(geometry.as_array()) == geometry


def test_labels_are_never_mixed():
    label = np.random.default_rng(0).choice(np.array([0, 1, 2], np.uint8), (900, 700))
    fov = np.ones((900, 700), bool)
    geometry = fundus.plan_fit(fov, DIAMETER)
    assert set(np.unique(fundus.fit_classes(label, geometry, 576))) == {0, 1, 2}
    small = fundus.resize_classes(np.array([[0, 1], [1, 2]], np.uint8), 4, 4)
    np.testing.assert_array_equal(small, np.kron([[0, 1], [1, 2]], np.ones((2, 2), np.uint8)))


def test_a_mask_follows_the_one_rule():
    """Outside 0; inside 1 where the score reaches the threshold, equality included, else 2."""
    score = np.array([[0.2, 0.5, 0.6, 0.9]], np.float32)
    fov = np.array([[255, 255, 255, 0]], np.uint8)
    whole = fundus.Geometry(1, 4, 0, 0, 1, 4, 1, 4)
    assert fundus.native_mask(score, fov, whole, 0.5).tolist() == [[2, 1, 1, 0]]

"""A field is fitted to the canvas, and every step is undone exactly.

Run: pytest tests/test_canvas.py
"""

from pathlib import Path

import numpy as np
import pytest
from apertures import disc, photograph
from PIL import Image
from scipy import ndimage

from segpipe import kernels
from segpipe.data.canvas import (
    MARGIN_PX,
    SAME_SCALE,
    Geometry,
    Working,
    canvas_side,
    fit_classes,
    fit_field,
    fit_fov,
    fit_image,
    native_mask,
    native_score,
    plain_native_mask,
    plan_fit,
    resize_classes,
    restore,
)
from segpipe.data.fov import fov_box, fov_diameter
from segpipe.data.pillow_memory import pixels_of
from segpipe.errors import RejectedImage

DIAMETER = 540.0
SIZES = [(500, 500), (584, 565), (700, 500), (605, 700), (1000, 1500), (2336, 3504), (4000, 3000)]


def test_the_official_fields_of_drive_are_fitted_by_their_larger_extent(drive: Path):
    """Networks were trained on canvases so fitted: box and scale of all 40, to the pixel."""
    masks = sorted(drive.glob("*/mask/*_mask.gif"))
    assert len(masks) == 40
    for path in masks:
        fov = np.asarray(Image.open(path).convert("L")) > 127
        top, left, bottom, right = fov_box(fov)
        extent = max(bottom - top, right - left)
        assert fov_diameter(fov) == extent, path.name
        for diameter in (512.0, DIAMETER, 608.0):
            scale = 1.0 if abs(diameter / extent - 1) <= 0.02 else diameter / extent
            margin = round(6 / scale)
            top_, left_ = max(0, top - margin), max(0, left - margin)
            box = min(584, bottom + margin) - top_, min(565, right + margin) - left_
            scaled = round(box[0] * scale), round(box[1] * scale)
            wanted = Geometry(584, 565, top_, left_, *box, *scaled)
            assert plan_fit(fov, diameter) == wanted, path.name


@pytest.mark.parametrize("size", [(500, 500), (584, 565), (700, 500), (1000, 1500), (4000, 3000)])
def test_fit_gives_the_working_diameter_on_a_canvas_of_one_size(size):
    height, width = size
    image, fov = photograph(height, width, 0.45 * min(size))
    geometry = plan_fit(fov, DIAMETER)
    side = canvas_side(DIAMETER)
    canvas = fit_fov(fov, geometry, side)
    assert canvas.shape == (side, side)
    assert fit_image(image, geometry, side).shape == (side, side, 3)
    diameter = fov_diameter(canvas > 127)
    if geometry.resampled:
        assert abs(diameter - DIAMETER) <= 2
    else:
        assert abs(diameter / DIAMETER - 1) <= SAME_SCALE


@pytest.mark.parametrize(("field_px", "wanted"), [(200, 256), (300, 300), (600, 320)])
def test_a_field_is_scaled_to_the_nearest_of_the_working_diameters(field_px, wanted):
    """Between them it is as it was."""
    image, fov = photograph(700, 800, field_px / 2)
    canvas, on_canvas, geometry = fit_field(image, fov, Working(256, 320))
    assert fov_diameter(on_canvas > 127) == pytest.approx(wanted, abs=2)
    assert canvas.shape == (canvas_side(fov_diameter(fov) if wanted == 300 else wanted),) * 2 + (3,)
    assert geometry.resampled == (wanted != 300)


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
    geometry = plan_fit(fov, DIAMETER)
    side = canvas_side(DIAMETER)
    canvas = fit_image(np.repeat(spots[..., None], 3, axis=2), geometry, side)[..., 0]
    native = restore(canvas.astype(np.float32), geometry)
    assert native.shape == size
    centres = [
        ndimage.center_of_mass(x, *ndimage.label(x > 100)[:1], range(1, 6)) for x in (spots, native)
    ]
    scale = max(1.0, geometry.box_width / geometry.scaled_width)
    np.testing.assert_allclose(centres[0], centres[1], atol=scale)


def test_where_nothing_is_resampled_restore_is_exact():
    image, fov = photograph(584, 565, 270)
    geometry = plan_fit(fov, DIAMETER)
    assert not geometry.resampled
    canvas = fit_image(image, geometry, canvas_side(DIAMETER))
    native = restore(canvas[..., 0].astype(np.float32), geometry)
    np.testing.assert_array_equal(native[fov], image[..., 0][fov])


def test_the_geometry_survives_its_row():
    geometry = plan_fit(photograph(700, 500, 240)[1], DIAMETER)
    assert Geometry.from_list(geometry.to_list()) == geometry


def test_labels_are_never_mixed():
    label = np.random.default_rng(0).choice(np.array([0, 1, 2], np.uint8), (900, 700))
    fov = np.ones((900, 700), bool)
    geometry = plan_fit(fov, DIAMETER)
    assert set(np.unique(fit_classes(label, geometry, 576))) == {0, 1, 2}
    small = resize_classes(np.array([[0, 1], [1, 2]], np.uint8), 4, 4)
    np.testing.assert_array_equal(small, np.kron([[0, 1], [1, 2]], np.ones((2, 2), np.uint8)))


def test_a_mask_follows_the_one_rule():
    """Outside 0; inside 1 where the score reaches the threshold, equality included, else 2."""
    score = np.tile(np.array([0.2, 0.5, 0.6, 0.9], np.float32), (4, 1))
    fov = np.tile(np.array([255, 255, 255, 0], np.uint8), (4, 1))
    whole = Geometry(1, 4, 0, 0, 1, 4, 1, 4)
    assert native_mask(score, fov, whole, 0.5).tolist() == [[2, 1, 1, 0]]


@pytest.mark.parametrize("size", [(500, 500), (584, 565), (605, 700), (1000, 1500)])
def test_a_mask_is_that_of_score_and_field_restored_to_the_whole_frame(size):
    """Bit for bit, the rule written plainly, and compiled; also for a field that is cut off."""
    rng = np.random.default_rng(0)
    for share, off in ((0.45, (0, 0)), (0.48, (30, -40)), (0.55, (0, 0))):
        fov = disc(size, share * min(size), off)
        geometry = plan_fit(fov, DIAMETER)
        side = canvas_side(DIAMETER)
        score = rng.random((side, side), np.float32)
        soft = fit_fov(fov, geometry, side)
        inside = restore(soft.astype(np.float32), geometry) > 127
        vessel = restore(score, geometry) >= np.float32(0.3)
        wanted = np.where(inside, np.where(vessel, 1, 2), 0)
        mask = plain_native_mask(score, soft, geometry, 0.3)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, wanted)
        compiled = native_mask(score, soft, geometry, 0.3)  # up to rounding
        assert (compiled != wanted).mean() < 1e-5


@pytest.mark.parametrize("size", [(300, 280), (500, 500), (1000, 1500)])
@pytest.mark.parametrize("missing", ["", "no C++ compiler"])
def test_native_scores_are_those_of_the_restored_canvas_in_255_steps(size, missing, monkeypatch):
    """With kernels and without; also where the canvas has more pixels than the photograph."""
    if not missing and (problem := kernels.missing()):
        pytest.skip(problem)
    monkeypatch.setattr(kernels, "missing", lambda: missing)
    geometry = plan_fit(disc(size, 0.45 * min(size), (9, -5)), DIAMETER)
    side = canvas_side(DIAMETER)
    score = np.random.default_rng(0).uniform(-0.01, 1.01, (side, side)).astype(np.float32)
    mask = np.random.default_rng(1).integers(0, 3, size, np.uint8)
    wanted = np.rint(np.clip(restore(score, geometry), 0, 1) * np.float32(255))
    found = native_score(score, mask, geometry)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.where(mask == 0, 0, wanted))


def test_an_empty_given_field_is_rejected():
    with pytest.raises(RejectedImage, match="empty"):
        plan_fit(np.zeros((50, 50), bool), DIAMETER)


@pytest.mark.parametrize("diameter", [64.0, 200.0, 333.3, 540.0, 1000.0])
@pytest.mark.parametrize("share", [0.981, 1.0, 1.019, 0.5, 3.0])
def test_every_field_fits_on_its_canvas(diameter, share):
    """Also a field that is up to 2 % too large and so not resampled; sides are multiples of 32."""
    side = canvas_side(diameter)
    assert side % 32 == 0
    room = round(diameter * share) + 40
    fov = disc((room, room), diameter * share / 2)
    geometry = plan_fit(fov, diameter)
    canvas = fit_fov(fov, geometry, side)
    assert max(geometry.scaled_height, geometry.scaled_width) <= side
    wanted = fov.sum() * (geometry.scaled_height / geometry.box_height) ** 2
    assert (canvas > 127).sum() == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.36, 0.42])
def test_the_field_has_the_working_diameter_within_a_pixel(size, share):
    fov = disc(size, share * min(size))
    geometry = plan_fit(fov, DIAMETER)
    canvas = fit_fov(fov, geometry, canvas_side(DIAMETER))
    assert geometry.resampled
    assert abs(fov_diameter(canvas > 127) - DIAMETER) <= 1


@pytest.mark.parametrize("size", SIZES)
def test_a_spot_comes_back_within_two_pixels(size):
    """Measured in native pixels, on a canvas where a pixel may stand for seven of them."""
    fov = disc(size, 0.44 * min(size), off=(7, -11))
    geometry = plan_fit(fov, DIAMETER)
    at = size[0] // 2 + min(size) // 5, size[1] // 2 - min(size) // 6
    spot = disc(size, max(4, min(size) / 80), (at[0] - size[0] / 2, at[1] - size[1] / 2))
    image = np.repeat(spot[..., None] * np.uint8(255), 3, axis=2)
    canvas = fit_image(image, geometry, canvas_side(DIAMETER))
    native = restore(canvas[..., 1].astype(np.float32), geometry)
    away = np.subtract(ndimage.center_of_mass(native), ndimage.center_of_mass(spot))
    assert np.hypot(*away) < 2


def test_scores_are_put_at_their_own_pixels_and_nothing_beside_the_box():
    """A field in a corner of a larger frame, not resampled: a score at (r, c) of the canvas."""
    fov = disc((700, 900), 270, off=(50, 120))
    geometry = plan_fit(fov, DIAMETER)
    assert not geometry.resampled
    rows, columns = np.flatnonzero(fov.any(1)), np.flatnonzero(fov.any(0))
    canvas = np.random.default_rng(5).random((576, 576), np.float32)
    native = restore(canvas, geometry)
    top, left = rows[0] - MARGIN_PX, columns[0] - MARGIN_PX
    bottom, right = rows[-1] + 1 + MARGIN_PX, columns[-1] + 1 + MARGIN_PX
    wanted = np.zeros((700, 900), np.float32)
    wanted[top:bottom, left:right] = canvas[: bottom - top, : right - left]
    np.testing.assert_array_equal(native, wanted)


def test_class_pixels_are_the_nearest_ones_of_the_box():
    """Against indices written out: pixel i of the canvas is the one its centre falls into."""
    label = np.random.default_rng(6).choice(np.array([0, 1, 2], np.uint8), (900, 700))
    geometry = plan_fit(disc((900, 700), 320), DIAMETER)
    g = geometry
    assert g.resampled
    rows = g.top + ((np.arange(g.scaled_height) + 0.5) * g.box_height / g.scaled_height).astype(int)
    columns = g.left + ((np.arange(g.scaled_width) + 0.5) * g.box_width / g.scaled_width).astype(
        int
    )
    canvas = fit_classes(label, geometry, 576)
    np.testing.assert_array_equal(
        canvas[: g.scaled_height, : g.scaled_width], label[np.ix_(rows, columns)]
    )
    assert not canvas[g.scaled_height :].any()
    assert not canvas[:, g.scaled_width :].any()


def test_pillows_pixels_are_seen_without_a_copy_where_they_are_in_one_piece():
    array = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for picture in (Image.fromarray(array), Image.fromarray(array).resize((3000, 2000))):
        whole, part = pixels_of(picture), pixels_of(picture, (5, 6, 50, 40))
        np.testing.assert_array_equal(whole, np.asarray(picture))
        np.testing.assert_array_equal(part, np.asarray(picture)[6:40, 5:50])
        assert not whole.flags.writeable
    small = Image.fromarray(array)
    view = pixels_of(small)
    assert view.strides == (4 * 80, 4, 1)
    del small
    np.testing.assert_array_equal(view, array)
    with pytest.raises(ValueError, match="wanted RGB"):
        pixels_of(Image.fromarray(array[..., 0]))

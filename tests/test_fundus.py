"""The field of view is found, fitted to the canvas, and every step is undone exactly.

Run: pytest tests/test_fundus.py
"""

from pathlib import Path

import apertures
import numpy as np
import pytest
from apertures import CAMERAS
from PIL import Image
from scipy import ndimage

from segpipe.data import fundus, synthetic
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


def field_by_scipy(image: np.ndarray) -> np.ndarray | None:
    """The search written plainly up to the region that is mended, with floats and scipy.

    None where there is no field. For photographs without a light frame.
    """
    height, width = image.shape[:2]
    factor = max(1, -(-max(height, width) // fundus.SEARCH_PX))
    small = Image.fromarray(image).reduce(factor) if factor > 1 else Image.fromarray(image)
    assert fundus.light_frame(np.asarray(small)) is None
    levels = np.asarray(small).max(axis=2).astype(np.float32)
    light = np.sqrt(levels)
    frame = np.percentile(light, 1)
    if light.max() < fundus.BLACK:
        return None
    if frame > fundus.BLACK:
        side = max(2, round(fundus.CORNER * min(light.shape)))
        corners = [part[:, end] for part in (light[:side], light[-side:]) for end in _ends(side)]
        frame = sorted(np.sqrt(np.median(corner**2)) for corner in corners)[1]
    if frame > fundus.BLACK:
        return np.ones((height, width), bool)
    counts, edges = np.histogram(light, bins=64)
    values, between = (edges[:-1] + edges[1:]) / 2, []
    for cut in range(1, 64):
        below, above = counts[:cut].sum(), counts[cut:].sum()
        means = (
            counts[:cut] @ values[:cut] / max(below, 1),
            counts[cut:] @ values[cut:] / max(above, 1),
        )
        between.append(below * above * (means[0] - means[1]) ** 2)
    otsu = edges[1 + np.argmax(between)]
    nearby = ndimage.maximum_filter(levels, 5, mode="nearest")
    lit = (light > frame + (otsu - frame) / 2) & (
        levels >= frame**2 + fundus.RIM_SHARE * (nearby - frame**2)
    )
    regions, num = ndimage.label(ndimage.binary_opening(lit, iterations=fundus.OPENING_PX))
    if not num:
        return None
    region = ndimage.binary_fill_holes(regions == 1 + np.argmax(np.bincount(regions.ravel())[1:]))
    if region.mean() < fundus.SMALLEST_FIELD:
        return None
    grey = Image.fromarray(fundus.mended(region, light - np.float32(frame)))
    size = region.shape[1] * factor, region.shape[0] * factor
    return np.asarray(grey.resize(size, Image.Resampling.BILINEAR))[:height, :width] > 127


def _ends(side: int) -> tuple[slice, slice]:
    return slice(0, side), slice(-side, None)


def assert_found_as_by_scipy(image: np.ndarray, name: str) -> None:
    try:
        found = fundus.find_fov(image)
    except RejectedImage:
        assert field_by_scipy(image) is None, name
    else:
        plain = field_by_scipy(image)
        assert plain is not None, name
        assert (found != plain).mean() < 1e-4, name  # soft pixels are rounded in another way


def test_the_fields_of_drawn_photographs_are_those_of_the_plain_search():
    rng = np.random.default_rng(0)
    for seed, (height, width) in enumerate(rng.integers(200, 1600, (12, 2))):
        image, _, _ = synthetic.draw_fundus(seed, int(height), int(width))
        assert_found_as_by_scipy(image, f"drawn {seed}")


def test_the_field_of_any_clouds_is_that_of_the_plain_search():
    """Also of regions with holes, at the border, of one size, and of none."""
    rng, num_found = np.random.default_rng(0), 0
    for trial in range(100):
        height, width = (int(side) for side in rng.integers(16, 900, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (*rng.integers(2, 20, 2), 3), np.uint8))
        clouds = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR), float)
        clouds = (clouds - rng.uniform(0, 255)) * rng.uniform(0.1, 2)
        noise = rng.normal(0, rng.uniform(0, 20), clouds.shape)
        image = (clouds + noise).clip(0, 255).astype(np.uint8)
        assert_found_as_by_scipy(image, f"trial {trial}")
        num_found += field_by_scipy(image) is not None
    assert 50 < num_found < 100


def test_the_fields_of_drive_and_stare_are_those_of_the_plain_search(drive: Path):
    paths = [*drive.glob("*/images/*.tif"), *drive.parent.glob("STARE/stare-images/*.ppm")]
    assert len(paths) >= 40
    for path in paths:
        assert_found_as_by_scipy(np.asarray(Image.open(path)), path.name)


def test_the_official_fields_of_drive_are_found(drive: Path):
    for path in sorted(drive.glob("*/images/*.tif")):
        mask = path.parent.parent / "mask" / f"{path.stem}_mask.gif"
        official = np.asarray(Image.open(mask).convert("L")) > 127
        found = fundus.find_fov(np.asarray(Image.open(path)))
        assert overlap(found, official) > 0.985, path.name


def assert_found(name: str, shorter: int, longer: int, portrait: bool) -> None:
    camera = CAMERAS[name]
    drawn = apertures.draw(camera, shorter, longer, portrait)
    found = fundus.find_fov(drawn.image)
    assert overlap(found, drawn.fov) >= camera.least
    if camera.least >= 0.98:
        assert fundus.fov_diameter(found) == pytest.approx(drawn.diameter, rel=0.02)


@pytest.mark.parametrize("portrait", [False, True])
@pytest.mark.parametrize("name", CAMERAS)
def test_the_field_of_every_camera_is_found(name, portrait):
    assert_found(name, 480, 640, portrait)


@pytest.mark.parametrize("name", CAMERAS)
def test_the_field_of_every_camera_is_found_in_a_nearly_square_frame(name):
    assert_found(name, 960, 999, False)


@pytest.mark.parametrize(
    "name", ["round", "round, cut on all sides inside the frame", "octagon", "white frame"]
)
def test_the_field_is_found_in_twelve_megapixels(name):
    assert_found(name, 2848, 4288, False)


@pytest.mark.parametrize(
    "name", ["round, cut above and below inside the frame", "shadow on one side", "white frame"]
)
def test_a_reduced_photograph_has_the_field_of_the_whole(name):
    image = apertures.draw(CAMERAS[name], 1400, 2001).image
    whole = fundus.find_fov(image)
    picture = Image.fromarray(image)
    found = fundus.find_fov(picture.reduce(4), 4)
    found = np.kron(found, np.ones((4, 4), bool))[:1400, :2001]
    assert overlap(found, whole) > 0.985


def test_a_circle_is_fitted_through_dents_bumps_and_cuts():
    """To a fifth of a pixel, though 40 % of the rim is not on it."""
    fov = disc((280, 300), 110, off=(3.3, -7.6))
    fov[:70] = False
    fov[150:190, :80] = False
    fov[200:230, 200:250] = True
    circle = fundus.fit_circle(fov)
    assert circle is not None
    wanted = 299 / 2 - 7.6, 279 / 2 + 3.3, 110
    np.testing.assert_allclose((circle.x, circle.y, circle.radius), wanted, atol=0.2)


@pytest.mark.parametrize("shape", ["square", "rounded", "octagon"])
def test_no_circle_is_fitted_to_a_field_with_corners(shape):
    camera = apertures.Camera(shape, 0.45)
    assert fundus.fit_circle(apertures.draw(camera, 240, 300).fov) is None


def test_no_circle_is_fitted_to_what_has_no_rim_or_a_straight_or_a_short_one():
    whole = np.ones((200, 300), bool)
    assert fundus.fit_circle(whole) is None
    assert fundus.fit_circle(np.zeros((200, 300), bool)) is None
    half = whole.copy()
    half[:, 150:] = False
    assert fundus.fit_circle(half) is None
    half[::7, 150] = True
    assert fundus.fit_circle(half) is None
    assert fundus.fit_circle(disc((200, 300), 400, off=(330, 0))) is None


@pytest.mark.parametrize("size", [(300, 400), (1000, 1333)])
def test_the_diameter_of_a_field_cut_off_on_both_axes_is_its_circles(size):
    radius = 0.58 * size[1]
    fov = disc(size, radius)
    assert fov[0, size[1] // 2]
    assert fov[size[0] // 2, 0]
    assert not fov[0, 0]
    assert fundus.fov_diameter(fov) == pytest.approx(2 * radius, rel=0.005)
    geometry = fundus.plan_fit(fov, DIAMETER)
    wanted = DIAMETER / (2 * radius) * size[1]
    assert geometry.scaled_width == pytest.approx(wanted, rel=0.01)


def test_the_official_fields_of_drive_are_fitted_by_their_larger_extent(drive: Path):
    """Networks were trained on canvases so fitted: box and scale of all 40, to the pixel."""
    masks = sorted(drive.glob("*/mask/*_mask.gif"))
    assert len(masks) == 40
    for path in masks:
        fov = np.asarray(Image.open(path).convert("L")) > 127
        top, left, bottom, right = fundus.fov_box(fov)
        extent = max(bottom - top, right - left)
        assert fundus.fov_diameter(fov) == extent, path.name
        for diameter in (512.0, DIAMETER, 608.0):
            scale = 1.0 if abs(diameter / extent - 1) <= 0.02 else diameter / extent
            margin = round(6 / scale)
            top_, left_ = max(0, top - margin), max(0, left - margin)
            box = min(584, bottom + margin) - top_, min(565, right + margin) - left_
            scaled = round(box[0] * scale), round(box[1] * scale)
            wanted = fundus.Geometry(584, 565, top_, left_, *box, *scaled)
            assert fundus.plan_fit(fov, diameter) == wanted, path.name


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


@pytest.mark.parametrize("size", [(500, 500), (584, 565), (605, 700), (1000, 1500)])
def test_a_mask_is_that_of_score_and_field_restored_to_the_whole_frame(size):
    """Bit for bit, the rule written plainly, and compiled; also for a field that is cut off."""
    rng = np.random.default_rng(0)
    for share, off in ((0.45, (0, 0)), (0.48, (30, -40)), (0.55, (0, 0))):
        fov = disc(size, share * min(size), off)
        geometry = fundus.plan_fit(fov, DIAMETER)
        side = fundus.canvas_side(DIAMETER)
        score = rng.random((side, side), np.float32)
        soft = fundus.fit_fov(fov, geometry, side)
        inside = fundus.restore(soft.astype(np.float32), geometry) > 127
        vessel = fundus.restore(score, geometry) >= np.float32(0.3)
        wanted = np.where(inside, np.where(vessel, 1, 2), 0)
        mask = fundus.plain_native_mask(score, soft, geometry, 0.3)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, wanted)
        compiled = fundus.native_mask(score, soft, geometry, 0.3)  # up to rounding
        assert (compiled != wanted).mean() < 1e-5


SIZES = [(500, 500), (584, 565), (700, 500), (605, 700), (1000, 1500), (2336, 3504), (4000, 3000)]


def disc(size: tuple[int, int], radius: float, off: tuple[int, int] = (0, 0)) -> np.ndarray:
    rows, columns = np.ogrid[: size[0], : size[1]]
    centre = (size[0] - 1) / 2 + off[0], (size[1] - 1) / 2 + off[1]
    return np.hypot(rows - centre[0], columns - centre[1]) <= radius


def test_all_forty_official_fields_of_drive_are_there(drive: Path):
    """The comparison with the official fields above compares all of them."""
    pairs = [
        (path.name, (path.parent.parent / "mask" / f"{path.stem}_mask.gif").exists())
        for path in drive.glob("*/images/*.tif")
    ]
    assert len(pairs) == 40
    assert all(there for _, there in pairs)


def test_a_field_larger_than_its_frame_is_found_with_its_black_corners():
    image, fov = photograph(600, 600, 380)
    assert not fov[0, 0]
    assert fov[0, 300]
    assert overlap(fundus.find_fov(image), fov) > 0.98


def test_a_field_off_the_centre_is_found_where_it_is():
    fov = disc((600, 900), 230, off=(40, -180))
    image = np.where(fov[..., None], (180, 90, 40), (3, 3, 3)).astype(np.uint8)
    assert overlap(fundus.find_fov(image), fov) > 0.98


def test_a_dark_frame_with_a_small_light_only_is_rejected():
    image = np.zeros((400, 400, 3), np.uint8)
    image[180:220, 180:220] = 200
    with pytest.raises(RejectedImage, match="% of the image is lit"):
        fundus.find_fov(image)


def test_a_dark_spot_in_the_field_belongs_to_it():
    """A large haemorrhage, as dark as the frame."""
    image, fov = photograph(600, 600, 260)
    dark = disc((600, 600), 60, off=(30, -50))
    image[dark] = 3
    found = fundus.find_fov(image)
    assert found[dark].all()
    assert overlap(found, fov) > 0.98


def test_an_empty_given_field_is_rejected():
    with pytest.raises(RejectedImage, match="empty"):
        fundus.plan_fit(np.zeros((50, 50), bool), DIAMETER)


@pytest.mark.parametrize("diameter", [64.0, 200.0, 333.3, 540.0, 1000.0])
@pytest.mark.parametrize("share", [0.981, 1.0, 1.019, 0.5, 3.0])
def test_every_field_fits_on_its_canvas(diameter, share):
    """Also a field that is up to 2 % too large and so not resampled; sides are multiples of 32."""
    side = fundus.canvas_side(diameter)
    assert side % 32 == 0
    room = round(diameter * share) + 40
    fov = disc((room, room), diameter * share / 2)
    geometry = fundus.plan_fit(fov, diameter)
    canvas = fundus.fit_fov(fov, geometry, side)
    assert max(geometry.scaled_height, geometry.scaled_width) <= side
    wanted = fov.sum() * (geometry.scaled_height / geometry.box_height) ** 2
    assert (canvas > 127).sum() == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.36, 0.42])
def test_the_field_has_the_working_diameter_within_a_pixel(size, share):
    fov = disc(size, share * min(size))
    geometry = fundus.plan_fit(fov, DIAMETER)
    canvas = fundus.fit_fov(fov, geometry, fundus.canvas_side(DIAMETER))
    assert geometry.resampled
    assert abs(fundus.fov_diameter(canvas > 127) - DIAMETER) <= 1


@pytest.mark.parametrize("size", SIZES)
def test_a_spot_comes_back_within_two_pixels(size):
    """Measured in native pixels, on a canvas where a pixel may stand for seven of them."""
    fov = disc(size, 0.44 * min(size), off=(7, -11))
    geometry = fundus.plan_fit(fov, DIAMETER)
    at = size[0] // 2 + min(size) // 5, size[1] // 2 - min(size) // 6
    spot = disc(size, max(4, min(size) / 80), (at[0] - size[0] / 2, at[1] - size[1] / 2))
    image = np.repeat(spot[..., None] * np.uint8(255), 3, axis=2)
    canvas = fundus.fit_image(image, geometry, fundus.canvas_side(DIAMETER))
    native = fundus.restore(canvas[..., 1].astype(np.float32), geometry)
    away = np.subtract(ndimage.center_of_mass(native), ndimage.center_of_mass(spot))
    assert np.hypot(*away) < 2


def test_scores_are_put_at_their_own_pixels_and_nothing_beside_the_box():
    """A field in a corner of a larger frame, not resampled: a score at (r, c) of the canvas."""
    fov = disc((700, 900), 270, off=(50, 120))
    geometry = fundus.plan_fit(fov, DIAMETER)
    assert not geometry.resampled
    rows, columns = np.flatnonzero(fov.any(1)), np.flatnonzero(fov.any(0))
    canvas = np.random.default_rng(5).random((576, 576), np.float32)
    native = fundus.restore(canvas, geometry)
    top, left = rows[0] - fundus.MARGIN_PX, columns[0] - fundus.MARGIN_PX
    bottom, right = rows[-1] + 1 + fundus.MARGIN_PX, columns[-1] + 1 + fundus.MARGIN_PX
    wanted = np.zeros((700, 900), np.float32)
    wanted[top:bottom, left:right] = canvas[: bottom - top, : right - left]
    np.testing.assert_array_equal(native, wanted)


def test_class_pixels_are_the_nearest_ones_of_the_box():
    """Against indices written out: pixel i of the canvas is the one its centre falls into."""
    label = np.random.default_rng(6).choice(np.array([0, 1, 2], np.uint8), (900, 700))
    geometry = fundus.plan_fit(disc((900, 700), 320), DIAMETER)
    g = geometry
    assert g.resampled
    rows = g.top + ((np.arange(g.scaled_height) + 0.5) * g.box_height / g.scaled_height).astype(int)
    columns = g.left + ((np.arange(g.scaled_width) + 0.5) * g.box_width / g.scaled_width).astype(
        int
    )
    canvas = fundus.fit_classes(label, geometry, 576)
    np.testing.assert_array_equal(
        canvas[: g.scaled_height, : g.scaled_width], label[np.ix_(rows, columns)]
    )
    assert not canvas[g.scaled_height :].any()
    assert not canvas[:, g.scaled_width :].any()

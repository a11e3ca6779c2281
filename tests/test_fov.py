"""The field of view is found.

Run: pytest tests/test_fov.py
"""

from pathlib import Path

import apertures
import numpy as np
import pytest
from apertures import CAMERAS, disc, overlap, photograph
from PIL import Image
from scipy import ndimage

from segpipe.data import synthetic
from segpipe.data.canvas import plan_fit
from segpipe.data.fov import (
    BLACK,
    CORNER,
    OPENING_PX,
    RIM_SHARE,
    SEARCH_PX,
    SMALLEST_FIELD,
    find_fov,
    fov_diameter,
    light_frame,
    mended,
)
from segpipe.errors import RejectedImage

DIAMETER = 540.0


@pytest.mark.parametrize(
    ("height", "width", "radius", "cut"),
    [(584, 565, 270, 1.0), (500, 700, 240, 1.0), (600, 800, 330, 0.85), (2000, 3000, 950, 1.0)],
)
def test_a_drawn_field_is_found(height, width, radius, cut):
    image, fov = photograph(height, width, radius, noise=6.0, cut=cut)
    assert overlap(find_fov(image), fov) > 0.98


def test_a_field_with_a_bright_speck_outside_and_a_dark_spot_inside_is_one_disc():
    image, fov = photograph(600, 600, 260)
    image[5:12, 5:12] = 255
    image[280:320, 280:320] = 2
    assert overlap(find_fov(image), fov) > 0.98


def test_a_photograph_without_a_frame_is_field_all_over():
    assert find_fov(np.full((300, 400, 3), (150, 80, 40), np.uint8)).all()


def test_a_black_image_is_rejected():
    with pytest.raises(RejectedImage, match="black"):
        find_fov(np.zeros((300, 300, 3), np.uint8))


def field_by_scipy(image: np.ndarray) -> np.ndarray | None:
    """The search written plainly up to the region that is mended, with floats and scipy.

    None where there is no field. For photographs without a light frame.
    """
    height, width = image.shape[:2]
    factor = max(1, -(-max(height, width) // SEARCH_PX))
    small = Image.fromarray(image).reduce(factor) if factor > 1 else Image.fromarray(image)
    assert light_frame(np.asarray(small)) is None
    levels = np.asarray(small).max(axis=2).astype(np.float32)
    light = np.sqrt(levels)
    frame = np.percentile(light, 1)
    if light.max() < BLACK:
        return None
    if frame > BLACK:
        side = max(2, round(CORNER * min(light.shape)))
        corners = [part[:, end] for part in (light[:side], light[-side:]) for end in _ends(side)]
        frame = sorted(np.sqrt(np.median(corner**2)) for corner in corners)[1]
    if frame > BLACK:
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
        levels >= frame**2 + RIM_SHARE * (nearby - frame**2)
    )
    regions, num = ndimage.label(ndimage.binary_opening(lit, iterations=OPENING_PX))
    if not num:
        return None
    region = ndimage.binary_fill_holes(regions == 1 + np.argmax(np.bincount(regions.ravel())[1:]))
    if region.mean() < SMALLEST_FIELD:
        return None
    grey = Image.fromarray(mended(region, light - np.float32(frame)))
    size = region.shape[1] * factor, region.shape[0] * factor
    return np.asarray(grey.resize(size, Image.Resampling.BILINEAR))[:height, :width] > 127


def _ends(side: int) -> tuple[slice, slice]:
    return slice(0, side), slice(-side, None)


def assert_found_as_by_scipy(image: np.ndarray, name: str) -> None:
    try:
        found = find_fov(image)
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
        found = find_fov(np.asarray(Image.open(path)))
        assert overlap(found, official) > 0.985, path.name


def assert_found(name: str, shorter: int, longer: int, portrait: bool) -> None:
    camera = CAMERAS[name]
    drawn = apertures.draw(camera, shorter, longer, portrait)
    found = find_fov(drawn.image)
    assert overlap(found, drawn.fov) >= camera.least
    if camera.least >= 0.98:
        assert fov_diameter(found) == pytest.approx(drawn.diameter, rel=0.02)


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
    whole = find_fov(image)
    picture = Image.fromarray(image)
    found = find_fov(picture.reduce(4), 4)
    found = np.kron(found, np.ones((4, 4), bool))[:1400, :2001]
    assert overlap(found, whole) > 0.985


@pytest.mark.parametrize("size", [(300, 400), (1000, 1333)])
def test_the_diameter_of_a_field_cut_off_on_both_axes_is_its_circles(size):
    radius = 0.58 * size[1]
    fov = disc(size, radius)
    assert fov[0, size[1] // 2]
    assert fov[size[0] // 2, 0]
    assert not fov[0, 0]
    assert fov_diameter(fov) == pytest.approx(2 * radius, rel=0.005)
    geometry = plan_fit(fov, DIAMETER)
    wanted = DIAMETER / (2 * radius) * size[1]
    assert geometry.scaled_width == pytest.approx(wanted, rel=0.01)


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
    assert overlap(find_fov(image), fov) > 0.98


def test_a_field_off_the_centre_is_found_where_it_is():
    fov = disc((600, 900), 230, off=(40, -180))
    image = np.where(fov[..., None], (180, 90, 40), (3, 3, 3)).astype(np.uint8)
    assert overlap(find_fov(image), fov) > 0.98


def test_a_dark_frame_with_a_small_light_only_is_rejected():
    image = np.zeros((400, 400, 3), np.uint8)
    image[180:220, 180:220] = 200
    with pytest.raises(RejectedImage, match="% of the image is lit"):
        find_fov(image)


def test_a_dark_spot_in_the_field_belongs_to_it():
    """A large haemorrhage, as dark as the frame."""
    image, fov = photograph(600, 600, 260)
    dark = disc((600, 600), 60, off=(30, -50))
    image[dark] = 3
    found = find_fov(image)
    assert found[dark].all()
    assert overlap(found, fov) > 0.98

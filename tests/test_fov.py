"""The field of view is found.

Run: pytest tests/test_fov.py
"""

from collections.abc import Iterable
from pathlib import Path

import apertures
import numpy as np
import pytest
from apertures import CAMERAS, disc, overlap, photograph
from PIL import Image
from scipy import ndimage

from segpipe.data import synthetic
from segpipe.data.canvas import plan_fit
from segpipe.data.fov import BLACK, RIM_SHARE, SEARCH_PX, _lit, find_field, find_fov, fov_diameter
from segpipe.data.frames import CORNER
from segpipe.data.regions import OPENING_PX, largest_region
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


def lit_by_scipy(levels: np.ndarray) -> np.ndarray:
    """The largest lit region written plainly, with floats and scipy."""
    levels = levels.astype(np.float32)
    light = np.sqrt(levels)
    frame = np.percentile(light, 1)
    if frame > BLACK:
        side = max(2, round(CORNER * min(light.shape)))
        ends = slice(0, side), slice(-side, None)
        corners = [light[rows, columns] for rows in ends for columns in ends]
        frame = sorted(np.sqrt(np.median(corner**2)) for corner in corners)[1]
    if frame > BLACK:
        return np.ones(light.shape, bool)
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
        return np.zeros(light.shape, bool)
    return ndimage.binary_fill_holes(regions == 1 + np.argmax(np.bincount(regions.ravel())[1:]))


def assert_lit_as_by_scipy(image: np.ndarray, name: str) -> None:
    factor = max(1, -(-max(image.shape) // SEARCH_PX))
    levels = np.asarray(Image.fromarray(image).reduce(factor)).max(axis=2)
    region = largest_region(_lit(levels)[1])
    assert (region != lit_by_scipy(levels)).mean() < 1e-4, name


def test_the_lit_regions_of_drawn_photographs_are_those_of_the_plain_search():
    rng = np.random.default_rng(0)
    for seed, (height, width) in enumerate(rng.integers(200, 1600, (12, 2))):
        image, _, _ = synthetic.draw_fundus(seed, int(height), int(width))
        assert_lit_as_by_scipy(image, f"drawn {seed}")


def test_the_lit_region_of_any_clouds_is_that_of_the_plain_search():
    """Also of regions with holes, at the border, of one size, and of none; and a field is found
    in them, or they are rejected."""
    rng, num_found = np.random.default_rng(0), 0
    for trial in range(100):
        height, width = (int(side) for side in rng.integers(16, 900, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (*rng.integers(2, 20, 2), 3), np.uint8))
        clouds = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR), float)
        clouds = (clouds - rng.uniform(0, 255)) * rng.uniform(0.1, 2)
        noise = rng.normal(0, rng.uniform(0, 20), clouds.shape)
        image = (clouds + noise).clip(0, 255).astype(np.uint8)
        if image.any():
            assert_lit_as_by_scipy(image, f"trial {trial}")
        try:
            found = find_field(image)
        except RejectedImage:
            continue
        num_found += 1
        assert found.fov.shape == image.shape[:2]
        assert found.uncertain_fraction + found.second_fraction + found.fov.mean() < 1.02
    assert 50 < num_found < 100


def test_the_lit_regions_of_drive_and_stare_are_those_of_the_plain_search(drive: Path):
    paths = [*drive.glob("*/images/*.tif"), *drive.parent.glob("STARE/stare-images/*.ppm")]
    assert len(paths) >= 40
    for path in paths:
        assert_lit_as_by_scipy(np.asarray(Image.open(path)), path.name)


def test_the_fields_of_stare_are_found(drive: Path):
    """Scans whose frames have two dark tones; nothing was chosen on them."""
    masks = sorted(drive.parent.glob("STARE/mask/*_mask.gif"))
    for mask in masks:
        image = mask.parents[1] / "stare-images" / f"{mask.name.removesuffix('_mask.gif')}.ppm"
        official = np.asarray(Image.open(mask).convert("L")) > 127
        assert overlap(find_fov(np.asarray(Image.open(image))), official) > 0.985, image.name


@pytest.mark.parametrize("padded", [False, True])
def test_the_fields_of_brightened_photographs_are_found(drive: Path, padded):
    """Their black frames become grey, beside rows that stay black, or padding."""
    for number in range(21, 41):
        image = np.asarray(Image.open(drive / f"training/images/{number}_training.tif"))
        mask = Image.open(drive / f"training/mask/{number}_training_mask.gif").convert("L")
        bright, fov = (255 * (image / 255) ** 0.5).astype(np.uint8), np.asarray(mask) > 127
        if padded:
            bright = np.pad(bright, ((30, 0), (0, 70), (0, 0)))
            fov = np.pad(fov, ((30, 0), (0, 70)))
        assert overlap(find_fov(bright), fov) > 0.98, number


@pytest.mark.nightly
@pytest.mark.parametrize("level", range(40, 101, 2))
def test_a_field_is_found_in_every_grey_frame_that_is_padded(level):
    rng = np.random.default_rng(level)
    for trial in range(12):
        sides = rng.uniform(0.03, 0.25, 4) * (rng.permutation(4) <= trial % 4)
        camera = apertures.Camera(
            radius=rng.uniform(0.36, 0.49),
            cuts=(*rng.uniform(0.75, 0.95, 2), 9, 9) if trial % 3 == 0 else (9, 9, 9, 9),
            shift=(rng.uniform(-0.05, 0.05), rng.uniform(-0.1, 0.1)) if trial % 3 == 1 else (0, 0),
            frame=level,
            grain=rng.choice([0, 2, 5, 8]),
            falloff=rng.choice([0.1, 0.25, 0.4]),
            exposure=rng.choice([1.0, 0.8, 0.65]),
            pads=tuple(sides),
        )
        drawn = apertures.draw(camera, 480, 640, seed=level + trial)
        assert overlap(find_fov(drawn.image), drawn.fov) >= 0.98, (level, trial)


def test_the_official_fields_of_drive_are_found(drive: Path):
    for path in sorted(drive.glob("*/images/*.tif")):
        mask = path.parent.parent / "mask" / f"{path.stem}_mask.gif"
        official = np.asarray(Image.open(mask).convert("L")) > 127
        found = find_fov(np.asarray(Image.open(path)))
        assert overlap(found, official) > 0.985, path.name


def some(names: Iterable[str], every: int) -> list[object]:
    """One of so many cases for each test, and all of them by night."""
    nightly = pytest.mark.nightly
    return [pytest.param(n, marks=[nightly] if i % every else []) for i, n in enumerate(names)]


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


@pytest.mark.parametrize("name", some(CAMERAS, every=3))
def test_the_field_of_every_camera_is_found_in_a_nearly_square_frame(name):
    assert_found(name, 960, 999, False)


@pytest.mark.parametrize(
    "name", some(["round", "white frame", "octagon", "round, cut on all sides inside the frame"], 2)
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


@pytest.mark.parametrize("height", [6, 12])
def test_a_black_picture_with_a_thin_rule_has_no_field(height):
    picture = np.zeros((1000, 1500, 3), np.uint8)
    picture[:height] = 255
    with pytest.raises(RejectedImage):
        find_fov(picture)

"""Augmented crops: where each pixel comes from and what colour it gets, against other means.

Run: pytest tests/test_augmentation.py
"""

import colorsys
import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from itertools import permutations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats

from segpipe.data import synthetic
from segpipe.data.crops import (
    AUGMENTATIONS,
    Augmentation,
    Change,
    crop,
    crop_corner,
    downscale,
    draw_change,
    rotate,
    tint,
)

ONE = (1.0, 1.0)
STILL = Augmentation(0.0, 0.0, (0.0, 0.0), ONE, ONE, ONE, ONE, (0.0, 0.0))  # changes nothing
AS_IS = Change(False, False, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0)
SIZE = 64


@pytest.fixture(scope="module")
def photograph() -> tuple[np.ndarray, np.ndarray]:
    """A drawn photograph [200, 180, 3] and its label, its field cut off on all sides."""
    image, vessel, fov = synthetic.draw_fundus(4, 200, 180, diameter=230)
    return image, np.where(fov, np.where(vessel, 1, 2), 0).astype(np.uint8)


def window(photograph, index: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    image, label = photograph
    top, left = crop_corner(3, 1, index, k, *label.shape, SIZE)
    return image[top : top + SIZE, left : left + SIZE], label[top : top + SIZE, left : left + SIZE]


@pytest.mark.parametrize("augmentation", [None, STILL])
@pytest.mark.parametrize("k", range(5))
def test_without_change_a_crop_is_the_plain_window(photograph, augmentation, k):
    image, label = crop(*photograph, 3, 1, 2, k, SIZE, augmentation)
    wanted_image, wanted_label = window(photograph, 2, k)
    np.testing.assert_array_equal(image, wanted_image)
    np.testing.assert_array_equal(label, wanted_label)


def test_without_augmentation_nothing_is_copied(photograph):
    image, label = crop(*photograph, 3, 1, 2, 0, SIZE)
    assert np.shares_memory(image, photograph[0])
    assert np.shares_memory(label, photograph[1])


def test_a_crop_that_does_not_fit_is_an_error(photograph):
    with pytest.raises(ValueError, match="181 px does not fit into 180x200 px"):
        crop(*photograph, 0, 0, 0, 0, 181, Augmentation())


@pytest.mark.parametrize("size", [SIZE, SIZE + 1])
@pytest.mark.parametrize("quarters", range(-1, 4))
@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("vflip", [False, True])
def test_mirrors_and_right_angles_are_those_of_numpy(photograph, size, quarters, hflip, vflip):
    """First the mirrors, then the rotation counter-clockwise."""
    degrees = (90.0 * quarters, 90.0 * quarters)
    ranges = replace(STILL, hflip=hflip, vflip=vflip, rotation=degrees)
    got = crop(*photograph, 3, 1, 0, 1, size, ranges)
    top, left = crop_corner(3, 1, 0, 1, 200, 180, size)
    for found, whole in zip(got, photograph, strict=True):
        wanted = whole[top : top + size, left : left + size]
        wanted = np.fliplr(wanted) if hflip else wanted
        wanted = np.flipud(wanted) if vflip else wanted
        np.testing.assert_array_equal(found, np.rot90(wanted, quarters))


@pytest.mark.parametrize("degrees", [-45.0, -17.0, 0.0, 30.0, 45.0])
@pytest.mark.parametrize("scale", [0.95, 1.0, 1.2])
@pytest.mark.parametrize("hflip", [False, True])
def test_a_point_goes_where_trigonometry_says(degrees, scale, hflip):
    """A spot east-north-east of the centre, by its polar angle; y points down in the picture."""
    size, top, left = 141, 60, 40
    distance, angle = 31.0, 20.0  # px, degrees above the x axis
    y, x = np.mgrid[:260, :240]
    spot_x = left + 70 + distance * math.cos(math.radians(angle))
    spot_y = top + 70 - distance * math.sin(math.radians(angle))
    spot = np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / (2 * 6.0**2))
    image = np.repeat(np.rint(250 * spot).astype(np.uint8)[..., None], 3, axis=2)
    label = np.where(spot > 0.3, 1, 2).astype(np.uint8)
    change = replace(AS_IS, hflip=hflip, rotation=degrees, scale=scale)
    turned, turned_label = rotate(image, label, top, left, size, change)
    heading = math.radians((180 - angle if hflip else angle) + degrees)
    wanted = 70 + scale * distance * math.cos(heading), 70 - scale * distance * math.sin(heading)
    rows, columns = np.mgrid[:size, :size]
    for weights in (turned[..., 0].astype(float), (turned_label == 1).astype(float)):
        centre = (weights * columns).sum(), (weights * rows).sum()
        found = np.array(centre) / weights.sum()
        assert np.abs(found - wanted).max() < 0.15
    area = (turned_label == 1).sum() / (label == 1).sum()
    assert area == pytest.approx(scale**2, rel=0.05)


@pytest.mark.parametrize("k", range(20))
def test_image_and_label_stay_aligned(k):
    """The same disc in both, anywhere, also beyond the crop's and the photograph's edges."""
    y, x = np.mgrid[:150, :140]
    disc = np.hypot(y - 70, x - 66) < 60
    image = np.repeat(disc[..., None] * np.uint8(200), 3, axis=2)
    grey = replace(Augmentation(), brightness=ONE, contrast=ONE, saturation=ONE, hue=(0.0, 0.0))
    turned, turned_label = crop(image, disc.astype(np.uint8), 5, 0, 0, k, 96, grey)
    lit, level = turned[..., 0] > 100, turned[..., 0]
    assert (lit != turned_label).mean() < 0.01
    certain = (level == 0) | (level == 200)  # no bilinear mixture
    assert certain.mean() > 0.9
    np.testing.assert_array_equal(lit[certain], turned_label[certain] == 1)


def test_every_pixel_is_a_bilinear_mean_of_the_photograph(photograph):
    """Against the definition in float64, with nothing outside: corners, rims and the middle."""
    image, label = photograph
    for top, left, change in (
        (0, 0, replace(AS_IS, rotation=33.0, scale=0.95, hflip=True)),
        (136, 116, replace(AS_IS, rotation=-44.0, scale=1.1, vflip=True)),
        (60, 50, replace(AS_IS, rotation=12.0, scale=1.2)),
    ):
        got, got_label = rotate(image, label, top, left, SIZE, change)
        angle, middle = math.radians(change.rotation), (SIZE - 1) / 2
        rows, columns = np.mgrid[:SIZE, :SIZE] - middle
        right = (columns * math.cos(angle) - rows * math.sin(angle)) / change.scale
        down = (columns * math.sin(angle) + rows * math.cos(angle)) / change.scale
        x = left + middle + (-right if change.hflip else right)
        y = top + middle + (-down if change.vflip else down)
        padded = np.pad(image.astype(float), ((90, 90), (90, 90), (0, 0)))
        x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
        fx, fy = (x - x0)[..., None], (y - y0)[..., None]
        at = {(i, j): padded[y0 + i + 90, x0 + j + 90] for i in (0, 1) for j in (0, 1)}
        wanted = (1 - fy) * ((1 - fx) * at[0, 0] + fx * at[0, 1])
        wanted += fy * ((1 - fx) * at[1, 0] + fx * at[1, 1])
        assert np.abs(got - wanted).max() < 5  # OpenCV may round a place to 1/32 px
        assert np.abs(got - wanted).mean() < 0.4
        padded_label = np.pad(label, 90)
        near = padded_label[np.rint(y).astype(int) + 90, np.rint(x).astype(int) + 90]
        assert (near != got_label).mean() < 0.002
        beyond = (x < -1) | (y < -1) | (x > label.shape[1]) | (y > label.shape[0])
        assert (got[beyond] == 0).all()
        assert (got_label[beyond] == 0).all()


def test_what_comes_from_beyond_the_photograph_is_black_and_outside():
    image, label = np.full((80, 80, 3), 180, np.uint8), np.full((80, 80), 2, np.uint8)
    turned, turned_label = crop(
        image, label, 0, 0, 0, 0, 80, replace(Augmentation(), rotation=(45.0, 45.0), scale=ONE)
    )
    for corner in np.s_[:10, :10], np.s_[-10:, :10], np.s_[:10, -10:], np.s_[-10:, -10:]:
        assert (turned[corner] == 0).all()
        assert (turned_label[corner] == 0).all()
    assert (turned_label[30:50, 30:50] == 2).all()


# ---- colours


@pytest.fixture(scope="module")
def retina() -> np.ndarray:
    """A window [64, 64, 3] all within the field of view."""
    image, _, _ = synthetic.draw_fundus(4, 200, 180, diameter=230)
    return image[60 : 60 + SIZE, 50 : 50 + SIZE]


@pytest.mark.parametrize("factor", [0.75, 0.9, 1.0, 1.1, 1.25])
@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_a_change_of_colour_is_pillows(retina, name, enhance, factor):
    got = tint(retina, replace(AS_IS, **{name: factor}))
    wanted = np.asarray(enhance(Image.fromarray(retina)).enhance(factor), int)
    assert np.abs(got - wanted).max() <= 2
    assert np.abs(got - wanted).mean() < 1


@pytest.mark.parametrize("turns", [-0.01, 0.01, 1 / 3, -0.25])
def test_a_turn_of_hue_is_colorsys(retina, turns):
    random = np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8)
    for image in (retina[:8], random):
        got = tint(np.ascontiguousarray(image), replace(AS_IS, hue=turns))
        for old, new in zip(image.reshape(-1, 3), got.reshape(-1, 3), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*(old / 255))
            wanted = 255 * np.array(colorsys.hsv_to_rgb((h + turns) % 1, s, v))
            assert np.abs(new - wanted).max() <= 1


def test_colours_change_in_their_order():
    """Brightness first, then contrast, saturation, hue; where levels are clipped it matters."""
    image = np.random.default_rng(2).integers(100, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    change = replace(AS_IS, brightness=1.25, contrast=0.75, saturation=1.25, hue=0.01)
    steps = ("brightness", "contrast", "saturation", "hue")
    got = tint(image, change).astype(int)
    for order in permutations(steps):
        one_by_one = image
        for name in order:
            one_by_one = tint(one_by_one, replace(AS_IS, **{name: getattr(change, name)}))
        assert (np.abs(got - one_by_one).max() == 0) == (order == steps), order


@pytest.mark.parametrize("k", range(40))
def test_black_stays_black_and_a_dark_frame_dark(k):
    """Pillow's contrast would turn black into grey, up to a quarter of the mean level."""
    change = draw_change(0, 0, 0, k, Augmentation())
    image = np.full((40, 40, 3), 200, np.uint8)
    image[:, :10], image[:, 10:20] = 0, 8
    got = tint(image, change)
    assert (got[:, :10] == 0).all()
    assert got[:, 10:20].max() <= 20


def test_a_pixels_colour_depends_on_its_own_and_the_mean_alone(photograph):
    """Not on its class or place: shuffled pixels get the same colours."""
    image = np.ascontiguousarray(photograph[0][:SIZE, :SIZE])
    order = np.random.default_rng(1).permutation(SIZE * SIZE)
    change = draw_change(0, 0, 0, 5, Augmentation())
    shuffled = image.reshape(-1, 3)[order].reshape(image.shape)
    got = tint(image, change).reshape(-1, 3)[order].reshape(image.shape)
    np.testing.assert_array_equal(tint(shuffled, change), got)


# ---- randomness


def digest(photograph) -> str:
    found = hashlib.sha256()
    for k in range(6):
        for array in crop(*photograph, 7, 2, 1, k, SIZE, Augmentation()):
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def test_other_processes_and_threads_give_the_same_bytes(photograph, tmp_path):
    image, label = photograph
    np.savez(tmp_path / "photograph.npz", image=image, label=label)
    program = (
        "import sys, hashlib, cv2, numpy as np\n"
        "from segpipe.data.crops import *\n"
        "cv2.setNumThreads(int(sys.argv[1]))\n"
        "p, found = np.load(sys.argv[2]), hashlib.sha256()\n"
        "for k in (3, 1, 0, 5, 2, 4):\n"  # in another order too
        "    crop(p['image'], p['label'], 7, 2, 1, k, 64, Augmentation())\n"
        "for k in range(6):\n"
        "    for a in crop(p['image'], p['label'], 7, 2, 1, k, 64, Augmentation()):\n"
        "        found.update(np.ascontiguousarray(a).tobytes())\n"
        "print(found.hexdigest())"
    )
    for threads in ("1", "2"):
        words = [sys.executable, "-c", program, threads, str(tmp_path / "photograph.npz")]
        printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert printed.strip() == digest(photograph)


@pytest.mark.parametrize("size", [64, 180])
def test_the_same_bytes_from_a_photograph_that_lies_otherwise_in_memory(photograph, size):
    """A read-only copy, and a view into a larger array."""
    image, label = photograph
    larger = np.zeros((300, 300, 3), np.uint8)
    larger[20:220, 30:210] = image
    view = larger[20:220, 30:210]
    view.flags.writeable = False
    for k in range(3):
        one = crop(image, label, 0, 0, 0, k, size, Augmentation())
        other = crop(view, label, 0, 0, 0, k, size, Augmentation())
        np.testing.assert_array_equal(one[0], other[0])


def test_no_two_of_seed_epoch_image_and_k_are_mixed_up():
    base = draw_change(1, 2, 3, 4, Augmentation())
    for at in ((2, 1, 3, 4), (1, 3, 2, 4), (1, 2, 4, 3), (9, 2, 3, 4), (1, 9, 3, 4), (1, 2, 9, 4)):
        assert draw_change(*at, Augmentation()) != base


RANGED = ("rotation", "scale", "brightness", "contrast", "saturation", "hue")
DRAWN = ("hflip", "vflip", *RANGED)


@pytest.fixture(scope="module")
def changes() -> list[Change]:
    return [draw_change(0, 0, n, k, Augmentation()) for n in range(160) for k in range(50)]


@pytest.mark.parametrize("name", RANGED)
def test_each_is_uniform_over_its_range(changes, name):
    low, high = getattr(Augmentation(), name)
    values = np.array([getattr(change, name) for change in changes])
    assert low <= values.min()
    assert values.max() <= high
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.001


def test_the_ranges_are_those_of_the_wnet():
    assert Augmentation() == Augmentation(
        0.5, 0.5, (-45, 45), (0.95, 1.2), (0.75, 1.25), (0.75, 1.25), (0.75, 1.25), (-0.01, 0.01)
    )


def test_half_are_flipped_each_way_and_no_two_depend_on_each_other(changes):
    values = np.array([[getattr(change, name) for name in DRAWN] for change in changes], float)
    for column in (0, 1):
        assert stats.binomtest(int(values[:, column].sum()), len(values)).pvalue > 0.001
    between = np.corrcoef(values.T) - np.eye(len(DRAWN))
    assert np.abs(between).max() < 4 / math.sqrt(len(values))


def test_the_place_does_not_depend_on_the_change(changes):
    corners = [crop_corner(0, 0, n, k, 584, 565, 224) for n in range(160) for k in range(50)]
    for place in zip(*corners, strict=True):
        for name in DRAWN:
            values = [getattr(change, name) for change in changes]
            assert stats.spearmanr(place, values).pvalue > 1e-4, name


def test_a_change_is_drawn_as_documented():
    """One stream for each crop, its numbers in the order of the fields."""
    ranges = Augmentation()
    for seed, epoch, image, k in ((0, 0, 0, 0), (5, 4, 3, 2)):
        rng = np.random.default_rng((seed, 2, epoch, image, k))
        wanted = [rng.random() < 0.5, rng.random() < 0.5]
        wanted += [rng.uniform(*getattr(ranges, name)) for name in RANGED]
        assert draw_change(seed, epoch, image, k, ranges) == Change(*wanted)


@pytest.mark.parametrize("name", RANGED)
def test_a_range_of_one_value_leaves_the_others_as_they_were(name):
    full = draw_change(3, 1, 4, 1, Augmentation())
    fixed = draw_change(3, 1, 4, 1, replace(Augmentation(), **{name: (0.5, 0.5)}))
    assert fixed == replace(full, **{name: 0.5})


def test_more_than_32767_px_are_no_limit():
    """OpenCV's own for the photograph, as only the part that is seen is given to it."""
    image = np.zeros((40, 40_000, 3), np.uint8)
    image[:, 39_970:] = 200
    label = (image[..., 0] > 0).astype(np.uint8)
    turned, turned_label = rotate(image, label, 0, 39_960, 40, AS_IS)
    np.testing.assert_array_equal(turned, image[:, 39_960:])
    np.testing.assert_array_equal(turned_label, label[:, 39_960:])


def test_a_rotation_turns_as_opencvs_own_matrix_does():
    """cv2.getRotationMatrix2D: counter-clockwise where y points down."""
    there = cv2.getRotationMatrix2D((0.0, 0.0), 30.0, 1.2)
    image = np.zeros((101, 101, 3), np.uint8)
    image[50, 80] = 255
    turned, _ = rotate(image, image[..., 0], 0, 0, 101, replace(AS_IS, rotation=30.0, scale=1.2))
    x, y = there[:, :2] @ (30.0, 0.0)
    found = np.unravel_index(turned[..., 0].argmax(), (101, 101))
    assert np.abs(np.array(found) - (50 + y, 50 + x)).max() < 1


# ---- other cameras


def test_gains_and_gamma_are_numpys_power_of_each_channel():
    """Alone they are one table of levels a channel."""
    image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    change = replace(AS_IS, gains=(0.8, 1.0, 1.25), gamma=1.4)
    wanted = 255 * (np.arange(256)[:, None] * np.array(change.gains) / 255) ** 1.4
    difference = tint(image, change)[0] - wanted.clip(max=255)
    assert np.abs(difference).max() <= 1.5  # saturation and contrast round once more each
    assert (tint(image, change)[0, 0] == 0).all()


@pytest.mark.parametrize("share", [0.125, 0.25, 0.5])  # elsewhere Pillow weighs edges otherwise
def test_downscaling_is_pillows_reduction_and_enlargement(photograph, share):
    image = photograph[0][:SIZE, :SIZE]
    small = Image.fromarray(image).resize((round(SIZE * share),) * 2, Image.Resampling.BOX)
    wanted = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BILINEAR), int)
    difference = downscale(image, share) - wanted
    assert np.abs(difference).max() <= 2  # both round twice
    assert np.abs(wanted - image).mean() > 2 * np.abs(difference).mean()


def test_downscaling_changes_the_photograph_and_not_the_label(photograph):
    soft = replace(STILL, downscale=(0.4, 0.4))
    image, label = crop(*photograph, 3, 1, 2, 0, SIZE, soft)
    wanted_image, wanted_label = window(photograph, 2, 0)
    np.testing.assert_array_equal(image, downscale(wanted_image, 0.4))
    np.testing.assert_array_equal(label, wanted_label)
    for share in (1.0, 1.6):
        assert downscale(wanted_image, share) is wanted_image


def test_new_numbers_leave_the_old_ones_alone():
    wide = replace(Augmentation(), gain=(0.5, 2.0), gamma=(0.5, 2.0), downscale=(0.3, 0.9))
    old, new = (draw_change(1, 2, 3, 4, ranges) for ranges in (Augmentation(), wide))
    assert replace(new, gains=old.gains, gamma=old.gamma, downscale=old.downscale) == old
    assert len({*new.gains, new.gamma, new.downscale}) == 5
    assert old.gains == (1, 1, 1)
    assert old.gamma == 1


@pytest.mark.parametrize("name", ["wnet", "wide", "wider"])
def test_no_augmentation_lights_the_frame(name):
    black = np.zeros((8, 8, 3), np.uint8)
    for k in range(50):
        assert not tint(black, draw_change(0, 0, 0, k, AUGMENTATIONS[name])).any()

"""The C++ loops give what torch and Pillow give, and their absence is told.

Run: pytest tests/test_kernels.py
"""

import copy
import io
import math
import zlib

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from needs import why_skip
from PIL import Image
from torch import nn

from segpipe import kernels
from segpipe.data import codecs
from segpipe.data.canvas import Geometry, canvas_side, fit_fov, plain_native_mask, plan_fit, restore
from segpipe.measurement.structures import plain_native_kinds
from segpipe.models.loss import Loss, NativeLoss
from segpipe.models.segnet import SegNetLite

pytestmark = pytest.mark.skipif(bool(why_skip()), reason=why_skip())
SIDE = 64


def network(width: int = 64, seed: int = 0) -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(seed)
    return nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)


def compiled(encoder: nn.Conv2d, decoder: nn.Conv2d) -> kernels.SegNetLiteScores:
    with torch.no_grad():
        return kernels.SegNetLiteScores(
            encoder.weight.numpy(),
            encoder.bias.numpy(),
            (decoder.weight[1] - decoder.weight[2]).numpy(),
            float(decoder.bias[1] - decoder.bias[2]),
        )


@torch.no_grad()
def by_torch(encoder: nn.Conv2d, decoder: nn.Conv2d, canvas: np.ndarray) -> np.ndarray:
    """p(vessel) / (p(vessel) + p(background)) with torch's own layers, in float64."""
    x = torch.from_numpy(canvas).permute(2, 0, 1)[None].double() / 255
    pooled, indices = nn.MaxPool2d(2, return_indices=True)(encoder.double()(x).relu())
    prob = decoder.double()(nn.MaxUnpool2d(2)(pooled, indices)).softmax(dim=1)[0]
    encoder.float(), decoder.float()
    return (prob[1] / (prob[1] + prob[2])).numpy()


def noise(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def disc(side: int, row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.ogrid[:side, :side]
    return (((y - row) ** 2 + (x - column) ** 2 < radius**2) * 255).astype(np.uint8)


EVERYWHERE = np.full((SIDE, SIDE), 255, np.uint8)


@pytest.mark.parametrize("width", [16, 64, 512])
@pytest.mark.parametrize("seed", range(3))
def test_the_scores_of_segnet_lite_are_torchs(width, seed):
    layers = network(width, seed)
    canvas = noise(seed)
    np.testing.assert_allclose(
        compiled(*layers)(canvas, EVERYWHERE), by_torch(*layers, canvas), atol=2e-6
    )


@pytest.mark.parametrize("grey", [0, 1, 255])
def test_of_equal_maxima_the_first_is_kept(grey):
    """Every window within a flat picture ties; torch keeps the first of its row-major order."""
    layers = network(seed=5)
    canvas = np.full((SIDE, SIDE, 3), grey, np.uint8)
    np.testing.assert_allclose(
        compiled(*layers)(canvas, EVERYWHERE), by_torch(*layers, canvas), atol=2e-6
    )


@pytest.mark.parametrize(
    ("row", "column", "radius"),
    [(32, 32, 20), (0, 0, 15), (63, 40, 9), (30, 31, 0.5), (32, 32, 99)],
)
def test_scores_are_right_wherever_the_fields_pixels_are_mixed_from(row, column, radius):
    """The field and REACH_PX around it; elsewhere nothing is promised but a number."""
    layers, canvas, fov = network(seed=2), noise(7), disc(SIDE, row, column, radius)
    found = compiled(*layers)(canvas, fov)
    near = np.asarray(Image.fromarray(fov)) > 0
    for _ in range(kernels.REACH_PX):
        wide = np.pad(near, 1)
        near = np.any(
            [wide[r : r + SIDE, c : c + SIDE] for r in range(3) for c in range(3)], axis=0
        )
    np.testing.assert_allclose(found[near], by_torch(*layers, canvas)[near], atol=2e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("diameter", [16, 40, 97, 200, 500, 1700])
def test_a_masks_rim_knows_nothing_of_where_the_scores_end(diameter):
    """Scores at native size, from these and from torch's, which are right everywhere."""
    fov = disc(diameter + 12, diameter / 2 + 6, diameter / 2 + 6, diameter / 2) > 0
    geometry, side = plan_fit(fov, 200.0), canvas_side(200.0)
    layers, canvas, soft = network(seed=2), noise(5, side), fit_fov(fov, geometry, side)
    whole = by_torch(*layers, canvas).astype(np.float32)
    found = compiled(*layers)(canvas, soft)
    inside = plain_native_mask(found, soft, geometry, 0.0) > 0
    native = [restore(score, geometry)[inside] for score in (whole, found)]
    np.testing.assert_allclose(*native, atol=1e-5)


def test_where_no_field_is_nothing_is_computed():
    layers = network(seed=2)
    assert not compiled(*layers)(noise(1), np.zeros_like(EVERYWHERE)).any()


def test_a_score_does_not_depend_on_what_was_scored_before():
    score = compiled(*network(seed=3))
    first = score(noise(1), disc(SIDE, 20, 20, 12))
    score(noise(2), EVERYWHERE)
    score(noise(3, 32), np.full((32, 32), 255, np.uint8))
    assert (score(noise(1), disc(SIDE, 20, 20, 12)) == first).all()


def test_scores_are_finite_for_any_logits():
    encoder, decoder = network(seed=4)
    with torch.no_grad():
        decoder.weight *= 1e4
    found = compiled(encoder, decoder)(noise(0), EVERYWHERE)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.min() < 1e-6 < 1 - 1e-6 < found.max()


@pytest.mark.parametrize("width", [0, 3, 24, 528])
def test_a_width_that_the_loop_does_not_know_is_refused(width):
    with pytest.raises(ValueError, match="multiple of 16"):
        kernels.SegNetLiteScores(
            np.zeros((width, 3, 3, 3), np.float32),
            np.zeros(width, np.float32),
            np.zeros((width, 3, 3), np.float32),
            0.0,
        )


def grains(values: np.ndarray, grain: int) -> np.ndarray:
    """Each of them over so many px either way."""
    return values.repeat(grain, 0).repeat(grain, 1)


def enlarged(canvas: np.ndarray, geometry: list[int]) -> np.ndarray:
    """A canvas's box at native size, larger or smaller, by Pillow."""
    height, width, top, left, box_height, box_width, scaled_height, scaled_width = geometry
    box = Image.fromarray(canvas[:scaled_height, :scaled_width].astype(np.float32))
    native = np.zeros((height, width), np.float32)
    native[top : top + box_height, left : left + box_width] = box.resize(
        (box_width, box_height), Image.Resampling.BILINEAR
    )
    return native


@st.composite
def geometries(draw: st.DrawFn, least: float = 1) -> list[int]:
    """Of a canvas of SIDE px that becomes `least` times as large, or more."""
    scaled = draw(st.tuples(st.integers(1, SIDE), st.integers(1, SIDE)))
    factor = draw(st.tuples(st.floats(least, 9), st.floats(least, 9)))
    top, left, below, right = draw(st.tuples(*[st.integers(0, 5)] * 4))
    box = [max(1, int(size * by)) for size, by in zip(scaled, factor, strict=True)]
    return [box[0] + top + below, box[1] + left + right, top, left, *box, *scaled]


@settings(deadline=None, max_examples=60)
@given(
    geometry=geometries() | geometries(0.1),
    grain=st.sampled_from([1, 8, 32]),
    seed=st.integers(0, 99),
)
def test_native_masks_are_pillows_bilinear_scores_at_the_threshold(geometry, grain, seed):
    """Of noise, and of scores that are flat over many pixels."""
    scaled = geometry[-2:]
    rng = np.random.default_rng(seed)
    score = grains(rng.random((SIDE // grain, SIDE // grain), np.float32), grain)
    fov = disc(SIDE, scaled[0] / 2, scaled[1] / 2, max(scaled) * 0.45)
    native, inside = enlarged(score, geometry), enlarged(fov, geometry)
    wanted = np.where(inside > 127, np.where(native >= np.float32(0.3), 1, 2), 0)
    found = kernels.native_mask(score, fov, np.asarray(geometry, np.int32), 0.3)
    near = (np.abs(native - 0.3) < 1e-5) | (np.abs(inside - 127) < 1e-3)  # rounding may decide
    assert (found == wanted)[~near].all()
    assert near.mean() < 0.05


@pytest.mark.parametrize("size", [40, 200, 333])
def test_scores_within_rounding_of_the_threshold_are_told_apart(size):
    """Flat ones, whose enlargement is exact."""
    geometry = np.asarray([size, size, 0, 0, size, size, 40, 40], np.int32)
    fov, threshold = np.full((SIDE, SIDE), 255, np.uint8), np.float32(0.3)
    for way, wanted in ((-1, 2), (0, 1), (1, 1)):
        score = np.nextafter(threshold, np.float32(way)) if way else threshold
        mask = kernels.native_mask(np.full((SIDE, SIDE), score), fov, geometry, float(threshold))
        assert (mask == wanted).all()
    for level, wanted in ((126, 0), (127, 0), (128, 1)):
        mask = kernels.native_mask(
            np.ones((SIDE, SIDE), np.float32), fov * 0 + level, geometry, 0.3
        )
        assert (mask == wanted).all()


@settings(deadline=None, max_examples=60)
@given(
    geometry=geometries() | geometries(0.1),
    grain=st.sampled_from([1, 8, 32]),
    seed=st.integers(0, 99),
)
def test_native_kinds_are_those_of_opencvs_nearest_pixels(geometry, grain, seed):
    """Also what is vessel outside the box, and classes that there are not."""
    rng = np.random.default_rng(seed)
    plane = grains(rng.integers(0, 5, (SIDE // grain, SIDE // grain), np.uint8), grain)
    mask = rng.integers(0, 4, geometry[:2], np.uint8)
    found = kernels.native_kinds(plane, mask, np.asarray(geometry, np.int32))
    wanted = plain_native_kinds(plane, mask, Geometry(*geometry))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("canvas", [1, 2, 3, 49, 50, 733, 1036, 1087])
def test_nearest_pixels_of_any_size_are_opencvs(canvas):
    """Whose quotients of sizes are rounded before they are multiplied."""
    plane = np.arange(canvas)[None].astype(np.uint8).repeat(canvas, 0)
    for size in (*range(1, 100), *range(400, 4000, 37), 3302, 3504):
        geometry = [1, size, 0, 0, 1, size, canvas, canvas]
        found = kernels.native_kinds(
            plane, np.ones((1, size), np.uint8), np.asarray(geometry, np.int32)
        )
        wanted = cv2.resize(plane, (size, 1), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(found, wanted)


@settings(deadline=None, max_examples=60)
@given(geometry=geometries(), seed=st.integers(0, 99))
def test_native_scores_are_the_levels_of_pillows_bilinear_enlargement(geometry, seed):
    """Pixel by pixel; a score that rounding took out of 0 to 1 counts as one of them."""
    rng = np.random.default_rng(seed)
    score = rng.uniform(-0.01, 1.01, (SIDE, SIDE)).astype(np.float32)
    mask = rng.integers(0, 3, geometry[:2], np.uint8)
    levels = np.rint(np.clip(enlarged(score, geometry), 0, 1) * np.float32(255))
    found = kernels.native_score(score, mask, np.asarray(geometry, np.int32))
    np.testing.assert_array_equal(found, np.where(mask == 0, 0, levels))


@pytest.mark.parametrize("width", [63, 64, 65, 150, 200])
def test_native_scores_near_the_middle_of_two_levels_are_pillows(width):
    """Where sums of less precision would be rounded to the other level."""
    rng = np.random.default_rng(width)
    middles = (rng.integers(0, 255, (SIDE, SIDE)) + 0.5) / 255
    slope = np.linspace(-0.5, 255.5, SIDE) / 255
    geometry = [90, width + 3, 2, 1, 80, width, 40, 50]
    mask = np.ones(geometry[:2], np.uint8)
    for score in (middles, np.full((SIDE, SIDE), 100.5 / 255), np.tile(slope, (SIDE, 1))):
        score = np.clip(score + rng.choice([0, 1e-7, -1e-7]), 0, 1).astype(np.float32)
        levels = np.rint(np.clip(enlarged(score, geometry), 0, 1) * np.float32(255))
        found = kernels.native_score(score, mask, np.asarray(geometry, np.int32))
        np.testing.assert_array_equal(found, levels)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    factor=st.tuples(st.floats(0.5, 4), st.floats(0.5, 4)),
    part=st.one_of(st.none(), st.tuples(*[st.floats(0, 0.4)] * 4)),
    channels=st.sampled_from([(), (1,), (3,), (4,)]),
    seed=st.integers(0, 99),
)
def test_pictures_of_another_size_have_the_levels_of_pillows(shape, factor, part, channels, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (*shape, *channels), np.uint8)
    height, width = (math.ceil(side * by) for side, by in zip(shape, factor, strict=True))
    box = None
    if part is not None:
        left, top, right, bottom = part
        box = (left * shape[1], top * shape[0], (1 - right) * shape[1], (1 - bottom) * shape[0])
    assume(kernels.resizes(shape, height, width, box))
    planes = picture.reshape(*shape, -1)
    wanted = [
        Image.fromarray(planes[..., c]).resize((width, height), Image.Resampling.BILINEAR, box)
        for c in range(planes.shape[-1])
    ]
    found = kernels.resized(picture, height, width, box)
    np.testing.assert_array_equal(found.reshape(height, width, -1), np.stack(wanted, axis=-1))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(2, 90)),
    share=st.floats(0, 1),
    size=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)),
    seed=st.integers(0, 99),
)
def test_masks_of_another_size_have_the_levels_of_pillows(shape, share, size, seed):
    """Runs of one level, longer and shorter, beside each other."""
    rng = np.random.default_rng(seed)
    turns = rng.random((1, *shape))[0] < share**3
    mask = (np.cumsum(turns, axis=1) % 3 * 127).astype(np.uint8)
    height, width = (math.ceil(side * by) for side, by in zip(shape, size, strict=True))
    assume(kernels.resizes(shape, height, width))
    wanted = Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(kernels.resized(mask, height, width), np.asarray(wanted))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    factor=st.tuples(st.floats(1, 9), st.floats(1, 9)),
    channels=st.integers(2, 4),
    apart=st.booleans(),
    seed=st.integers(0, 99),
)
def test_means_in_boxes_have_the_levels_of_pillows(shape, factor, channels, apart, seed):
    wide = np.random.default_rng(seed).integers(0, 256, (*shape, 4), np.uint8)
    picture = wide[..., :channels] if apart else np.ascontiguousarray(wide[..., :channels])
    height, width = (math.ceil(side / by) for side, by in zip(shape, factor, strict=True))
    found = kernels.box_means(picture, height, width)
    if found is None:  # where Pillow works down the columns first
        assert shape[0] - height > 2 * (shape[1] - width)
        return
    wanted = [
        Image.fromarray(picture[..., c]).resize((width, height), Image.Resampling.BOX)
        for c in range(channels)
    ]
    np.testing.assert_array_equal(found, np.stack(wanted, axis=-1))


def test_a_picture_whose_rows_and_pixels_lie_apart_is_resized_into_a_part_of_another():
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 4), np.uint8)[3:-2, 5:, :3]
    canvas = np.full((60, 60, 3), 7, np.uint8)
    kernels.resized(picture, 40, 50, into=canvas[:40, :50])
    wanted = Image.fromarray(picture).resize((50, 40), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(canvas[:40, :50], np.asarray(wanted))
    assert (canvas[40:] == 7).all()
    assert (canvas[:, 50:] == 7).all()


def test_what_pillow_works_down_the_columns_of_first_is_left_to_it():
    assert kernels.resizes((584, 565), 1028, 1035)
    assert kernels.resizes((1168, 1651), 733, 1036)
    assert not kernels.resizes((1168, 1651), 583, 1036)  # less than half
    assert not kernels.resizes((900, 300), 600, 200)
    with pytest.raises(ValueError, match="wanted less of a change"):
        kernels.resized(np.zeros((900, 300), np.uint8), 600, 200)


@pytest.mark.parametrize(
    ("shape", "height", "width"),
    [((1088, 1088), 574, 574), ((700, 901), 333, 451), ((640, 640), 601, 599), ((99, 130), 1, 7)],
)
def test_a_picture_averaged_over_areas_is_opencvs(shape, height, width):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*shape, 3), np.uint8)
    for picture in (noise, cv2.GaussianBlur(noise, (9, 9), 3), (noise > 127) * np.uint8(255)):
        wanted = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        for channel in range(3):
            found = kernels.averaged(picture, height, width, channel)
            np.testing.assert_array_equal(found, wanted[..., channel])
        plane = np.ascontiguousarray(picture[..., 0])
        np.testing.assert_array_equal(kernels.averaged(plane, height, width), wanted[..., 0])


@pytest.mark.parametrize("side", [3, 4, 7, 8, 12])
def test_means_of_blocks_are_opencvs(side):
    rng = np.random.default_rng(side)
    for channels in (1, 3):
        picture = rng.integers(0, 256, (side * 13, side * 9, channels), np.uint8)
        wanted = cv2.resize(picture, (9, 13), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(
            kernels.block_means(picture, side), wanted.reshape(13, 9, channels)
        )


def test_what_cannot_be_averaged_is_refused():
    picture = np.zeros((90, 80, 3), np.uint8)
    for size in ((91, 40), (40, 81), (0, 40)):
        with pytest.raises(ValueError, match="wanted a smaller one"):
            kernels.averaged(picture, *size)
    with pytest.raises(ValueError, match="with its channel"):
        kernels.averaged(picture, 40, 40, 3)
    with pytest.raises(ValueError, match="float32, wanted"):
        kernels.averaged(picture.astype(np.float32), 40, 40)
    for side in (2, 7):
        with pytest.raises(ValueError, match=rf"wanted \[h, w, C\] of blocks of {side} px"):
            kernels.block_means(picture, side)


def test_a_mask_of_another_size_is_refused():
    geometry = np.asarray([9, 8, 0, 0, 9, 8, 4, 4], np.int32)
    with pytest.raises(ValueError, match=r"mask: \(8, 9\) uint8, wanted \(9, 8\)"):
        kernels.native_score(np.zeros((4, 4), np.float32), np.zeros((8, 9), np.uint8), geometry)


def by_paeth(image: np.ndarray) -> bytes:
    """Rows filtered pixel by pixel, as PNG's specification (third edition, 9.4) words it."""
    height, width = image.shape
    seen = np.zeros((height + 1, width + 1), int)
    seen[1:, 1:] = image
    rows = np.full((height, width + 1), 4, np.uint8)
    for y, x in np.ndindex(height, width):
        a, b, c = seen[y + 1, x], seen[y, x + 1], seen[y, x]
        p = a + b - c
        pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
        nearest = a if pa <= pb and pa <= pc else b if pb <= pc else c
        rows[y, x + 1] = (image[y, x] - nearest) % 256
    return rows.tobytes()


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.sampled_from([1, 2, 63, 64, 65, 130]), st.integers(1, 40)),
    levels=st.integers(1, 256),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_packed_rows_unpack_to_what_paeths_filter_makes(shape, levels, share, seed):
    """Of flat pictures and noise, one block of rows and more."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, levels, shape, np.uint8) * (rng.random(shape) < share)
    assert zlib.decompress(kernels.packed_rows(noise.astype(np.uint8))) == by_paeth(noise)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.sampled_from([1, 2, 255, 256, 257]), st.integers(1, 70)),
    bits=st.sampled_from([2, 4]),
    grain=st.sampled_from([1, 5, 40]),
    seed=st.integers(0, 99),
)
def test_rows_of_few_bits_unpack_to_what_they_differ_by_from_the_ones_above(
    shape, bits, grain, seed
):
    rng, (height, width) = np.random.default_rng(seed), shape
    few = rng.integers(0, 1 << bits, (-(-height // grain), -(-width // grain)), np.uint8)
    image = grains(few, grain)[:height, :width]
    digits = np.unpackbits(image[..., None], axis=2)[..., -bits:].reshape(height, -1)
    joined = np.packbits(digits, axis=1)
    rows = np.pad(np.diff(joined, axis=0, prepend=np.uint8(0)), ((0, 0), (1, 0)))
    rows[:, 0] = 2  # the filter's number
    assert zlib.decompress(kernels.packed_rows(image, bits)) == rows.tobytes()


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 257, 3504])
@pytest.mark.parametrize(("classes", "encode"), [(3, codecs.encode_mask), (5, codecs.encode_kinds)])
def test_packed_classes_are_decoded_by_pillow(width, classes, encode):
    rng = np.random.default_rng(width)
    noise = rng.integers(0, classes, (300, width), np.uint8)
    flat = np.zeros_like(noise)
    rare = flat + 2
    rare.flat[rng.integers(0, rare.size, 9)] = 1
    for image in (noise, flat, flat + 2, rare, np.where(np.arange(300)[:, None] < 70, 2, noise)):
        png = io.BytesIO(encode(image.astype(np.uint8)))
        np.testing.assert_array_equal(np.asarray(Image.open(png)), image)


@pytest.mark.parametrize("length", [*range(1, 40), 257, 258, 259, 260, 261, 516, 517, 4000])
def test_runs_of_any_length_are_packed(length):
    row = np.cumsum(np.r_[7, np.full(length, 3), 9, np.full(length, 5)])[None].astype(np.uint8)
    assert zlib.decompress(kernels.packed_rows(row)) == by_paeth(row)


@pytest.mark.parametrize("length", range(6, 20))
def test_runs_that_begin_anywhere_are_packed(length):
    """Behind bytes that differ, before such, and at both ends of a row."""
    for start in range(1, 20):
        differences = np.r_[np.arange(start) % 2 + 1, np.full(length, 3), np.arange(9) % 2]
        for row in (differences, differences[::-1], differences[start:], differences[:-9]):
            image = np.cumsum(row)[None].astype(np.uint8)
            assert zlib.decompress(kernels.packed_rows(image)) == by_paeth(image)


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 63, 64, 65, 257, 3504])
def test_packed_pictures_are_decoded_by_pillow(width):
    rng = np.random.default_rng(width)
    noise = rng.integers(0, 256, (130, width), np.uint8)
    flat = np.zeros_like(noise)
    half = np.where(np.arange(130)[:, None] < 70, flat, noise)
    rare = flat.copy()
    rare.flat[rng.integers(0, rare.size, 9)] = rng.integers(1, 256, 9)
    for image in (noise, flat, flat + 255, half, rare, rng.integers(0, 2, flat.shape, np.uint8)):
        png = io.BytesIO(codecs.encode_grey(image))
        np.testing.assert_array_equal(np.asarray(Image.open(png)), image)


def test_bytes_so_rare_that_their_codes_were_too_long_are_packed():
    """20 bytes, each 1.8 times as often as the next: their codes would have up to 19 bits."""
    counts = [round(1.8**n) for n in range(20)]
    differences = np.repeat(np.arange(20) + 50, counts)
    np.random.default_rng(0).shuffle(differences)
    row = np.cumsum(differences)[None].astype(np.uint8)
    assert zlib.decompress(kernels.packed_rows(row)) == by_paeth(row)


def gradients_by_torch(layers: tuple[nn.Conv2d, nn.Conv2d], images, labels) -> list[np.ndarray]:
    """Loss and gradients, summed over all pixels, with torch's own layers in float64."""
    encoder, decoder = (copy.deepcopy(layer).double() for layer in layers)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    pooled, indices = nn.MaxPool2d(2, return_indices=True)(encoder(x).relu())
    logits = decoder(nn.MaxUnpool2d(2)(pooled, indices))
    loss = F.cross_entropy(logits, torch.from_numpy(labels).long(), reduction="sum")
    loss.backward()
    weights = (encoder.weight, encoder.bias, decoder.weight, decoder.bias)
    return [loss.detach().numpy(), *(w.grad.numpy() for w in weights)]


def gradients(layers: tuple[nn.Conv2d, nn.Conv2d], images, labels, num_threads=1):
    encoder, decoder = layers
    weights = (encoder.weight, encoder.bias, decoder.weight, decoder.bias)
    arrays = [weight.detach().numpy() for weight in weights]
    return kernels.SegNetLiteGradients(num_threads)(images, labels, *arrays)


def assert_near(found, wanted) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-6 * scale)


def crops_of(seed: int, number: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (number, height, width, 3), dtype=np.uint8)
    return images, rng.integers(0, 3, (number, height, width), dtype=np.uint8)


@pytest.mark.parametrize(
    ("width", "size"),
    [(16, (2, 2)), (64, (6, 36)), (512, (46, 38)), (64, (46, 38)), (64, (224, 224))],
)
def test_the_gradients_of_segnet_lite_are_torchs(width, size):
    layers, crops = network(width, seed=1), crops_of(2, 2, *size)
    assert_near(gradients(layers, *crops), gradients_by_torch(layers, *crops))


@pytest.mark.parametrize("grey", [0, 1, 255])
def test_of_equal_maxima_the_firsts_gradient_counts(grey):
    layers = network(seed=5)
    images, labels = crops_of(0, 1, 32, 32)
    images[:] = grey
    assert_near(gradients(layers, images, labels), gradients_by_torch(layers, images, labels))


def test_a_loss_of_certain_and_wrong_logits_is_finite_and_torchs():
    encoder, decoder = network(seed=3)
    with torch.no_grad():
        decoder.bias += torch.tensor([0.0, 90.0, -90.0])
    crops = crops_of(4, 1, 16, 16)
    found = gradients((encoder, decoder), *crops)
    assert np.isfinite(found.loss)
    assert_near(found, gradients_by_torch((encoder, decoder), *crops))


def test_the_gradients_do_not_depend_on_the_number_of_threads():
    layers, crops = network(seed=7), crops_of(8, 5, 32, 48)
    for one, other in zip(gradients(layers, *crops, 1), gradients(layers, *crops, 3), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_weight_that_is_no_number_gives_no_number():
    layers = network()
    with torch.no_grad():
        layers[0].weight[0, 0, 0, 0] = torch.nan
    assert not np.isfinite(gradients(layers, *crops_of(0, 1, 8, 8)).loss)


def test_the_compiled_loss_steps_as_the_plain_one():
    """Value and gradients through autograd, in both memory layouts, scaled from outside."""
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        network = SegNetLite().to(memory_format=layout)
        images, labels = (torch.from_numpy(array) for array in crops_of(0, 3, 16, 24))
        found = []
        for loss in (Loss(network), NativeLoss(network, 1)):
            network.zero_grad()
            value = loss(images, labels)
            (value * 0.25).backward()
            found.append([value.detach(), *(p.grad.clone() for p in network.parameters())])
            assert all(p.grad.stride() == p.stride() for p in network.parameters())
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)

"""Drawn photographs: believable enough to train on, with labels that are exact.

Run: pytest tests/test_synthetic.py (about 6 s on one core)
"""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from segpipe.data.synthetic import draw_fundus
from segpipe.data.synthetic_sets import (
    FOLDERS,
    write_archive_image,
    write_labelled,
    write_labelled_example,
)

SEEDS = range(6)


@pytest.fixture(scope="module")
def pictures():
    return [draw_fundus(seed) for seed in SEEDS]


def test_same_seed_gives_equal_pictures_and_another_seed_a_different_one(pictures):
    for first, again in zip(pictures[0], draw_fundus(0), strict=True):
        np.testing.assert_array_equal(first, again)
    images, vessels = pictures[1][0], pictures[1][1]
    assert (images != pictures[0][0]).any()
    assert (vessels != pictures[0][1]).mean() > 0.05


def test_arrays_have_the_shapes_and_types_that_are_promised():
    image, vessel, fov = draw_fundus(0, height=120, width=150)
    assert (image.shape, image.dtype) == ((120, 150, 3), np.uint8)
    assert (vessel.shape, vessel.dtype) == ((120, 150), np.bool_)
    assert (fov.shape, fov.dtype) == ((120, 150), np.bool_)


def test_vessels_lie_inside_the_field_and_are_a_plausible_share_of_it(pictures):
    for _, vessel, fov in pictures:
        assert not (vessel & ~fov).any()
        assert 0.06 < vessel.sum() / fov.sum() < 0.18  # DRIVE: 0.09 to 0.17


def test_vessels_are_darker_in_green_than_their_close_surroundings(pictures):
    for image, vessel, fov in pictures:
        near = ndimage.binary_dilation(vessel, iterations=5)
        ring = near & ~ndimage.binary_dilation(vessel, iterations=2) & fov
        red, green, _ = image[ring].mean(axis=0) / image[vessel].mean(axis=0)
        assert green > 1.07  # DRIVE: 1.08 to 1.20
        assert green > red + 0.03  # blood is red


def test_every_label_has_wide_and_thin_vessels(pictures):
    for _, vessel, _ in pictures:
        half_width = ndimage.distance_transform_edt(vessel)
        wide = ndimage.binary_dilation(half_width >= 3, iterations=4) & vessel
        opened = ndimage.binary_opening(vessel, np.ones((3, 3)))
        assert wide.sum() > 0.15 * vessel.sum()  # 6 px or wider
        assert (vessel & ~opened).sum() > 0.15 * vessel.sum()  # no room for a 3 px square


def test_vessels_narrow_with_their_distance_from_the_disc(pictures):
    """The disc is found as the brightest spot, on the side where the widest vessels are."""
    for image, vessel, fov in pictures:
        rows, columns = np.indices(vessel.shape)
        light = ndimage.gaussian_filter(np.where(fov, image[..., 2], 0).astype(float), 12)
        row, column = np.unravel_index(light.argmax(), light.shape)
        away = np.hypot(rows - row, columns - column)
        half_width = ndimage.distance_transform_edt(vessel)
        near, far = (half_width[vessel & where].mean() for where in (away < 120, away > 300))
        assert near > 1.3 * far


def test_no_vessel_crosses_the_middle_of_the_macula(pictures):
    """The emptiest round place near the field's centre is wider than those that chance leaves."""
    for _, vessel, fov in pictures:
        rows, columns = np.nonzero(fov)
        top, left = round(rows.mean()) - 60, round(columns.mean()) - 60
        room = ndimage.distance_transform_edt(~vessel)[top : top + 120, left : left + 120]
        assert room.max() > 0.12 * 270  # the avascular zone's radius


def test_thin_vessels_have_less_contrast_than_wide_ones(pictures):
    def contrast(image, part, vessel, fov):
        near = ndimage.binary_dilation(part, iterations=6)
        ring = near & ~ndimage.binary_dilation(vessel, iterations=2) & fov
        return image[ring][:, 1].mean() / image[part][:, 1].mean()

    for image, vessel, fov in pictures:
        thin = vessel & ~ndimage.binary_opening(vessel, np.ones((3, 3)))
        wide = ndimage.binary_opening(vessel, np.ones((5, 5)))
        assert contrast(image, wide, vessel, fov) > 1.05 * contrast(image, thin, vessel, fov)


def test_field_is_the_disc_of_the_given_diameter(pictures):
    for _, _, fov in pictures:
        assert fov.sum() == pytest.approx(math.pi * 540**2 / 4, rel=0.01)
    _, _, fov = draw_fundus(3, 300, 400, 200)
    assert fov.sum() == pytest.approx(math.pi * 200**2 / 4, rel=0.01)


def test_a_field_larger_than_the_frame_is_cut_off():
    _, vessel, fov = draw_fundus(3, 240, 400, 380)
    assert fov[0].any()
    assert fov[-1].any()
    assert not fov[:, 0].any()
    assert vessel[0].any() or vessel[-1].any()  # vessels too run out of the frame


def test_outside_the_field_is_nearly_black(pictures):
    image, _, fov = pictures[0]
    assert image[~ndimage.binary_dilation(fov, iterations=8)].max() < 20


def refuse_to_draw(*_):
    raise AssertionError("drawn again")


def test_a_labelled_set_has_drives_names_and_sizes_and_is_not_drawn_twice(tmp_path, monkeypatch):
    write_labelled(tmp_path, num_training=1, num_test=2, seed=5)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "test/images/01_test.tif",
        "test/1st_manual/01_manual1.gif",
        "test/2nd_manual/01_manual2.gif",
        "test/mask/01_test_mask.gif",
        "test/images/02_test.tif",
        "test/1st_manual/02_manual1.gif",
        "test/2nd_manual/02_manual2.gif",
        "test/mask/02_test_mask.gif",
        "training/images/03_training.tif",
        "training/1st_manual/03_manual1.gif",
        "training/mask/03_training_mask.gif",
    }
    for name in files:
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (565, 584)
            assert picture.mode == ("RGB" if name.endswith(".tif") else "L")
            if name.endswith(".gif"):
                assert set(np.unique(np.asarray(picture))) == {0, 255}
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files}
    monkeypatch.setattr("segpipe.data.synthetic_sets.draw_fundus", refuse_to_draw)
    write_labelled(tmp_path, num_training=1, num_test=2, seed=5)
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in files}


def test_one_example_is_what_the_whole_set_has(tmp_path):
    write_labelled(tmp_path / "set", num_training=0, num_test=2, seed=5)
    write_labelled_example(tmp_path / "one", "test", 2, seed=5)
    written = list((tmp_path / "one").rglob("*.*"))
    assert len(written) == 4
    for path in written:
        twin = tmp_path / "set" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == twin.read_bytes()
    write_labelled_example(tmp_path / "other", "test", 2, seed=6)
    vessels = [tmp_path / which / "test/1st_manual/02_manual1.gif" for which in ("one", "other")]
    assert vessels[0].read_bytes() != vessels[1].read_bytes()


def test_a_lost_file_is_drawn_again_and_the_others_are_left_alone(tmp_path):
    write_labelled_example(tmp_path, "training", 3, seed=5)
    image = tmp_path / "training/images/03_training.tif"
    mask = tmp_path / "training/mask/03_training_mask.gif"
    lost, before = image.read_bytes(), mask.stat().st_mtime_ns
    image.unlink()
    write_labelled_example(tmp_path, "training", 3, seed=5)
    assert image.read_bytes() == lost
    assert mask.stat().st_mtime_ns == before


def test_second_observer_agrees_as_a_human_does(tmp_path):
    write_labelled_example(tmp_path, "test", 1, seed=0)
    first, second = (
        np.asarray(Image.open(next((tmp_path / "test" / folder).iterdir()))) > 127
        for folder in ("1st_manual", "2nd_manual")
    )
    dice = 2 * (first & second).sum() / (first.sum() + second.sum())
    assert 0.7 < dice < 0.9  # DRIVE's observers: 0.79


def test_an_unknown_split_is_refused_with_the_valid_ones(tmp_path):
    with pytest.raises(ValueError, match="'val' is neither training nor test"):
        write_labelled_example(tmp_path, "val", 1, seed=0)


def test_an_archive_mixes_formats_sizes_and_folders(tmp_path):
    paths = [write_archive_image(tmp_path, index, seed=1) for index in range(12)]
    formats, sizes = set(), []
    for path in paths:
        with Image.open(path) as picture:
            formats.add(picture.format)
            sizes.append(max(picture.size))
    assert formats == {"JPEG", "PNG", "TIFF", "PPM"}
    assert min(sizes) >= 500
    assert max(sizes) >= 2000
    assert sorted(sizes)[-2] <= 1600  # a few are large, most are not
    assert {str(path.parent.relative_to(tmp_path)) for path in paths} >= set(FOLDERS[1:3])
    assert all(f"{index:05d}" in path.name for index, path in enumerate(paths))


def test_an_archive_image_depends_on_index_and_seed_alone_and_is_not_drawn_twice(
    tmp_path, monkeypatch
):
    first, again, other = (
        write_archive_image(tmp_path / name, 6, seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    before = first.stat().st_mtime_ns
    monkeypatch.setattr("segpipe.data.synthetic_sets.draw_fundus", refuse_to_draw)
    assert write_archive_image(tmp_path / "a", 6, 1) == first
    assert first.stat().st_mtime_ns == before


def test_a_write_that_fails_leaves_no_file_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        write_archive_image(tmp_path, 10, seed=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

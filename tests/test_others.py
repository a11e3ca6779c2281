"""Of two fields in one picture one is taken and the other told; parts of one field are one.

Run: pytest tests/test_others.py
"""

from dataclasses import replace

import apertures
import numpy as np
import pytest
from apertures import Camera, overlap
from PIL import Image

from segpipe.data.fov import find_field

CAMERAS = {
    "round": Camera(),
    "touching": Camera(radius=0.5),
    "cut by the frame": Camera(radius=0.56),
    "cut": Camera(cuts=(0.85, 0.85, 9, 9)),
    "square": Camera("square", 0.42),
    "octagon": Camera("octagon", 0.46),
    "grey frame": Camera(frame=70),
}


def pair(camera: Camera, scale: float, gap_px: int, below: bool):
    """Two photographs in one picture -> it, the larger one's field in it, the smaller's share."""
    first, second = (apertures.draw(camera, 480, 480, seed=seed) for seed in (1, 2))
    side = round(480 * scale)
    small = np.asarray(Image.fromarray(second.image).resize((side, side)))
    picture = np.zeros((480, 480 + gap_px + side, 3), np.uint8)
    fov = np.zeros(picture.shape[:2], bool)
    picture[:, :480], fov[:, :480] = first.image, first.fov
    top = (480 - side) // 2
    picture[top : top + side, 480 + gap_px :] = small
    share = second.fov.mean() * side**2 / fov.size
    if below:
        return picture.transpose(1, 0, 2).copy(), fov.T, share
    return picture, fov, share


@pytest.mark.parametrize(
    ("gap_px", "below"),
    [
        *((0, False), (30, True)),
        *(pytest.param(*two, marks=pytest.mark.nightly) for two in ((0, True), (30, False))),
    ],
)
@pytest.mark.parametrize("scale", [0.98, 0.7, 0.4])
@pytest.mark.parametrize("name", CAMERAS)
def test_a_second_field_is_told(name, scale, gap_px, below):
    picture, fov, share = pair(CAMERAS[name], scale, gap_px, below)
    field = find_field(picture)
    assert overlap(field.fov, fov) > 0.95
    assert field.second_fraction == pytest.approx(share, abs=0.03)
    told = f"a second field of view of {field.second_fraction:.0%} of the picture was left out"
    assert told in field.note


def test_the_other_picture_of_a_stereo_pair_without_a_frame_is_told():
    camera = Camera(radius=1.2, diagonal=True)
    left, right = (apertures.draw(camera, 480, 400 + 60 * seed, seed=seed) for seed in (1, 2))
    gap = np.zeros((480, 25, 3), np.uint8)
    field = find_field(np.hstack([left.image, gap, right.image]))
    assert field.second_fraction == pytest.approx(480 / 1005, abs=0.03)


def band(place: float, width: float, degrees: float) -> apertures.Change:
    """A nearly black band across the field."""

    def draw(scene: apertures.Scene) -> None:
        angle = np.deg2rad(degrees)
        away = scene.x * np.cos(angle) + scene.y * np.sin(angle) - place
        scene.light[np.abs(away) < width / 2] *= 0.02

    return draw


@pytest.mark.parametrize("name", ["round", "touching", "cut by the frame", "cut", "grey frame"])
@pytest.mark.parametrize("place", [0, 0.3])
@pytest.mark.parametrize(("width", "degrees"), [(0.05, 90), (0.15, 30), (0.4, 0)])
def test_the_parts_of_a_field_that_a_dark_band_parts_are_no_second_field(
    name, place, width, degrees
):
    camera = replace(CAMERAS[name], before=(band(place, width, degrees),))
    drawn = apertures.draw(camera, 480, 640)
    field = find_field(drawn.image)
    assert field.second_fraction == 0
    assert overlap(field.fov, drawn.fov) > 0.95 - width


@pytest.mark.parametrize("name", apertures.CAMERAS)
def test_no_camera_shows_a_second_field(name):
    assert find_field(apertures.draw(apertures.CAMERAS[name], 480, 640).image).second_fraction == 0

"""Dark beside a field of view: retina is kept, a frame is not, and what is neither is told.

Run: pytest tests/test_tissue.py
"""

from dataclasses import replace

import apertures
import cv2
import numpy as np
import pytest
from apertures import Camera, overlap

from segpipe.data.fov import find_field, find_fov

FRAMELESS = Camera(radius=1.2, diagonal=True)


def dark_vessels(scene: apertures.Scene) -> None:
    """Nearly black bands from edge to edge of the picture."""
    for slope, height in ((0.3, -0.3), (-0.4, 0.35)):
        scene.light[np.abs(scene.y - height - slope * scene.x) < 0.03] *= 0.1


def blotch(scene: apertures.Scene) -> None:
    """A dark spot that reaches the right edge."""
    scene.light *= (1 - 0.95 * scene.spot(0.6, 0.0, 0.25))[..., None]


def dark_side(scene: apertures.Scene) -> None:
    """The retina fades to nothing on the right."""
    scene.light *= (1 - 0.97 * np.clip((scene.x - 0.2) / 0.6, 0, 1))[..., None]


@pytest.mark.parametrize("size", [(480, 640), (768, 768)])
@pytest.mark.parametrize("falloff", [0.8, 0.9, 0.95, 0.98])
@pytest.mark.parametrize("before", [(), (apertures.red_free,)], ids=["colour", "grey"])
def test_dark_corners_of_a_picture_without_a_frame_are_retina(size, falloff, before):
    camera = replace(FRAMELESS, falloff=falloff, before=before)
    assert find_fov(apertures.draw(camera, *size).image).mean() > 0.99


@pytest.mark.parametrize("falloff", [0.25, 0.8, 0.95])
@pytest.mark.parametrize("before", [dark_vessels, blotch])
def test_dark_retina_that_reaches_an_edge_is_kept(falloff, before):
    camera = replace(FRAMELESS, falloff=falloff, before=(before,))
    field = find_field(apertures.draw(camera, 480, 640).image)
    assert field.fov.mean() > 0.99
    assert field.note == ""


@pytest.mark.parametrize("falloff", [0.25, 0.9, 0.98])
def test_what_may_be_a_frame_or_retina_is_told(falloff):
    """All but 2 % of what is lost of a picture that is retina all over."""
    camera = replace(FRAMELESS, falloff=falloff, before=(dark_side,), grain=8)
    field = find_field(apertures.draw(camera, 768, 768, seed=1).image)
    lost = 1 - field.fov.mean()
    assert field.uncertain_fraction > lost - 0.02
    if lost > 0.02:
        assert (
            field.note == f"{field.uncertain_fraction:.0%} of the picture, left out, may be retina"
        )


def test_of_a_frame_nothing_is_in_doubt():
    for name in ("round", "square", "octagon", "vignetted", "round, cut by the frame on all sides"):
        field = find_field(apertures.draw(apertures.CAMERAS[name], 480, 640).image)
        assert field.uncertain_fraction < 0.005, name
        assert field.note == "", name


def test_of_the_photographs_of_drive_nothing_is_in_doubt(drive):
    for path in drive.glob("*/images/*.tif"):
        assert find_field(np.asarray(apertures.Image.open(path))).note == "", path.name


def test_a_missing_sector_is_told():
    """A third of a disc, of which the picture shows some 45 %."""
    camera = apertures.CAMERAS["missing wide sector"]
    drawn = apertures.draw(camera, 480, 640)
    disc = apertures.draw(replace(camera, sector=0), 480, 640).fov
    missing = (disc & ~drawn.fov).mean()
    field = find_field(drawn.image)
    assert 0.3 * missing < field.uncertain_fraction <= missing + 0.01


def test_most_of_the_dark_below_a_lid_is_kept_or_told():
    """An ultra-wide field, an ellipse in pure black, with lashes below."""
    height, width = 900, 1150
    y, x = np.mgrid[:height, :width]
    x, y = (x - width / 2) / (0.46 * width), (y - height / 2) / (0.46 * height)
    inside = np.abs(x) ** 2.4 + np.abs(y) ** 2.4 < 1
    rng = np.random.default_rng(0)
    lashes = cv2.GaussianBlur(rng.normal(size=inside.shape), (0, 0), sigmaX=4, sigmaY=40)
    depth = np.clip((y - 0.45) / 0.25, 0, 1) * (1 + 0.5 * lashes / lashes.std())
    light = 120 * 0.35 ** (x**2 + y**2) * (1 - 0.88 * np.clip(depth, 0, 1))
    light = light + rng.normal(0, 2, light.shape)
    image = np.where(inside, light, 0).clip(0, 255).astype(np.uint8)
    field = find_field(np.repeat(image[..., None], 3, axis=2))
    lost = (inside & ~field.fov).mean()
    assert overlap(field.fov, inside) > 0.92
    assert lost - field.uncertain_fraction < 0.03

"""The quality of a mask: it falls as photographs get worse, and what is no retina has none.

Degradations and pictures here are others than those of benchmarks/quality.py, by which it was
fitted. Run: pytest tests/test_trust.py
"""

import io
import math
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
from PIL import Image, ImageDraw

import segpipe
from segpipe.data.synthetic import draw_fundus
from segpipe.measurement import trust
from segpipe.measurement.quality import assess_quality

NO_RETINA = 0.1  # below this a picture is taken for something else


@pytest.fixture(scope="module")
def model() -> segpipe.Model:
    return segpipe.load_model()


@pytest.fixture(scope="module")
def quality(model) -> Callable[[np.ndarray], float]:
    """Of an image; a picture that is rejected has none."""

    def of(image: np.ndarray) -> float:
        try:
            return model.segment(np.ascontiguousarray(image)).quality.quality
        except ValueError as error:
            if "no field of view" not in str(error):
                raise
            return 0.0

    return of


@pytest.fixture(scope="module", params=["drawn", "DRIVE"])
def photograph(request) -> np.ndarray:
    if request.param == "drawn":
        return draw_fundus(31)[0]
    drive = request.getfixturevalue("drive")
    return np.asarray(Image.open(drive / "test/images/02_test.tif").convert("RGB"))


def box_blur(image: np.ndarray, by: int) -> np.ndarray:
    return cv2.blur(image, (by, by))


def darken(image: np.ndarray, gamma: float) -> np.ndarray:
    return np.rint(255 * (image / 255.0) ** gamma).astype(np.uint8)


def veil(image: np.ndarray, share: float) -> np.ndarray:
    lit = image.max(axis=2, keepdims=True) > 25
    mixed = (1 - share) * image + share * np.array([190, 170, 140])
    return np.where(lit, mixed, image).astype(np.uint8)


def shrink(image: np.ndarray, to: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((to, to)))


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def lid(image: np.ndarray, share: float) -> np.ndarray:
    covered = image.copy()
    rows = np.arange(len(image)) < share * len(image)
    skin = np.where(image[rows].max(axis=2, keepdims=True) > 25, [120, 85, 70], image[rows])
    covered[rows] = skin
    return covered


WORSE = {
    "blur": (box_blur, (5, 13, 31)),
    "exposure": (darken, (1.8, 3.0, 6.0)),
    "haze": (veil, (0.6, 0.85, 0.97)),
    "size": (shrink, (300, 120, 50)),
    "compression": (compress, (30, 1)),
    "occlusion": (lid, (0.3, 0.55, 0.8)),
}


@pytest.mark.parametrize("name", WORSE)
def test_quality_falls_as_a_photograph_gets_worse(quality, photograph, name):
    degrade, strengths = WORSE[name]
    told = [quality(photograph)] + [quality(degrade(photograph, one)) for one in strengths]
    assert told[0] > 0.5
    for better, worse in pairwise(told):
        assert worse < better + 0.02
    assert told[-1] < told[0] - 0.05


def test_quality_is_near_the_dice_of_photographs_that_were_not_trained_on(model, drive):
    for number in ("01", "05", "12"):
        image = Image.open(drive / f"test/images/{number}_test.tif").convert("RGB")
        label = np.asarray(Image.open(drive / f"test/1st_manual/{number}_manual1.gif").convert("L"))
        result = model.segment(np.asarray(image))
        found, vessel = result.mask == 1, (label > 127) & result.fov
        dice = 2 * (found & vessel).sum() / (found.sum() + vessel.sum())
        assert result.quality.quality == pytest.approx(dice, abs=0.12)


ORDERS = {"BGR": (2, 1, 0), "GRB": (1, 0, 2), "RBG": (0, 2, 1), "GBR": (1, 2, 0), "BRG": (2, 0, 1)}


@pytest.mark.parametrize("order", ORDERS)
def test_swapped_channels_are_no_retina(quality, photograph, order):
    assert quality(photograph[..., ORDERS[order]]) < NO_RETINA


def test_a_negative_is_no_retina(quality, photograph):
    assert quality(255 - photograph) < NO_RETINA


def test_a_face_is_no_retina(quality):
    """A real one, of scikit-image's own pictures."""
    face = Image.open(Path(skimage.__file__).parent / "data/astronaut.png").convert("RGB")
    assert quality(np.asarray(face)) < NO_RETINA
    close_up = face.crop((150, 30, 310, 190)).resize((600, 600))
    assert quality(np.asarray(close_up)) < 0.4  # 0.27: any sensible cut leaves it out


def test_a_scan_of_a_report_is_no_retina(quality):
    paper = Image.new("RGB", (850, 1100), "white")
    pen = ImageDraw.Draw(paper)
    for line in range(40):
        pen.text((60, 40 + 25 * line), "Fundus findings: none, see page 2. " * 3, 0, font_size=16)
    assert quality(np.asarray(paper)) < NO_RETINA


def test_a_slice_of_oct_is_no_retina(quality):
    rng = np.random.default_rng(5)
    depth = np.arange(480)[:, None] - 200 - 30 * np.cos(np.arange(700) / 160)[None]
    light = 25 + 150 * (abs(depth) < 12) + 70 * (abs(depth - 50) < 25) + 190 * (abs(depth - 95) < 8)
    grey = (light * rng.gamma(5, 0.2, light.shape)).clip(0, 255).astype(np.uint8)
    assert quality(np.repeat(grey[..., None], 3, axis=2)) < NO_RETINA


@pytest.mark.parametrize("grain", [1, 3])
def test_colour_noise_is_no_retina(quality, grain):
    noise = np.random.default_rng(grain).integers(0, 256, (600 // grain, 600 // grain, 3), np.uint8)
    assert quality(np.asarray(Image.fromarray(noise).resize((600, 600)))) < NO_RETINA


def test_a_grey_photograph_may_be_a_retina(quality, drive):
    """Green of DRIVE alone, as red-free pictures are."""
    image = np.asarray(Image.open(drive / "test/images/01_test.tif").convert("RGB"))
    assert quality(np.repeat(image[..., 1:2], 3, axis=2)) > NO_RETINA


def test_without_a_field_there_is_no_quality():
    nothing = np.zeros((64, 64, 3), np.uint8)
    found = trust.assess_mask(nothing, nothing[..., 0], nothing[..., 0].astype(np.float32), 0.5, 1)
    assert math.isnan(found.quality)


def test_the_hints_beside_it_are_those_of_the_photograph_alone():
    image, vessel, fov = draw_fundus(4)
    field = fov.astype(np.uint8) * np.uint8(255)
    found = asdict(trust.assess_mask(image, field, vessel.astype(np.float32), 0.5, 1.0))
    assert 0 < found.pop("quality") < 1
    plain = asdict(assess_quality(image, field))
    assert math.isnan(plain.pop("quality"))
    assert found == plain


def test_no_weight_of_the_model_goes_against_what_its_figure_means():
    """A mask whose network is surer, in longer pieces, of more pixels, is not trusted less."""
    models = trust.coefficients()
    assert set(models) == {"dice", "retina"}
    weights = {(name, low): weight for name, low, _, weight in models["dice"]["terms"]}
    for figure in ("expected_dice", "connected"):
        assert weights[figure, 0.0] > 0
    assert weights["field_px", 5.0] >= 0

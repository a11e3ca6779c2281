"""Photographs degraded on purpose, and pictures that show no retina, for benchmarks/quality.py.

Pure functions of their arguments: the same seed gives the same pixels. Lengths are in diameters of
the field, so that a strength means the same on every camera.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from segpipe.data.arrays import Image8, Mask
from segpipe.data.fov import fov_box

Rng = np.random.Generator
Floats = npt.NDArray[np.float32]
LEVELS = 5  # strengths of each degradation, from hardly seen to nothing left
SIDE = 600  # px of a drawn picture


class Labelled(NamedTuple):
    image: Image8
    """[H, W, 3] RGB."""
    vessel: Mask
    """[H, W], as the first observer has it."""
    fov: Mask
    """[H, W]."""


Degradation = Callable[[Labelled, int, Rng], Labelled]


def _diameter(fov: Mask) -> int:
    top, left, bottom, right = fov_box(fov)
    return max(bottom - top, right - left)


def _as_photograph(values: Floats, like: Labelled, rng: Rng, noise: float = 0.0) -> Labelled:
    """Light [H, W, 3] in grey levels -> a photograph with the frame of `like`."""
    if noise:
        values = values + rng.normal(0, noise, values.shape).astype(np.float32)
    image = np.rint(values.clip(0, 255)).astype(np.uint8)
    image[~like.fov] = like.image[~like.fov]
    return like._replace(image=image)


def blur(one: Labelled, level: int, rng: Rng) -> Labelled:
    """Out of focus."""
    sigma = (0.001, 0.0025, 0.005, 0.01, 0.02)[level] * _diameter(one.fov)
    soft = cv2.GaussianBlur(one.image.astype(np.float32), (0, 0), sigma)
    return _as_photograph(np.asarray(soft, np.float32), one, rng)


def motion(one: Labelled, level: int, rng: Rng) -> Labelled:
    """The eye moved along a straight line."""
    length = (0.005, 0.01, 0.02, 0.04, 0.08)[level] * _diameter(one.fov)
    side = 2 * int(length / 2) + 3
    kernel = np.zeros((side, side), np.float32)
    reach = length / 2 * np.array([np.cos(a := rng.uniform(0, np.pi)), np.sin(a)])
    start, end = ((side // 2 + sign * reach) for sign in (-1, 1))
    corners = [tuple(round(float(v) * 16) for v in place) for place in (start, end)]
    cv2.line(kernel, corners[0], corners[1], 1.0, 1, cv2.LINE_AA, 4)
    moved = cv2.filter2D(one.image.astype(np.float32), -1, kernel / kernel.sum())
    return _as_photograph(np.asarray(moved, np.float32), one, rng)


def dark(one: Labelled, level: int, rng: Rng) -> Labelled:
    """Too little light: the signal falls, the camera's noise stays."""
    gain = (0.6, 0.4, 0.25, 0.15, 0.08)[level]
    return _as_photograph(gain * one.image.astype(np.float32), one, rng, noise=2.5)


def bright(one: Labelled, level: int, rng: Rng) -> Labelled:
    """Too much light: green saturates last of those that show vessels."""
    gain = (1.3, 1.8, 2.5, 4.0, 7.0)[level]
    return _as_photograph(gain * one.image.astype(np.float32), one, rng)


def uneven(one: Labelled, level: int, rng: Rng) -> Labelled:
    """The flash misses the pupil: light falls off toward one side."""
    depth = (0.4, 0.8, 1.4, 2.2, 3.5)[level]
    angle = rng.uniform(0, 2 * np.pi)
    height, width = one.fov.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along = ((x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)) / _diameter(
        one.fov
    )
    gain = np.exp(-depth * (along + 0.5).clip(0, None) ** 1.5 * 2).astype(np.float32)
    return _as_photograph(one.image * gain[..., None], one, rng, noise=2.5)


def haze(one: Labelled, level: int, rng: Rng) -> Labelled:
    """A cataract: scattered light lies over the retina, and it is a little out of focus."""
    share = (0.3, 0.5, 0.7, 0.85, 0.95)[level]
    image = one.image.astype(np.float32)
    sigma = 0.003 * share * _diameter(one.fov)
    veil = image[one.fov].mean(axis=0) * 0.5 + np.float32(rng.uniform(60, 120))
    mixed = (1 - share) * cv2.GaussianBlur(image, (0, 0), sigma) + share * veil
    return _as_photograph(mixed, one, rng, noise=1.5)


def noise(one: Labelled, level: int, rng: Rng) -> Labelled:
    """A high gain of the camera, or an old film."""
    sigma = (4.0, 10.0, 20.0, 40.0, 80.0)[level]
    return _as_photograph(one.image.astype(np.float32), one, rng, noise=sigma)


def jpeg(one: Labelled, level: int, rng: Rng) -> Labelled:
    """Compressed at 540 px across the field, where a vessel is a few pixels wide."""
    small = few_pixels_of(one.image, 540 / _diameter(one.fov))
    file = io.BytesIO()
    Image.fromarray(small).save(file, "JPEG", quality=(50, 25, 12, 6, 2)[level])
    back = np.asarray(Image.open(file).convert("RGB"))
    height, width = one.fov.shape
    image = np.asarray(cv2.resize(back, (width, height), interpolation=cv2.INTER_LINEAR))
    return _as_photograph(image.astype(np.float32), one, rng)


def occlusion(one: Labelled, level: int, rng: Rng) -> Labelled:
    """A lid, lashes or a bright reflex cover a part of the field from one side."""
    share = (0.1, 0.22, 0.38, 0.58, 0.8)[level]
    angle = rng.uniform(0, 2 * np.pi)
    height, width = one.fov.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    diameter = _diameter(one.fov)
    along = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)
    along = along + 0.03 * diameter * np.sin(y / diameter * rng.uniform(8, 20))
    edge = np.quantile(along[one.fov], 1 - share)
    cover = 1 / (1 + np.exp((edge - along) / (0.02 * diameter)))
    colour = np.array([150, 110, 95], np.float32) * np.float32(rng.uniform(0.3, 1.5))
    mixed = one.image * (1 - cover[..., None]) + cover[..., None] * colour
    return _as_photograph(mixed.astype(np.float32), one, rng, noise=2.0)


def few_pixels_of(image: Image8, scale: float) -> Image8:
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def few_pixels(one: Labelled, level: int, rng: Rng) -> Labelled:
    """A small picture: its label keeps its size, and a mask is enlarged to it."""
    diameter = (400, 250, 160, 100, 60)[level]
    image = few_pixels_of(one.image, min(1.0, diameter / _diameter(one.fov)))
    return one._replace(image=image)


def small_field(one: Labelled, level: int, rng: Rng) -> Labelled:
    """A narrow pupil: only the middle of the field is seen."""
    share = (0.85, 0.7, 0.55, 0.4, 0.25)[level]
    top, left, bottom, right = fov_box(one.fov)
    y, x = np.mgrid[: one.fov.shape[0], : one.fov.shape[1]]
    away = np.hypot(y - (top + bottom) / 2, x - (left + right) / 2)
    fov = one.fov & (away < share * _diameter(one.fov) / 2)
    image = np.where(fov[..., None], one.image, np.uint8(0))
    return Labelled(image, one.vessel & fov, fov)


DEGRADATIONS: dict[str, Degradation] = {
    one.__name__: one
    for one in (
        *(blur, motion, dark, bright, uneven, haze, noise, jpeg),
        *(occlusion, few_pixels, small_field),
    )
}


def mixed(one: Labelled, rng: Rng) -> Labelled:
    """Two or three of them at once, as in life; those that change the size come last."""
    names = [name for name in DEGRADATIONS if name not in ("few_pixels", "small_field")]
    for name in rng.choice(names, rng.integers(2, 4), replace=False):
        one = DEGRADATIONS[name](one, int(rng.integers(0, LEVELS - 1)), rng)
    return one


# ---- what is no photograph of a retina


def negative(image: Image8) -> Image8:
    return np.asarray(255 - image, np.uint8)


def swaps(image: Image8) -> dict[str, Image8]:
    """The other five orders of the channels."""
    orders = {"BGR": (2, 1, 0), "GRB": (1, 0, 2), "RBG": (0, 2, 1), "GBR": (1, 2, 0)}
    return {name: image[..., order] for name, order in (orders | {"BRG": (2, 0, 1)}).items()}


def face(rng: Rng) -> Image8:
    """Skin, hair, eyes and a mouth before a wall."""
    wall = tuple(int(v) for v in rng.integers(20, 230, 3))
    picture = Image.new("RGB", (SIDE, SIDE), wall)
    pen = ImageDraw.Draw(picture)
    skin = np.array([225, 172, 142]) * rng.uniform(0.35, 1.1)
    tone = tuple(int(v) for v in skin.clip(0, 255))
    dim = tuple(int(0.75 * v) for v in tone)
    hair = tuple(int(v) for v in np.array([70, 45, 30]) * rng.uniform(0.3, 2))
    w, h = rng.uniform(0.25, 0.36) * SIDE, rng.uniform(0.34, 0.46) * SIDE
    cx, cy = SIDE / 2 + rng.uniform(-30, 30), SIDE / 2 + rng.uniform(-30, 30)
    pen.ellipse((cx - 1.15 * w, cy - 1.2 * h, cx + 1.15 * w, cy + 0.6 * h), hair)
    pen.ellipse((cx - w, cy - h, cx + w, cy + h), tone)
    for side in (-1, 1):
        x, y = cx + side * 0.42 * w, cy - 0.15 * h
        pen.ellipse((x - 0.2 * w, y - 0.07 * h, x + 0.2 * w, y + 0.07 * h), (240, 240, 240))
        pen.ellipse((x - 0.08 * w, y - 0.07 * h, x + 0.08 * w, y + 0.07 * h), (50, 35, 25))
        pen.line((x - 0.25 * w, y - 0.16 * h, x + 0.25 * w, y - 0.16 * h), hair, 9)
    pen.line((cx, cy - 0.1 * h, cx - 0.1 * w, cy + 0.2 * h, cx + 0.05 * w, cy + 0.22 * h), dim, 5)
    pen.ellipse((cx - 0.35 * w, cy + 0.42 * h, cx + 0.35 * w, cy + 0.55 * h), (170, 70, 70))
    return _grained(picture, rng)


def front_of_eye(rng: Rng) -> Image8:
    """An iris with its pupil, sclera with a few vessels, lids with lashes."""
    skin = tuple(int(v) for v in np.array([215, 165, 140]) * rng.uniform(0.4, 1.1))
    picture = Image.new("RGB", (SIDE, SIDE), skin)
    pen, c = ImageDraw.Draw(picture), SIDE / 2
    pen.ellipse((0.04 * SIDE, 0.2 * SIDE, 0.96 * SIDE, 0.8 * SIDE), (228, 218, 210))
    for _ in range(25):
        y = float(rng.uniform(0.35, 0.65) * SIDE)
        x = float(rng.choice([0.1, 0.9]) * SIDE)
        walk = np.cumsum(rng.normal(0, 4, (12, 2)), axis=0)
        walk[:, 0] += np.linspace(0, np.sign(c - x) * 110, 12)
        pen.line([(x + a, y + b) for a, b in walk], (200, 110, 100), 1)
    r = rng.uniform(0.17, 0.24) * SIDE
    iris = tuple(int(v) for v in rng.integers(40, 150, 3))
    pen.ellipse((c - r, c - r, c + r, c + r), iris)
    for angle in rng.uniform(0, 2 * np.pi, 120):
        tip = c + 0.95 * r * np.cos(angle), c + 0.95 * r * np.sin(angle)
        pen.line((c, c, *tip), tuple(int(0.8 * v) for v in iris), 1)
    r *= rng.uniform(0.3, 0.6)
    pen.ellipse((c - r, c - r, c + r, c + r), (8, 8, 8))
    for x in rng.uniform(0.1, 0.9, 40) * SIDE:
        pen.line((x, 0.25 * SIDE, x + rng.normal(0, 20), 0.1 * SIDE), (30, 22, 20), 3)
    return _grained(picture, rng)


def page(rng: Rng) -> Image8:
    """A scan of a report: lines of letters, a table, some margins."""
    paper = int(rng.integers(215, 256))
    picture = Image.new("RGB", (SIDE, round(SIDE * rng.uniform(0.8, 1.4))), (paper,) * 3)
    pen, letters = ImageDraw.Draw(picture), "abcdefghiklmnoprstuvwy EADT0123456789.,"
    height, size = picture.height, float(rng.uniform(9, 26))
    ink = (int(rng.integers(0, 90)),) * 3
    y = 0.06 * height
    while y < 0.94 * height:
        if rng.random() < 0.85:
            text = "".join(rng.choice(list(letters), int(SIDE * 0.85 / (0.55 * size))))
            pen.text((0.06 * SIDE, y), text, ink, font_size=size)
        y += 1.5 * size
    if rng.random() < 0.5:
        for x in np.linspace(0.06, 0.94, 5) * SIDE:
            pen.line((x, 0.6 * height, x, 0.9 * height), ink, 2)
        for y in np.linspace(0.6, 0.9, 7) * height:
            pen.line((0.06 * SIDE, y, 0.94 * SIDE, y), ink, 2)
    return _grained(picture, rng)


def slice_of_oct(rng: Rng) -> Image8:
    """Layers of a retina across, in speckle, with shadows of vessels."""
    height, width = round(SIDE * rng.uniform(0.5, 1.0)), SIDE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pit = 0.1 * height * np.exp(-(((x / width - rng.uniform(0.3, 0.7)) / 0.08) ** 2))
    bend = 0.08 * height * np.cos((x / width - 0.5) * rng.uniform(0, 3))
    depth = y - height * rng.uniform(0.3, 0.45) - pit + bend
    light = np.full((height, width), 22.0, np.float32)
    top = 0.0
    for grey in rng.permutation([150, 80, 120, 60, 90, 200, 130]):
        thick = rng.uniform(0.02, 0.06) * height
        share = 1 / (1 + np.exp(-(depth - top) / 2)) - 1 / (1 + np.exp(-(depth - top - thick) / 2))
        light += share.astype(np.float32) * np.float32(grey)
        top += thick
    for place in rng.uniform(0, width, rng.integers(2, 9)):
        light *= 1 - 0.5 * np.exp(-(((x - place) / 6) ** 2)) * (depth > 0)
    light *= rng.gamma(4, 0.25, light.shape).astype(np.float32)
    grey8 = cv2.GaussianBlur(light, (0, 0), 0.8).clip(0, 255).astype(np.uint8)
    return np.repeat(grey8[..., None], 3, axis=2)


def colour_noise(rng: Rng) -> Image8:
    """Each channel on its own, at a random grain."""
    grain = float(rng.choice([0, 1, 2, 4, 10]))
    values = rng.normal(0, 1, (SIDE, SIDE, 3)).astype(np.float32)
    if grain:
        values = np.asarray(cv2.GaussianBlur(values, (0, 0), grain), np.float32)
    values = 128 + values / values.std() * np.float32(rng.uniform(20, 80))
    return np.asarray(np.rint(values.clip(0, 255)), np.uint8)


def scene(rng: Rng) -> Image8:
    """Discs, boxes and branches of any colour under a gradient, as of rooms and trees."""
    low, high = rng.integers(0, 256, (2, 3))
    share = np.linspace(0, 1, SIDE)[:, None, None]
    base = (low + share * (high - low)).repeat(SIDE, axis=1).astype(np.uint8)
    picture = Image.fromarray(base)
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(5, 60))):
        x, y, w, h = rng.uniform(0, SIDE, 4)
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        kind, box = rng.integers(3), (x, y, x + w / 3, y + h / 3)
        if kind == 0:
            pen.ellipse(box, colour)
        elif kind == 1:
            pen.rectangle(box, colour)
        else:
            pen.line((x, y, w, h), colour, int(rng.integers(1, 14)))
    return _grained(picture, rng)


def empty_field(rng: Rng) -> Image8:
    """A round field of the retina's colour in which nothing is seen, as of a lens cap or a wall."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    red = rng.uniform(60, 240)
    colour = np.array([red, red * rng.uniform(0.3, 0.9), red * rng.uniform(0.1, 0.6)], np.float32)
    shade = 1 - rng.uniform(0, 0.4) * ((x - SIDE / 2) ** 2 + (y - SIDE / 2) ** 2) / SIDE**2
    image = shade[..., None] * colour + rng.normal(0, 2, (SIDE, SIDE, 3))
    image[np.hypot(x - SIDE / 2, y - SIDE / 2) > 0.47 * SIDE] = 3
    return np.asarray(image.clip(0, 255), np.uint8)


DRAWN: dict[str, Callable[[Rng], Image8]] = {
    one.__name__: one
    for one in (face, front_of_eye, page, slice_of_oct, colour_noise, scene, empty_field)
}


def _grained(picture: Image.Image, rng: Rng) -> Image8:
    """With a camera's softness, light and noise."""
    image = cv2.GaussianBlur(np.asarray(picture, np.float32), (0, 0), float(rng.uniform(0.5, 1.5)))
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] / SIDE - 0.5
    light = 1 + rng.uniform(-0.3, 0.3) * x + rng.uniform(-0.3, 0.3) * y
    values = image * light[..., None] + rng.normal(0, rng.uniform(0, 6), image.shape)
    return np.asarray(np.rint(values.clip(0, 255)), np.uint8)

"""Random crops, a pure function of (seed, epoch, image, k): no state, any order, any worker."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from segpipe.data.arrays import Image8
from segpipe.data.classes import OUTSIDE

SAMPLINGS = ("uniform", "fov", "whole")
"""Where crops lie: uniformly in the photograph, around a pixel of its field of view, in the field's
middle."""
ORDER, PLACE, CHANGE = 0, 1, 2  # what a random stream is for; keeps those of one epoch apart
MARGIN_PX = 2  # around what a rotated crop sees, for bilinear weights and rounding
STRIP_PX = 8192  # of floating-point colours at once: 96 KiB stay in the cache, and in malloc's heap
BRIGHTENING = 2.0  # most by which contrast multiplies a level: what is black stays black

Range = tuple[float, float]


@dataclass(frozen=True)
class Augmentation:
    """From what ranges a crop's changes are drawn, each uniformly.

    The defaults are those of the W-Net (Galdran et al. 2022, github.com/agaldran/lwnet), but for
    its shifts by 5 %, which a random place makes superfluous.
    """

    hflip: float = 0.5
    """Probability of a horizontal flip, left to right, 0 to 1."""
    vflip: float = 0.5
    """Probability of a vertical flip, top to bottom, 0 to 1."""
    rotation: Range = (-45.0, 45.0)
    """Degrees, counter-clockwise."""
    scale: Range = (0.95, 1.20)
    """Magnification; above 1 things become larger."""
    brightness: Range = (0.75, 1.25)
    """Factor of each channel."""
    contrast: Range = (0.75, 1.25)
    """Factor of the distance from the crop's mean grey."""
    saturation: Range = (0.75, 1.25)
    """Factor of the distance from each pixel's own grey."""
    hue: Range = (-0.01, 0.01)
    """Turns of the colour circle, from red towards green."""
    gain: Range = (1.0, 1.0)
    """Factor of each channel by itself: a camera's white balance."""
    gamma: Range = (1.0, 1.0)
    """Exponent of the levels, on a scale from 0 to 1."""
    downscale: Range = (1.0, 1.0)
    """Size of the photograph, of the crop's: a crop is reduced to it and enlarged again. Above 1
    it is left as it is."""


WIDE = Augmentation(
    rotation=(-180.0, 180.0),
    scale=(0.85, 1.2),
    saturation=(0.7, 1.3),
    gain=(0.9, 1.1),
    gamma=(0.8, 1.25),
)
AUGMENTATIONS = {
    "none": None,
    "wnet": Augmentation(),
    "wide": WIDE,
    "wider": replace(WIDE, downscale=(0.4, 1.6)),
}
"""By name. `wide` is for cameras that were not seen: any direction, more scales, other colours;
`wider` for those with fewer pixels too: every other crop is downscaled."""


@dataclass(frozen=True)
class Change:
    """What is done to one crop; the fields mean what Augmentation's mean."""

    hflip: bool
    vflip: bool
    rotation: float
    scale: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    downscale: float = 1.0


UNCHANGED = Change(False, False, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0)


def epoch_order(
    seed: int, epoch: int, num_images: int, crops_per_image: int
) -> npt.NDArray[np.int64]:
    """The epoch's crops in training order: [N, 2] int64 of (image, k), a random permutation.

    Every (image, k) with image < num_images and k < crops_per_image occurs exactly once.
    """
    rng = np.random.default_rng((seed, ORDER, epoch))
    order = rng.permutation(num_images * crops_per_image)
    return np.stack(np.divmod(order, crops_per_image), axis=1)


def crop_corner(
    seed: int, epoch: int, image: int, k: int, height: int, width: int, size: int
) -> tuple[int, int]:
    """(top, left) of a size x size px crop, uniform over all places inside [height, width] px."""
    if size > min(height, width):
        raise ValueError(f"a crop of {size} px does not fit into {width}x{height} px")
    rng = np.random.default_rng((seed, PLACE, epoch, image, k))
    return int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))


def draw_change(seed: int, epoch: int, image: int, k: int, ranges: Augmentation) -> Change:
    """The change of one crop: its own stream's numbers, in the order of Change's fields.

    All are drawn whatever the ranges, so one that is narrowed to a value leaves the others alone.
    """
    rng = np.random.default_rng((seed, CHANGE, epoch, image, k))
    hflip, vflip = bool(rng.random() < ranges.hflip), bool(rng.random() < ranges.vflip)
    return Change(
        hflip,
        vflip,
        rotation=rng.uniform(*ranges.rotation),
        scale=rng.uniform(*ranges.scale),
        brightness=rng.uniform(*ranges.brightness),
        contrast=rng.uniform(*ranges.contrast),
        saturation=rng.uniform(*ranges.saturation),
        hue=rng.uniform(*ranges.hue),
        gains=(
            rng.uniform(*ranges.gain),
            rng.uniform(*ranges.gain),
            rng.uniform(*ranges.gain),
        ),
        gamma=rng.uniform(*ranges.gamma),
        downscale=rng.uniform(*ranges.downscale),
    )


def fov_corner(
    seed: int, epoch: int, index: int, k: int, label: Image8, size: int
) -> tuple[int, int]:
    """(top, left) of a size x size px crop around a pixel of the field, each as likely as another.

    It may reach beyond the photograph. label [H, W] uint8 has a pixel that is not OUTSIDE.
    """
    rng = np.random.default_rng((seed, PLACE, epoch, index, k))
    while True:
        y, x = (int(rng.integers(extent)) for extent in label.shape)
        if label[y, x] != OUTSIDE:
            return y - size // 2, x - size // 2


def centre_corner(label: Image8, size: int) -> tuple[int, int]:
    """(top, left) of the size x size px crop around the middle of the field's box."""
    left, top, width, height = cv2.boundingRect((label != OUTSIDE).view(np.uint8))
    return top + (height - size) // 2, left + (width - size) // 2


def crop(
    image: Image8,
    label: Image8,
    seed: int,
    epoch: int,
    index: int,
    k: int,
    size: int,
    augmentation: Augmentation | None = None,
    sampling: str = "uniform",
) -> tuple[Image8, Image8]:
    """Crop k of the epoch from image [H, W, 3] uint8 RGB and label [H, W] uint8, its `index`-th.

    -> image [size, size, 3] uint8, label [size, size] uint8. `sampling` is one of SAMPLINGS.
    Without augmentation uniform ones are views of the window at crop_corner. With it the window's
    content is flipped, rotated and scaled about the window's centre, then downscaled and
    tinted; what comes from beyond the photograph is black and OUTSIDE. Bit-identical in every
    process on processors of one kind: others may round a bilinear weight otherwise. Raises
    ValueError for a size that does not fit.
    """
    if sampling == "uniform":
        top, left = crop_corner(seed, epoch, index, k, label.shape[0], label.shape[1], size)
    elif sampling == "fov":
        top, left = fov_corner(seed, epoch, index, k, label, size)
    else:
        top, left = centre_corner(label, size)
    if augmentation is None:
        if sampling != "uniform":
            return rotate(image, label, top, left, size, UNCHANGED)
        window = np.s_[top : top + size, left : left + size]
        return image[window], label[window]
    change = draw_change(seed, epoch, index, k, augmentation)
    rotated, rotated_label = rotate(image, label, top, left, size, change)
    return tint(downscale(rotated, change.downscale), change), rotated_label


def rotate(
    image: Image8, label: Image8, top: int, left: int, size: int, change: Change
) -> tuple[Image8, Image8]:
    """Flip, then rotate and scale a window of image [H, W, 3] and label [H, W] about its centre.

    -> image [size, size, 3] uint8, bilinear; label [size, size] uint8, nearest neighbour. Beyond
    the photograph 0 and OUTSIDE.
    """
    middle = (size - 1) / 2  # pixel centres have whole coordinates
    centre = np.array([left + middle, top + middle])  # x, y
    angle = math.radians(change.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    flip = np.diag([-1.0 if flag else 1.0 for flag in (change.hflip, change.vflip)])
    # from the crop's middle to the photograph: y points down, so this rotates back
    back = flip @ np.array([[cos, -sin], [sin, cos]]) / change.scale
    reach = np.abs(back).sum(axis=1) * middle + MARGIN_PX
    first = np.maximum(np.floor(centre - reach), 0).astype(int)
    last = np.ceil(centre + reach).astype(int)
    seen = np.s_[first[1] : last[1] + 1, first[0] : last[0] + 1]
    offset = centre - first - back.sum(axis=1) * middle
    rotated, rotated_label = (
        cv2.warpAffine(
            pixels[seen],
            np.column_stack([back, offset]),
            (size, size),
            flags=how | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=beyond,
        )
        for pixels, how, beyond in (
            (image, cv2.INTER_LINEAR, (0, 0, 0)),
            (label, cv2.INTER_NEAREST, (OUTSIDE,)),
        )
    )
    return np.asarray(rotated, np.uint8), np.asarray(rotated_label, np.uint8)


def downscale(image: Image8, share: float) -> Image8:
    """image [S, S, 3] uint8 as if photographed at `share` of its size; as it is from 1 on."""
    if share >= 1:
        return image
    side = max(1, round(len(image) * share))
    reduced = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    back = (image.shape[1], image.shape[0])
    return np.asarray(cv2.resize(reduced, back, interpolation=cv2.INTER_LINEAR), np.uint8)


def tint(image: Image8, change: Change) -> Image8:
    """Brightness, gains, gamma, contrast, saturation, hue of image [S, S, 3] uint8 RGB, in order.

    As Pillow's ImageEnhance and torchvision's ColorJitter have them, but for one rule: contrast
    makes no level more than BRIGHTENING times as high. So black stays black, and the frame around
    a photograph dark, where a weaker contrast would turn them grey. All pixels of a crop are
    treated alike, whatever their class: a change that ended at the field of view would show a
    network its rim.
    """
    levels = np.arange(256, dtype=np.float32)
    if change.gains == UNCHANGED.gains and change.gamma == 1:
        table = _levels(levels * change.brightness)
    else:
        factors = np.float32(change.brightness) * np.asarray(change.gains, np.float32)
        bright = np.power(levels[:, None] * factors / 255, change.gamma, dtype=np.float32)
        table = _levels(255 * bright)[None]  # [1, 256, 3]
    brighter = cv2.LUT(image, table)
    mean = round(cv2.mean(cv2.cvtColor(brighter, cv2.COLOR_RGB2GRAY))[0])
    stretched = np.minimum(mean + (levels - mean) * change.contrast, BRIGHTENING * levels)
    contrasted = cv2.LUT(brighter, _levels(stretched))
    grey = cv2.cvtColor(cv2.cvtColor(contrasted, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    share = change.saturation
    tinted = np.asarray(cv2.addWeighted(contrasted, share, grey, 1 - share, 0), np.uint8)
    return _shift_hue(tinted, change.hue) if change.hue else tinted


def _levels(table: npt.NDArray[np.float32]) -> Image8:
    return np.clip(np.rint(table), 0, 255).astype(np.uint8)


def _shift_hue(image: Image8, turns: float) -> Image8:
    rows = max(1, STRIP_PX // image.shape[1])
    shifted = np.empty_like(image)
    for top in range(0, len(image), rows):
        strip = np.multiply(image[top : top + rows], np.float32(1 / 255))
        hsv = np.asarray(cv2.cvtColor(strip, cv2.COLOR_RGB2HSV), np.float32)
        hsv[..., 0] += 360 * (turns % 1)  # the way back wraps what is above 360
        back = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        shifted[top : top + rows] = cv2.convertScaleAbs(back, alpha=255)
    return shifted

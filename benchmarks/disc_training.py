"""Train the small network that finds the optic disc: `segment --structures all` uses it.

    python benchmarks/disc_training.py OUTPUT [--sets DRIVE HRF] [--steps 4000] [--seed 0]

Needs DRIVE, HRF and discs.csv below SEGPIPE_DATA; one process of one thread. Run again it resumes.
Writes OUTPUT/state.pt as it goes, and at the end the shipped structures.maps with this network in
place of the disc's.

It sees whole fields at a quarter of the canvas's size. Each is a circle out of a photograph, from
half of its field to all of it, wherever that leaves the disc, in the light, the colours and the
sharpness of some other camera, with blots that are none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from av_labels import disc_of
from common import data_folder
from resumed_training import Recipe, arguments, train
from torch import Tensor

from segpipe.data.arrays import DISC_STEP, Image8, Mask, Plane
from segpipe.data.canvas import fit_field
from segpipe.data.datasets import load_example
from segpipe.data.layouts import open_labelled
from segpipe.evaluate.discs import WRONG
from segpipe.measurement.disc import DiscPlace
from segpipe.models.resunet import DiscUNet
from segpipe.models.structures import DIAMETER, DISC_NETWORK, FILE, replaced
from segpipe.storage import open_store

SIDE, BATCH = round(DIAMETER) // DISC_STEP, 12  # px, the field's diameter too
HALF = (SIDE - 1) / 2
LEAST_PX = 60  # of a disc that the overlap counts
X, Y = (axis.astype(np.float32) for axis in np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
CIRCLE = np.hypot(X - HALF, Y - HALF) < SIDE / 2
Affine = npt.NDArray[np.float64]


class Photograph(NamedTuple):
    """At half the canvas's size."""

    image: Image8
    fov: Image8
    middle: npt.NDArray[np.float64]
    """[2] x and y of the field's."""
    radius: float
    disc: DiscPlace


def photographs(names: list[str]) -> Iterator[Photograph]:
    """Those training photographs whose disc is known."""
    for name in names:
        store = open_store(str(data_folder() / name))
        for example in open_labelled(store).training:
            row = disc_of(name, example)
            if row is None or row.ok == WRONG or row.label is None:
                continue
            one, disc = load_example(store, example), row.label
            image, fov, g = fit_field(one.image, one.fov, DIAMETER)
            across, down = g.scaled_width / g.box_width / 2, g.scaled_height / g.box_height / 2
            place = DiscPlace(
                (disc.x + 0.5 - g.left) * across,
                (disc.y + 0.5 - g.top) * down,
                disc.height * down,
                disc.width * across,
            )
            size = image.shape[1] // 2, image.shape[0] // 2
            small, field = (
                np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
                for pixels in (image, fov)
            )
            extent = np.array([g.scaled_width, g.scaled_height]) / 2
            yield Photograph(small, field, extent / 2, float(extent.max()) / 2, place)


def drawn(photograph: Photograph, rng: np.random.Generator) -> tuple[Image8, Mask, Mask]:
    """-> image [SIDE, SIDE, 3], its field and its disc [SIDE, SIDE] bool."""
    to_crop = placed(photograph, rng)
    size = SIDE, SIDE
    image = np.asarray(cv2.warpAffine(photograph.image, to_crop, size), np.uint8)
    inside = np.asarray(cv2.warpAffine(photograph.fov, to_crop, size)) > 127
    inside &= CIRCLE
    cut = rng.random()
    if cut < 0.2:
        inside &= np.abs(Y - HALF) < rng.uniform(0.6, 0.95) * SIDE / 2
    elif cut < 0.3:
        inside &= np.abs(X - HALF) < rng.uniform(0.7, 0.95) * SIDE / 2
    disc = ellipse(photograph.disc, to_crop)
    return changed(image, inside, disc, rng), inside, disc & inside


def placed(photograph: Photograph, rng: np.random.Generator) -> Affine:
    """[2, 3] from the photograph to a crop that is a circle of its field."""
    share, centre = rng.uniform(0.97, 1.06), photograph.middle
    if rng.random() < 0.6:  # a narrower field: around any point, or with the disc near its edge
        share = rng.uniform(0.55, 1.0)
        room, angle = photograph.radius * (1 - share), rng.uniform(0, 2 * math.pi)
        towards = np.array([math.cos(angle), math.sin(angle)])
        if rng.random() < 0.35:
            disc = np.array([photograph.disc.x, photograph.disc.y])
            away = disc + rng.uniform(0, 1.05) * share * photograph.radius * towards - centre
            centre = centre + away * min(1, (room + 0.1 * photograph.radius) / np.hypot(*away))
        else:
            centre = centre + math.sqrt(rng.random()) * room * towards
    angle = rng.uniform(0, 2 * math.pi) if rng.random() < 0.5 else rng.normal(0, 0.25)
    scale, stretch = SIDE / 2 / (share * photograph.radius), math.exp(rng.normal(0, 0.05))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    flip = rng.choice([-1, 1]), 1 if rng.random() < 0.7 else -1
    linear = scale * turn @ np.diag([stretch, 1 / stretch]) @ np.diag(flip)
    return np.column_stack([linear, HALF - linear @ centre])


def ellipse(disc: DiscPlace, to_crop: Affine) -> Mask:
    angle = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    edge = [
        disc.x + disc.width / 2 * np.cos(angle),
        disc.y + disc.height / 2 * np.sin(angle),
        np.ones_like(angle),
    ]
    found = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(found, [np.rint(8 * (to_crop @ np.stack(edge)).T).astype(np.int32)], 1, shift=3)
    return found.view(np.bool_)


def changed(image: Image8, inside: Mask, disc: Mask, rng: np.random.Generator) -> Image8:
    """The same in another camera's light; 0 outside the field."""
    if rng.random() < 0.5:
        share = rng.uniform(0.3, 0.95)
        reduced = cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        image = np.asarray(cv2.resize(reduced, (SIDE, SIDE)), np.uint8)
    if rng.random() < 0.3:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2.5)), np.uint8)
    mean = np.array(cv2.mean(image, inside.view(np.uint8))[:3])
    light = image.astype(np.float32)
    if rng.random() < 0.5:
        few = np.exp(rng.uniform(0.1, 0.35) * rng.normal(0, 1, (3, 3))).astype(np.float32)
        light *= cv2.resize(few, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)[..., None]
    for _ in range(rng.poisson(1.2)):
        blot(light, mean, disc, rng)
    if rng.random() < 0.3:
        light += rng.normal(0, rng.uniform(1.5, 12), light.shape).astype(np.float32)
    share = rng.uniform(0.2, 1.5)
    to_grey = share * np.eye(3) + (1 - share) / 3 * np.ones((3, 3))
    mixed = np.clip(cv2.transform(light, to_grey.astype(np.float32)), 0, 255).astype(np.uint8)
    levels = np.arange(256)[:, None] / 255 * np.exp(rng.normal(0, 0.15, 3) + rng.normal(0, 0.25))
    levels = np.clip(levels, 0, 1) ** rng.uniform(0.6, 1.7)
    middle = mean.mean() / 255
    levels = np.clip(middle + (levels - middle) * rng.uniform(0.6, 1.5), 0, 1)
    made = np.asarray(cv2.LUT(mixed, (255 * levels).astype(np.uint8)[None]), np.uint8)
    made *= inside[..., None]
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 90))]
        made = np.asarray(cv2.imdecode(cv2.imencode(".jpg", made, quality)[1], cv2.IMREAD_COLOR))
        made = made * inside[..., None]
    return made.astype(np.uint8)


def blot(light: Plane, mean: npt.NDArray[np.float64], disc: Mask, rng: np.random.Generator) -> None:
    """Draw a bright or a dark one, faint where it lies above the disc."""
    x, y = rng.uniform(0, SIDE, 2)
    size, stretch = math.exp(rng.uniform(math.log(3), math.log(40))), math.exp(rng.normal(0, 0.3))
    soft, cover = rng.uniform(0.05, 0.6), rng.uniform(0.2, 0.8)
    away = np.hypot((X - np.float32(x)) / stretch, (Y - np.float32(y)) * stretch) / size
    share = (np.clip((1 - away) / soft, 0, 1) * cover * (1 - 0.8 * disc))[..., None]
    if rng.random() < 0.6:
        tint = np.array([1, rng.uniform(0.9, 1.3), rng.uniform(0.7, 1.5)])
        colour = mean * rng.uniform(1.1, 2.2) * tint
    else:
        colour = mean * rng.uniform(0.2, 0.7)
    light += (share * (colour - light)).astype(np.float32)


def loss_of(logits: Tensor, labels: tuple[Mask, Mask]) -> Tensor:
    """logits [N, 1, SIDE, SIDE], of fields and discs [N, SIDE, SIDE] -> []: cross entropy, and
    what is missing from the overlap of discs (Dice) that are there."""
    inside, disc = (torch.from_numpy(one.astype(np.float32)) for one in labels)
    found = logits[:, 0]
    entropy = F.binary_cross_entropy_with_logits(found, disc, inside, reduction="sum")
    prob, area = torch.sigmoid(found) * inside, disc.sum((1, 2))
    missing = 1 - (2 * (prob * disc).sum((1, 2)) + 20) / (prob.sum((1, 2)) + area + 20)
    is_there = (area > LEAST_PX).float()
    overlap = (missing * is_there).sum() / is_there.sum().clamp(min=1)
    return 3 * entropy / inside.sum() + 0.5 * overlap


def main() -> None:
    config = arguments(__doc__, steps=4_000)
    known = list(photographs(config.sets))

    def batch(step: int) -> tuple[Image8, tuple[Mask, Mask]]:
        rng = np.random.default_rng((config.seed, step))
        made = [drawn(known[rng.integers(len(known))], rng) for _ in range(BATCH)]
        images, fields, discs = (np.stack(some) for some in zip(*made, strict=True))
        return images, (fields, discs)

    recipe = Recipe(config.steps, decay=1e-3, clip=0.5, average=0.995)
    weights = train(DiscUNet(), batch, loss_of, recipe, config.output)
    (config.output / FILE).write_bytes(replaced(DISC_NETWORK, weights))


if __name__ == "__main__":
    main()

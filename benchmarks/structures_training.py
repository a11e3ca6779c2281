"""Train the network that tells arteries from veins: `segment --structures all` uses it.

    python benchmarks/structures_training.py OUTPUT [--sets DRIVE HRF] [--steps 11000] [--seed 0]
    python benchmarks/structures_training.py OUTPUT --after OTHER --steps 7500 --rate 2e-3

Needs DRIVE, DRIVE_AV, HRF and discs.csv below SEGPIPE_DATA; one process of one thread. Run again it
resumes. Writes OUTPUT/state.pt as it goes, and at the end the shipped structures.maps with this
network in place of that of arteries and veins.

With --after it goes on from the network in OTHER/structures.maps, whose mean over four mirror
images is TOLD of what is learnt of each pixel (after Furlanello et al., arXiv:1805.04770).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from av_labels import (
    ARTERY,
    BACKGROUND,
    DISC_UNKNOWN,
    IN_DISC,
    KIND_BITS,
    OUTSIDE,
    UNKNOWN,
    VEIN,
    label_of,
)
from common import data_folder
from resumed_training import Recipe, arguments, train
from torch import Tensor

from segpipe.data import crops
from segpipe.data.arrays import Image8
from segpipe.data.canvas import canvas_side, fit_classes, fit_field
from segpipe.data.datasets import load_example
from segpipe.data.layouts import open_labelled
from segpipe.models.network import Network, to_planes
from segpipe.models.resunet import KindsUNet
from segpipe.models.structures import (
    DIAMETER,
    DISC,
    FILE,
    KIND,
    KINDS_NETWORK,
    VESSELS,
    loaded,
    replaced,
)
from segpipe.storage import open_store

CROP, BATCH = 768, 3
TOLD, TOLD_LEVELS, TOLD_BIT = 0.3, 7, 5  # in a label's upper bits
NEAR = np.ones((5, 5), np.uint8)  # what a vessel's label is widened by: masks are wider at times


def canvases(names: list[str], teacher: Network | None) -> Iterator[tuple[Image8, Image8]]:
    """Image [S, S, 3] and label [S, S] uint8 of each training photograph, with what the teacher
    says of it."""
    for name in names:
        store = open_store(str(data_folder() / name))
        for example in open_labelled(store).training:
            one = load_example(store, example)
            image, _, geometry = fit_field(one.image, one.fov, DIAMETER)
            label = label_of(name, example, one.fov.view(np.uint8))
            label = fit_classes(label, geometry, canvas_side(DIAMETER))
            if teacher is not None:
                label += (label & KIND_BITS != OUTSIDE) * (said(teacher, image) << TOLD_BIT)
            yield image, label


@torch.inference_mode()
def said(teacher: Network, image: Image8) -> Image8:
    """image [S, S, 3] -> artery or not [S, S] in 0 to TOLD_LEVELS, the mean over four mirror
    images."""
    total = np.zeros(image.shape[:2], np.float32)
    for axes in ((), (0,), (1,), (0, 1)):
        planes = to_planes(torch.from_numpy(np.flip(image, axes).copy()[None]))
        total += np.flip(torch.sigmoid(teacher(planes)[0, KIND]).numpy(), axes)
    return np.rint(total / 4 * TOLD_LEVELS).astype(np.uint8)


def loss_of(logits: Tensor, labels: list[Image8], told: float) -> Tensor:
    """logits [N, 3, S, S] float32, labels [S, S] uint8, the teacher's share -> []."""
    label = np.stack(labels)
    code = label & KIND_BITS
    near = [
        np.stack([cv2.dilate(one, NEAR) for one in (code == k).view(np.uint8)])
        for k in (ARTERY, VEIN)
    ]
    at = np.flatnonzero((near[0] != near[1]) & (code != OUTSIDE) & (code != UNKNOWN))
    weight = torch.from_numpy(
        np.where(code.ravel()[at] == BACKGROUND, np.float32(0.3), np.float32(1))
    )
    truth = torch.from_numpy(near[0].ravel()[at].astype(np.float32))
    by_teacher = (label.ravel()[at] >> TOLD_BIT).astype(np.float32) / TOLD_LEVELS
    truth = truth.lerp(torch.from_numpy(by_teacher), told)
    kind = logits[:, KIND].reshape(-1)[torch.from_numpy(at)]
    loss = F.binary_cross_entropy_with_logits(kind, truth, weight, reduction="sum")
    loss = loss / weight.sum().clamp(min=1)
    # the other two change slowly: every other pixel will do
    code, label = code[:, ::2, ::2], label[:, ::2, ::2]
    inside = code != OUTSIDE
    of_disc = label & IN_DISC != 0, inside & (label & DISC_UNKNOWN == 0), 1.0
    of_vessels = code > BACKGROUND, inside, 0.5
    for index, (is_so, where, share) in ((DISC, of_disc), (VESSELS, of_vessels)):
        truth, counted = (torch.from_numpy(one.astype(np.float32)) for one in (is_so, where))
        few = logits[:, index, ::2, ::2]
        one = F.binary_cross_entropy_with_logits(few, truth, counted, reduction="sum")
        loss = loss + share * one / counted.sum().clamp(min=1)
    return loss


def main() -> None:
    config = arguments(__doc__, 11_000, "--after")
    network, teacher = KindsUNet(), None
    if config.after:
        network.load_state_dict(loaded(KINDS_NETWORK, (config.after / FILE).read_bytes()))
        teacher = copy.deepcopy(network).eval()
    photographs = list(canvases(config.sets, teacher))
    augmentation = crops.AUGMENTATIONS["wider"]

    def batch(step: int) -> tuple[Image8, list[Image8]]:
        chosen = np.random.default_rng((config.seed, step)).permutation(len(photographs))[:BATCH]
        place = config.seed, step
        pairs = [
            crops.crop(image, label, *place, int(at), 0, CROP, augmentation, "fov")
            for at, (image, label) in ((at, photographs[at]) for at in chosen)
        ]
        return np.stack([image for image, _ in pairs]), [label for _, label in pairs]

    recipe = Recipe(config.steps, decay=1e-4, clip=0.3, average=0.998, rate=config.rate)
    loss = partial(loss_of, told=TOLD if teacher else 0)
    weights = train(network, batch, loss, recipe, config.output)
    (config.output / FILE).write_bytes(replaced(KINDS_NETWORK, weights))


if __name__ == "__main__":
    main()

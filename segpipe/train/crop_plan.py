"""What a training's crops are, and the one who cuts them: a pure function of the plan and a step.

Nothing here knows Ray: a loop that takes crops from a Cropper, step after step, has the same ones.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from segpipe.data import crops
from segpipe.data.canvas import (
    canvas_side,
    fit_classes,
    fit_image,
    plan_fit,
    resize_classes,
    resize_image,
    scale_to,
)
from segpipe.data.datasets import Labelled, load_example
from segpipe.data.fov import fov_diameter
from segpipe.data.layouts import Example
from segpipe.data.soft import soft_label
from segpipe.storage import Store
from segpipe.train.settings import CropSettings
from segpipe.train.teachers import Teachers

CACHE_BYTES = 256 << 20  # decoded images that one cropper keeps

Batch = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class CropPlan:
    """What the run's crops are. Step, rank and slot mean something only together with it."""

    store: Store
    examples: tuple[Example, ...]
    diameter: float
    """Working diameter in px."""
    epochs: int
    crops: CropSettings
    teachers: tuple[bytes, ...] = ()
    """Checkpoints whose scores are mixed into the labels."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; the permutation's tail is left out, other crops every epoch."""
        return len(self.examples) * self.crops.crops_per_image // self.crops.batch_size

    def share(self, rank: int, world_size: int) -> range:
        """The slots of a step that belong to `rank`; shares differ by one crop at most."""
        batch_size = self.crops.batch_size
        return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def share_bytes(self, world_size: int) -> int:
        """Of the images and labels of the largest share of a step."""
        return -(-self.crops.batch_size // world_size) * 4 * self.crops.crop_size**2

    def crops_of_step(self, step: int) -> npt.NDArray[np.int64]:
        """[batch_size, 2] of (image, k), in order of their slots."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        drawn, num_examples = self.crops, len(self.examples)
        order = _epoch_order(drawn.seed, epoch, num_examples, drawn.crops_per_image)
        return order[step_in_epoch * drawn.batch_size :][: drawn.batch_size]


_epoch_order = lru_cache(maxsize=2)(crops.epoch_order)


class Cropper:
    """Reads, decodes and crops, and keeps decoded images."""

    def __init__(self, plan: CropPlan, world_size: int, nice: int = 0) -> None:
        """`nice` is added to the niceness of this process."""
        self.plan, self.world_size = plan, world_size
        self.cache = ImageCache(plan)
        os.nice(nice)
        self.augmentation = crops.AUGMENTATIONS[plan.crops.augmentation]
        cv2.setNumThreads(1)  # the cores are the workers'

    def __call__(self, batch: Batch) -> Batch:
        """`step` [n], `rank` [n], all of one rank -> the same and what crop_stream's rows have.

        Labels are classes, or soft ones where the plan's settings say so.
        """
        steps, (rank, *_) = batch["step"], batch["rank"]
        slots = np.asarray(self.plan.share(int(rank), self.world_size))
        chosen = np.stack([self.plan.crops_of_step(int(step))[slots] for step in steps])
        size = self.plan.crops.crop_size
        images = np.empty((*chosen.shape[:2], size, size, 3), np.uint8)
        labels = np.empty((*chosen.shape[:2], size, size), np.uint8)
        for row, step in enumerate(steps):
            epoch = int(step) // self.plan.steps_per_epoch
            for at, (index, k) in enumerate(chosen[row]):
                images[row, at], labels[row, at] = self._crop(epoch, int(index), int(k))
        slot = np.tile(slots, (len(steps), 1))
        return {**batch, "slot": slot, "crop": chosen, "image": images, "label": labels}

    def share(self, step: int, rank: int) -> Batch:
        """The crops of one rank in one step: slot [n], crop [n, 2], image [n, S, S, 3], label."""
        rows = self({"step": np.array([step]), "rank": np.array([rank])})
        return {name: values[0] for name, values in rows.items()}

    def _crop(
        self, epoch: int, index: int, k: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        drawn = self.plan.crops
        image, label = self.cache.get(index)
        how = drawn.crop_size, self.augmentation, drawn.crop_sampling
        return crops.crop(image, label, drawn.seed, epoch, index, k, *how)


class ImageCache:
    """Decoded images at the working scale, the least recently used leave first."""

    def __init__(self, plan: CropPlan, limit_bytes: int = CACHE_BYTES) -> None:
        self.plan, self.limit_bytes, self.bytes = plan, limit_bytes, 0
        self.teachers = Teachers(plan.teachers) if plan.teachers else None
        self.held: OrderedDict[int, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = (
            OrderedDict()
        )

    def get(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """-> image [H, W, 3] uint8, label [H, W] uint8."""
        if index in self.held:
            self.held.move_to_end(index)
            return self.held[index]
        example = load_example(self.plan.store, self.plan.examples[index])
        loaded = self.held[index] = self._prepared(example)
        self.bytes += _nbytes(loaded)
        while self.bytes > self.limit_bytes and len(self.held) > 1:
            _, dropped = self.held.popitem(last=False)
            self.bytes -= _nbytes(dropped)
        return loaded

    def _prepared(self, labelled: Labelled) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """The whole image and its label, hard or soft, the field at the working diameter."""
        image, label = at_working_scale(labelled, self.plan.diameter)
        crops = self.plan.crops
        if crops.soft:
            height, width = label.shape
            taught = self.teachers(labelled, height, width) if self.teachers else None
            label = soft_label(labelled.label, height, width, taught, crops.teachers_share)
        return image, label


def _nbytes(arrays: tuple[npt.NDArray[Any], ...]) -> int:
    return sum(array.nbytes for array in arrays)


def at_working_scale(
    labelled: Labelled, diameter: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """-> the whole image [H, W, 3] uint8 and label [H, W] uint8, the field at its diameter."""
    fov = labelled.fov
    height, width = scaled_size(fov.shape[0], fov.shape[1], fov_diameter(fov), diameter)
    return (
        resize_image(labelled.image, height, width),
        resize_classes(labelled.label, height, width),
    )


def scaled_size(height: int, width: int, field_diameter: float, diameter: float) -> tuple[int, int]:
    """(height, width) in px of an image after its field is scaled to the working diameter."""
    scale = scale_to(field_diameter, diameter)
    return round(height * scale), round(width * scale)


def squashed(store: Store, example: Example, size: int) -> dict[str, npt.NDArray[np.uint8]]:
    """A whole image, as the lecture tests: image [size, size, 3] uint8, label [size, size]."""
    labelled = load_example(store, example)
    image = resize_image(labelled.image, size, size)
    return {"image": image, "label": resize_classes(labelled.label, size, size)}


def canvas(store: Store, example: Example, diameter: float) -> dict[str, npt.NDArray[np.uint8]]:
    """A field on its canvas, as a network is used: image [S, S, 3] uint8, label [S, S] uint8."""
    labelled = load_example(store, example)
    geometry = plan_fit(labelled.fov, diameter)
    side = canvas_side(diameter)
    image = fit_image(labelled.image, geometry, side)
    return {"image": image, "label": fit_classes(labelled.label, geometry, side)}

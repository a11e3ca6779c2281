"""The crop stream that feeds Ray Train: one dataset for the whole run, no gap between epochs.

A row is one worker's share of one step. Rows come in blocks of some steps for one worker, the
workers in turn, and the split deals blocks out in that order, so every worker gets its own steps in
order whatever the number of workers. Each row carries its step and rank, and the worker checks it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataIterator, Dataset, ExecutionOptions, ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.train import DataConfig

from segpipe import states
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
from segpipe.runtime import DATA_CPUS, NICE, SlowPace, data_stage
from segpipe.storage import Store

CACHE_BYTES = 256 << 20  # decoded images that one crop actor keeps
CROPS = "crops"  # the stream's name among a training's data sets
BLOCK_BYTES = 16 << 20  # crops of a block: more spread Ray's cost of a task, fewer wait for it
MOST_BLOCK_STEPS = 64
MOST_BLOCKS = 10_000  # what the scheduler holds at once without slowing down
AHEAD = 4  # blocks on their way to each worker

Batch = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class CropPlan:
    """What the run's crops are. Row ids of the stream mean something only together with it."""

    store: Store
    examples: tuple[Example, ...]
    diameter: float
    """Working diameter in px."""
    seed: int
    epochs: int
    crops_per_image: int
    crop_size: int
    """px"""
    batch_size: int
    """Crops a step, all workers together."""
    augmentation: str = "none"
    """How crops are changed, a key of AUGMENTATIONS."""
    place: str = "photograph"
    """Where crops lie, one of crops.PLACES."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; the permutation's tail is left out, other crops every epoch."""
        return len(self.examples) * self.crops_per_image // self.batch_size

    def share(self, rank: int, world_size: int) -> range:
        """The slots of a step that belong to `rank`; shares differ by one crop at most."""
        return range(
            rank * self.batch_size // world_size, (rank + 1) * self.batch_size // world_size
        )

    def share_bytes(self, world_size: int) -> int:
        """Of the images and labels of the largest share of a step."""
        return -(-self.batch_size // world_size) * 4 * self.crop_size**2

    def block_steps(self, world_size: int) -> int:
        """Steps of one worker that are cropped at once."""
        by_number = self.epochs * self.steps_per_epoch * world_size // MOST_BLOCKS
        by_bytes = BLOCK_BYTES // self.share_bytes(world_size)
        return max(1, min(max(by_bytes, by_number), MOST_BLOCK_STEPS))

    def crops_of_step(self, step: int) -> npt.NDArray[np.int64]:
        """[batch_size, 2] of (image, k), in order of their slots."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self.seed, epoch, len(self.examples), self.crops_per_image)
        return order[step_in_epoch * self.batch_size :][: self.batch_size]


_epoch_order = lru_cache(maxsize=2)(crops.epoch_order)


def crop_stream(plan: CropPlan, first_step: int, world_size: int) -> Dataset:
    """Rows `step, rank, slot [n], crop [n, 2] (image, k), image [n, S, S, 3], label [n, S, S]`."""
    end_step = plan.epochs * plan.steps_per_epoch
    steps = StepBlocks(first_step, end_step, world_size, plan.block_steps(world_size))
    rows: Dataset = ray.data.read_datasource(  # step, rank
        # Without the number Ray Data may split a block, and a worker gets another's steps.
        steps,
        num_cpus=DATA_CPUS,
        override_num_blocks=len(steps.blocks),
    )
    return rows.map_batches(  # -> the crops of those steps
        Cropper,
        fn_constructor_args=(plan, world_size, NICE),
        batch_size=None,
        compute=ActorPoolStrategy(size=1),
        num_cpus=DATA_CPUS,
    )


class StepBlocks(Datasource):
    """The steps [first_step, end_step) of every worker, in blocks, the workers in turn."""

    def __init__(self, first_step: int, end_step: int, world_size: int, block_steps: int) -> None:
        self.blocks = [
            (range(start, min(start + block_steps, end_step)), rank)
            for start in range(first_step, end_step, block_steps)
            for rank in range(world_size)
        ]

    def estimate_inmemory_data_size(self) -> int:
        return 0

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_step_rows, steps, rank),
                BlockMetadata(
                    len(steps), size_bytes=16 * len(steps), input_files=None, exec_stats=None
                ),
            )
            for steps, rank in self.blocks
        ]


def _step_rows(steps: range, rank: int) -> list[pa.Table]:
    return [pa.table({"step": list(steps), "rank": [rank] * len(steps)})]


class Cropper:
    """Reads, decodes and crops. Lives in an actor, for its cache of decoded images."""

    def __init__(self, plan: CropPlan, world_size: int, nice: int = 0) -> None:
        """`nice` is added to the niceness of this process."""
        self.plan, self.world_size = plan, world_size
        self.cache = ImageCache(plan)
        os.nice(nice)
        self.augmentation = crops.AUGMENTATIONS[plan.augmentation]
        cv2.setNumThreads(1)  # the cores are the workers'

    def __call__(self, batch: Batch) -> Batch:
        steps, (rank, *_) = batch["step"], batch["rank"]
        slots = np.asarray(self.plan.share(int(rank), self.world_size))
        chosen = np.stack([self.plan.crops_of_step(int(step))[slots] for step in steps])
        size = self.plan.crop_size
        images = np.empty((*chosen.shape[:2], size, size, 3), np.uint8)
        labels = np.empty((*chosen.shape[:2], size, size), np.uint8)
        for row, step in enumerate(steps):
            epoch = int(step) // self.plan.steps_per_epoch
            for at, (index, k) in enumerate(chosen[row]):
                images[row, at], labels[row, at] = self._crop(epoch, int(index), int(k))
        slot = np.tile(slots, (len(steps), 1))
        return {**batch, "slot": slot, "crop": chosen, "image": images, "label": labels}

    def _crop(
        self, epoch: int, index: int, k: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        plan, size = self.plan, self.plan.crop_size
        image, label = self.cache.get(index)
        how = self.augmentation, plan.place
        return crops.crop(image, label, plan.seed, epoch, index, k, size, *how)


class ImageCache:
    """Decoded images at the working scale, the least recently used leave first."""

    def __init__(self, plan: CropPlan, limit_bytes: int = CACHE_BYTES) -> None:
        self.plan, self.limit_bytes, self.bytes = plan, limit_bytes, 0
        self.held: OrderedDict[int, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = (
            OrderedDict()
        )

    def get(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """-> image [H, W, 3] uint8, label [H, W] uint8."""
        if index in self.held:
            self.held.move_to_end(index)
            return self.held[index]
        loaded = at_working_scale(
            load_example(self.plan.store, self.plan.examples[index]), self.plan.diameter
        )
        self.held[index] = loaded
        self.bytes += _nbytes(loaded)
        while self.bytes > self.limit_bytes and len(self.held) > 1:
            _, dropped = self.held.popitem(last=False)
            self.bytes -= _nbytes(dropped)
        return loaded


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


def squashed(store: Store, examples: list[Example], size: int) -> Dataset:
    """Whole images squashed to the crop size, as the lecture tests: image, label [size, size]."""

    def squash(row: dict[str, Any]) -> dict[str, Any]:
        labelled = load_example(store, Example.from_row(row))
        image = resize_image(labelled.image, size, size)
        return {"image": image, "label": resize_classes(labelled.label, size, size)}

    return _rows(examples).map(squash, **data_stage(len(examples)))


def canvases(store: Store, examples: list[Example], diameter: float) -> Dataset:
    """Rows of `canvas`."""

    def fit(row: dict[str, Any]) -> dict[str, Any]:
        return canvas(store, Example.from_row(row), diameter)

    return _rows(examples).map(fit, **data_stage(len(examples)))


def canvas(store: Store, example: Example, diameter: float) -> dict[str, npt.NDArray[np.uint8]]:
    """A field on its canvas, as a network is used: image [S, S, 3] uint8, label [S, S] uint8."""
    labelled = load_example(store, example)
    geometry = plan_fit(labelled.fov, diameter)
    side = canvas_side(diameter)
    image = fit_image(labelled.image, geometry, side)
    return {"image": image, "label": fit_classes(labelled.label, geometry, side)}


def _rows(examples: list[Example]) -> Dataset:
    return ray.data.from_items([example.as_row() for example in examples])


class TrainingData(DataConfig):
    """Tells Ray Train how its workers are fed: the crop stream from the step to go on at.

    Ray Train asks at every start of a group of workers, so a restarted group, also one of another
    size, goes on at the step after the last finished epoch.
    """

    def __init__(self, plan: CropPlan, output: Store) -> None:
        super().__init__(enable_shard_locality=False)
        self.plan, self.output = plan, output

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, DataIterator]]:
        iterators: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            splits = (
                self._crops(world_size)
                if name == CROPS
                # a stream's coordinator is a process more, for data that lie there already
                else [split.iterator() for split in dataset.split(world_size)]
            )
            for rank, split in enumerate(splits):
                iterators[rank][name] = split
        return iterators

    def _crops(self, world_size: int) -> list[DataIterator]:
        first_step = states.finished_epochs(self.output) * self.plan.steps_per_epoch
        dataset = crop_stream(self.plan, first_step, world_size)
        block_bytes = self.plan.block_steps(world_size) * self.plan.share_bytes(world_size)
        dataset.context.execution_options = ExecutionOptions(
            preserve_order=True,
            resource_limits=ExecutionResources(
                object_store_memory=AHEAD * world_size * block_bytes
            ),
        )
        dataset.context.custom_execution_callback_classes = [SlowPace]
        return dataset.streaming_split(world_size, equal=False)


def shares(
    iterator: DataIterator, plan: CropPlan, rank: int, world_size: int, first_step: int
) -> Iterator[Batch]:
    """This worker's share of every step, in order: crop, image and label as in `crop_stream`.

    Raises RuntimeError where a crop comes for another step, slot or worker.
    """
    slots = list(plan.share(rank, world_size))
    expected = first_step
    for block in iterator.iter_batches(batch_size=None):  # type: ignore[arg-type]
        for row in range(len(block["step"])):
            came = int(block["step"][row]), block["slot"][row].tolist()
            if came != (expected, slots):
                raise RuntimeError(f"crops of step, slots {came} came, wanted {(expected, slots)}")
            expected += 1
            yield {name: values[row] for name, values in block.items()}

"""The crop stream that feeds Ray Train: one dataset for the whole run, no gap between epochs.

A row is one worker's share of one step. Rows come in blocks of some steps for one worker, the
workers in turn, and the split deals blocks out in that order, so every worker gets its own steps in
order whatever the number of workers. Each row carries its step and rank, and the worker checks it.

A pool of croppers cuts the blocks. A block is a pure function of its steps and rank, and the pool
hands blocks on in the order of the steps, so the stream is the same for any number of croppers,
also when one is killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataIterator, Dataset, ExecutionOptions, ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.context import AutoscalingConfig
from ray.data.datasource import Datasource, ReadTask

from segpipe import ray_compat
from segpipe.cluster.nodes import DATA_CPUS, cluster_total
from segpipe.cluster.throttle import NICE, BackgroundThrottle
from segpipe.cluster.workers import data_stage
from segpipe.data.layouts import Example
from segpipe.storage import Store
from segpipe.train import crop_plan, states
from segpipe.train.crop_plan import Batch, Cropper, CropPlan

CROPS = "crops"  # the stream's name among a training's data sets
BLOCK_BYTES = 32 << 20  # crops of a block: more spread Ray's cost of a task, fewer wait for it
MOST_BLOCK_STEPS = 64
MOST_BLOCKS = 10_000  # what the scheduler holds at once without slowing down
AHEAD = 8  # blocks on their way to each worker; with 4 one cropper rests two thirds of the time
IN_FLIGHT = 4  # blocks that a cropper cuts, or has waiting
CROPPERS_PER_RANK = 4  # that a GPU's rank can use up: resunet's crops take 5 ms of a core each


def crop_stream(
    plan: CropPlan, first_step: int, world_size: int, croppers: tuple[int, int] = (1, 1)
) -> Dataset:
    """Rows `step, rank, slot [n], crop [n, 2] (image, k), image [n, S, S, 3], label [n, S, S]`.

    `croppers`: fewest and most processes that cut. Another one is started where all of them are
    behind: each has IN_FLIGHT blocks to cut, and the ranks have taken what was cut ahead.
    """
    fewest, most = croppers
    end_step = plan.epochs * plan.steps_per_epoch
    steps = StepBlocks(first_step, end_step, world_size, block_steps(plan, world_size))
    rows: Dataset = ray.data.read_datasource(  # step, rank
        # Without the number Ray Data may split a block, and a worker gets another's steps.
        steps,
        num_cpus=DATA_CPUS,
        override_num_blocks=len(steps.blocks),
    )
    crops = rows.map_batches(  # -> the crops of those steps
        Cropper,
        fn_constructor_args=(plan, world_size, NICE),
        batch_size=None,
        compute=ActorPoolStrategy(
            min_size=fewest, max_size=most, max_tasks_in_flight_per_actor=IN_FLIGHT
        ),
        num_cpus=DATA_CPUS,
    )
    context = crops.context
    block_bytes = block_steps(plan, world_size) * plan.share_bytes(world_size)
    context.execution_options = ExecutionOptions(
        preserve_order=True,
        resource_limits=ExecutionResources(
            object_store_memory=(AHEAD * world_size + IN_FLIGHT * (most - 1)) * block_bytes
        ),
    )
    ray_compat.set_callback(crops, BackgroundThrottle)
    # One at a time: Ray Data counts all the steps that are left as a backlog. And none is stopped:
    # one that rests costs no time, and a start costs a core some seconds.
    context.autoscaling_config = AutoscalingConfig(
        actor_pool_max_upscaling_delta=1, actor_pool_util_downscaling_threshold=-1
    )
    return crops


def most_croppers(cores: int, world_size: int, device: str) -> int:
    """How many croppers a training on a "cpu" or "cuda" may start, on so many cores in all.

    On CPUs they share the cores with the ranks, of which each can use up a cropper at most. GPUs'
    ranks leave all cores but one each.
    """
    if device == "cpu":
        return max(1, cores // 2)
    return max(1, min(cores - world_size, CROPPERS_PER_RANK * world_size))


def block_steps(plan: CropPlan, world_size: int) -> int:
    """Steps of one worker that are cropped at once."""
    by_number = plan.epochs * plan.steps_per_epoch * world_size // MOST_BLOCKS
    by_bytes = BLOCK_BYTES // plan.share_bytes(world_size)
    return max(1, min(max(by_bytes, by_number), MOST_BLOCK_STEPS))


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


def squashed(store: Store, examples: Sequence[Example], size: int) -> Dataset:
    """Rows of crop_plan's `squashed`."""
    return _photographs(examples, partial(crop_plan.squashed, store, size=size))


def canvases(store: Store, examples: Sequence[Example], diameter: float) -> Dataset:
    """Rows of crop_plan's `canvas`."""
    return _photographs(examples, partial(crop_plan.canvas, store, diameter=diameter))


def _photographs(examples: Sequence[Example], load: Callable[..., Batch]) -> Dataset:
    def load_row(row: dict[str, Any]) -> dict[str, Any]:
        return load(example=Example.from_row(row))

    rows = ray.data.from_items([example.as_row() for example in examples])
    return rows.map(load_row, **data_stage(len(examples)))


class TrainingData(ray_compat.DataConfig):
    """Tells Ray Train how its workers are fed: the crop stream from the step to resume at.

    Ray Train asks at every start of a group of workers, so a restarted group, also one of another
    size, resumes at the step after the last finished epoch.
    """

    def __init__(self, plan: CropPlan, output: Store, device: str) -> None:
        """`device`: "cpu" or "cuda", of the ranks."""
        super().__init__(enable_shard_locality=False)
        self.plan, self.output, self.device = plan, output, device

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
        most = most_croppers(int(cluster_total("CPU")), world_size, self.device)
        dataset = crop_stream(self.plan, first_step, world_size, (1, most))
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

"""segpipe's Trainer under bare torchrun, over crops that lie in memory, and nothing else.

    torchrun --nproc-per-node 2 -m segpipe.scaling.bare_ddp DRIVE [--steps 600] ...

What remains of its rate in a whole training is what Ray Train, Ray Data and the decoding of
photographs cost. `segpipe scale` and benchmarks/training.py start it. Rank 0 prints one JSON line.
The moving average of the weights, a learning rate that changes and what follows an epoch are left
out.
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass
from itertools import cycle

import torch
import torch.distributed as dist
import tyro

from segpipe.data.datasets import load_example
from segpipe.data.fov import fov_diameter
from segpipe.data.layouts import Example, open_labelled
from segpipe.models import torch_compat
from segpipe.scaling import findings
from segpipe.storage import Store, open_store
from segpipe.storage.lock import Claim
from segpipe.train.crop_plan import Batch, Cropper, CropPlan
from segpipe.train.job import TrainJob
from segpipe.train.settings import CropSettings, NetworkSettings, OptimizerSettings, part_of
from segpipe.train.trainer import CPU, Rank, Trainer

IN_MEMORY = 60  # steps, over and over


@dataclass(frozen=True)
class BareConfig:
    """Time the training step alone. The flags are those of segpipe train."""

    data: tyro.conf.Positional[str]
    """Labelled set."""
    steps: int = 600
    """How many are taken at least, in whole epochs."""
    model: str = "segnet-lite"
    """Network."""
    crops_per_image: int = 30
    """Random crops from each training image in an epoch."""
    crop_size: int = 224
    """px"""
    batch_size: int = 10
    """Crops a step, all workers together."""
    crop_sampling: str = "uniform"
    """Where crops lie."""
    augmentation: str = "none"
    """Random changes of crops."""
    loss: str = "nll"
    """nll or nll+dice."""
    lr: float = 1e-3
    """Learning rate."""
    weight_decay: float = 0.0
    """Of AdamW."""
    clip_norm: float = 0.0
    """Clip gradients to this global L2 norm; 0 disables."""
    precision: str = "fp32"
    """fp32 or bf16."""
    backend: str = "auto"
    """auto, native or torch."""
    device: str = "cpu"
    """cpu or cuda."""


def main(config: BareConfig) -> None:
    dist.init_process_group("nccl" if config.device == "cuda" else "gloo")
    _train(config)
    torch_compat.leave_group()


def _train(config: BareConfig) -> None:
    on_gpu = config.device == "cuda"
    place = Rank(
        dist.get_rank(),
        dist.get_world_size(),
        torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else CPU,
        num_threads=1,
    )
    job = _job(config)
    trainer, batches = Trainer(job, place), cycle(_batches(job.plan, place))
    ended: list[float] = []
    while len(ended) < config.steps:
        trainer.train_epoch(batches)
        ended += [float(str(step["ended"])) for step in trainer.steps]
    if place.number == 0:
        warm = int(len(ended) * findings.WARM_SHARE)
        rate = (len(ended) - 1 - warm) * config.batch_size / (ended[-1] - ended[warm])
        name = f"{'native' if job.native else 'torch'} {config.precision}"
        row = {"items": len(ended) * config.batch_size, "rate": rate, "engine": name}
        print(json.dumps(row), flush=True)


def _job(config: BareConfig) -> TrainJob:
    store = open_store(config.data)
    examples = tuple(open_labelled(store).training)
    plan = CropPlan(
        store,
        examples,
        diameter=_diameter(store, examples),
        epochs=IN_MEMORY,  # more than enough: each has a step at least
        crops=part_of(config, CropSettings),
    )
    nowhere = open_store(os.devnull)
    return TrainJob(
        plan=plan,
        claim=Claim(nowhere, owner=""),
        training_split=examples,
        network=part_of(config, NetworkSettings),
        optimizer=part_of(config, OptimizerSettings),
        device=config.device,
    )


def _batches(plan: CropPlan, place: Rank) -> list[Batch]:
    """This rank's shares of the first steps."""
    cropper = Cropper(plan, place.world_size)
    return [cropper.share(step, place.number) for step in range(IN_MEMORY)]


def _diameter(store: Store, examples: tuple[Example, ...]) -> float:
    """px: the median of the fields', as in train."""
    return float(
        statistics.median(fov_diameter(load_example(store, example).fov) for example in examples)
    )


if __name__ == "__main__":
    main(tyro.cli(BareConfig))

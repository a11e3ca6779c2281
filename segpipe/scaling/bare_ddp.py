"""segpipe's training step under bare torchrun: DDP over crops that lie in memory, nothing else.

    torchrun --nproc-per-node 2 -m segpipe.scaling.bare_ddp DRIVE [--steps 600] [--compile off] ...

What remains of its rate in a whole training is what Ray Train, Ray Data and the decoding of
photographs cost. `segpipe scale` and benchmarks/training.py start it. Rank 0 prints one JSON line.
The average of the weights, a learning rate that changes and the test after an epoch are left out.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segpipe.data.classes import CLASSES
from segpipe.data.datasets import load_example
from segpipe.data.fov import fov_diameter
from segpipe.data.layouts import Example, open_labelled
from segpipe.models import engine, networks, norm
from segpipe.models.loss import CompiledLoss, Loss
from segpipe.models.predict import channels_last
from segpipe.scaling import findings
from segpipe.storage import Store, open_store
from segpipe.stream import Batch, Cropper, CropPlan

IN_MEMORY = 60  # steps, over and over


@dataclass(frozen=True)
class BareConfig:
    """Time the training step alone. The flags are those of segpipe train."""

    data: tyro.conf.Positional[str]
    """Labelled set."""
    steps: int = 600
    """How many are taken."""
    model: str = "segnet-lite"
    """Network."""
    crops_per_image: int = 30
    """Random crops from each training image in an epoch."""
    crop_size: int = 224
    """px"""
    batch_size: int = 10
    """Crops a step, all workers together."""
    place: str = "photograph"
    """Where crops lie."""
    augmentation: str = "none"
    """Random changes of crops."""
    loss: str = "nll"
    """What is made small."""
    lr: float = 1e-3
    """Learning rate."""
    weight_decay: float = 0.0
    """Of AdamW."""
    clip_norm: float = 0.0
    """Longest gradient; 0: none is cut."""
    precision: str = "fp32"
    """fp32 or bf16."""
    compile: str = "auto"
    """The network's own compiled loop: auto where there is one, on or off."""
    device: str = "cpu"
    """cpu or cuda."""


def main(config: BareConfig) -> None:
    on_gpu = config.device == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    batches = _batches(config, rank, world_size)
    torch.manual_seed(0)
    network = networks.build_model(config.model, len(CLASSES))
    if world_size > 1:
        norm.synchronise(network, device)
    network = channels_last(network.to(device))
    kind = config.model, None, config.precision, config.device, config.crop_size, config.loss
    compiled = config.compile != "off" and not engine.training_problem(*kind)
    model: nn.Module = (
        CompiledLoss(network, 1) if compiled else Loss(network, config.precision, config.loss)
    )
    if world_size > 1:
        model = DistributedDataParallel(
            model, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    warm = int(config.steps * findings.WARM_SHARE)
    for step in range(config.steps):
        if step == warm:
            _wait_for_all(on_gpu)
            start = time.perf_counter()
        batch = batches[step % len(batches)]
        images, labels = (_on(device, batch[name][0]) for name in ("image", "label"))
        part = model(images, labels) * (len(images) / config.batch_size)
        optimizer.zero_grad()
        (part * world_size).backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()
    _wait_for_all(on_gpu)
    if rank == 0:
        rate = (config.steps - warm) * config.batch_size / (time.perf_counter() - start)
        name = f"{'compiled' if compiled else 'eager'} {config.precision}"
        told = {"items": config.steps * config.batch_size, "rate": rate, "engine": name}
        print(json.dumps(told), flush=True)
    dist.destroy_process_group()


def _wait_for_all(on_gpu: bool) -> None:
    dist.barrier()
    if on_gpu:
        torch.cuda.synchronize()


def _batches(config: BareConfig, rank: int, world_size: int) -> list[Batch]:
    """This rank's shares of the first steps."""
    store = open_store(config.data)
    examples = tuple(open_labelled(store).training)
    plan = CropPlan(
        store,
        examples,
        diameter=_diameter(store, examples),
        seed=0,
        epochs=IN_MEMORY,  # more than enough: each has a step at least
        crops_per_image=config.crops_per_image,
        crop_size=config.crop_size,
        batch_size=config.batch_size,
        augmentation=config.augmentation,
        place=config.place,
    )
    cropper = Cropper(plan, world_size)
    return [
        cropper({"step": np.array([step]), "rank": np.array([rank])})
        for step in range(min(IN_MEMORY, config.steps))
    ]


def _diameter(store: Store, examples: tuple[Example, ...]) -> float:
    """px: the median of the fields', as in train."""
    return float(
        statistics.median(fov_diameter(load_example(store, example).fov) for example in examples)
    )


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


if __name__ == "__main__":
    main(tyro.cli(BareConfig))

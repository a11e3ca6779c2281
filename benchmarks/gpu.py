"""Training steps and scores on a GPU, per network, beside a plain eager fp32 loop on the same card.

    python benchmarks/gpu.py [--device cuda] [--steps 50]

Batches of 64 crops of 224 px and of 16 canvases of 592 px lie in pinned memory: what is measured is
the way to the card, the network and the optimiser. The plain loop: NCHW, fp32 (with TF32 as torch
sets it), float images moved from pageable memory, one loss read a step. Busy is the time in kernels
(torch.profiler) as a share of the clock. Writes results/gpu.md; a CPU only shows that it runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common import facts, write
from torch.profiler import ProfilerActivity, profile

from segpipe.data.classes import CLASSES
from segpipe.models import networks
from segpipe.models.loss import Loss
from segpipe.models.predict import Predictor, channels_last

CROP, CROPS, CANVAS, CANVASES = 224, 64, 592, 16


class Measured(NamedTuple):
    rate: float
    """Crops or canvases a second."""
    busy: float
    peak_mib: float


def measure(step: Callable[[], None], steps: int, number: int, device: torch.device) -> Measured:
    on_card = device.type == "cuda"
    for _ in range(3):
        step()
    if on_card:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if on_card:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if not on_card:
        return Measured(steps * number / seconds, float("nan"), float("nan"))
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        profiled = time.perf_counter() - start
    kernels = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6
    peak = torch.cuda.max_memory_allocated() / 2**20
    return Measured(steps * number / seconds, kernels / profiled, peak)


def batch(number: int, side: int, pinned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (number, side, side, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 3, (number, side, side), dtype=np.uint8))
    return (images.pin_memory(), labels.pin_memory()) if pinned else (images, labels)


def plain_training(name: str, device: torch.device) -> Callable[[], None]:
    images, labels = batch(CROPS, CROP, pinned=False)
    network = networks.build_model(name, len(CLASSES)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step() -> None:
        x = (images.permute(0, 3, 1, 2).float() / 255).to(device)
        truth = labels.long().to(device)
        losses = [F.cross_entropy(output, truth) for output in network.outputs(x)]
        loss: Any = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def our_training(name: str, device: torch.device, precision: str) -> Callable[[], None]:
    images, labels = batch(CROPS, CROP, pinned=device.type == "cuda")
    network = channels_last(networks.build_model(name, len(CLASSES)).to(device))
    loss = Loss(network, precision)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        moved = (tensor.to(device, non_blocking=True) for tensor in (images, labels))
        value = loss(*moved)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def plain_scores(name: str, device: torch.device) -> Callable[[], None]:
    canvases, _ = batch(CANVASES, CANVAS, pinned=False)
    network = networks.build_model(name, len(CLASSES)).to(device).eval()

    @torch.no_grad()
    def step() -> None:
        for canvas in canvases:
            x = (canvas.permute(2, 0, 1)[None].float() / 255).to(device)
            network(x).softmax(dim=1).cpu()

    return step


def our_scores(name: str, device: torch.device, precision: str) -> Callable[[], None]:
    canvases, _ = batch(CANVASES, CANVAS, pinned=False)
    predictor = Predictor(networks.build_model(name, len(CLASSES)), str(device), precision)
    array = canvases.numpy()
    return lambda: void(predictor.scores(array))


def void(_: object) -> None:
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--models", nargs="+", default=list(networks.MODELS))
    flags = parser.parse_args()
    device = torch.device(flags.device)
    card = torch.cuda.get_device_name() if device.type == "cuda" else "no card"
    lines = [
        *facts(f"python benchmarks/gpu.py --steps {flags.steps}"),
        f"{card}; batches of {CROPS} crops of {CROP} px, {CANVASES} canvases of {CANVAS} px.",
        "",
        "| network | what | plain eager fp32, /s | segpipe, /s | times | busy | peak, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = {"train": (plain_training, our_training, CROPS)}
    kinds["score"] = (plain_scores, our_scores, CANVASES)
    for name in flags.models:
        for what, (plain, ours, number) in kinds.items():
            before = measure(plain(name, device), flags.steps, number, device)
            for precision in ("fp32", "bf16"):
                found = measure(ours(name, device, precision), flags.steps, number, device)
                lines.append(
                    f"| {name} | {what} {precision} | {before.rate:.1f} | {found.rate:.1f} | "
                    f"{found.rate / before.rate:.1f} | {found.busy:.0%} | {found.peak_mib:.0f} |"
                )
    if device.type == "cuda":
        write("gpu.md", lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()

"""Training steps and scores on a GPU, per network, beside a plain eager fp32 loop on the same card.

    python benchmarks/gpu.py [--device cuda] [--steps 50] [--models fineunet ...]
        [--crops 64] [--canvases 16]

Batches of --crops crops of 224 px, and --canvases canvases of the side that the network's working
diameter makes, a multiple of its stride. segpipe's loops do what train and
segment do, the plain one is NCHW and fp32, with float images moved from pageable memory, one canvas
after the other, and one loss read a step; the report says what each does about TF32, the order in
memory, pinned memory and bf16. Of canvases segpipe takes as many at once as its rule finds for the
card's free memory. Busy is the time in kernels (torch.profiler) as a share of the clock. Writes
results/gpu.md; a CPU only shows that it runs: --device cpu --steps 1 --crops 2 --canvases 2.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common import facts, write
from torch.profiler import ProfilerActivity, profile

from segpipe.data.canvas import canvas_side
from segpipe.data.classes import CLASSES
from segpipe.models import networks
from segpipe.models.fused import fused
from segpipe.models.loss import Loss
from segpipe.models.predict import GPU_BATCH, GPU_SHARE, Predictor, channels_last

CROP = 224  # px, a multiple of every network's stride
DIAMETER = 540.0  # px: DRIVE's, the working diameter of networks but of these
DIAMETERS = {"fineunet": 1024.0}

Step = Callable[[], object]


class Measured(NamedTuple):
    rate: float
    """Crops or canvases a second."""
    busy: float
    peak_mib: float


def measure(step: Step, steps: int, number: int, device: torch.device) -> Measured:
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


def canvas_of(name: str) -> int:
    """px"""
    side = canvas_side(DIAMETERS.get(name, DIAMETER))
    assert side % networks.MODELS[name].STRIDE == 0
    return side


def plain_training(name: str, device: torch.device, number: int) -> Step:
    images, labels = batch(number, CROP, pinned=False)
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


def our_training(name: str, device: torch.device, number: int, precision: str) -> Step:
    images, labels = batch(number, CROP, pinned=device.type == "cuda")
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


def plain_scores(name: str, device: torch.device, number: int) -> Step:
    canvases, _ = batch(number, canvas_of(name), pinned=False)
    network = networks.build_model(name, len(CLASSES)).to(device).eval()

    @torch.no_grad()
    def step() -> None:
        for canvas in canvases:
            x = (canvas.permute(2, 0, 1)[None].float() / 255).to(device)
            network(x).softmax(dim=1).cpu()

    return step


def our_predictor(name: str, device: torch.device, precision: str) -> Predictor:
    network = fused(networks.build_model(name, len(CLASSES)).eval(), str(device), precision)
    return Predictor(network, str(device), precision)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--crops", type=int, default=64)
    parser.add_argument("--canvases", type=int, default=GPU_BATCH)
    parser.add_argument("--models", nargs="+", default=list(networks.MODELS))
    flags = parser.parse_args()
    device = torch.device(flags.device)
    lines = [
        *facts("python benchmarks/gpu.py " + " ".join(sys.argv[1:]))[:-1],
        *settings(device),
        "",
        "| network | what | at once | plain fp32, /s | segpipe, /s | times | busy | peak, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in flags.models:
        measured = partial(measure, steps=flags.steps, device=device)
        side, number = canvas_of(name), flags.crops
        before = measured(plain_training(name, device, number), number=number)
        for precision in ("fp32", "bf16"):
            step = our_training(name, device, number, precision)
            found = measured(step, number=number)
            lines.append(row(name, f"train {precision}, {CROP} px", number, before, found))
        number = flags.canvases
        before = measured(plain_scores(name, device, number), number=number)
        canvases = batch(number, side, pinned=False)[0].numpy()
        for precision in ("fp32", "bf16"):
            ours = our_predictor(name, device, precision)
            found = measured(partial(ours.scores, canvases), number=number)
            at_once = min(number, ours.batch_size or number)
            lines.append(row(name, f"score {precision}, {side} px", at_once, before, found))
    if device.type == "cuda":
        write("gpu.md", lines)
    else:
        print("\n".join(lines))


def settings(device: torch.device) -> list[str]:
    """What the card is, and what each loop does."""
    backends, free = torch.backends, "no card"
    if device.type == "cuda":
        free_mib, all_mib = (round(size / 2**20) for size in torch.cuda.mem_get_info())
        free = f"{torch.cuda.get_device_name()}, {free_mib:,} of {all_mib:,} MiB free"
        free += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    convolutions, products = (
        "on" if allowed else "off"
        for allowed in (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32)
    )
    return [
        f"- card: {free}",
        f"- TF32, as torch sets it, in all loops: convolutions {convolutions}, products {products}",
        "- order in memory: segpipe channels last, weights and images; plain NCHW",
        "- copies to the card: segpipe's crops uint8 from pinned memory without waiting, its "
        "canvases uint8 from pageable memory; plain float32 from pageable memory",
        "- bf16: torch.autocast, weights and sums of fp32; batch norm folded for scores",
        f"- canvases at once: at most {GPU_BATCH}, in {GPU_SHARE:.0%} of the free memory",
    ]


def row(name: str, what: str, at_once: int, before: Measured, found: Measured) -> str:
    return (
        f"| {name} | {what} | {at_once} | {before.rate:.1f} | {found.rate:.1f} | "
        f"{found.rate / before.rate:.1f} | {found.busy:.0%} | {found.peak_mib:.0f} |"
    )


if __name__ == "__main__":
    main()

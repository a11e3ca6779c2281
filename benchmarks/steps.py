"""CPU ms of a training step on torch's layers and on the native ones: one thread, interleaved.

Run: python benchmarks/steps.py [--times 8] [--size 0]. A minute on a free core; prints a table.
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch
from torch import nn

from segpipe.data.classes import CLASSES
from segpipe.models import networks
from segpipe.models.loss import Loss
from segpipe.models.native import native_loss
from segpipe.models.predict import channels_last

CROPS = 4
SIZES = {"fineunet": 512, "resunet": 256}  # px, side of the crops


def seconds_of(name: str, size: int, times: int) -> list[float]:
    """The least seconds of one step: torch's and the native one."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (CROPS, size, size, 3), np.uint8))
    labels = torch.from_numpy(rng.integers(0, len(CLASSES), (CROPS, size, size), np.uint8))
    plain = channels_last(networks.build_model(name, len(CLASSES)))
    other = copy.deepcopy(plain)
    losses: list[nn.Module] = [Loss(plain), native_loss(other, 1)]
    optimizers = [torch.optim.AdamW(one.parameters(), fused=True) for one in (plain, other)]
    least = [float("inf")] * 2
    for _ in range(times):
        for at, (loss, optimizer) in enumerate(zip(losses, optimizers, strict=True)):
            start = time.process_time()
            optimizer.zero_grad()
            loss(images, labels).backward()
            optimizer.step()
            least[at] = min(least[at], time.process_time() - start)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--size", type=int, default=0, help="px, 0 for each network's own")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | crops | torch, ms | native, ms | times as fast |\n|---|---|---|---|---|")
    for name, own in SIZES.items():
        size = flags.size or own
        plain, native = seconds_of(name, size, flags.times)
        cells = f"{1000 * plain:.0f} | {1000 * native:.0f} | {plain / native:.2f}"
        print(f"| {name} | {CROPS} of {size} px | {cells} |", flush=True)


if __name__ == "__main__":
    main()

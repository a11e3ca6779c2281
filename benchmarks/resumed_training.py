"""A training in one process of one thread, which goes on where it stopped."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from segpipe.models.network import Network, to_planes
from segpipe.models.predict import channels_last
from segpipe.train.ema import ExponentialMovingAverage

TOLD_STEPS, SAVE_STEPS = 50, 250


@dataclass(frozen=True)
class Recipe:
    """AdamW, a rate that rises linearly and falls by a cosine, in products of bf16."""

    steps: int
    decay: float
    clip: float
    average: float
    """Decay of the weights' moving average, which is what comes out."""
    rate: float = 3e-3
    warmup: int = 100

    def rate_at(self, step: int) -> float:
        rising = min(1, (step + 1) / self.warmup)
        return self.rate * rising * (1 + math.cos(math.pi * step / self.steps)) / 2


def arguments(about: str, steps: int, *folders: str) -> argparse.Namespace:
    """Those of the command line, with flags for other folders; `seed` is torch's from here on."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--sets", nargs="+", default=["DRIVE", "HRF"])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--seed", type=int, default=0)
    for flag in folders:
        parser.add_argument(flag, type=Path)
    config = parser.parse_args()
    torch.manual_seed(config.seed)
    return config


def train(
    network: Network,
    batch: Callable[[int], tuple[Any, Any]],
    loss_of: Callable[[Tensor, Any], Tensor],
    recipe: Recipe,
    folder: Path,
) -> dict[str, Tensor]:
    """-> the state dict of the averaged weights; folder/state.pt is where it resumes.

    batch(step) gives images [N, S, S, 3] uint8 and what loss_of takes with logits float32.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    folder.mkdir(parents=True, exist_ok=True)
    network = channels_last(network).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), recipe.rate, weight_decay=recipe.decay, fused=True
    )
    mean = ExponentialMovingAverage(network, recipe.average)
    first, state = 0, folder / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        mean.network.load_state_dict(saved["mean"])
        first = saved["step"]
    start, losses = time.time(), []
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        images, labels = batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            planes = to_planes(torch.from_numpy(images))
            logits = network(planes.contiguous(memory_format=torch.channels_last))
        loss = loss_of(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimizer.step()
        mean.update(step)
        losses.append(loss.item())
        done = step + 1
        if done % TOLD_STEPS == 0:
            took, recent = (time.time() - start) / (done - first), np.mean(losses[-TOLD_STEPS:])
            print(f"step {done}: loss {recent:.4f}, {took:.3f} s/step", flush=True)
        if done % SAVE_STEPS == 0 or done == recipe.steps:
            parts = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(parts | {"mean": mean.network.state_dict(), "step": done}, f"{state}.part")
            os.replace(f"{state}.part", state)
    averaged: dict[str, Tensor] = torch.load(state, weights_only=True)["mean"]
    return averaged

"""Training beside the loops that people write without segpipe, all in one run.

    python benchmarks/training.py [--epochs 20]        (a part of `make bench`)

The lecture's loop in plain PyTorch as a user runs it and under the allocator of segpipe's workers;
segpipe on 2 workers, in fp32 and in bf16; the same step under bare torchrun with its crops in
memory (bare_ddp.py). Then the losses of segpipe's first 100 steps against a plain loop of
torch's own layers over the same crops from the same weights; and where each network's step spends
its time.
Needs DRIVE below SEGPIPE_DATA and lecture_train.py in SEGPIPE_BASELINES. Twenty minutes on 2
cores. Writes results/training.md. Rates are steady ones; seconds are of whole processes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import drive, facts, last_json, loops, run, write
from torch import nn

from segpipe.cluster.workers import model_env
from segpipe.data.classes import CLASSES
from segpipe.data.layouts import open_labelled
from segpipe.models import checkpoint, networks
from segpipe.models.loss import Loss, NativeLoss
from segpipe.models.predict import channels_last
from segpipe.storage import open_store
from segpipe.train.crop_plan import Cropper, CropPlan
from segpipe.train.settings import CropSettings

PLAIN_EPOCHS = 3
BATCH, COMPARED = 10, 100  # crops a step; steps whose losses are compared
PEER_STEPS = {"segnet-lite": 1200, "wnet": 120}
WNET_EPOCHS = 4
NETWORKS = {"segnet-lite": 60, "wnet": 6, "unet": 2, "segnet": 2}  # steps that are timed


@dataclass
class Training:
    """One run of segpipe."""

    seconds: float
    history: list[dict[str, float]]
    steps: list[dict[str, float]]
    diameter: float

    @property
    def rate(self) -> float:
        return statistics.median(row["crops_per_second"] for row in self.history[1:])

    @property
    def stall(self) -> float:
        """Waiting for data, as a share of the time in steps."""
        steps = self.steps[self.steps_per_epoch :]
        wait, work = (sum(row[name] for row in steps) for name in ("wait_s", "step_s"))
        return wait / (wait + work)

    @property
    def stall_at_starts(self) -> float:
        """The same for the first step of each epoch."""
        first = self.steps[self.steps_per_epoch :: self.steps_per_epoch]
        return sum(row["wait_s"] for row in first) / sum(
            row["wait_s"] + row["step_s"] for row in first
        )

    @property
    def steps_per_epoch(self) -> int:
        return len(self.steps) // len(self.history)

    @property
    def start_up(self) -> float:
        return self.seconds - sum(row["seconds"] for row in self.history)


def rows_of(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def train(*flags: object) -> Training:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model"
        words = ["-m", "jobs.train", "--workers", 2, "--data", drive(), "--output", output]
        seconds, _ = run([*words, *flags])
        files = sorted((output / "_segpipe" / "steps").iterdir())
        steps = [row for path in files for row in rows_of(path)]
        card = checkpoint.load((output / "model.safetensors").read_bytes(), "").card
        return Training(seconds, rows_of(output / "history.csv"), steps, card.diameter)


def plain(env: dict[str, str]) -> tuple[float, float]:
    """Crops/s and seconds of the lecture's loop."""
    seconds, printed = run([loops() / "lecture_train.py", drive(), "--epochs", PLAIN_EPOCHS], env)
    epochs = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return statistics.median(row["crops_per_second"] for row in epochs[1:]), seconds


def peer(env: dict[str, str], model: str, *flags: object) -> float:
    words = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "segpipe.scaling.bare_ddp"]
    _, printed = run(
        [*words, drive(), "--model", model, "--steps", PEER_STEPS[model], *flags],
        env | {"OMP_NUM_THREADS": "1"},
    )
    return float(last_json(printed)["rate"])


def crops(diameter: float) -> Cropper:
    store = open_store(str(drive()))
    examples = tuple(open_labelled(store).training)
    plan = CropPlan(store, examples, diameter, 100, CropSettings(batch_size=BATCH))
    return Cropper(plan, world_size=1)


def batch_of(cropper: Cropper, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch = cropper({"step": np.array([step]), "rank": np.array([0])})
    return torch.from_numpy(batch["image"][0]), torch.from_numpy(batch["label"][0])


def plain_losses(cropper: Cropper) -> list[float]:
    """Conv, pool, unpool, conv by torch's own layers, from segpipe's weights, over its crops."""
    torch.manual_seed(0)
    network: Any = networks.build_model("segnet-lite", len(CLASSES))
    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for step in range(COMPARED):
        images, labels = batch_of(cropper, step)
        x = images.permute(0, 3, 1, 2).float() / 255
        logits = network.decoder(unpool(*pool(F.relu(network.encoder(x)))))
        loss: Any = F.nll_loss(F.log_softmax(logits, dim=1), labels.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def parts_of_a_step(name: str, native: bool, precision: str, cropper: Cropper) -> list[float]:
    """Milliseconds a crop, one process and thread: crop, forward, backward, optimiser."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = channels_last(networks.build_model(name, len(CLASSES)))
    loss = NativeLoss(network, 1) if native else Loss(network, precision)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    total = np.zeros(4)
    for step in range(NETWORKS[name] + 1):
        marks = [time.perf_counter()]

        def mark(marks: list[float] = marks) -> None:
            marks.append(time.perf_counter())

        images, labels = batch_of(cropper, step)
        mark()
        value = loss(images, labels)
        mark()
        optimizer.zero_grad()
        value.backward()
        mark()
        optimizer.step()
        mark()
        if step:  # the first one allocates
            total += np.diff(marks)
    return list(1000 * total / NETWORKS[name] / BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    allocator: dict[str, str] = model_env()["env_vars"]
    loop, loop_s = plain({})
    same, same_s = plain(allocator)
    ours = train("--recipe", "lecture", "--epochs", epochs)
    half = train("--recipe", "lecture", "--epochs", max(3, epochs // 4), "--precision", "bf16")
    bare = peer(allocator, "segnet-lite")
    longer = train("--epochs", WNET_EPOCHS, "--model", "wnet")
    bare_longer = peer(allocator, "wnet", "--backend", "torch")
    cropper = crops(ours.diameter)
    wanted = plain_losses(cropper)
    kinds: list[tuple[str, bool, str]] = [("segnet-lite", True, "fp32")]
    kinds += [(name, False, precision) for name in NETWORKS for precision in ("fp32", "bf16")]
    differences = [
        max(abs(row["loss"] / loss - 1) for row, loss in zip(found.steps, wanted, strict=False))
        for found in (ours, half)
    ]
    lines = [
        *facts(f"python benchmarks/training.py --epochs {epochs}"),
        "| segnet-lite, batch 10 | crops/s | segpipe's fp32 is | whole process, s | epochs |",
        "|---|---|---|---|---|",
        f"| plain loop, as a user runs it (glibc) | {loop:.1f} | {ours.rate / loop:.1f} times "
        f"as fast | {loop_s:.0f} | {PLAIN_EPOCHS} |",
        f"| plain loop, jemalloc with huge pages that keeps its pages | {same:.1f} | "
        f"{ours.rate / same:.1f} | {same_s:.0f} | {PLAIN_EPOCHS} |",
        f"| the same step under bare torchrun, crops in memory | {bare:.1f} | "
        f"{ours.rate / bare:.2f} | | |",
        f"| **segpipe, 2 workers, native fp32** | {ours.rate:.1f} | | {ours.seconds:.0f} | "
        f"{epochs} |",
        f"| segpipe, 2 workers, torch bf16 | {half.rate:.1f} | {ours.rate / half.rate:.1f} | "
        f"{half.seconds:.0f} | {len(half.history)} |",
        "",
        "Ray's share shrinks as the step grows: W-Net, torch fp32, 2 workers, gets "
        f"{longer.rate:.1f} crops/s of the {bare_longer:.1f} under bare torchrun, "
        f"{longer.rate / bare_longer:.2f}.",
        "",
        f"Data stall {ours.stall:.1%} of step time, of the first steps of epochs "
        f"{ours.stall_at_starts:.1%}; start-up, the looks at the test images and the end "
        f"{ours.start_up:.0f} s.",
        "",
        f"The first {COMPARED} losses against the plain loop from equal weights and crops differ "
        f"by {differences[0]:.1e} of their value in fp32, by {differences[1]:.1e} in bf16.",
        "",
        "Where a step's time goes, ms per crop of 224 px, one process of one thread, batch 10:",
        "",
        "| network | backend | crop | forward | backward | optimiser | crops/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, native, precision in kinds:
        parts = parts_of_a_step(name, native, precision, cropper)
        backend = f"{'native' if native else 'torch'} {precision}"
        cells = " | ".join(f"{part:.2f}" for part in parts)
        lines.append(f"| {name} | {backend} | {cells} | {1000 / sum(parts):.1f} |")
    lines += ["", "The native backend finds the gradients in its forward pass."]
    write("training.md", lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()

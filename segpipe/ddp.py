"""One worker of a DDP training: its steps, the epoch's test figures, the state it goes on from.

Only rank 0 writes. An epoch counts as done when its state is stored; `model.safetensors` is written
last of all.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePath
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ray.data import DataIterator
from torch import Tensor

from segpipe import __version__, metrics, plots, runtime
from segpipe.data.datasets import CLASSES, OUTSIDE, VESSEL
from segpipe.models import checkpoint, networks
from segpipe.models.checkpoint import Card
from segpipe.models.predict import Predictor, channels_last, to_input
from segpipe.storage import Store
from segpipe.stream import Batch, CropPlan, shares

MODEL, HISTORY = "model.safetensors", "history.csv"
STATE = "_segpipe/state.safetensors"
STEPS = "_segpipe/steps/epoch-{:05d}.csv"  # every step's loss and seconds, as rank 0 saw them
TELL_S = 2.0  # seconds between two words of rank 0 about its progress


@dataclass(frozen=True)
class TrainJob:
    """What a worker needs to know."""

    plan: CropPlan
    output: Store
    model: str
    lr: float
    device: str
    """cpu or cuda"""

    def finished_epochs(self) -> int:
        return finished_epochs(self.output)


def finished_epochs(output: Store) -> int:
    """Epochs whose state is stored."""
    state = read_state(output)
    return int(state.progress["epoch"]) if state else 0


@dataclass(frozen=True)
class State:
    """Weights, Adam's moments, and `progress`: the finished epochs and their history."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def read_state(output: Store) -> State | None:
    if output.head(STATE) is None:
        return None
    data = output.get(STATE)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return State(safetensors.torch.load(data), json.loads(header["__metadata__"]["progress"]))


def work(loop: dict[str, Any]) -> None:
    """What Ray Train runs in every worker."""
    session = Session(loop["job"], loop["board"])
    plan = session.job.plan
    crops = ray.train.get_dataset_shard("crops")
    feed = primed(shares(crops, session.rank, session.epoch * plan.steps_per_epoch))
    test = ray.train.get_dataset_shard("test")
    while session.epoch < plan.epochs:
        figures = session.train_epoch(feed)
        figures |= session.test(test)
        session.finish_epoch(figures)
        ray.train.report(figures)
    if session.shown is None:  # stopped between its last epoch and its results
        session.test(test)
    session.write_results(session.best_threshold(ray.train.get_dataset_shard("fields")))


def primed(feed: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the first of them here already: starting the stream is no step's wait."""
    first = next(feed, None)
    return feed if first is None else chain([first], feed)


class Session:
    """One rank's network, optimiser and history."""

    def __init__(self, job: TrainJob, board: Any) -> None:
        context = ray.train.get_context()
        self.job, self.board = job, board
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if job.device == "cpu":
            torch.set_num_threads(runtime.worker_threads(context.get_local_world_size()))
        torch.manual_seed(job.plan.seed)
        network = networks.build_model(job.model, classes=len(CLASSES))
        self.network = ray.train.torch.prepare_model(channels_last(network))
        self.bare = getattr(self.network, "module", self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=job.lr)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.told = time.monotonic()
        self.shown: Batch | None = None  # the test photograph in predictions.png
        if state := read_state(job.output):
            self._restore(state)

    # -- training ------------------------------------------------------------------------------

    def train_epoch(self, feed: Iterator[Batch]) -> dict[str, float]:
        """Train one epoch -> its figures, the same on every rank."""
        plan = self.job.plan
        self.network.train()
        losses = torch.zeros(plan.steps_per_epoch, device=self.device)
        clock = np.zeros((plan.steps_per_epoch, 2))  # seconds: waiting for data, in the step
        start = last = time.perf_counter()
        for step in range(plan.steps_per_epoch):
            batch = next(feed)
            came = time.perf_counter()
            losses[step] = self._step(batch["image"], batch["label"])
            now = time.perf_counter()
            clock[step] = came - last, now - came
            last = now
            self._tell(step + 1, now - start)
        seconds = last - start
        losses = self._sum(losses)
        self._write_steps(losses, clock)
        loss = float(losses.mean())
        rate = plan.steps_per_epoch * plan.batch_size / seconds
        return {"train_loss": loss, "seconds": seconds, "crops_per_second": rate}

    def _step(self, images: Any, labels: Any) -> Tensor:
        """One step on this rank's share -> its part of the global mean loss."""
        logits = self.network(to_input(images, self.device))
        target = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        # DDP averages gradients over ranks, shares may differ: weight each by its crops.
        weight = len(images) / self.job.plan.batch_size
        loss = F.cross_entropy(logits, target) * weight
        self.optimizer.zero_grad()
        (loss * self.world_size).backward()
        self.optimizer.step()
        return loss.detach()

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def _tell(self, step: int, seconds: float) -> None:
        if self.rank == 0 and time.monotonic() - self.told > TELL_S:
            self.told = time.monotonic()
            plan = self.job.plan
            crops = (self.epoch * plan.steps_per_epoch + step) * plan.batch_size
            rate = step * plan.batch_size / seconds
            self.board.post.remote({"epoch": self.epoch + 1, "crops": crops, "rate": rate})

    def _write_steps(self, losses: Tensor, clock: Any) -> None:
        if self.rank == 0:
            rows = [
                {"step": n, "loss": f"{loss:.6f}", "wait_s": f"{wait:.6f}", "step_s": f"{step:.6f}"}
                for n, (loss, (wait, step)) in enumerate(zip(losses.tolist(), clock, strict=True))
            ]
            self.job.output.put(STEPS.format(self.epoch + 1), _csv(rows))

    # -- the epoch's end -----------------------------------------------------------------------

    @torch.inference_mode()
    def test(self, test: DataIterator) -> dict[str, float]:
        """Mean loss and accuracy per pixel and vessel Dice on the squashed test images."""
        self.network.eval()
        sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        for batch in test.iter_batches(batch_size=1):
            self.shown = self.shown or batch
            logits = self.bare(to_input(batch["image"], self.device))
            truth = torch.from_numpy(batch["label"].astype(np.int64)).to(self.device)
            predicted = logits.argmax(dim=1)
            hit = ((predicted == VESSEL) & (truth == VESSEL)).sum()
            drawn = (predicted == VESSEL).sum() + (truth == VESSEL).sum()
            loss = F.cross_entropy(logits, truth, reduction="sum")
            right = (predicted == truth).sum()
            pixels = torch.ones_like(truth).sum()
            sums += torch.stack([loss, right, hit, drawn, pixels])
        loss, right, hit, drawn, pixels = self._sum(sums).tolist()
        return {
            "test_loss": loss / pixels,
            "test_accuracy": right / pixels,
            "vessel_dice": 2 * hit / max(drawn, 1),
        }

    def finish_epoch(self, figures: dict[str, float]) -> None:
        """Count the epoch as done; rank 0 stores history and state, in this order."""
        self.epoch += 1
        names = ("train_loss", "test_loss", "test_accuracy", "vessel_dice", "seconds")
        row = {name: round(figures[name], 6) for name in (*names, "crops_per_second")}
        self.history.append({"epoch": self.epoch} | row)
        if self.rank == 0:
            self.job.output.put(HISTORY, _csv(self.history))
            self.job.output.put(STATE, self._state())
            crops = self.epoch * self.job.plan.steps_per_epoch * self.job.plan.batch_size
            told = {"epoch": self.epoch, "crops": crops, "rate": figures["crops_per_second"]}
            shown = {k: figures[k] for k in ("train_loss", "test_loss", "vessel_dice")}
            self.board.post.remote(told | {"figures": shown})

    def _state(self) -> bytes:
        tensors = {f"model.{k}": v for k, v in self.bare.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in slots.items()}
        progress = {"epoch": self.epoch, "history": self.history}
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        return safetensors.torch.save(plain, {"progress": json.dumps(progress)})

    def _restore(self, state: State) -> None:
        self.epoch, self.history = state.progress["epoch"], state.progress["history"]
        prefix = "model."
        self.bare.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}
        )
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in state.tensors.items():
            if name.startswith("adam."):
                _, index, slot = name.split(".")
                slots.setdefault(int(index), {})[slot] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})

    # -- the run's end -------------------------------------------------------------------------

    def best_threshold(self, fields: DataIterator) -> float:
        """The threshold with the highest pooled Dice on the training fields, at working scale."""
        predictor = Predictor(self.bare, str(self.device))
        counts = np.zeros((2, metrics.BINS), np.int64)
        for batch in fields.iter_batches(batch_size=1):
            score, label = predictor.scores(batch["image"]), batch["label"]
            counts += metrics.count_scores(score, label == VESSEL, label != OUTSIDE)
        summed = self._sum(torch.from_numpy(counts).to(self.device))
        return metrics.best_threshold(summed.cpu().numpy())

    @torch.inference_mode()
    def write_results(self, threshold: float) -> None:
        """Rank 0 writes both figures and then the checkpoint."""
        if self.rank != 0:
            return
        output, plan = self.job.output, self.job.plan
        output.put("curves.png", plots.loss_curves(self.history))
        if self.shown is not None:
            image, label = self.shown["image"], self.shown["label"]
            prob = self.bare(to_input(image, self.device)).softmax(dim=1)[0].cpu().numpy()
            output.put("predictions.png", plots.class_probabilities(image[0], prob, label[0]))
        card = Card(
            model=self.job.model,
            diameter=plan.diameter,
            threshold=threshold,
            # the set's name and not its place: a checkpoint travels
            training_data=f"{PurePath(plan.store.uri()).name}, {len(plan.examples)} images, "
            f"{self.epoch} epochs of {plan.steps_per_epoch * plan.batch_size} crops",
            classes=CLASSES,
            version=__version__,
        )
        state = {k: v.detach().cpu().numpy() for k, v in self.bare.state_dict().items()}
        output.put(MODEL, checkpoint.dump(state, card))


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()

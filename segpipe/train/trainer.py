"""One rank of a DDP training: its steps, the epoch's figures, the state it resumes from.

Plain torch, whoever brings the crops: worker.py between Ray Train and Ray Data, tests and
scaling/bare_ddp.py from memory. Only rank 0 writes, and nothing once another run has taken over the
output. An epoch counts as done when its state is stored; `model.safetensors` is written last.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from segpipe import metrics
from segpipe.data.classes import CLASSES, OUTSIDE, VESSEL
from segpipe.data.layouts import Example
from segpipe.errors import UserError
from segpipe.models import checkpoint, networks, norm
from segpipe.models.loss import Loss
from segpipe.models.native import native_loss
from segpipe.models.network import Network
from segpipe.models.predict import Predictor, channels_last, to_input
from segpipe.models.torch_compat import data_parallel
from segpipe.models.tta import averaged
from segpipe.train import history, results, states
from segpipe.train.best import Best
from segpipe.train.crop_plan import Batch, canvas
from segpipe.train.ema import ExponentialMovingAverage
from segpipe.train.job import HELD_BACK, TrainJob
from segpipe.train.states import State

POST_S = 2.0  # seconds between two posts of rank 0 about its progress
COLUMNS = (
    "train_loss",
    "test_loss",
    "test_accuracy",
    "vessel_dice",
    "seconds",
    "crops_per_second",
)
SHOWN = ("train_loss", "val_loss", "test_loss", "vessel_dice")  # in the progress line
CPU = torch.device("cpu")
logger = logging.getLogger(__name__)
CHECK_STEPS = 50  # steps after which losses are looked at: each look waits for a GPU


class Diverged(UserError):
    """The loss is no number any more. All ranks meet it at the same step."""


@dataclass(frozen=True)
class Rank:
    """One process of a training."""

    number: int = 0
    world_size: int = 1
    device: torch.device = CPU
    num_threads: int = 1
    """Of the network on a CPU."""


class Trainer:
    """One rank's network, optimiser and history.

    With several, torch's default process group connects them. Only rank 0 posts and writes.
    """

    def __init__(
        self, job: TrainJob, place: Rank, post: Callable[[dict[str, Any]], object] = lambda _: None
    ) -> None:
        """`post` gets how far the training is, every POST_S and after every epoch."""
        self.job, self.post = job, post
        self.rank, self.world_size, self.device = place.number, place.world_size, place.device
        if self.device.type == "cpu":
            torch.set_num_threads(place.num_threads)
        else:
            torch.cuda.set_device(self.device)
        torch.manual_seed(job.plan.crops.seed)
        network = (
            networks.build_model(job.network.model, len(CLASSES), job.network.width)
            if job.first_weights is None
            else networks.load_network(checkpoint.load(job.first_weights, "--initial-weights"))
        )
        if self.world_size > 1:
            norm.synchronise(network, self.device)
        self.network = network = channels_last(network.to(self.device))
        self.loss: nn.Module = (
            native_loss(network, place.num_threads, job.plan.crops.soft)
            if job.native
            else Loss(network, job.network.precision, job.network.loss, job.plan.crops.soft)
        )
        if self.world_size > 1:
            self.loss = data_parallel(self.loss)
        rate, decay = job.optimizer.lr, job.optimizer.weight_decay
        self.optimizer = torch.optim.AdamW(  # without decay it is Adam
            network.parameters(), lr=rate, weight_decay=decay, fused=True
        )
        ema_decay = job.optimizer.ema_decay
        self.ema = ExponentialMovingAverage(network, ema_decay) if ema_decay else None
        self.eval_network = self.ema.network if self.ema else network
        self.epoch = 0
        self.step = 0  # under way, counted from the run's first
        self.history: list[history.Row] = []
        self.best = Best()
        self.posted = time.monotonic()
        self.shown: Batch | None = None  # the photograph in predictions.png

    @property
    def next_step(self) -> int:
        """The first that is not done, counted from the run's first: there the crops start."""
        return self.epoch * self.job.plan.steps_per_epoch

    def run(
        self,
        crops: Iterator[Batch],
        sets: Mapping[str, Callable[[], Iterable[Batch]]],
        after_epoch: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Train what is left, then write the results.

        `crops` are this rank's shares of each step from `next_step` on: image [n, S, S, 3] and
        label [n, S, S] uint8. A set of `sets`, by the names in job.evaluated, gives this rank's
        photographs anew whenever it is called: image [1, H, W, 3], label [1, H, W] uint8.
        """
        while self.epoch < self.job.plan.epochs and not self.best.should_stop(
            self.epoch, self.job.selection.patience
        ):
            figures = self.train_epoch(crops)
            for name in self.job.evaluated:
                figures |= self.evaluate(name, sets[name]())
            self.finish_epoch(figures)
            after_epoch(self.epoch)
        self.write_results()

    # -- training ------------------------------------------------------------------------------

    def train_epoch(self, feed: Iterator[Batch]) -> dict[str, float]:
        """Train one epoch -> its figures, the same on every rank."""
        plan = self.job.plan
        self.loss.train()
        losses = torch.zeros(plan.steps_per_epoch, device=self.device)
        # seconds: waiting for data, in the step, and since 1970 at its end
        clock = np.zeros((plan.steps_per_epoch, 3))
        checked = 0
        start = last = time.perf_counter()
        for step in range(plan.steps_per_epoch):
            self.step = self.epoch * plan.steps_per_epoch + step
            batch = next(feed)
            came = time.perf_counter()
            losses[step] = self._step(step, batch)
            mean = losses[step] / len(batch["slot"])  # before it is summed over ranks
            if step + 1 - checked == CHECK_STEPS or step + 1 == plan.steps_per_epoch:
                self._check(self._sum(losses[checked : step + 1]), checked)
                checked = step + 1
            now = time.perf_counter()
            clock[step] = came - last, now - came, time.time()
            last = now
            self._post(step + 1, now - start, mean)
            wait, work = 1000 * clock[step][0], 1000 * clock[step][1]
            logger.debug("train: step %d: %.0f ms, after a wait of %.0f ms", step, work, wait)
        seconds = last - start
        self.steps = [
            {
                "step": step,
                "loss": f"{loss:.9g}",
                "learning_rate": f"{self._rate(step):.9g}",
                "wait_s": f"{wait:.6f}",
                "step_s": f"{work:.6f}",
                "ended": f"{ended:.6f}",
            }
            for step, (loss, (wait, work, ended)) in enumerate(
                zip(losses.tolist(), clock, strict=True)
            )
        ]
        rate = plan.steps_per_epoch * plan.crops.batch_size / seconds
        loss = float(losses.mean())
        return {"train_loss": loss, "seconds": seconds, "crops_per_second": rate}

    def _rate(self, step: int) -> float:
        return self.job.learning_rate(self.epoch * self.job.plan.steps_per_epoch + step)

    def _step(self, step: int, batch: Batch) -> Tensor:
        """One step on this rank's share -> its part of the global mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step)
        images, labels = (self._on_device(batch[name]) for name in ("image", "label"))
        # DDP averages gradients over ranks, shares may differ: weight each by its crops.
        part = self.loss(images, labels) * (len(images) / self.job.plan.crops.batch_size)
        self.optimizer.zero_grad()
        (part * self.world_size).backward()
        if clip_norm := self.job.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), clip_norm)
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.epoch * self.job.plan.steps_per_epoch + step)
        detached: Tensor = part.detach()
        return detached

    def _on_device(self, array: Any) -> Tensor:
        """A uint8 array as a tensor; its way to a GPU overlaps with the step before."""
        tensor = torch.from_numpy(np.array(array))  # a copy: Ray's arrays are read-only
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _check(self, losses: Tensor, first: int) -> None:
        """Raise Diverged where one of these losses, the epoch's from step `first`, is no number."""
        wrong = (~torch.isfinite(losses)).nonzero()
        if len(wrong):
            step = first + int(wrong[0])
            plan = self.job.plan
            crops = plan.crops_of_step(self.epoch * plan.steps_per_epoch + step)
            names = ", ".join(f"{plan.examples[image].name} crop {k}" for image, k in crops)
            raise Diverged(
                f"the loss is {losses[wrong[0]].item()} in epoch {self.epoch + 1}, step {step}, at "
                f"learning rate {self._rate(step):g}, with {names}; what was trained before this "
                "epoch is kept, choose another --output with a lower --lr"
            )

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def _post(self, step: int, seconds: float, loss: Tensor) -> None:
        if self.rank == 0 and time.monotonic() - self.posted > POST_S:
            self.posted = time.monotonic()
            plan = self.job.plan
            self.post(
                {
                    "workers": self.world_size,
                    "epoch": self.epoch + 1,
                    "step": step,
                    "loss": float(loss) * plan.crops.batch_size,
                    "crops": (self.epoch * plan.steps_per_epoch + step) * plan.crops.batch_size,
                    "rate": step * plan.crops.batch_size / seconds,
                }
            )

    # -- the epoch's end -----------------------------------------------------------------------

    @torch.inference_mode()
    def evaluate(self, name: str, photographs: Iterable[Batch]) -> dict[str, float]:
        """Mean loss and accuracy per pixel and vessel Dice; of held-back images the loss alone."""
        self.eval_network.eval()
        sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        for batch in photographs:
            self.shown = self.shown or batch
            logits = self.eval_network(to_input(batch["image"], self.device))
            truth = torch.from_numpy(batch["label"].astype(np.int64)).to(self.device)
            predicted = logits.argmax(dim=1)
            hit = ((predicted == VESSEL) & (truth == VESSEL)).sum()
            drawn = (predicted == VESSEL).sum() + (truth == VESSEL).sum()
            loss = F.cross_entropy(logits, truth, reduction="sum")
            right = (predicted == truth).sum()
            pixels = torch.ones_like(truth).sum()
            sums += torch.stack([loss, right, hit, drawn, pixels])
        loss, right, hit, drawn, pixels = self._sum(sums).tolist()
        if name == HELD_BACK:
            return {"val_loss": loss / pixels}
        return {
            "test_loss": loss / pixels,
            "test_accuracy": right / pixels,
            "vessel_dice": 2 * hit / max(drawn, 1),
        }

    def finish_epoch(self, figures: dict[str, float]) -> None:
        """Count the epoch as done; rank 0 stores its figures, then its state."""
        self.epoch += 1
        row = {name: round(figures[name], 6) if name in figures else "" for name in COLUMNS}
        self.history.append({"epoch": self.epoch} | row)
        if "val_loss" in figures:
            self.history[-1]["val_loss"] = round(figures["val_loss"], 6)
            self.best.update(self.epoch, figures["val_loss"], self.eval_network)
        if self.rank != 0:
            return
        output, plan = self.job.output, self.job.plan
        self.job.claim.check()
        history.write_epoch(output, self.history[-1], self.steps)
        history.write_history(output, self.history)
        state = self._state()
        self.job.claim.check()
        states.put(output, state)
        self.post(
            {
                "workers": self.world_size,
                "epoch": self.epoch,
                "crops": self.epoch * plan.steps_per_epoch * plan.crops.batch_size,
                "rate": figures["crops_per_second"],
                "figures": {name: figures[name] for name in SHOWN if name in figures},
            }
        )

    def _state(self) -> State:
        tensors = {f"model.{k}": v for k, v in self.network.state_dict().items()}
        if self.ema:
            tensors |= {f"average.{k}": v for k, v in self.ema.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.weights.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in slots.items()}
        progress = {"epoch": self.epoch, "history": self.history, "best": self.best.figures()}
        return State({k: v.detach().cpu().numpy() for k, v in tensors.items()}, progress)

    def restore(self, state: State) -> None:
        """Resume after this state."""
        self.epoch, self.history = state.epoch, state.progress["history"]
        tensors = {name: torch.from_numpy(array) for name, array in state.arrays.items()}
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "best": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.network.load_state_dict(parts["model"])
        if self.ema:
            self.ema.network.load_state_dict(parts["average"])
        self.best = Best.of(state)
        self.best.weights = parts["best"]
        slots: dict[int, dict[str, Tensor]] = {}
        parameters = list(self.network.parameters())
        for name, tensor in parts["adam"].items():
            index, _, slot = name.partition(".")
            if tensor.ndim:  # the fused step wants it laid out as its parameter
                tensor = torch.empty_like(parameters[int(index)]).copy_(tensor)
            slots.setdefault(int(index), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})

    # -- the run's end -------------------------------------------------------------------------

    def write_results(self) -> None:
        """Rank 0 writes the figures and the checkpoints, model.safetensors last."""
        last = best = self._checkpoint(self.epoch)
        if self.best.weights:
            self.eval_network.load_state_dict(self.best.weights)
            best = self._checkpoint(self.best.epoch)
        if self.rank != 0:
            return
        files = results.figures(self.history, self.eval_network, self.device, self.shown)
        for key, data in (files | {results.LAST: last, results.MODEL: best}).items():
            self.job.claim.check()
            self.job.output.put(key, data)

    def _checkpoint(self, epoch: int) -> bytes:
        return results.calibrated(self.job, self.eval_network, epoch, self._count_scores)

    def _count_scores(
        self, network: Network, examples: Sequence[Example], tta: str
    ) -> metrics.Counts:
        """On these photographs, at working scale."""
        scores = averaged(Predictor(network, str(self.device)).scores, tta, rows=1)
        counts = np.zeros((2, metrics.BINS), np.int64)
        plan = self.job.plan
        for example in examples[self.rank :: self.world_size]:
            fitted = canvas(plan.store, example, plan.diameter)
            one = {name: array[None] for name, array in fitted.items()}
            self.shown = self.shown or one
            score, label = scores(one["image"]), one["label"]
            counts += metrics.count_scores(score, label == VESSEL, label != OUTSIDE)
        summed = self._sum(torch.from_numpy(counts).to(self.device))
        return summed.cpu().numpy()

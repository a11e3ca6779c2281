"""What the driver of a training shows, as its workers tell the board."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segpipe.progress import Progress, time_left
from segpipe.train import states
from segpipe.train.board import Board
from segpipe.train.job import TrainJob

BOARD_S, BOARD_TRIES = 30.0, 3  # for an answer of the actor that holds progress, on this machine


def start_board() -> Any:
    """A Board on this machine, as an actor."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(Board)
    return actor.options(scheduling_strategy=here).remote()


@contextmanager
def shown(board: Any, job: TrainJob) -> Iterator[None]:
    """Show how far the training is, once a second."""
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, stop, job), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(timeout=10)


def ask(method: Any) -> Any:
    """What the board's method answers; None where it cannot be reached, as on a busy node.

    What it cannot tell is lost for people alone: the training itself fails for causes of its own.
    """
    for _ in range(BOARD_TRIES):
        try:
            return ray.get(method.remote(), timeout=BOARD_S)
        except ActorUnavailableError:
            continue
        except RayError:
            break
    return None


def _watch(board: Any, stop: threading.Event, job: TrainJob) -> None:
    plan = job.plan
    progress = Progress("train")
    total = plan.epochs * plan.steps_per_epoch * plan.crops.batch_size
    backend = "native" if job.native else "torch"
    progress.show(
        f"starting the workers ({backend} {job.network.precision} on {job.device}), "
        f"{states.finished_epochs(job.output)} of {plan.epochs} epochs done"
    )
    last = warned = False
    while not last:
        last = stop.wait(timeout=1.0)
        lines = ask(board.take)
        if lines is None and not last and not warned:
            progress.show("progress is not known at the moment, the training runs", always=True)
            warned = True
        for line in lines or ():
            left = time_left(line["crops"], total, line["rate"])
            text = f"epoch {line['epoch']}/{plan.epochs}"
            if "step" in line:
                text += f", step {line['step']}/{plan.steps_per_epoch}, loss {line['loss']:.4f}"
            workers = f"{line['workers']} worker{'s' * (line['workers'] > 1)}"
            text += f", {line['rate']:.1f} crops/s, {workers}, {left}"
            if figures := line.get("figures"):
                text += ", " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items())
            progress.show(text, always=bool(figures))

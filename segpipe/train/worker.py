"""A worker of Ray Train: a Trainer between Ray's stream of crops and the driver's board."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.exceptions import RayError

from segpipe.cluster.errors import first_line, own_error
from segpipe.cluster.nodes import worker_threads
from segpipe.errors import Unfinished, place_of
from segpipe.train import states
from segpipe.train.crop_plan import Batch
from segpipe.train.job import TrainJob
from segpipe.train.stream import CROPS, shares
from segpipe.train.trainer import Diverged, Rank, Trainer

LOST_PEER = re.compile("gloo|NCCL|by peer")  # in what a rank meets where another one is gone


def work(loop: dict[str, Any]) -> None:
    """What Ray Train runs in every worker."""
    if loop["log"]:
        loop["log"].apply()
    board = loop["board"]
    if ray.get(board.failure.remote()):
        return  # the driver tells why; without this Ray Train would start us again and again
    trainer = None
    try:
        trainer = _trainer(loop["job"], board)
        _train(trainer)
    except Exception as error:
        if own := own_error(error) or _repeated(error, trainer, board):
            ray.get(board.fail.remote(own))
        if not isinstance(error, Diverged):
            raise


def _trainer(job: TrainJob, board: Any) -> Trainer:
    """This rank's, at the state that the run resumes from."""
    context = ray.train.get_context()
    place = Rank(
        context.get_world_rank(),
        context.get_world_size(),
        ray.train.torch.get_device(),
        worker_threads(context.get_local_world_size()),
    )
    trainer = Trainer(job, place, post=board.post.remote)
    if state := states.newest(job.output):
        trainer.restore(state)
    return trainer


def _train(trainer: Trainer) -> None:
    job, rank, size = trainer.job, trainer.rank, trainer.world_size
    crops = ray.train.get_dataset_shard(CROPS)
    feed = shares(crops, job.plan, rank, size, first_step=trainer.next_step)
    sets = {
        name: partial(ray.train.get_dataset_shard(name).iter_batches, batch_size=1)
        for name in job.evaluated
    }
    trainer.run(primed(feed), sets, after_epoch=lambda epoch: ray.train.report({"epoch": epoch}))


def _repeated(error: Exception, trainer: Trainer | None, board: Any) -> Unfinished | None:
    """What ends the run where this rank failed in the same way, at the same step, before.

    That is a bug, or too little memory, and another start meets it again. A node or a process that
    is gone is neither, nor is what the other ranks meet when it goes.
    """
    cause: BaseException = error
    while inner := getattr(cause, "cause", None) or cause.__cause__:
        cause = inner
    if isinstance(cause, RayError | dist.DistError) or LOST_PEER.search(str(cause)):
        return None
    words = f"{type(cause).__name__}: {first_line(cause)}{place_of(cause)}"
    step = trainer.step if trainer else -1
    rank = ray.train.get_context().get_world_rank()
    if not ray.get(board.repeated.remote(rank, words, step)):
        return None
    when = f"at step {step + 1} of the training" if trainer else "before the first step"
    return Unfinished(f"{words}, twice {when}; the same command resumes when that is mended")


def primed(feed: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the first of them here already: starting the stream is no step's wait."""
    first = next(feed, None)
    return feed if first is None else chain([first], feed)

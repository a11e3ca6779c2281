"""Ranks of a training as processes of their own, over gloo on this machine and without a Ray."""

from __future__ import annotations

import csv
import gc
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch.distributed as dist

from segpipe import cli
from segpipe.cluster.nodes import worker_threads
from segpipe.data import survey
from segpipe.data.globs import Reading
from segpipe.data.layouts import Example
from segpipe.data.several import open_sets, set_names
from segpipe.models import torch_compat
from segpipe.storage import lock, open_store
from segpipe.train import crop_plan, results, states
from segpipe.train.config import TrainConfig
from segpipe.train.crop_plan import Batch, Cropper
from segpipe.train.job import HELD_BACK, TEST, TrainJob, job_of
from segpipe.train.settings import Started
from segpipe.train.trainer import Rank, Trainer

SMALL = ["--recipe", "lecture", "--crops-per-image", 10, "--crop-size", 32, "--batch-size", 10]
SMALL += ["--diameter", 200]
STEPS = 4  # an epoch of the drawn set's four training images
UNET = ["--model", "unet", "--width", 4]
CONTEXT = get_context("forkserver")
# What a rank imports is imported once for all: torch's optimizers alone take seconds by _dynamo.
CONTEXT.set_forkserver_preload(["ranks", "torch._dynamo", "tensorboardX"])


def train(data: object, output: object, *flags: object, world_size: int = 1) -> Path:
    """What `segpipe train` with these flags does, by so many ranks -> the output's folder.

    But for the figures, whose drawing would take half of the time; tests/test_jobs.py has them.

    Raises what a rank raised.
    """
    words = [str(word) for word in ("--data", data, "--output", output, *flags)]
    config = cli.parse("train", TrainConfig, words)
    store = open_store(config.data)
    labelled = open_sets(store, set_names(config), Reading.of(config))
    looks = [survey.look(store, one)[0] for one in labelled.training + labelled.test]
    with lock.hold(open_store(config.output)) as held, tempfile.TemporaryDirectory() as folder:
        settings = config.settings(store)
        taught = config.teacher_weights.values()
        set_and_claim = store, labelled, looks, held.claim()
        checkpoints = {"teachers": taught, "first_weights": config.first_weights}
        job = job_of(settings, config.epochs, *set_and_claim, "cpu", **checkpoints)
        Started(settings, survey.listing(labelled.entries, looks)).write(job.output)
        run = partial(_run, job, f"file://{folder}/meet", world_size)
        with ProcessPoolExecutor(world_size, CONTEXT) as pool:
            list(pool.map(run, range(world_size)))
    return Path(config.output)


def _run(job: TrainJob, meet: str, world_size: int, number: int) -> None:
    gc.freeze()  # leave_group collects, and need not look at all that was imported
    results.figures = lambda *_: {}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", meet, rank=number, world_size=world_size)
    try:
        _train(job, world_size, number)
    finally:
        torch_compat.leave_group()


def _train(job: TrainJob, world_size: int, number: int) -> None:
    threads = worker_threads(world_size)  # as workers of Ray have
    trainer = Trainer(job, Rank(number, world_size, num_threads=threads))
    if state := states.newest(job.output):
        trainer.restore(state)
    cropper, last = Cropper(job.plan, world_size), job.plan.epochs * job.plan.steps_per_epoch
    crops = (cropper.share(step, number) for step in range(trainer.next_step, last))
    squashed = partial(crop_plan.squashed, size=job.plan.crops.crop_size)
    canvas = partial(crop_plan.canvas, diameter=job.plan.diameter)

    def photographs(load: partial, examples: tuple[Example, ...]) -> list[Batch]:
        mine = [load(job.plan.store, one) for one in examples[number::world_size]]
        return [{name: array[None] for name, array in one.items()} for one in mine]

    sets = {
        TEST: partial(photographs, squashed, job.test),
        HELD_BACK: partial(photographs, canvas, job.held_back),
    }
    trainer.run(crops, sets)


def history(output: Path) -> list[dict[str, str]]:
    return _rows(output / "history.csv")


def steps(output: Path, column: str = "loss") -> list[float]:
    """Of every step of a training."""
    files = sorted((output / "_segpipe" / "steps").iterdir())
    return [float(row[column]) for path in files for row in _rows(path)]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))

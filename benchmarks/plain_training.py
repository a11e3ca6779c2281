"""A training without Ray: segpipe's crops, Trainer and files, in one process for each worker.

    python benchmarks/plain_training.py [flags of segpipe train]

What a training costs where its cores do nothing else: the long trainings and the ablations ran so.
Results and checkpoint are those of `segpipe train`, but that nothing is evaluated on a test split
after an epoch, and --workers takes one number. Run again it resumes. One thread for each worker.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch.distributed as dist

from segpipe.cli import parse
from segpipe.data import survey
from segpipe.data.globs import Reading
from segpipe.data.several import open_sets, set_names
from segpipe.storage import lock, open_store
from segpipe.storage.lock import Claim
from segpipe.train import states
from segpipe.train.config import TrainConfig
from segpipe.train.crop_plan import Batch, Cropper, canvas
from segpipe.train.job import HELD_BACK, TrainJob, job_of
from segpipe.train.trainer import Rank, Trainer


def job(config: TrainConfig, claim: Claim) -> TrainJob:
    data = open_store(config.data)
    labelled = open_sets(data, set_names(config), Reading.of(config))
    looks = [survey.look(data, example)[0] for example in labelled.training]
    seen = data, labelled, looks, claim
    teachers, first = config.teacher_weights.values(), config.first_weights
    made = job_of(
        config.settings(data), config.epochs, *seen, "cpu", config.diameter, teachers, first
    )
    return replace(made, test=())


def train(job: TrainJob, rank: int, size: int, meeting: Path) -> None:
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    trainer = Trainer(job, Rank(rank, size))
    if state := states.newest(job.output):
        trainer.restore(state)
    cropper = Cropper(job.plan, size)
    steps = range(trainer.next_step, job.plan.epochs * job.plan.steps_per_epoch)

    def held_back() -> Iterator[Batch]:
        for example in job.held_back[rank::size]:
            fitted = canvas(job.plan.store, example, job.plan.diameter)
            yield {name: array[None] for name, array in fitted.items()}

    def told(epoch: int) -> None:
        row = trainer.history[-1]
        print(f"{job.output.uri()}: epoch {epoch}: {row}", file=sys.stderr, flush=True)

    crops = (cropper.share(step, rank) for step in steps)
    trainer.run(crops, {HELD_BACK: held_back}, told)


def main() -> None:
    config = parse("train", TrainConfig, sys.argv[1:])
    config.check()
    size = int(config.workers)
    with lock.hold(open_store(config.output)) as held, tempfile.TemporaryDirectory() as folder:
        common = job(config, held.claim()), Path(folder) / "meeting"
        processes = [
            get_context("spawn").Process(target=train, args=(common[0], rank, size, common[1]))
            for rank in range(1, size)
        ]
        for process in processes:
            process.start()
        train(common[0], 0, size, common[1])
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()

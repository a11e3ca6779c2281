"""Train: the crop stream -> DDP workers -> checkpoints, their history and two figures."""

from __future__ import annotations

import logging
import shutil
import signal
import tempfile
from dataclasses import replace
from typing import Any

import ray
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig

from segpipe import labels, ray_compat
from segpipe.cluster.join import check_cluster
from segpipe.cluster.nodes import (
    await_resources,
    check_device,
    choose_device,
    cpus_per_worker,
    elastic_cpus,
    refuse_precision,
)
from segpipe.cluster.quiet import handler_kept
from segpipe.cluster.session import ray_session
from segpipe.cluster.workers import cluster_model_env, on_network_node
from segpipe.data import survey
from segpipe.data.globs import Reading
from segpipe.data.layouts import LabelledSet
from segpipe.data.several import open_sets, set_names, sources
from segpipe.errors import UserError
from segpipe.models.bf16 import bf16_problem
from segpipe.progress import log_settings
from segpipe.storage import Store, check_there, lock, named, open_store
from segpipe.storage.files import write_json
from segpipe.storage.places import refuse_inside
from segpipe.storage.settings import refuse_changed
from segpipe.train import states, stream, worker
from segpipe.train.best import finished
from segpipe.train.config import TrainConfig
from segpipe.train.history import CURVES, HISTORY, PREDICTIONS
from segpipe.train.job import HELD_BACK, TEST, TrainJob, job_of, native_problem
from segpipe.train.results import LAST, MODEL
from segpipe.train.settings import Started, TrainingSettings
from segpipe.train.watch import ask, shown, start_board

logger = logging.getLogger(__name__)

UNDER_WAY = "_segpipe/under-way.json"  # while a model there is older than the states, or may be
MAX_FAILURES = 10  # restarts of the workers before the run gives up
RESIZE_S = 30.0  # seconds between two looks whether more or fewer workers could run


def train(config: TrainConfig) -> None:
    """Run or resume the training that `config` describes."""
    config.check()
    check_device(config.device, config.precision)
    check_cluster()
    data = open_store(config.data, anonymous=config.anonymous)
    output = open_store(config.output)
    with named("--data"):
        data.check_readable()
    with named("--output"):
        output.check_readable()
    check_there(data, "--data")
    names, settings = set_names(config), config.settings(data)
    for source in sources(data, names):
        refuse_inside(source, output)
    before = _started(output, settings)
    by_number = before is None or before.numbered
    labelled = open_sets(data, names, replace(Reading.of(config), by_number=by_number))
    _refuse_changes(data, output, before, labelled)
    if before and before.files is None:
        logger.warning(
            "train: %s was started without a list of its set's files, by an older release: changes "
            "of the set since are not noticed",
            output.uri(),
        )
    state = states.newest(output, lambda text: logger.warning("train: warning: %s", text))
    done = state.epoch if state else 0
    if done > config.epochs:
        raise UserError(
            f"--epochs {config.epochs}: {output.uri()} has {done} already, choose another --output"
        )
    if (
        state
        and output.head(MODEL) is not None
        and output.head(UNDER_WAY) is None
        and finished(state, config.epochs, config.patience)
    ):
        print(f"train: {done} epochs are finished, {output.uri(MODEL)} is up to date")
        return
    config.check_against(data, len(labelled.examples("training")))
    with lock.hold(output, config.if_locked) as held, ray_session():
        held.check()
        before = _started(output, settings)  # another run may have ended since
        _refuse_changes(data, output, before, labelled)
        output.sweep()
        device = choose_device(config.device)
        if config.backend == "native" and (
            problem := native_problem(settings.network, settings.crops, device)
        ):
            raise UserError(f"--backend native: {problem}; use --backend auto")
        if device == "cpu" and config.precision == "bf16":
            refuse_precision("bf16", on_network_node(bf16_problem, "bf16", device))
        resources = _resources(config, device)
        await_resources(resources, config.fewest_workers, config.resource_wait)
        looks = _survey(config, data, labelled)
        diameter = before.diameter if before else None
        seen = data, labelled, looks, held.claim()
        taught = config.teacher_weights.values()
        first = config.first_weights
        job = job_of(settings, config.epochs, *seen, device, diameter, taught, first)
        held.check()
        write_json(output, UNDER_WAY, {"--epochs": config.epochs})
        files = (before and before.files) or survey.listing(labelled.entries, looks)
        Started(settings, files, job.plan.diameter, labelled.numbered).write(output)
        _fit(config, job, resources)
        held.check()
        output.delete(UNDER_WAY)
    print(f"train: wrote {output.uri(MODEL)}, {LAST}, {HISTORY}, {CURVES} and {PREDICTIONS}")


def _resources(config: TrainConfig, device: str) -> dict[str, float]:
    """Of one worker."""
    cpus = elastic_cpus() if config.elastic else cpus_per_worker(config.most_workers, device)
    return {"CPU": cpus} | ({"GPU": 1.0} if device == "cuda" else {})


def _started(output: Store, settings: TrainingSettings) -> Started | None:
    """What an output was started with; None of a new one.

    Raises UserError where flags are others now.
    """
    before = Started.read(output)
    if before is None:
        return None
    model, first = settings.network.model, before.settings.network.model
    if model != first:
        raise UserError(
            f"--model {model}: {output.uri()} was started with {first}, give --model or --recipe "
            "as then, or choose another --output"
        )
    refuse_changed(output.uri(), before.settings.by_flag(), settings.by_flag())
    return before


def _refuse_changes(
    data: Store, output: Store, before: Started | None, labelled: LabelledSet
) -> None:
    """Raise UserError where the set's files are others now."""
    if before is None or before.files is None:
        return
    files = [(one.image, one.label, one.mask) for one in labelled.training + labelled.test]
    now = {key: labelled.entries[key] for keys in files for key in keys if key}
    if changed := survey.changes(data, before.files, now):
        raise UserError(
            f"--data {data.uri()}: the set has changed since {output.uri()} was started "
            f"({changed}), choose another --output"
        )


def _survey(config: TrainConfig, data: Store, labelled: LabelledSet) -> list[survey.Look]:
    """Look at every example once -> what was seen, first of the training photographs."""
    looks = labels.look_at_all(data, [*labelled.training, *labelled.test])
    num_training = len(labelled.training)
    overview = survey.overview(labelled.layout, looks[:num_training], looks[num_training:])
    labels.settle("train", data.uri, looks, config.accept_labels, overview, labelled.notes)
    return looks


def _fit(config: TrainConfig, job: TrainJob, resources: dict[str, float]) -> None:
    plan, board = job.plan, start_board()
    # Of Ray Train's controller alone: nodes share no disk, and states are in the store.
    scratch = tempfile.mkdtemp(prefix="segpipe-train-")
    datasets: dict[str, Any] = {
        stream.CROPS: ray.data.from_items([0])  # TrainingData puts the stream in its place
    }
    if job.test:
        test = stream.squashed(plan.store, job.test, plan.crops.crop_size)
        datasets[TEST] = test.materialize()
    if job.held_back:
        held_back = stream.canvases(plan.store, job.held_back, plan.diameter)
        datasets[HELD_BACK] = held_back.materialize()
    fewest, most = config.fewest_workers, config.most_workers
    trainer = ray.train.torch.TorchTrainer(
        worker.work,
        train_loop_config={"job": job, "board": board, "log": log_settings()},
        scaling_config=ScalingConfig(
            num_workers=(fewest, most) if config.elastic else most,  # type: ignore[arg-type]
            **ray_compat.resize_check(RESIZE_S),
            use_gpu=job.device == "cuda",
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name="segpipe",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            **ray_compat.worker_env(cluster_model_env()),
        ),
        datasets=datasets,
        dataset_config=stream.TrainingData(plan, job.output, job.device),
    )
    try:
        with shown(board, job), handler_kept(signal.SIGINT):
            trainer.fit()
    except SystemExit as stopped:  # by Ray Train's own handler of Ctrl-C, which ends the workers
        raise KeyboardInterrupt from stopped
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if failure := ask(board.failure):
            raise failure

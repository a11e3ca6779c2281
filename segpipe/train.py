"""Train: the crop stream -> DDP workers -> a checkpoint, its history and two figures."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import threading
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig

from segpipe import archive, ddp, runtime, stream
from segpipe.data.datasets import Example, find_examples
from segpipe.ddp import HISTORY, MODEL, TrainJob, finished_epochs
from segpipe.errors import UserError
from segpipe.models import networks
from segpipe.runtime import Progress
from segpipe.storage import Store, open_store, preflight

MAX_FAILURES = 3  # restarts of the workers before the run gives up


@dataclass(frozen=True)
class TrainConfig:
    """Train a network on a labelled set in DRIVE's layout and write a checkpoint.

    Run it again with the same --output to go on where it stopped.
    """

    data: str
    """Labelled set: a folder or s3://bucket/prefix in DRIVE's layout."""
    output: str
    """Folder or s3://bucket/prefix for model.safetensors, history.csv and the figures."""
    model: str = "segnet-lite"
    """Network to train."""
    epochs: int = 100
    """Passes over the crops. A finished run goes on when this is raised."""
    workers: int = 1
    """DDP workers. May change when a run is resumed."""
    crops_per_image: int = 30
    """Random crops from each training image in every epoch."""
    crop_size: int = 224
    """Side of a crop in px, a multiple of the network's stride."""
    batch_size: int = 10
    """Crops a step, all workers together."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    seed: int = 0
    """Seed of the weights and of every crop."""
    device: str = "auto"
    """Where the network runs: auto, cpu or gpu."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        for flag in ("epochs", "workers", "crops_per_image", "crop_size", "batch_size"):
            value = getattr(self, flag)
            if value < 1:
                raise UserError(f"--{flag.replace('_', '-')} {value}: must be 1 or more")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"--lr {self.lr}: must be above 0")
        if self.workers > self.batch_size:
            raise UserError(
                f"--workers {self.workers}: more than the {self.batch_size} crops of a batch, "
                "lower it or raise --batch-size"
            )
        stride: int = networks.model_class(self.model).STRIDE
        if self.crop_size % stride:
            raise UserError(f"--crop-size {self.crop_size}: must be a multiple of {stride}")


RESUMABLE = ("output", "epochs", "workers", "device")  # what may differ when a run is resumed


def train(config: TrainConfig) -> None:
    """Run or resume the training that `config` describes."""
    config.check()
    data, output = open_store(config.data), open_store(config.output)
    preflight(data, output)
    done = finished_epochs(output)
    settings = asdict(config) | {"data": data.uri()}
    _refuse_changed(output, settings)
    if done >= config.epochs and output.head(MODEL) is not None:
        print(f"train: {done} epochs are finished, {output.uri(MODEL)} stands")
        return
    output.sweep()
    training, test = find_examples(data, "training"), find_examples(data, "test")
    with runtime.ray_session():
        device = runtime.choose_device(config.device)
        plan = _plan(config, data, training, test)
        output.delete(MODEL)  # it means done, and a longer run is not
        archive.write_json(output, archive.SETTINGS, settings)
        _fit(config, TrainJob(plan, output, config.model, config.lr, device), test)
    print(f"train: wrote {output.uri(MODEL)}, {HISTORY}, curves.png and predictions.png")


def _refuse_changed(output: Store, settings: dict[str, Any]) -> None:
    """Raise UserError where the output was begun with something else."""
    before = archive.read_json(output, archive.SETTINGS) or {}
    archive.refuse_changed(output.uri(), _by_flag(before), _by_flag(settings))
    if (done := finished_epochs(output)) > settings["epochs"]:
        raise UserError(
            f"--epochs {settings['epochs']}: {output.uri()} has {done} already, "
            "choose another --output"
        )


def _by_flag(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in settings.items() if name not in RESUMABLE}
    return {f"--{name.replace('_', '-')}": value for name, value in kept.items()}


def _plan(
    config: TrainConfig, data: Store, training: list[Example], test: list[Example]
) -> stream.CropPlan:
    """Look at every example once and settle the crops of the whole run."""
    stream.survey(data, test)
    sizes = [row["size"] for row in stream.survey(data, training)]
    diameter = float(statistics.median(diameter for _, _, diameter in sizes))
    for example, (height, width, field_diameter) in zip(training, sizes, strict=True):
        smallest = min(stream.scaled_size(height, width, field_diameter, diameter))
        if config.crop_size > smallest:
            raise UserError(
                f"--crop-size {config.crop_size}: larger than {data.uri(example.image)}, "
                f"{smallest} px on its shorter side"
            )
    plan = stream.CropPlan(
        data,
        tuple(training),
        diameter,
        config.seed,
        config.epochs,
        config.crops_per_image,
        config.crop_size,
        config.batch_size,
    )
    if not plan.steps_per_epoch:
        raise UserError(
            f"--batch-size {config.batch_size}: more than the "
            f"{len(training) * config.crops_per_image} crops of an epoch"
        )
    return plan


def _fit(config: TrainConfig, job: TrainJob, test: list[Example]) -> None:
    plan = job.plan
    board = ray.remote(num_cpus=0)(Board).remote()
    scratch = tempfile.mkdtemp(prefix="segpipe-train-")
    trainer = ray.train.torch.TorchTrainer(
        ddp.work,
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=job.device == "cuda",
            resources_per_worker={"CPU": runtime.cpus_per_worker(config.workers)}
            | ({"GPU": 1.0} if job.device == "cuda" else {}),
        ),
        run_config=RunConfig(
            name="segpipe",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            worker_runtime_env=runtime.model_env(),  # type: ignore[call-arg]
        ),
        datasets={
            "crops": ray.data.from_items([0]),  # TrainingData puts the stream in its place
            "test": stream.squashed(plan.store, test, config.crop_size).materialize(),
            "fields": stream.canvases(plan.store, list(plan.examples), plan.diameter),
        },
        dataset_config=stream.TrainingData(plan, job.finished_epochs),
    )
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, stop, job), daemon=True)
    watcher.start()
    try:
        trainer.fit()
    finally:
        stop.set()
        watcher.join(timeout=10)
        shutil.rmtree(scratch, ignore_errors=True)


class Board:
    """Where rank 0 says how far it is and the driver reads it."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def post(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def take(self) -> list[dict[str, Any]]:
        lines, self.lines = self.lines, []
        return lines


def _watch(board: Any, stop: threading.Event, job: TrainJob) -> None:
    plan = job.plan
    progress, total = Progress("train"), plan.epochs * plan.steps_per_epoch * plan.batch_size
    progress.show(f"starting the workers, {job.finished_epochs()} of {plan.epochs} epochs done")
    last = False
    while not last:
        last = stop.wait(timeout=1.0)
        for line in ray.get(board.take.remote()):
            left = runtime.time_left(line["crops"], total, line["rate"])
            text = f"epoch {line['epoch']}/{plan.epochs}, {line['rate']:.1f} crops/s, {left}"
            if figures := line.get("figures"):
                text += ", " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items())
            progress.show(text, always=bool(figures))

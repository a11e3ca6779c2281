"""Train: the crop stream -> DDP workers -> checkpoints, their history and two figures."""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.train.torch
import tyro
from ray.exceptions import ActorUnavailableError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segpipe import labels
from segpipe.cluster import runtime, startup
from segpipe.data import survey
from segpipe.data.crops import AUGMENTATIONS, PLACES
from segpipe.data.globs import Reading
from segpipe.data.layouts import Example, LabelledSet, open_labelled
from segpipe.errors import UserError
from segpipe.flags import (
    DEVICES,
    check_above_0,
    check_anonymous,
    check_at_least,
    check_choices,
    check_seed,
    flag,
)
from segpipe.models import engine
from segpipe.models.flips import FLIPS
from segpipe.models.loss import LOSSES
from segpipe.models.network import PRECISIONS
from segpipe.models.networks import MODELS
from segpipe.progress import Progress, time_left
from segpipe.storage import Store, check_places, check_there, lock, named, open_store
from segpipe.storage.files import write_json
from segpipe.storage.lock import Claim
from segpipe.storage.places import refuse_inside
from segpipe.storage.settings import SETTINGS, read_settings, refuse_changed
from segpipe.train import states, stream, worker
from segpipe.train.board import Board
from segpipe.train.crop_plan import CropPlan, scaled_size
from segpipe.train.history import CURVES, HISTORY, PREDICTIONS
from segpipe.train.recipes import RECIPES
from segpipe.train.trainer import HELD_BACK, LAST, MODEL, TEST, TrainJob, finished

UNDER_WAY = "_segpipe/under-way.json"  # while a model there is older than the states, or may be
MAX_FAILURES = 10  # restarts of the workers before the run gives up
SINCE_0_2 = "--images", "--labels", "--masks", "--av-colours"  # none of them before
SET = "set"  # among the settings: the files that the run was begun with
DIAMETER = "diameter"  # and the working diameter, px: how fields are found may change
BOARD_S, BOARD_TRIES = 30.0, 3  # for an answer of the actor that holds progress, on this machine
RESIZE_S = 30.0  # seconds between two looks whether more or fewer workers could run
CHOICES: dict[str, Iterable[object]] = {
    "model": tuple(MODELS),
    "place": PLACES,
    "augmentation": tuple(AUGMENTATIONS),
    "loss": LOSSES,
    "flips": FLIPS,
    "schedule": ("constant", "cosine"),
    "precision": tuple(PRECISIONS),
    "compile": ("auto", "on", "off"),
    "device": DEVICES,
    "if_locked": lock.IF_LOCKED,
}


@dataclass(frozen=True)
class TrainConfig:
    """Train a network on a labelled set and write a checkpoint.

    Run it again with the same --output to go on where it stopped.
    """

    data: str
    """Labelled set: a folder or s3://bucket/prefix in a layout that the README names."""
    output: str
    """Folder or s3://bucket/prefix for checkpoints, history.csv and the figures."""
    recipe: str | None = None
    """Flags by name that were found good together: segnet-lite or resunet; others replace them."""
    model: str = "segnet-lite"
    """Network to train: segnet-lite, segnet, unet, wnet or resunet."""
    width: int | None = None
    """Channels of the network's first layer; by default 64, of wnet and resunet 8."""
    epochs: int = 100
    """Passes over the crops. A finished run goes on when this is raised."""
    workers: str = "1"
    """DDP workers: N, or MIN:MAX to take what the cluster has. May change when resumed."""
    crops_per_image: int = 30
    """Random crops from each training image in every epoch."""
    crop_size: int = 224
    """Side of a crop in px."""
    batch_size: int = 10
    """Crops a step, all workers together."""
    place: str = "photograph"
    """Where crops lie: in the photograph, around a pixel of its field, or the whole field."""
    augmentation: str = "none"
    """Random changes of crops: none, wnet (as for the W-Net), wide (for other cameras), or
    wider (for those with fewer pixels too)."""
    loss: str = "nll"
    """nll (negative log-likelihood), or nll+dice (and 1 - soft Dice of the vessels)."""
    lr: float = 1e-3
    """Learning rate of Adam; under a cosine schedule the highest."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0 to what the schedule says."""
    weight_decay: float = 0.0
    """Share of the weights taken away in a step, times the learning rate (AdamW)."""
    clip_norm: float = 0.0
    """Gradients that are longer are cut to this 2-norm over all weights; 0: none is."""
    average: float = 0.0
    """Weights are averaged over the steps with this decay, 0 to 1; 0: the last step's are used."""
    schedule: str = "constant"
    """Learning rate over the run: constant, or cosine for a fall to 0."""
    cycle_epochs: int | None = None
    """Epochs after which the cosine starts again; the whole run without."""
    validation_images: int = 0
    """Training images, the last by name, that are held back to choose the best epoch by."""
    flips: int = 1
    """Mirror images over which the threshold is chosen, and over which segment and evaluate average
    with this checkpoint where they are not told otherwise: 1 for none, or 4."""
    patience: int | None = None
    """Stop after this many epochs without a lower loss on the held-back images."""
    seed: int = 0
    """Seed of the weights and of every crop."""
    precision: str = "fp32"
    """fp32, or bf16 for convolutions whose sums stay in fp32."""
    compile: str = "auto"
    """The network's own compiled loop: auto where there is one, on or off."""
    device: str = "auto"
    """Where the network runs: auto, cpu or gpu."""
    anonymous: bool = False
    """Read --data without S3 credentials: a public bucket. May change when resumed."""
    resource_wait: float = 45.0
    """Seconds to wait for the workers' cores or GPUs before giving up."""
    if_locked: str = "fail"
    """Where another run holds --output: fail (exit code 2), or skip: write nothing, exit code 0."""
    accept_labels: bool = False
    """Train on labels that cannot be right, as `segpipe check` tells, with a warning."""
    images: str | None = None
    """Glob of the photographs below --data, of a set in no known layout; with --labels."""
    labels: str | None = None
    """Glob of the labels below --data; a star stands for the same in both."""
    masks: str | None = None
    """Glob of the masks of the field of view below --data; without, fields are found."""
    av_colours: str | None = None
    """What the colours of labels mean: RITE, LES-AV, DRIVE_AV or HRF, or MEANING=RRGGBB,... of
    artery, vein, crossing, uncertain and vessel; without, as the layout says. All are vessels."""

    @classmethod
    def preset(cls, flags: Sequence[str]) -> TrainConfig | None:
        """What the flags of a recipe among `flags` leave to be given; None where none is."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        parser.add_argument("--recipe", nargs="?")
        name = parser.parse_known_args(flags)[0].recipe
        if name is None:
            return None
        if name not in RECIPES:
            raise UserError(f"--recipe {name}: choose from {', '.join(RECIPES)}")
        return cls(data=tyro.MISSING, output=tyro.MISSING, recipe=name, **RECIPES[name])

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        check_places(self, "data", "output")
        check_seed(self)
        counts = ("width", "epochs", "crops_per_image", "crop_size", "batch_size")
        check_at_least(self, 1, *counts, "cycle_epochs", "patience")
        check_at_least(self, 0, "validation_images", "resource_wait", "warmup_steps")
        check_at_least(self, 0, "weight_decay", "clip_norm")
        if not 0 <= self.average < 1:
            raise UserError(f"--average {self.average}: must be 0 or more, and below 1")
        check_above_0(self, "lr")
        check_choices(self, CHOICES)
        check_anonymous(self.anonymous, "--data", [self.data])
        Reading.of(self)
        if self.cycle_epochs is not None and self.schedule != "cosine":
            raise UserError(f"--cycle-epochs {self.cycle_epochs}: needs --schedule cosine")
        if self.patience is not None and not self.validation_images:
            raise UserError(f"--patience {self.patience}: needs --validation-images")
        if self.most_workers > self.batch_size:
            raise UserError(
                f"--workers {self.workers}: more than the {self.batch_size} crops of a batch, "
                "lower it or raise --batch-size"
            )

    def _num_workers(self) -> list[int]:
        words = self.workers.split(":")
        if len(words) <= 2 and all(word.isdecimal() and len(word) < 10 for word in words):
            numbers = [int(word) for word in words]
            if 1 <= numbers[0] <= numbers[-1]:
                return numbers
        raise UserError(f"--workers {self.workers}: wanted N, or MIN:MAX, each 1 or more")

    @property
    def fewest_workers(self) -> int:
        return self._num_workers()[0]

    @property
    def most_workers(self) -> int:
        return self._num_workers()[-1]

    @property
    def elastic(self) -> bool:
        return ":" in self.workers

    def compiled_problem(self, device: str) -> str:
        """Why the network's compiled loop cannot be used on a "cpu" or "cuda" here, or ''."""
        network = self.model, self.width, self.precision, device
        return engine.training_problem(*network, self.crop_size, self.loss)

    def settings(self, data: Store) -> dict[str, Any]:
        """What a resumed run must have been begun with, by flag."""
        may_change = {"recipe", "output", "workers", "device", "resource_wait", "epochs"}
        may_change |= {"if_locked"}
        may_change |= {"anonymous", "accept_labels"}  # how the set is read, not what is in it
        if self.schedule == "cosine" and self.cycle_epochs is None:
            may_change -= {"epochs"}  # each step's rate depends on it
        kept = asdict(self) | {"data": data.uri(), "av_colours": Reading.of(self).colours or None}
        return {flag(name): value for name, value in kept.items() if name not in may_change}


def train(config: TrainConfig) -> None:
    """Run or resume the training that `config` describes."""
    config.check()
    runtime.check_device(config.device)
    startup.check_cluster()
    data = open_store(config.data, anonymous=config.anonymous)
    output = open_store(config.output)
    with named("--data"):
        data.check_readable()
    with named("--output"):
        output.check_readable()
    check_there(data, "--data")
    refuse_inside(data, output)
    settings = config.settings(data)
    labelled = open_labelled(data, reading=Reading.of(config))
    before = _begun_with(data, output, settings, labelled)
    if before and SET not in before:
        print(f"train: {output.uri()} was begun without a list of its set's files", file=sys.stderr)
    state = states.newest(output, lambda text: print(f"train: warning: {text}", file=sys.stderr))
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
        print(f"train: {done} epochs are finished, {output.uri(MODEL)} stands")
        return
    training = labelled.examples("training")
    if config.validation_images >= len(training):
        raise UserError(
            f"--validation-images {config.validation_images}: {data.uri()} has "
            f"{len(training)} training images, at least one must be left"
        )
    num_crops = (len(training) - config.validation_images) * config.crops_per_image
    if config.batch_size > num_crops:
        raise UserError(
            f"--batch-size {config.batch_size}: more than the {num_crops} crops of an epoch, "
            "lower it"
        )
    with lock.hold(output, config.if_locked) as held, runtime.ray_session():
        held.check()
        before = _begun_with(data, output, settings, labelled)  # another run may have ended since
        output.sweep()
        device = runtime.choose_device(config.device)
        if config.compile == "on" and (problem := config.compiled_problem(device)):
            raise UserError(f"--compile on: {problem}; use --compile auto")
        resources = _resources(config, device)
        runtime.await_resources(resources, config.fewest_workers, config.resource_wait)
        looks = _survey(config, data, labelled)
        job = job_of(config, data, labelled, looks, held.claim(), device, before.get(DIAMETER))
        held.check()
        write_json(output, UNDER_WAY, {"--epochs": config.epochs})
        files = before.get(SET) or survey.listing(labelled.entries, looks)
        kept = {SET: files, DIAMETER: job.plan.diameter}
        write_json(output, SETTINGS, settings | kept)
        _fit(config, job, resources, labelled.test)
        held.check()
        output.delete(UNDER_WAY)
    print(f"train: wrote {output.uri(MODEL)}, {LAST}, {HISTORY}, {CURVES} and {PREDICTIONS}")


def _resources(config: TrainConfig, device: str) -> dict[str, float]:
    """Of one worker."""
    cpus = (
        runtime.elastic_cpus()
        if config.elastic
        else runtime.cpus_per_worker(config.most_workers, device)
    )
    return {"CPU": cpus} | ({"GPU": 1.0} if device == "cuda" else {})


def _begun_with(
    data: Store, output: Store, settings: dict[str, Any], labelled: LabelledSet
) -> dict[str, Any]:
    """The settings that an output was begun with; {} of a new one.

    Raises UserError where flags or the set's files are others now.
    """
    before = read_settings(output, "--data", "--model")
    begun = dict.fromkeys(SINCE_0_2) | before if before else before
    refuse_changed(output.uri(), begun, settings)
    if SET not in before:
        return before
    files = [(one.image, one.label, one.mask) for one in labelled.training + labelled.test]
    now = {key: labelled.entries[key] for keys in files for key in keys if key}
    if changed := survey.changes(data, before[SET], now):
        raise UserError(
            f"--data {data.uri()}: the set has changed since {output.uri()} was begun ({changed}), "
            "choose another --output"
        )
    return before


def _survey(config: TrainConfig, data: Store, labelled: LabelledSet) -> list[survey.Look]:
    """Look at every example once -> what was seen, first of the training photographs."""
    looks = labels.look_at_all(data, [*labelled.training, *labelled.test])
    num_training = len(labelled.training)
    told = survey.overview(labelled.layout, looks[:num_training], looks[num_training:])
    labels.settle("train", data.uri, looks, config.accept_labels, told, labelled.notes)
    return looks


def job_of(
    config: TrainConfig,
    data: Store,
    labelled: LabelledSet,
    looks: Sequence[survey.Look],
    claim: Claim,
    device: str,
    diameter: float | None = None,
) -> TrainJob:
    """What each rank needs to know; `looks` begin with those of the training photographs, and
    tell the working diameter (px) of a run that was not begun with one.
    """
    cosine_epochs = config.cycle_epochs or config.epochs
    held_back = [HELD_BACK] if config.validation_images else []
    return TrainJob(
        plan=_plan(config, data, labelled.training, looks, diameter),
        output=claim.output,
        claim=claim,
        training_split=tuple(labelled.training),
        model=config.model,
        width=config.width,
        loss=config.loss,
        lr=config.lr,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        average=config.average,
        flips=config.flips,
        cycle_epochs=cosine_epochs if config.schedule == "cosine" else None,
        patience=config.patience,
        measured=(*held_back, *([TEST] if labelled.test else [])),
        precision=config.precision,
        compile=config.compile,
        device=device,
    )


def _plan(
    config: TrainConfig,
    data: Store,
    training: Sequence[Example],
    looks: Sequence[survey.Look],
    diameter: float | None,
) -> CropPlan:
    """The crops of the whole run."""
    looks = looks[: len(training)]
    if diameter is None:
        diameter = float(statistics.median(one.diameter for one in looks))
    for example, one in zip(training, looks, strict=True):
        smallest = min(scaled_size(one.height, one.width, one.diameter, diameter))
        if config.place == "photograph" and config.crop_size > smallest:
            raise UserError(
                f"--crop-size {config.crop_size}: larger than {data.uri(example.image)}, "
                f"{smallest} px on its shorter side; --place field allows it"
            )
    return CropPlan(
        data,
        tuple(training[: len(training) - config.validation_images]),
        diameter,
        config.seed,
        config.epochs,
        config.crops_per_image,
        config.crop_size,
        config.batch_size,
        config.augmentation,
        config.place,
    )


def _fit(
    config: TrainConfig,
    job: TrainJob,
    resources: dict[str, float],
    test: Sequence[Example],
) -> None:
    plan = job.plan
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(Board)
    board = actor.options(scheduling_strategy=here).remote()
    # Of Ray Train's controller alone: nodes share no disk, and states are in the store.
    scratch = tempfile.mkdtemp(prefix="segpipe-train-")
    datasets: dict[str, Any] = {
        stream.CROPS: ray.data.from_items([0])  # TrainingData puts the stream in its place
    }
    if test:
        datasets[TEST] = stream.squashed(plan.store, test, config.crop_size).materialize()
    if job.held_back:
        held_back = stream.canvases(plan.store, job.held_back, plan.diameter)
        datasets[HELD_BACK] = held_back.materialize()
    fewest, most = config.fewest_workers, config.most_workers
    trainer = ray.train.torch.TorchTrainer(
        worker.work,
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(
            num_workers=(fewest, most) if config.elastic else most,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=RESIZE_S,  # type: ignore[call-arg]
            use_gpu=job.device == "cuda",
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name="segpipe",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            worker_runtime_env=runtime.cluster_model_env(),  # type: ignore[call-arg]
        ),
        datasets=datasets,
        dataset_config=stream.TrainingData(plan, job.output),
    )
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, stop, job), daemon=True)
    watcher.start()
    try:
        with startup.handler_kept(signal.SIGINT):
            trainer.fit()
    except SystemExit as stopped:  # by Ray Train's own handler of Ctrl-C, which ends the workers
        raise KeyboardInterrupt from stopped
    finally:
        stop.set()
        watcher.join(timeout=10)
        shutil.rmtree(scratch, ignore_errors=True)
        if failure := _asked(board.failure):
            raise failure


def _asked(method: Any) -> Any:
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
    progress, total = Progress("train"), plan.epochs * plan.steps_per_epoch * plan.batch_size
    way = "compiled" if job.compiled else "eager"
    progress.show(
        f"starting the workers ({way} {job.precision} on {job.device}), "
        f"{states.finished_epochs(job.output)} of {plan.epochs} epochs done"
    )
    last = told = False
    while not last:
        last = stop.wait(timeout=1.0)
        lines = _asked(board.take)
        if lines is None and not last and not told:
            progress.show("how far it is cannot be told now, the training goes on", always=True)
            told = True
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

"""Scale: the same job with more and more workers, each time on as many cores, beside its ceilings.

results.jsonl            a line a finished measurement; docs/scaling.md names the fields
table.md, scaling.png    what they add up to
_segpipe/settings.json   what they were made with
_segpipe/run/            what the measurement at hand writes; empty afterwards
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segpipe import archive, lease, pinned, plots, records, runtime, scaling
from segpipe.errors import Unfinished, UserError
from segpipe.inputs import Inputs, inside, open_source
from segpipe.models import checkpoint, engine
from segpipe.pinned import Ended
from segpipe.recipes import RECIPES
from segpipe.runtime import Progress
from segpipe.scaling import JOB, Row
from segpipe.stopwatch import IDLE
from segpipe.storage import PATIENCE_S, Source, Store, open_store
from segpipe.storage.local import LocalStore

RESULTS, TABLE, FIGURE = "results.jsonl", "table.md", "scaling.png"
RUN = "_segpipe/run"
MODES = ("strong", "weak")
OF_JOB: dict[str, dict[str, Any]] = {  # flags of the job itself, and what they are without any
    "segment": {"input": None, "checkpoint": None, "batch_size": 64, "limit": None},
    "train": {
        "data": None,
        "recipe": None,
        "model": "segnet-lite",
        "epochs": 3,
        "crops_per_image": 30,
        "crop_size": 224,
        "batch_size": 10,
    },
}
OF_STEP = ("place", "augmentation", "loss", "lr", "weight_decay", "clip_norm")  # of a recipe
DELETED_AT_ONCE = 16
ROW_COLUMNS = ["height", "width", "finished"]


@dataclass(frozen=True)
class ScaleConfig:
    """Measure what more workers buy: a job on 1, 2, 4 ... cores or GPUs, beside its ceilings.

    Run it again with the same --output to go on where it stopped.
    """

    job: str
    """What is measured: segment or train."""
    output: str
    """Folder or s3://bucket/prefix for results.jsonl, table.md and scaling.png."""
    workers: tuple[int, ...] = (1, 2, 4)
    """Points: workers, each on a core (or GPU) of its own. More may be added later."""
    mode: str = "strong"
    """strong: as much work at every point; weak: n times as much for n workers."""
    repeats: int = 3
    """Measurements of each point, in turns over all points. More may be added later."""
    input: str | None = None
    """Of segment, and needed there: photographs, as segment takes them."""
    data: str | None = None
    """Of train, and needed there: a labelled set, as train takes it."""
    checkpoint: str | None = None
    """Of segment: checkpoint file or name; the shipped default without."""
    limit: int | None = None
    """Of segment: photographs a point, the first of the listing (weak: for each worker); without,
    all of them (weak: a share of all for each worker)."""
    model: str | None = None
    """Of train: network, segnet-lite without."""
    recipe: str | None = None
    """Of train: flags by name; those given here replace its own."""
    epochs: int | None = None
    """Of train: passes over the crops, 3 without."""
    crops_per_image: int | None = None
    """Of train: random crops from each image in an epoch (weak: for each worker), 30 without."""
    crop_size: int | None = None
    """Of train: side of a crop in px, 224 without."""
    batch_size: int | None = None
    """Of segment: photographs that are committed together, 64 without. Of train: crops a step, all
    workers together (weak: for each worker), 10 without."""
    device: str = "auto"
    """Where the network runs: auto, cpu or gpu."""
    ceiling_seconds: float = 5.0
    """Seconds for which each part of segment is measured alone; 0 leaves all ceilings out."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        for name, choices in {
            "job": tuple(OF_JOB),
            "mode": MODES,
            "device": ("auto", "cpu", "gpu"),
        }.items():
            if getattr(self, name) not in choices:
                raise UserError(f"--{name} {getattr(self, name)}: choose {', '.join(choices)}")
        if not self.workers or min(self.workers) < 1:
            told = " ".join(map(str, self.workers))
            raise UserError(f"--workers {told}: wanted one number or more, each 1 or more")
        if len(set(self.workers)) < len(self.workers):
            raise UserError(f"--workers {' '.join(map(str, self.workers))}: a number comes twice")
        for name in ("repeats", "limit", "epochs", "crops_per_image", "crop_size", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_flag(name)} {value}: must be 1 or more")
        if not 0 <= self.ceiling_seconds < float("inf"):
            raise UserError(f"--ceiling-seconds {self.ceiling_seconds}: must be 0 or more")
        if self.recipe is not None and self.recipe not in RECIPES:
            raise UserError(f"--recipe {self.recipe}: choose from {', '.join(RECIPES)}")
        needed, other = ("input", "train") if self.job == "segment" else ("data", "segment")
        if getattr(self, needed) is None:
            raise UserError(f"--job {self.job}: needs {_flag(needed)}")
        for name in set(OF_JOB[other]) - set(OF_JOB[self.job]):
            if getattr(self, name) is not None:
                raise UserError(f"{_flag(name)} {getattr(self, name)}: is a flag of --job {other}")

    def of_job(self) -> dict[str, Any]:
        """The job's own flags by name: given here, of the recipe, or its defaults."""
        known = OF_JOB[self.job]
        recipe = RECIPES[self.recipe] if self.recipe else {}
        given = {name: getattr(self, name) for name in known if getattr(self, name) is not None}
        return known | {n: v for n, v in recipe.items() if n in known and n != "epochs"} | given

    def settings(self) -> dict[str, Any]:
        """What a resumed experiment must have been begun with, by flag."""
        kept = {"job": self.job, "mode": self.mode, "device": self.device} | self.of_job()
        return {_flag(name): value for name, value in kept.items()} | {
            "--ceiling-seconds": self.ceiling_seconds,
            "machine": _machine(),
            "cluster": "RAY_ADDRESS" in os.environ,
        }


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class Key(NamedTuple):
    """Names a measurement."""

    repeat: int
    workers: int
    part: str


@dataclass
class Experiment:
    """What the measurements share."""

    config: ScaleConfig
    source: Source
    """Photographs, or the labelled set."""
    output: Store
    flags: dict[str, Any]
    """The job's own."""
    device: str
    """cpu or cuda; of a cluster what --device says."""
    cores: list[int]
    """Of this machine, in the order in which points take them; empty on a cluster."""
    gpus: list[str]
    """The same of GPUs; empty where none is used."""
    image_bytes: float | None = None
    """Mean over the input."""
    images: int | None = None
    """Photographs for each point; in weak mode for each worker."""
    rows: list[Row] = field(default_factory=list)

    @property
    def on_cluster(self) -> bool:
        return not self.cores

    @property
    def parts(self) -> tuple[str, ...]:
        """What is measured at each point. On a cluster nothing here could measure the parts."""
        alone = scaling.PARTS[self.config.job]
        with_parts = self.config.ceiling_seconds > 0 and not self.on_cluster
        return (JOB, *(alone if with_parts else ()))

    def cores_of(self, workers: int) -> list[int] | None:
        """Of a point; with GPUs as large a share of the cores as of the GPUs."""
        if self.on_cluster:
            return None
        if not self.gpus:
            return self.cores[:workers]
        return self.cores[: max(1, len(self.cores) * workers // len(self.gpus))]

    def gpus_of(self, workers: int) -> list[str]:
        return self.gpus[:workers]

    def times(self, workers: int) -> int:
        """How many times the work of one worker a point does."""
        return workers if self.config.mode == "weak" else 1

    def wanted(self) -> list[Key]:
        """All measurements in their order: in turns, so that a drift of the machine meets all."""
        return [
            Key(repeat, workers, part)
            for repeat in range(1, self.config.repeats + 1)
            for workers in sorted(self.config.workers)
            for part in self.parts
        ]

    def done(self) -> set[Key]:
        return {Key(row["repeat"], row["workers"], row["part"]) for row in self.rows}


def scale(config: ScaleConfig) -> None:
    """Measure what is not measured yet, and write what it adds up to."""
    config.check()
    experiment = _open(config)
    output = experiment.output
    todo = [key for key in experiment.wanted() if key not in experiment.done()]
    if not todo and output.head(TABLE) is not None:
        told = f"{len(experiment.rows)} measurements are done"
        print(f"scale: {told}, {output.uri(TABLE)} stands")
        return
    output.check_writable()
    with lease.hold(output) as held:
        archive.write_json(output, archive.SETTINGS, config.settings())
        try:
            _measure_all(experiment, todo, held)
        finally:
            _clear(experiment)
        _write_results(experiment)
    print(f"scale: wrote {output.uri(RESULTS)}, {TABLE} and {FIGURE}")


def _open(config: ScaleConfig) -> Experiment:
    """Everything that can be wrong with the flags is found here, within seconds."""
    output = open_store(config.output)
    if config.job == "segment":
        source = open_source(str(config.input), PATIENCE_S)
    else:
        source = open_store(str(config.data))
    source.check_readable()
    output.check_readable()
    if inside(source, output) is not None:
        raise UserError(f"--output {output.uri()}: lies inside {source.uri()}, choose another")
    settings = config.settings()
    archive.refuse_changed(
        output.uri(), archive.read_json(output, archive.SETTINGS) or {}, settings
    )
    flags = config.of_job()
    if config.job == "train" and max(config.workers) > (
        flags["batch_size"] * (max(config.workers) if config.mode == "weak" else 1)
    ):
        raise UserError(
            f"--workers {max(config.workers)}: more than the {flags['batch_size']} crops of a "
            "batch, lower it or raise --batch-size"
        )
    cluster = "RAY_ADDRESS" in os.environ
    gpus = [] if cluster or config.device == "cpu" else _gpus()
    if config.device == "gpu" and not gpus and not cluster:
        raise UserError("--device gpu: this machine has no GPU, use --device cpu or auto")
    cores = [] if cluster else pinned.own_cores()[: runtime.own_cores()]
    have, kind = (len(gpus), "GPUs") if gpus else (len(cores), "cores")
    if not cluster and max(config.workers) > have:
        raise UserError(
            f"--workers {max(config.workers)}: this process may use {have} {kind}, lower it"
        )
    device = config.device if cluster else "cuda" if gpus else "cpu"
    experiment = Experiment(config, source, output, flags, device, cores, gpus)
    experiment.rows = _read_rows(output)
    if config.job == "segment":
        _look_at_input(experiment)
    return experiment


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    import torch  # takes a second

    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (listed.split(",") if listed else [str(number) for number in range(count)])[:count]


def _look_at_input(experiment: Experiment) -> None:
    """How many photographs each point takes. Raises UserError where there are too few."""
    config, source = experiment.config, experiment.source
    most = experiment.times(max(config.workers))
    limit = None if config.limit is None else config.limit * most
    sizes = [entry.bytes for entry in Inputs(source, limit=limit)]
    images = config.limit or len(sizes) // most
    needed = max(images * most, max(config.workers) + 1)
    if len(sizes) < needed or not sizes:
        raise UserError(
            f"--input {config.input}: {len(sizes)} photographs there, {needed} are needed; lower "
            "--limit or --workers"
        )
    experiment.images, experiment.image_bytes = images, statistics.mean(sizes)


def _read_rows(output: Store) -> list[Row]:
    try:
        text = output.get(RESULTS).decode()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines() if line]


def _measure_all(experiment: Experiment, todo: Sequence[Key], held: lease.Lease) -> None:
    progress = Progress("scale")
    if not todo:
        return
    smallest = Key(0, min(experiment.config.workers), JOB)
    progress.show(f"warming up, {len(todo)} measurements to do", always=True)
    _measure(experiment, smallest)  # reads into caches, builds kernels, chooses the engine
    spent: list[float] = []
    for number, key in enumerate(todo, start=1):
        held.check()
        left = runtime.time_left(number - 1, len(todo), len(spent) / sum(spent) if spent else None)
        plural = "s" * (key.workers > 1)
        text = f"{number}/{len(todo)}: {key.part} with {key.workers} worker{plural}"
        progress.show(f"{text}, repeat {key.repeat}{_last(experiment)}, {left}", always=True)
        row = _measure(experiment, key)
        spent.append(row["seconds"])
        experiment.rows.append(row)
        lines = "".join(json.dumps(one) + "\n" for one in experiment.rows)
        experiment.output.put(RESULTS, lines.encode())


def _last(experiment: Experiment) -> str:
    """The last rate, for people."""
    if not experiment.rows:
        return ""
    row = experiment.rows[-1]
    item = scaling.ITEM[experiment.config.job]
    return f"; last {scaling.figures(row['rate'])} {item}s/s ({row['part']}, {row['workers']})"


def _measure(experiment: Experiment, key: Key) -> Row:
    """One measurement -> its line. Raises Unfinished where it fails."""
    _clear(experiment)
    config = experiment.config
    if config.job == "segment":
        found = _segment(experiment, key) if key.part == JOB else _ceiling(experiment, key)
    else:
        found = _train(experiment, key) if key.part == JOB else _bare(experiment, key)
    ended, figures = found
    return {
        "job": config.job,
        "mode": config.mode,
        "workers": key.workers,
        "repeat": key.repeat,
        "part": key.part,
        **dict.fromkeys(("items", "rate")),
        "seconds": round(ended.seconds, 3),
        **dict.fromkeys(("startup_s", "end_s", "stages", "stall", "bottleneck")),
        "driver_cpu_s": round(ended.driver_cpu_s, 2),
        "cpu_s": round(ended.cpu_s, 2),
        "peak_mib": round(ended.peak_mib, 1) or None,  # too short to be looked at
        "image_bytes": experiment.image_bytes,
        "image_megapixels": None,
        "batch_size": None,
        "checkpoint": None,
        "engine": None,
        "model": None,
        "precision": None,
        "device": experiment.device,
        "cores": list(ended.cores),
        "machine": _machine(),
        "versions": _versions(),
        "commit": _commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    } | figures


def _run(experiment: Experiment, key: Key, words: Sequence[object], env: dict[str, str]) -> Ended:
    if gpus := experiment.gpus_of(key.workers):
        env = env | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    command = [sys.executable, *map(str, words)]
    ended = pinned.run(command, experiment.cores_of(key.workers), env)
    if ended.code:
        raise Unfinished(
            f"{key.part} with {key.workers} workers, repeat {key.repeat}: exit code {ended.code}: "
            f"{ended.last_word}"
        )
    return ended


# ---- segment


def _segment(experiment: Experiment, key: Key) -> tuple[Ended, Row]:
    store, images = _run_store(experiment), experiment.images or 0
    words: list[object] = ["-m", "segpipe", "segment", "--input", experiment.config.input]
    words += ["--output", store.uri(), "--workers", key.workers]
    words += ["--limit", images * experiment.times(key.workers)]
    words += ["--batch-size", experiment.flags["batch_size"], "--max-rejected", 1]
    words += ["--device", _device_flag(experiment), *_given(experiment, "checkpoint")]
    ended = _run(experiment, key, words, {})
    summary = archive.read_json(store, archive.SUMMARY) or {}
    settings = archive.read_json(store, archive.SETTINGS) or {}
    finished, megapixels = _of_rows(store)
    rate = scaling.steady_rate(finished, key.workers)
    if rate is None:
        raise UserError(f"--limit {images}: too few photographs for a steady rate, raise it")
    stages = summary["stages"]
    return ended, {
        "items": len(finished),
        "rate": rate,
        "startup_s": round(summary["work_started"] - ended.started, 3),
        "end_s": round(ended.ended - summary["work_finished"], 3),
        "stages": stages,
        "stall": stages[IDLE] / sum(stages.values()),
        "bottleneck": summary["bottleneck"],
        "image_megapixels": megapixels,
        "batch_size": experiment.flags["batch_size"],
        "checkpoint": experiment.flags["checkpoint"] or checkpoint.DEFAULT,
        "engine": summary["engine"]["name"],
        "model": summary["model"]["model"],
        "precision": settings["--precision"],
    }


def _of_rows(store: Store) -> tuple[np.ndarray, float | None]:
    """When each input was finished (seconds since 1970), and mean megapixels of the masks."""
    tables = [read(ROW_COLUMNS) for read in archive.result_groups(store)]
    finished = np.concatenate([table["finished"].to_numpy() for table in tables])
    pixels = np.concatenate(
        [table["height"].to_numpy().astype(float) * table["width"].to_numpy() for table in tables]
    )
    pixels = pixels[np.isfinite(pixels)]  # rejected inputs have no size
    return finished, float(pixels.mean() / 1e6) if len(pixels) else None


def _ceiling(experiment: Experiment, key: Key) -> tuple[Ended, Row]:
    """One part of segment alone, by the engine that the job used."""
    job = next(row for row in reversed(experiment.rows) if row["part"] == JOB)
    kind, precision = job["engine"].split()
    cores = experiment.cores_of(key.workers) or []
    words: list[object] = ["-m", "segpipe.ceilings", key.part]
    words += ["--input", experiment.config.input, "--output", _run_store(experiment).uri()]
    words += ["--seconds", experiment.config.ceiling_seconds, "--cores", *cores]
    words += ["--engine", "on" if kind == "compiled" else "off", precision]
    words += ["--limit", (experiment.images or 0) * experiment.times(key.workers)]
    words += _given(experiment, "checkpoint")
    gpus = experiment.gpus_of(key.workers)
    if gpus and key.part == "model":
        words += ["--gpus", *gpus]
    # as in the processes that run the job's network
    env = {} if gpus or kind == "compiled" else runtime.model_env().get("env_vars", {})
    ended = _run(experiment, key, words, env)
    same = ("image_megapixels", "batch_size", "checkpoint", "engine", "model", "precision")
    return ended, {name: job[name] for name in same} | _last_json(ended.stdout)


# ---- train


def _train(experiment: Experiment, key: Key) -> tuple[Ended, Row]:
    store, flags = _run_store(experiment), _of_training(experiment, key.workers)
    words: list[object] = ["-m", "segpipe", "train", "--data", experiment.config.data]
    words += ["--output", store.uri(), "--workers", key.workers]
    words += ["--device", _device_flag(experiment), *_given(experiment, "recipe")]
    words += ["--epochs", experiment.flags["epochs"], *_as_words(flags)]
    ended = _run(experiment, key, words, {})
    settings = archive.read_json(store, archive.SETTINGS) or {}
    steps = _steps(store)
    wait, work = scaling.steady(steps[:, :2]).sum(axis=0)
    items = len(scaling.steady(steps)) * flags["batch_size"]
    first_wait, first_work, first_ended = steps[0]
    precision = settings["--precision"]
    kind = flags["model"], settings["--width"], precision, experiment.device
    problem = engine.training_problem(*kind, flags["crop_size"], settings["--loss"])
    return ended, {
        "items": items,
        "rate": items / (wait + work),
        "startup_s": round(first_ended - first_wait - first_work - ended.started, 3),
        "end_s": round(ended.ended - steps[-1, 2], 3),
        "stall": wait / (wait + work),
        "bottleneck": "data" if wait > work else "step",
        "batch_size": flags["batch_size"],
        "engine": f"{'eager' if problem else 'compiled'} {precision}",
        "model": flags["model"],
        "precision": precision,
    }


def _of_training(experiment: Experiment, workers: int) -> dict[str, Any]:
    """The flags that shape a step, of a point: in weak mode as many crops for each worker."""
    names = ("model", "crops_per_image", "crop_size", "batch_size")
    flags = {name: experiment.flags[name] for name in names}
    for name in ("crops_per_image", "batch_size"):
        flags[name] *= experiment.times(workers)
    return flags


def _steps(store: Store) -> np.ndarray:
    """[steps, 3]: seconds of waiting for data and of the step, and since 1970 at its end."""
    rows: list[dict[str, str]] = []
    for entry in store.list(records.STEPS.partition("{")[0]):
        rows += csv.DictReader(io.StringIO(store.get(entry.key).decode()))
    return np.array([[float(row[name]) for name in ("wait_s", "step_s", "ended")] for row in rows])


def _bare(experiment: Experiment, key: Key) -> tuple[Ended, Row]:
    """As many steps as the job's, under bare torchrun."""
    job = next(
        row
        for row in experiment.rows
        if (row["repeat"], row["workers"], row["part"]) == (key.repeat, key.workers, JOB)
    )
    flags = _of_training(experiment, key.workers)
    recipe = RECIPES[experiment.config.recipe] if experiment.config.recipe else {}
    flags |= {name: recipe[name] for name in OF_STEP if name in recipe}
    steps = round(job["items"] / flags["batch_size"] / (1 - scaling.WARM_SHARE))
    words: list[object] = ["-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc-per-node", key.workers, "-m", "segpipe.bare_ddp", experiment.config.data]
    words += ["--steps", steps, "--device", experiment.device, *_as_words(flags)]
    env = runtime.model_env().get("env_vars", {}) | {"OMP_NUM_THREADS": "1"}
    ended = _run(experiment, key, words, env)
    same = ("batch_size", "engine", "model", "precision")
    return ended, {name: job[name] for name in same} | _last_json(ended.stdout)


# ---- what measurements share


def _run_store(experiment: Experiment) -> Store:
    return open_store(experiment.output.uri(RUN))


def _clear(experiment: Experiment) -> None:
    """Remove what the last measurement wrote."""
    store = _run_store(experiment)
    if isinstance(store, LocalStore):
        shutil.rmtree(store.root, ignore_errors=True)
        return
    with ThreadPoolExecutor(DELETED_AT_ONCE) as pool:
        list(pool.map(lambda entry: store.delete(entry.key), store.list()))


def _device_flag(experiment: Experiment) -> str:
    return "gpu" if experiment.device == "cuda" else experiment.device


def _given(experiment: Experiment, name: str) -> list[object]:
    value = experiment.flags[name]
    return [] if value is None else [_flag(name), value]


def _as_words(flags: dict[str, Any]) -> list[object]:
    return [word for name, value in flags.items() for word in (_flag(name), value)]


def _last_json(text: str) -> Row:
    """Of a part's lines, the one that tells its figures; the others are libraries'."""
    line = [line for line in text.splitlines() if line.startswith("{")][-1]
    found: Row = json.loads(line)
    return found


# ---- the facts


def _machine() -> dict[str, Any]:
    """CPU model and cores of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": next(iter(names), platform.machine()), "cores": os.cpu_count()}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("ray", "torch")
    }


@lru_cache(maxsize=1)
def _commit() -> str | None:
    """Of the code that runs, "-dirty" where it was changed since; None without a repository."""
    here = Path(__file__).parent
    words = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _write_results(experiment: Experiment) -> None:
    rows, output, config = experiment.rows, experiment.output, experiment.config
    output.put(TABLE, scaling.table(rows, _facts(experiment)).encode())
    found = scaling.points(rows)
    title = f"{config.mode.capitalize()} scaling of {config.job}: {rows[0]['engine']} "
    title += f"{rows[0]['model']}"
    unit = "GPU" if experiment.gpus else "core"
    axis = "workers" if experiment.on_cluster else f"workers, each with a {unit} of its own"
    figure = plots.scaling_curve(found, title, scaling.ITEM[config.job], axis)
    output.put(FIGURE, figure)


def _facts(experiment: Experiment) -> list[str]:
    """The lines with which the table begins."""
    rows, config = experiment.rows, experiment.config
    machine, last = rows[-1]["machine"], rows[-1]
    commits = ", ".join(dict.fromkeys(str(row["commit"] or "unknown") for row in rows))
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    lines = [
        f"- date: {last['time'][:10]}",
        f"- machine: {machine['cores']} cores, {machine['cpu']}",
        f"- versions: {versions}",
        f"- commit: {commits}",
        f"- command: {_command(config)}",
        f"- network: {last['model']}, {last['engine']}, on {last['device']}, batch "
        f"{experiment.flags['batch_size']}",
    ]
    if experiment.on_cluster:
        lines.append(
            "- cluster: the one at RAY_ADDRESS; nothing is pinned, --workers alone varies, and no "
            "part is measured alone"
        )
    else:
        pinned_to = {
            workers: " ".join(map(str, experiment.cores_of(workers) or []))
            for workers in sorted(config.workers)
        }
        told = "; ".join(f"{workers}: {cores}" for workers, cores in pinned_to.items())
        lines.append(f"- every process of a point pinned to the cores (workers: cores) {told}")
    if experiment.image_bytes is not None:
        job = next(row for row in rows if row["part"] == JOB)
        size = f"{job['image_megapixels']:.2f} megapixels" if job["image_megapixels"] else "unread"
        lines.append(
            f"- images: {experiment.images} {'a worker' if config.mode == 'weak' else 'a point'}, "
            f"on average {experiment.image_bytes / 1e6:.3f} MB and {size}"
        )
    return lines


def _command(config: ScaleConfig) -> str:
    words = ["segpipe", "scale"]
    for one in fields(config):
        value = getattr(config, one.name)
        if value != one.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [_flag(one.name), *map(str, values)]
    return shlex.join(words)

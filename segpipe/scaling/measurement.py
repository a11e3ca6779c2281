"""One measurement of a scaling experiment: the job, or a part of it alone, -> its line.

Each is a command in processes of its own, pinned to the cores of its point; what it writes lies in
the experiment's output until the next one begins.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segpipe.cluster.workers import model_env
from segpipe.errors import Unfinished, UserError
from segpipe.flags import flag
from segpipe.models import checkpoint, forms
from segpipe.models.tta import tta_of
from segpipe.scaling import findings, pinned
from segpipe.scaling.findings import JOB, Row
from segpipe.scaling.pinned import Ended
from segpipe.segment.compact import result_groups
from segpipe.segment.output import SUMMARY
from segpipe.segment.rows import posix_seconds
from segpipe.segment.stopwatch import IDLE
from segpipe.storage import Store, open_store
from segpipe.storage.files import read_json
from segpipe.storage.local import LocalStore
from segpipe.storage.settings import read_settings
from segpipe.train import history
from segpipe.train.recipes import RECIPES

RUN = "_segpipe/run/"  # where in the output measurements write, each process in a folder there
OWN_RUN = re.compile(RUN + r"[0-9a-f]{32}(/.+)?")
STEP_FLAGS = ("crop_sampling", "augmentation", "loss", "lr", "weight_decay", "clip_norm")
ROW_COLUMNS = ["height", "width", "finished"]
DELETED_AT_ONCE = 16


class Key(NamedTuple):
    """Names a measurement."""

    repeat: int
    workers: int
    part: str

    @classmethod
    def of(cls, row: Row) -> Key:
        return cls(row["repeat"], row["workers"], row["part"])

    @property
    def told(self) -> str:
        workers = f"{self.workers} worker{'s' * (self.workers > 1)}"
        when = f"repeat {self.repeat}" if self.repeat else "to warm up"
        return f"{self.part} with {workers}, {when}"


@dataclass(frozen=True)
class Experiment:
    """What the measurements share."""

    job: str
    mode: str
    output: Store
    flags: dict[str, Any]
    """The job's own, by name."""
    ceiling_s: float
    """Seconds for which each part of segment is measured alone; 0: no part is."""
    device: str
    """cpu or cuda."""
    cores: list[int]
    """Of this machine, in the order in which points take them; empty on a cluster."""
    gpus: list[str]
    """The same of GPUs; empty where none is used."""
    gpu: str | None = None
    """What they are."""
    image_bytes: float | None = None
    """Mean over the input."""
    images: int = 0
    """Photographs for each point; in weak mode for each worker."""
    run: str = field(default_factory=lambda: RUN + uuid.uuid4().hex)
    """Where in the output this process's measurements write."""

    @property
    def on_cluster(self) -> bool:
        return not self.cores

    @property
    def parts(self) -> tuple[str, ...]:
        """What is measured at each point. On a cluster nothing here could measure the parts."""
        alone = findings.PARTS[self.job] if self.ceiling_s and not self.on_cluster else ()
        return (JOB, *alone)

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
        return workers if self.mode == "weak" else 1


def measure(experiment: Experiment, key: Key, before: Sequence[Row]) -> Row:
    """One measurement -> its line. Raises Unfinished where it fails.

    `before` are the lines so far; a part is measured as the job beside it ran.
    """
    clear(experiment)
    if key.part == JOB:
        ended, figures = (_segment if experiment.job == "segment" else _train)(experiment, key)
    else:
        job = next(row for row in reversed(before) if Key.of(row) == key._replace(part=JOB))
        part = _ceiling if experiment.job == "segment" else _bare
        ended, figures = part(experiment, key, job)
    everywhere = experiment.on_cluster  # where other machines' processes are not seen
    return {
        "job": experiment.job,
        "mode": experiment.mode,
        "workers": key.workers,
        "repeat": key.repeat,
        "part": key.part,
        **dict.fromkeys(("items", "rate")),
        "seconds": round(ended.seconds, 3),
        **dict.fromkeys(("startup_s", "end_s", "stages", "stall", "bottleneck")),
        "driver_cpu_s": round(ended.driver_cpu_s, 2),
        "cpu_s": None if everywhere else round(ended.cpu_s, 2),
        "peak_mib": None if everywhere else round(ended.peak_mib, 1) or None,  # or too short
        "image_bytes": experiment.image_bytes,
        "image_megapixels": None,
        "batch_size": None,
        "checkpoint": None,
        "engine": None,
        "flips": None,
        "model": None,
        "precision": None,
        "device": experiment.device,
        "cores": None if everywhere else list(ended.cores),
        "machine": machine() | ({"gpu": experiment.gpu} if experiment.gpu else {}),
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
        raise Unfinished(f"{key.told}: exit code {ended.code}: {ended.last_word}")
    return ended


# ---- segment


def _segment(experiment: Experiment, key: Key) -> tuple[Ended, Row]:
    store, images = _run_store(experiment), experiment.images
    words: list[object] = ["-m", "segpipe", "segment", "--input", experiment.flags["input"]]
    words += ["--output", store.uri(), "--workers", key.workers]
    words += ["--limit", images * experiment.times(key.workers)]
    words += ["--group-size", experiment.flags["group_size"], "--max-rejected", 1]
    words += ["--device", _device_flag(experiment), *_given(experiment, "checkpoint")]
    ended = _run(experiment, key, words, {})
    summary = read_json(store, SUMMARY) or {}
    finished, megapixels = _of_rows(store)
    # on a GPU photographs come in groups, on a core one by one
    at_once = experiment.flags["group_size"] if experiment.device == "cuda" else 1
    rate = findings.steady_rate(finished, key.workers * at_once)
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
        "batch_size": experiment.flags["group_size"],
        "checkpoint": experiment.flags["checkpoint"] or checkpoint.DEFAULT,
        "engine": summary["engine"]["name"],
        "flips": summary["model"]["flips"],
        "model": summary["model"]["model"],
        "precision": summary["engine"]["name"].split()[1],
    }


def _of_rows(store: Store) -> tuple[np.ndarray, float | None]:
    """When each input was finished (seconds since 1970), and mean megapixels of the masks."""
    summary = read_json(store, SUMMARY) or {}
    tables = [read(ROW_COLUMNS) for read in result_groups(store, summary)]
    finished = np.concatenate([posix_seconds(table["finished"]) for table in tables])
    pixels = np.concatenate(
        [table["height"].to_numpy().astype(float) * table["width"].to_numpy() for table in tables]
    )
    pixels = pixels[np.isfinite(pixels)]  # rejected inputs have no size
    return finished, float(pixels.mean() / 1e6) if len(pixels) else None


def _ceiling(experiment: Experiment, key: Key, job: Row) -> tuple[Ended, Row]:
    """One part of segment alone, by the engine that the job used."""
    backend, precision = job["engine"].split()
    cores = experiment.cores_of(key.workers) or []
    words: list[object] = ["-m", "segpipe.scaling.ceilings", key.part]
    words += ["--input", experiment.flags["input"], "--output", _run_store(experiment).uri()]
    words += ["--seconds", experiment.ceiling_s, "--cores", *cores]
    words += ["--engine", backend, precision]
    words += ["--tta", tta_of(job.get("flips") or 1)]
    words += ["--limit", experiment.images * experiment.times(key.workers)]
    words += _given(experiment, "checkpoint")
    gpus = experiment.gpus_of(key.workers)
    if gpus and key.part == "model":
        words += ["--gpus", *gpus]
    # as in the processes that run the job's network
    env = {} if gpus or backend == "native" else model_env().get("env_vars", {})
    ended = _run(experiment, key, words, env)
    same = ("image_megapixels", "batch_size", "checkpoint", "engine", "flips", "model", "precision")
    return ended, {name: job.get(name) for name in same} | _last_json(ended.stdout)


# ---- train


def _train(experiment: Experiment, key: Key) -> tuple[Ended, Row]:
    store, flags = _run_store(experiment), _of_training(experiment, key.workers)
    words: list[object] = ["-m", "segpipe", "train", "--data", experiment.flags["data"]]
    words += ["--output", store.uri(), "--workers", key.workers]
    words += ["--device", _device_flag(experiment), *_given(experiment, "recipe")]
    words += ["--epochs", experiment.flags["epochs"], *_as_words(flags)]
    ended = _run(experiment, key, words, {})
    settings = read_settings(store)
    steps = _steps(store)
    wait, work = findings.steady(steps[:, :2]).sum(axis=0)
    items = len(findings.steady(steps)) * flags["batch_size"]
    first_wait, first_work, first_ended = steps[0]
    precision = settings["--precision"]
    kind = flags["model"], settings["--width"], precision, experiment.device
    problem = forms.training_problem(*kind, flags["crop_size"], settings["--loss"])
    return ended, {
        "items": items,
        "rate": items / (wait + work),
        "startup_s": round(first_ended - first_wait - first_work - ended.started, 3),
        "end_s": round(ended.ended - steps[-1, 2], 3),
        "stall": wait / (wait + work),
        "bottleneck": "data" if wait > work else "step",
        "batch_size": flags["batch_size"],
        "engine": f"{'torch' if problem else 'native'} {precision}",
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
    for key in sorted(entry.key for entry in store.list(history.STEPS.partition("{")[0])):
        rows += csv.DictReader(io.StringIO(store.get(key).decode()))
    return np.array([[float(row[name]) for name in ("wait_s", "step_s", "ended")] for row in rows])


def _bare(experiment: Experiment, key: Key, job: Row) -> tuple[Ended, Row]:
    """As many steps as the job's, under bare torchrun."""
    flags = _of_training(experiment, key.workers)
    recipe = RECIPES[experiment.flags["recipe"]] if experiment.flags["recipe"] else {}
    flags |= {name: recipe[name] for name in STEP_FLAGS if name in recipe}
    steps = round(job["items"] / flags["batch_size"] / (1 - findings.WARM_SHARE))
    words: list[object] = ["-m", "torch.distributed.run", "--standalone"]
    words += [
        "--nproc-per-node",
        key.workers,
        "-m",
        "segpipe.scaling.bare_ddp",
        experiment.flags["data"],
    ]
    words += ["--steps", steps, "--device", experiment.device, *_as_words(flags)]
    env = model_env().get("env_vars", {}) | {"OMP_NUM_THREADS": "1"}
    ended = _run(experiment, key, words, env)
    same = ("batch_size", "engine", "model", "precision")
    return ended, {name: job[name] for name in same} | _last_json(ended.stdout)


# ---- what measurements share


def _run_store(experiment: Experiment) -> Store:
    return open_store(experiment.output.uri(experiment.run))


def clear(experiment: Experiment) -> None:
    """Remove what measurements wrote, also those of a process that was killed."""
    output = experiment.output
    if isinstance(output, LocalStore):
        for folder in Path(output.uri(RUN)).glob("*"):
            if OWN_RUN.fullmatch(f"{RUN}{folder.name}"):
                shutil.rmtree(folder, ignore_errors=True)
        return
    own = (entry.key for entry in output.list(RUN) if OWN_RUN.fullmatch(entry.key))
    with ThreadPoolExecutor(DELETED_AT_ONCE) as pool:
        list(pool.map(output.delete, list(own)))


def _device_flag(experiment: Experiment) -> str:
    return "gpu" if experiment.device == "cuda" else experiment.device


def _given(experiment: Experiment, name: str) -> list[object]:
    value = experiment.flags[name]
    return [] if value is None else [flag(name), value]


def _as_words(flags: dict[str, Any]) -> list[object]:
    return [word for name, value in flags.items() for word in (flag(name), value)]


def _last_json(text: str) -> Row:
    """Of a part's lines, the one that tells its figures; the others are libraries'."""
    line = [line for line in text.splitlines() if line.startswith("{")][-1]
    found: Row = json.loads(line)
    return found


# ---- the facts


def machine() -> dict[str, Any]:
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
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps within another project's repository
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

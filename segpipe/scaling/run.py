"""Scale: the same job with more and more workers, each time on as many cores, beside its ceilings.

    results.jsonl            a line a finished measurement; docs/scaling.md names the fields
    table.md, scaling.png    what they add up to
    _segpipe/settings.json   what they were made with
    _segpipe/run/<hash>/     what the measurement at hand writes; gone afterwards

This process measures nothing itself: it starts others, one after another.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from segpipe.cluster.join import cluster_address
from segpipe.cluster.nodes import choose_device, num_own_cores
from segpipe.cluster.session import ray_session
from segpipe.errors import UserError
from segpipe.flags import DEVICES, check_at_least, check_choices, flag
from segpipe.models import checkpoint, engine
from segpipe.progress import Progress, time_left
from segpipe.scaling import figure, findings, measurement, pinned
from segpipe.scaling.findings import JOB, Row
from segpipe.scaling.measurement import Experiment, Key
from segpipe.segment.inputs import Inputs, open_source
from segpipe.storage import (
    PATIENCE_S,
    Source,
    Store,
    check_places,
    check_there,
    lock,
    named,
    open_store,
)
from segpipe.storage.files import write_json
from segpipe.storage.places import refuse_inside
from segpipe.storage.settings import SETTINGS, read_settings, refuse_changed
from segpipe.train.recipes import RECIPES

RESULTS, TABLE, FIGURE = "results.jsonl", "table.md", "scaling.png"
MODES = ("strong", "weak")
JOB_FLAGS: dict[str, dict[str, Any]] = {  # flags of the job itself, and what they are without any
    "segment": {"input": None, "checkpoint": None, "group_size": 64, "limit": None},
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


@dataclass(frozen=True)
class ScaleConfig:
    """Measure what more workers buy: a job on 1, 2, 4 ... cores or GPUs, beside its ceilings.

    Run it again with the same --output to resume where it stopped.
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
    """Of train: crops a step, all workers together (weak: for each worker), 10 without."""
    group_size: int | None = None
    """Of segment: photographs that are committed together, 64 without."""
    device: str = "auto"
    """Where the network runs: auto, cpu or gpu."""
    ceiling_seconds: float = 5.0
    """Seconds for which each part of segment is measured alone; 0 leaves all ceilings out."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        check_choices(self, {"job": JOB_FLAGS, "mode": MODES, "device": DEVICES})
        check_places(self, "output", "input", "data", "checkpoint")
        if not self.workers or min(self.workers) < 1:
            numbers = " ".join(map(str, self.workers))
            raise UserError(f"--workers {numbers}: wanted one number or more, each 1 or more")
        if len(set(self.workers)) < len(self.workers):
            raise UserError(
                f"--workers {' '.join(map(str, self.workers))}: a number comes twice, leave one out"
            )
        counts = ("repeats", "limit", "epochs", "crops_per_image", "crop_size", "batch_size")
        check_at_least(self, 1, *counts, "group_size")
        check_at_least(self, 0, "ceiling_seconds")
        check_choices(self, {"recipe": RECIPES})
        if self.model is not None:
            from segpipe.models.networks import model_class  # torch takes a second

            model_class(self.model)
        needed, other = ("input", "train") if self.job == "segment" else ("data", "segment")
        if getattr(self, needed) is None:
            raise UserError(f"--job {self.job}: needs {flag(needed)}")
        for name in set(JOB_FLAGS[other]) - set(JOB_FLAGS[self.job]):
            if getattr(self, name) is not None:
                instead = "give --group-size" if name == "batch_size" else "leave it out"
                wrong = f"is a flag of --job {other}, {instead}"
                raise UserError(f"{flag(name)} {getattr(self, name)}: {wrong}")

    def of_job(self) -> dict[str, Any]:
        """The job's own flags by name: given here, of the recipe, or its defaults."""
        known = JOB_FLAGS[self.job]
        recipe = RECIPES[self.recipe] if self.recipe else {}
        given = {name: getattr(self, name) for name in known if getattr(self, name) is not None}
        return known | {n: v for n, v in recipe.items() if n in known and n != "epochs"} | given

    def settings(self, images: int) -> dict[str, Any]:
        """What a resumed experiment must have been started with, by flag."""
        kept = {"job": self.job, "mode": self.mode, "device": self.device} | self.of_job()
        return {flag(name): value for name, value in kept.items()} | {
            "--ceiling-seconds": self.ceiling_seconds,
            "photographs": images,
            "machine": measurement.machine(),
            "RAY_ADDRESS": _on_cluster(),
        }

    def wanted(self, parts: Sequence[str]) -> list[Key]:
        """All measurements in their order: in turns, so that a drift of the machine meets all."""
        return [
            Key(repeat, workers, part)
            for repeat in range(1, self.repeats + 1)
            for workers in sorted(self.workers)
            for part in parts
        ]


def scale(config: ScaleConfig) -> None:
    """Measure what is not measured yet, and write what it adds up to."""
    config.check()
    experiment = _open(config)
    output, settings = experiment.output, config.settings(experiment.images)
    before = read_settings(output, "--job")
    if config.job == "segment" and "--batch-size" in before:  # as 0.1.0 called it
        before["--group-size"] = before.pop("--batch-size")
    refuse_changed(output.uri(), before, settings)
    rows = _read_rows(output)
    done = {Key.of(row) for row in rows}
    todo = [key for key in config.wanted(experiment.parts) if key not in done]
    if not todo and output.head(FIGURE) is not None:
        print(f"scale: all {len(rows)} measurements are done, {output.uri(TABLE)} is up to date")
        return
    with lock.hold(output) as held:
        output.sweep()
        write_json(output, SETTINGS, settings)
        if todo:
            try:
                _measure_all(experiment, todo, rows, held)
            finally:
                measurement.clear(experiment)
        held.check()
        _write_results(config, experiment, rows)
    print(f"scale: wrote {output.uri(RESULTS)}, {TABLE} and {FIGURE}")


def _open(config: ScaleConfig) -> Experiment:
    """Everything that can be wrong with the flags is found here, within seconds."""
    place, most = str(config.input or config.data), max(config.workers)
    output, flags = open_store(config.output), config.of_job()
    with named("--input" if config.job == "segment" else "--data"):
        source = open_source(place, PATIENCE_S) if config.job == "segment" else open_store(place)
        source.check_readable()
    if config.job == "segment":
        weights = checkpoint.read(config.checkpoint)
        checkpoint.load(weights, f"--checkpoint {config.checkpoint or checkpoint.DEFAULT}")
    else:
        check_there(open_store(place), "--data")
    with named("--output"):
        output.check_readable()
    refuse_inside(source, output)
    if config.job == "train" and config.mode == "strong" and most > flags["batch_size"]:
        raise UserError(
            f"--workers {most}: more than the {flags['batch_size']} crops of a batch, lower it or "
            "raise --batch-size"
        )
    cluster = _on_cluster()
    gpus = [] if cluster or config.device == "cpu" else _gpus()
    if config.device == "gpu" and not gpus and not cluster:
        raise UserError("--device gpu: this machine has no GPU, use --device cpu or auto")
    cores = [] if cluster else pinned.own_cores()[: num_own_cores()]
    have, kind = (len(gpus), "GPUs") if gpus else (len(cores), "cores")
    if most > have and not cluster:
        raise UserError(f"--workers {most}: this process may use {have} {kind}, lower it")
    images, image_bytes = _look_at_input(config, source) if config.job == "segment" else (0, None)
    return Experiment(
        config.job,
        config.mode,
        output,
        flags,
        config.ceiling_seconds,
        device=_cluster_device(config) if cluster else "cuda" if gpus else "cpu",
        cores=cores,
        gpus=[name for name, _ in gpus],
        gpu=gpus[0][1] if gpus else None,
        images=images,
        image_bytes=image_bytes,
    )


def _on_cluster() -> bool:
    return cluster_address() is not None


def _cluster_device(config: ScaleConfig) -> str:
    with ray_session():
        return choose_device(config.device)


def _gpus() -> list[tuple[str, str]]:
    """The GPUs that this process may use: as CUDA_VISIBLE_DEVICES names them, and what they are."""
    import torch  # takes a second

    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(number) for number in range(count)]
    return [(names[number], torch.cuda.get_device_name(number)) for number in range(count)]


def _look_at_input(config: ScaleConfig, source: Source) -> tuple[int, float]:
    """Photographs of a point, in weak mode for each worker, and the mean bytes of those that are
    used. Raises UserError where there are too few.
    """
    most = max(config.workers)
    times = most if config.mode == "weak" else 1
    limit = None if config.limit is None else config.limit * times
    sizes = [entry.bytes for entry in Inputs(source, limit=limit)]
    images = config.limit or len(sizes) // times
    needed = max(images * times, most + 1)  # a worker's first one only starts the clock
    if len(sizes) < needed:
        remedy = "lower --limit or --workers" if config.limit and limit == needed else "take more"
        raise UserError(
            f"--input {config.input}: {len(sizes)} photographs, wanted {needed}, {remedy}"
        )
    return images, statistics.mean(sizes)


def _read_rows(output: Store) -> list[Row]:
    try:
        text = output.get(RESULTS).decode()
    except FileNotFoundError:
        return []
    try:
        rows = [json.loads(line) for line in text.splitlines() if line]
        return [row | {"engine": engine.today(row.get("engine"))} for row in rows]
    except ValueError as error:
        raise UserError(
            f"{output.uri(RESULTS)}: has a line that is damaged, delete that line and run the same "
            "again"
        ) from error


def _measure_all(
    experiment: Experiment, todo: Sequence[Key], rows: list[Row], held: lock.Lock
) -> None:
    """Measure in this order; each line is stored before the next measurement begins."""
    progress = Progress("scale")
    smallest = min(key.workers for key in todo)
    plural = "s" * (len(todo) > 1)
    progress.show(f"warming up, {len(todo)} measurement{plural} to do", always=True)
    # fills caches, chooses the engine; in no line
    measurement.measure(experiment, Key(0, smallest, JOB), rows)
    for number, key in enumerate(todo):
        held.check()
        text = f"{number + 1}/{len(todo)}, {key.told}{_last(rows)}"
        progress.show(f"{text}, {_time_left(todo[number:], rows)}", always=True)
        rows.append(measurement.measure(experiment, key, rows))
        held.check()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        experiment.output.put(RESULTS, lines.encode())


def _last(rows: Sequence[Row]) -> str:
    """The last rate, for people."""
    if not rows:
        return ""
    rate, item = findings.figures(rows[-1]["rate"]), findings.ITEM[rows[-1]["job"]]
    return f", last {rate} {item}s/s"


def _time_left(todo: Sequence[Key], rows: Sequence[Row]) -> str:
    """As long as each part took so far, whatever the number of workers."""
    spent = defaultdict(list)
    for row in rows:
        spent[row["part"]].append(row["seconds"])
    if not spent:
        return time_left(0, len(todo), None)
    longest = max(statistics.mean(seconds) for seconds in spent.values())
    seconds = [statistics.mean(spent[key.part]) if spent[key.part] else longest for key in todo]
    return time_left(0, len(todo), len(todo) / sum(seconds))


def _write_results(config: ScaleConfig, experiment: Experiment, rows: Sequence[Row]) -> None:
    output, job = experiment.output, next(row for row in rows if row["part"] == JOB)
    output.put(TABLE, findings.table(rows, _facts(config, experiment, rows)).encode())
    network = f"{job['model']}, {job['engine']}, {experiment.gpu or job['machine']['cpu']}"
    title = f"{config.mode.capitalize()} scaling of {config.job}: {network}"
    each = "" if experiment.on_cluster else f", each with its {'GPU' if experiment.gpu else 'core'}"
    item = findings.ITEM[config.job]
    output.put(FIGURE, figure.curve(findings.points(rows), title, item, f"workers{each}"))


def _facts(config: ScaleConfig, experiment: Experiment, rows: Sequence[Row]) -> list[str]:
    """The lines with which the table begins."""
    job = next(row for row in rows if row["part"] == JOB)
    commits = dict.fromkeys(str(row["commit"] or "unknown") for row in rows)
    days = sorted({row["time"][:10] for row in rows})
    versions = ", ".join(f"{name} {number}" for name, number in job["versions"].items())
    machine = ", ".join(map(str, job["machine"].values()))
    lines = [
        f"- date: {' to '.join(dict.fromkeys((days[0], days[-1])))}",
        f"- machine (CPU, cores): {machine}",
        f"- versions: {versions}",
        f"- commit: {', '.join(commits)}",
        f"- command: {_command(config)}",
        f"- network: {job['model']}, {job['engine']}, on {job['device']}",
    ]
    if experiment.on_cluster:
        lines.append("- cluster: the one at RAY_ADDRESS. Nothing is pinned, and no part is alone.")
    else:
        cores = {n: experiment.cores_of(n) or [] for n in sorted(config.workers)}
        line = "; ".join(f"{n}: {_named(of_n)}" for n, of_n in cores.items())
        lines.append(f"- all processes of a point are pinned to its cores (workers: cores): {line}")
    for_each = "a worker" if config.mode == "weak" else "a point"
    if config.job == "segment":
        size = (
            "" if job["image_megapixels"] is None else f"{job['image_megapixels']:.2f} megapixels, "
        )
        mean = (experiment.image_bytes or 0) / 1e6
        lines.append(
            f"- photographs: {experiment.images} {for_each}, on average {size}{mean:.3f} MB"
        )
    else:
        flags = experiment.flags
        lines.append(
            f"- crops: of {flags['crop_size']} px, a step of {flags['batch_size']} {for_each}, "
            f"{flags['crops_per_image']} an image and epoch {for_each}, {flags['epochs']} epochs"
        )
    return lines


def _named(cores: Sequence[int]) -> str:
    """Cores by number; hyperthreads are told, as two of them are not two cores."""
    physical = pinned.num_physical(cores)
    shared = f" (of {physical} physical)" if physical < len(cores) else ""
    return " ".join(map(str, cores)) + shared


def _command(config: ScaleConfig) -> str:
    words = ["segpipe", "scale"]
    for one in fields(config):
        value = getattr(config, one.name)
        if value != one.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [flag(one.name), *map(str, values)]
    return shlex.join(words)

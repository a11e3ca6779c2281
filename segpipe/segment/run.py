"""Segment: an archive of photographs -> masks, one row for each input, a summary and a report."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
from ray.data import Dataset
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from segpipe.cluster.errors import own_error
from segpipe.cluster.join import check_cluster
from segpipe.cluster.nodes import DATA_CPUS, check_device, choose_device, model_workers
from segpipe.cluster.session import ray_session
from segpipe.cluster.workers import data_stage, network_stage, on_network_node, one_row_blocks
from segpipe.data.decoder import PIXELS
from segpipe.errors import Unfinished, UserError, must_change
from segpipe.flags import (
    DEVICES,
    check_above_0,
    check_anonymous,
    check_at_least,
    check_choices,
    check_globs,
)
from segpipe.models import checkpoint, engine
from segpipe.models.checkpoint import Checkpoint
from segpipe.models.engine import REFERENCE, Engine, Trial
from segpipe.models.flips import FLIPS
from segpipe.progress import Progress, SteadyRate, process_seconds, time_left
from segpipe.segment import report
from segpipe.segment.compact import compact, count_missing_results, delete_old_results
from segpipe.segment.gauges import Gauges
from segpipe.segment.inputs import Inputs, open_source, refuse_pictures, skipped_words
from segpipe.segment.lists import COLUMN, LISTS, split_column
from segpipe.segment.manifest import NO_IDS, Ids, Manifest, is_written, list_inputs
from segpipe.segment.output import REPORT, SUMMARY, read_summary
from segpipe.segment.parts import drop_part, read_parts
from segpipe.segment.stages import Scoring, Segmenter, SegmentJob, load, store
from segpipe.segment.stopwatch import StageTimes
from segpipe.segment.todo import Todo, find_missing, group_rows, plan_todo
from segpipe.storage import PATIENCE_S, Source, Store, check_places, lock, named, open_store
from segpipe.storage.files import write_json
from segpipe.storage.lock import Lock
from segpipe.storage.places import inside
from segpipe.storage.settings import SETTINGS, read_settings, refuse_changed

logger = logging.getLogger(__name__)

FORMATS = ("png", "parquet", "both")
MEASURES = ("none", "full")
NEWER_FLAGS = {"--measure": "none", "--probabilities": False, "--flips": 1}  # as it was without
OF_ROWS = ("--measure", "--probabilities")  # what no mask depends on
ENGINE_FLAGS = ("compile", "precision")
MATCHED = "engine matches the reference"  # in settings.json; no part of the rows' hash
FOUND = "fields are found as of"  # in settings.json: PIXELS; 1 where it is not told
COURSE = ("images_per_second", "stages", "bottleneck", "work_started", "work_finished", "engine")
FEW_GROUPS = 1024  # are handed over at once, which spares processes: 4 s to start, 600 MB


@dataclass(frozen=True)
class SegmentConfig:
    """Segment every photograph of a folder or an S3 prefix.

    Run it again with the same --output to go on where it stopped.
    """

    input: str
    """Folder, s3://bucket/prefix, a single photograph, or a .csv or .parquet list of files in its
    column `path`."""
    output: str
    """Folder or s3://bucket/prefix for masks/, results/, summary.json and report.html."""
    checkpoint: str | None = None
    """Checkpoint file, or the name of a shipped one; the shipped default without."""
    workers: int | None = None
    """Processes that run the network; one a core or GPU without. May change when resumed."""
    batch_size: int = 64
    """Photographs that are read, segmented and committed together. May change when resumed."""
    format: str = "png"
    """Where masks go: png files, parquet (the mask_png column of the rows), or both."""
    measure: str = "none"
    """Measure each mask's vessels and each photograph's quality into the rows: none or full."""
    probabilities: bool = False
    """Write each photograph's vessel score too, as greyscale PNG: 255 for score 1."""
    flips: int | None = None
    """Average the scores of the photograph and of its mirror images: 1 for none, 4 for truer masks
    in four times the network's time; without, as the checkpoint was made for."""
    max_rejected: float = 0.05
    """Share of rejected inputs above which the exit code is 1."""
    max_megapixels: float = 200.0
    """Photographs with more pixels (in millions) are rejected before they are decoded."""
    retry_rejected: bool = False
    """Do the rejected inputs of an earlier run once more."""
    repair: bool = False
    """Make again what was deleted since: masks, probabilities, and rows."""
    include: tuple[str, ...] = ()
    """Take only photographs whose key matches one of these globs (* matches / as well)."""
    exclude: tuple[str, ...] = ()
    """Leave out photographs whose key matches one of these globs."""
    column: str = COLUMN
    """Column of a list that names its files, such as image; or a path with it in braces, such as
    train/{image}.jpeg."""
    anonymous: bool = False
    """Read --input without S3 credentials: a public bucket. May change when resumed."""
    store_patience: float = PATIENCE_S
    """Seconds for which a store that fails is tried again before the run ends. May change."""
    limit: int | None = None
    """Take only the first so many photographs of the listing."""
    precision: str = "auto"
    """Of the network: fp32, bf16, or auto: the quickest whose masks are those of fp32."""
    compile: str = "auto"
    """Run the network in its compiled form: on, off, or auto: where there is one and it is true.
    May change when resumed, as --precision, where masks stay those of the first engine."""
    device: str = "auto"
    """Where the network runs: auto, cpu or gpu."""
    if_locked: str = "fail"
    """Where another run holds --output: fail (exit code 2), or skip: write nothing, exit code 0."""
    report_images: str = "on"
    """Keys and overlays in the report: on, or off where they may identify patients."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        check_places(self, "input", "output", "checkpoint")
        check_globs(self, "include", "exclude")
        check_at_least(self, 1, "workers", "batch_size", "limit")
        check_at_least(self, 0, "store_patience")
        check_above_0(self, "max_megapixels")
        choices = {
            "format": FORMATS,
            "measure": MEASURES,
            "report_images": ("on", "off"),
            "if_locked": lock.IF_LOCKED,
            "compile": engine.COMPILE,
            "precision": engine.PRECISION,
            "flips": FLIPS,
            "device": DEVICES,
        }
        check_choices(self, choices)
        check_anonymous(self.anonymous, "--input", [self.input], LISTS)
        split_column(self.column)
        if self.column != COLUMN and not self.input.lower().endswith(LISTS):
            raise UserError(f"--column {self.column}: --input is no list, leave it out")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"--max-rejected {self.max_rejected}: must be from 0 to 1")


@dataclass(frozen=True)
class Run:
    """What one attempt works with."""

    config: SegmentConfig
    source: Source
    output: Store
    weights: bytes
    checkpoint: Checkpoint
    settings: dict[str, Any]
    """What masks and their rows depend on, by flag."""


def segment(config: SegmentConfig) -> int:
    """Segment what is not done yet -> exit code: 1 when too many were rejected or some stay open.

    Raises UserError for what the user must change, Unfinished where the store gave up.
    """
    start = time.monotonic()
    # The whole process, imports included, unless this is one step of a longer one.
    before_s = 0.0 if ray.is_initialized() else process_seconds()
    config.check()
    check_cluster()
    with _store_failures():
        run = _open(config)
        with lock.hold(run.output, config.if_locked) as held:
            _refuse_changed(run)  # another run may have ended since
            listing = time.monotonic()
            inputs = _inputs(run, held)
            manifest = list_inputs(inputs)
            listing_s = time.monotonic() - listing
            if not manifest.num_inputs:
                raise inputs.nothing(config.input)
            for note in inputs.notes():
                logger.info("segment: note: %s", note)
            summary = read_summary(run.output)
            missing = _find_missing(run, manifest) if config.repair else NO_IDS
            if summary and not len(missing) and _finished(run, manifest, summary):
                left_out = skipped_words(inputs.skipped)
                told = f"all {manifest.num_inputs} inputs are done, {left_out}{run.output.uri()}"
                print(f"segment: {told} stands")
                return _exit_code(config, summary)
            summary = _complete(run, manifest, held, listing_s, missing)
            summary["skipped"] = dict(inputs.skipped.most_common())
            summary["notes"] = inputs.notes()
            summary["seconds"] = round(before_s + time.monotonic() - start, 2)
            images = report.OVERLAYS if config.report_images == "on" else 0
            page = report.archive_report(run.source, run.output, summary, images)
            held.check()
            run.output.put(REPORT, page)
            held.check()
            delete_old_results(run.output, summary["results"])
            write_json(run.output, SUMMARY, summary)
    print(_closing_line(summary, run.output))
    return _exit_code(config, summary)


def _open(config: SegmentConfig) -> Run:
    """Everything that can be wrong with the flags is found here, within seconds."""
    check_device(config.device)
    output = open_store(config.output, config.store_patience)
    with named("--input"):
        source = open_source(config.input, config.store_patience, config.anonymous, config.column)
        inside(source, output)  # refuses an output that is the input
        refuse_pictures(source, config.anonymous)
        source.check_readable()
    with named("--output"):
        output.check_readable()
    weights = checkpoint.read(config.checkpoint)
    loaded = checkpoint.load(weights, f"--checkpoint {config.checkpoint or checkpoint.DEFAULT}")
    engine.check_fits(loaded)
    settings = {
        "--input": source.uri(),
        "--checkpoint": loaded.sha256,
        "--format": config.format,
        "--measure": config.measure,
        "--probabilities": config.probabilities,
        "--flips": config.flips or loaded.card.flips,
        "--max-megapixels": config.max_megapixels,
        "--include": list(config.include),
        "--exclude": list(config.exclude),
    }
    run = Run(config, source, output, weights, loaded, settings)
    _refuse_changed(run)
    return run


def _inputs(run: Run, held: Lock) -> Inputs:
    """The photographs to list; the listing tells how far it is, here and in the heartbeat."""
    config, progress, start = run.config, Progress("segment"), time.monotonic()

    def on_listed(number: int) -> None:
        held.check()
        held.progress = {"listing": number}
        rate = number / max(time.monotonic() - start, 1e-3)
        progress.show(f"listing {config.input}, {number} files, {rate:.0f}/s")

    held.progress = {"listing": 0}
    beside = inside(run.source, run.output)
    return Inputs(
        run.source, beside, config.include, config.exclude, config.limit, on_listed=on_listed
    )


def _refuse_changed(run: Run) -> None:
    """Raise UserError where the output was begun with something else."""
    before = read_settings(run.output, "--input", "--checkpoint")
    if before:
        before = NEWER_FLAGS | before
    refuse_changed(run.config.output, before, run.settings)


def _complete(
    run: Run, manifest: Manifest, held: Lock, listing_s: float, missing: Ids
) -> dict[str, Any]:
    """Do what no part holds yet, then write results/ -> the summary's counts and rate."""
    output = run.output
    output.sweep()
    parts = read_parts(output, partial(drop_part, output))
    todo = plan_todo(manifest, parts, run.config.retry_rejected, missing)
    held.progress = todo.progress(Counter(), None)
    course = dict.fromkeys(COURSE)
    if todo.num_rows:
        with ray_session():
            course = _segment_all(run, manifest, todo, held, listing_s)
    else:
        manifest.write(output)
    held.check()
    output.delete(SUMMARY)  # its results are about to change
    return compact(output, manifest) | {
        "done_before": todo.num_done,
        **course,
        "model": asdict(run.checkpoint.card)
        | {"flips": run.settings["--flips"], "sha256": run.checkpoint.sha256},
        "inputs_digest": manifest.digest,
    }


def _finished(run: Run, manifest: Manifest, summary: dict[str, Any]) -> bool:
    """Whether a run that ended had these inputs, and nothing is left to do for this one."""
    again = run.config.retry_rejected and summary["rejected"]
    same = summary["inputs_digest"] == manifest.digest
    done = same and not summary["open"] and not again
    return (
        done
        and is_written(run.output, manifest, pages=run.config.repair)
        and not count_missing_results(run.output, summary)
    )


def _find_missing(run: Run, manifest: Manifest) -> Ids:
    """Inputs of which something was deleted, or damaged, since they were done."""
    drop = partial(drop_part, run.output)
    return np.concatenate(list(find_missing(run.output, manifest.ids(), drop).values()))


def _closing_line(summary: dict[str, Any], output: Store) -> str:
    left = f"{summary['open']} still open, run the same command again, " if summary["open"] else ""
    left += skipped_words(summary["skipped"])
    course = f"{summary['seconds']:.0f} s"
    if rate := summary["images_per_second"]:
        course += f", {rate:.1f} images/s ({summary['engine']['name']}), "
        course += f"bottleneck: {summary['bottleneck']}"
    made, reference = Counter(summary["masks_by_engine"]), REFERENCE.name
    wanted = (summary["engine"] or {}).get("name", reference)  # of this run, if it did anything
    if made[reference] and {wanted, *made} != {reference}:
        course += f", {made[reference]} masks by the reference engine ({reference})"
    return (
        f"segment: {summary['ok']} masks, {summary['rejected']} rejected, {left}{course}; "
        f"see {output.uri(REPORT)}"
    )


@contextmanager
def _store_failures() -> Iterator[None]:
    """A store that fails for longer than patience ends the run, wherever it failed."""
    try:
        yield
    except Exception as error:
        cause = own_error(error)
        if isinstance(cause, OSError) and must_change(cause):
            raise UserError(f"{cause}, check the path and who may use it") from error
        if isinstance(cause, OSError):
            raise Unfinished(f"{cause}; run the same command again to go on") from error
        if cause is None:
            raise
        raise cause from error


def _exit_code(config: SegmentConfig, summary: dict[str, Any]) -> int:
    rejected = summary["rejected"] > config.max_rejected * summary["inputs"]
    return int(rejected or summary["open"] > 0)


def _segment_all(
    run: Run, manifest: Manifest, todo: Todo, held: Lock, listing_s: float
) -> dict[str, Any]:
    """Run the pipeline, showing progress -> what the summary says of its course."""
    progress, counts = Progress("segment"), Counter({"ok": 0, "rejected": 0, "open": 0})
    progress.show(f"starting, {todo.num_rows} to do, {todo.num_done} done before")
    device = choose_device(run.config.device)
    begun, matched, chosen, known = _choose_engine(run, device)
    if problem := engine.trial_of(known, begun).problem:
        told = f"{begun.name}, with which {run.config.output} was begun, does not run here"
        progress.show(f"{told} ({problem}): {chosen.engine.name} takes its place", always=True)
    before = read_settings(run.output)
    if before and before.get(FOUND, 1) != PIXELS:
        told = f"{run.config.output} was begun with a release that finds fields otherwise"
        progress.show(f"{told}: masks that are done stay as they are", always=True)
    manifest.write(run.output)  # nothing is refused any more
    settings = run.settings | {f"--{name}": getattr(begun, name) for name in ENGINE_FLAGS}
    kept = {MATCHED: matched, FOUND: PIXELS}
    write_json(run.output, SETTINGS, settings | kept)
    run.output.delete(SUMMARY)  # it is not finished any more
    workers = model_workers(device, run.config.workers)
    groups = Groups(todo, group_rows(todo.num_rows, workers, run.config.batch_size))
    workers = min(workers, groups.num_groups)
    rate, times, gauges = SteadyRate(), StageTimes(workers, listing_s), Gauges()
    why_open = ""
    done = pipeline(replace(run, settings=settings), groups, chosen, device, workers)
    for batch in done.iter_batches(batch_size=None):
        held.check()
        for n in range(len(batch["finished"])):
            group = {name: column[n] for name, column in batch.items()}
            counts.update({name: int(group[name]) for name in counts})
            why_open = why_open or str(group["why_open"])
            rate.add(float(group["finished"]), int(group["ok"] + group["rejected"]))
            times.add(group["seconds"], float(group["started"]), float(group["finished"]))
            gauges.add({name: int(group[name]) for name in counts}, group["seconds"])
        held.progress = todo.progress(counts, rate.value)
        gauges.set(held.progress["open"], rate.value)
        left = time_left(counts.total(), todo.num_rows, rate.value)
        num_done = held.progress["ok"] + held.progress["rejected"]
        speed = f"{rate.value or 0:.1f} images/s, {counts['rejected']} rejected"
        progress.show(f"{num_done}/{todo.num_done + todo.num_rows}, {speed}, {left}")
    told = f"{counts['ok'] + counts['rejected']} done, {counts['rejected']} of them rejected"
    if counts["open"]:
        told += f", {counts['open']} still open, one of them: {why_open}"
    progress.show(told, always=True)
    return {
        "images_per_second": rate.value,
        **times.summary(),
        "work_started": round(times.first, 3),
        "work_finished": round(times.last, 3),
        "engine": {"name": chosen.engine.name, "considered": [one.as_dict() for one in known]},
    }


def _choose_engine(run: Run, device: str) -> tuple[Engine, bool, Trial, list[Trial]]:
    """The engine that the output was begun with, whether it matches the reference, how the network
    is run now, and all that was considered.

    What the flags leave open is chosen for a new output, and stays as it was for another. Raises
    UserError where that does not run here and nothing can take its place.
    """
    before = read_settings(run.output, "--input", "--checkpoint")
    flags = run.config.compile, run.config.precision
    known = on_network_node(engine.find_trials, run.weights, device)
    if not all(f"--{name}" in before for name in ENGINE_FLAGS):
        chosen = engine.select(known, *flags)
        return chosen.engine, chosen.true, chosen, known
    begun = Engine(*(before[f"--{name}"] for name in ENGINE_FLAGS))
    matched = before.get(MATCHED, True)  # else a flag named it
    return begun, matched, engine.resume(known, begun, matched, *flags), known


def pipeline(run: Run, groups: Groups, chosen: Trial, device: str, workers: int) -> Dataset:
    """Groups of inputs -> rows as Group.commit makes them, one for each committed group."""
    listed = groups.dataset()  # page, rows; a block is one group: what is committed, or done again
    job, weights = replace(_job(run), reference_allowed=chosen.true), run.weights
    if device == "cpu":
        # One process does all three: handing pixels from process to process costs a CPU as much
        # as the stages around the network (18 images/s apart, 32 together; results/LOG.md).
        light = chosen.compile == "on"
        return network_stage(
            listed, Segmenter, (job, weights, chosen.engine), device, workers, light
        )
    tasks = data_stage()
    loaded = listed.map_batches(partial(load, job=job), batch_size=None, **tasks)  # -> canvases
    arguments = weights, chosen.precision, job.flips, job.measure != "none"
    scores = network_stage(loaded, Scoring, arguments, device, workers)
    return scores.map_batches(partial(store, job=job), batch_size=None, **tasks)  # -> committed


def _job(run: Run) -> SegmentJob:
    card = run.checkpoint.card
    of_masks = {
        flag: value
        for flag, value in run.settings.items()
        if flag not in OF_ROWS and (flag, value) != ("--flips", 1)  # as it was without the flag
    }
    settings = json.dumps(of_masks | {FOUND: PIXELS}, sort_keys=True).encode()
    return SegmentJob(
        run.source,
        run.output,
        card.model,
        card.diameter,
        card.threshold,
        run.checkpoint.sha256,
        hashlib.sha256(settings).hexdigest()[:16],
        run.config.format,
        run.config.max_megapixels,
        run.config.measure,
        run.config.probabilities,
        run.settings["--flips"],
    )


class Groups(Datasource):
    """Rows `page, rows`: at most `group_rows` inputs each; a task for each page of the manifest."""

    def __init__(self, todo: Todo, group_rows: int) -> None:
        self.todo, self.group_rows = todo, group_rows

    @property
    def num_groups(self) -> int:
        return sum(-(-len(rows) // self.group_rows) for _, rows in self.todo.pages)

    def dataset(self) -> Dataset:
        """A block for each group."""
        if self.num_groups <= FEW_GROUPS:
            groups = [group for page in self.todo.pages for group in _cut(*page, self.group_rows)]
            return ray.data.from_items(groups, override_num_blocks=len(groups))
        read = ray.data.read_datasource(
            self, num_cpus=DATA_CPUS, override_num_blocks=len(self.todo.pages)
        )
        return one_row_blocks(read)

    def estimate_inmemory_data_size(self) -> int:
        return 0

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_blocks, page, rows, self.group_rows),
                BlockMetadata(
                    -(-len(rows) // self.group_rows),
                    size_bytes=rows.nbytes,
                    input_files=None,
                    exec_stats=None,
                ),
            )
            for page, rows in self.todo.pages
        ]


def _cut(page: str, rows: npt.NDArray[np.int32], group_rows: int) -> list[dict[str, Any]]:
    starts = range(0, len(rows), group_rows)
    return [{"page": page, "rows": rows[at : at + group_rows].tolist()} for at in starts]


def _blocks(page: str, rows: npt.NDArray[np.int32], group_rows: int) -> list[pa.Table]:
    return [pa.Table.from_pylist(_cut(page, rows, group_rows))]

"""Segment: an archive of photographs -> masks, one row for each input, a summary and a report."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray

from segpipe.cluster.errors import own_error
from segpipe.cluster.join import check_cluster
from segpipe.cluster.nodes import check_device, choose_device, model_workers
from segpipe.cluster.session import ray_session
from segpipe.cluster.workers import on_network_node
from segpipe.data.fitting import PIXELS
from segpipe.errors import Unfinished, UserError, must_change
from segpipe.models import checkpoint, engine
from segpipe.models.checkpoint import Checkpoint
from segpipe.models.engine import REFERENCE, Engine, Trial
from segpipe.models.tta import num_scores
from segpipe.progress import Progress, SteadyRate, process_seconds, time_left
from segpipe.segment import report
from segpipe.segment.compact import (
    compact,
    count_missing_results,
    delete_old_results,
    has_rows,
)
from segpipe.segment.config import SegmentConfig
from segpipe.segment.gauges import Gauges
from segpipe.segment.groups import Groups
from segpipe.segment.inputs import Inputs, open_source, refuse_pictures, skipped_words
from segpipe.segment.job import SegmentJob
from segpipe.segment.manifest import NO_IDS, Ids, Manifest, is_written, list_inputs
from segpipe.segment.output import REPORT, SUMMARY, read_summary
from segpipe.segment.parts import drop_part, read_parts
from segpipe.segment.pipeline import pipeline
from segpipe.segment.started import Started, read_started
from segpipe.segment.stopwatch import StageTimes
from segpipe.segment.todo import Todo, find_missing, group_rows, plan_todo
from segpipe.storage import Source, Store, lock, named, open_store
from segpipe.storage.files import write_json
from segpipe.storage.lock import Lock
from segpipe.storage.places import inside
from segpipe.storage.settings import SETTINGS

logger = logging.getLogger(__name__)

TRACE = ("images_per_second", "stages", "bottleneck", "work_started", "work_finished", "engine")


@dataclass(frozen=True)
class Run:
    """What one attempt works with."""

    config: SegmentConfig
    source: Source
    output: Store
    weights: bytes
    checkpoint: Checkpoint
    started: Started
    """What this one would start an output with."""


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
        with lock.hold(run.output, config.if_locked, {"listing": 0}) as held:
            _refuse_changed(run)  # another run may have ended since
            listing = time.monotonic()
            inputs = _inputs(run, held)
            manifest = list_inputs(inputs)
            listing_s = time.monotonic() - listing
            if not manifest.num_inputs:
                raise inputs.nothing(config.input)
            for note in inputs.notes():
                logger.warning("segment: note: %s", note)
            summary = read_summary(run.output)
            missing = _find_missing(run, manifest) if config.repair else NO_IDS
            if summary and not len(missing) and _finished(run, manifest, summary):
                left_out = skipped_words(inputs.skipped)
                text = f"all {manifest.num_inputs} inputs are done, {left_out}{run.output.uri()}"
                print(f"segment: {text} is up to date")
                return _exit_code(config, summary)
            summary = _complete(run, manifest, held, listing_s, missing)
            summary["skipped"] = dict(inputs.skipped.most_common())
            summary["notes"] = inputs.notes()
            summary["min_quality"] = run.started.min_quality
            summary["seconds"] = round(before_s + time.monotonic() - start, 2)
            images = report.OVERLAYS if config.report_images == "on" else 0
            page = report.archive_report(run.source, run.output, summary, images)
            held.check()
            run.output.put(REPORT, page)
            held.check()
            if config.table == "csv":  # the report was the last to read them
                summary["results"] = []
            delete_old_results(run.output, summary["results"] + summary["tables"])
            write_json(run.output, SUMMARY, summary)
    print(_closing_line(summary, run.output))
    return _exit_code(config, summary)


def _open(config: SegmentConfig) -> Run:
    """Everything that can be wrong with the flags is found here, within seconds."""
    check_device(config.device, config.precision)
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
    started = Started.of(config, source.uri(), loaded.sha256, loaded.card.tta)
    run = Run(config, source, output, weights, loaded, started)
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

    beside = inside(run.source, run.output)
    return Inputs(
        run.source, beside, config.include, config.exclude, config.limit, on_listed=on_listed
    )


def _refuse_changed(run: Run) -> None:
    """Raise UserError where the output was started with something else."""
    if before := read_started(run.output):
        run.started.refuse_changed(run.config.output, before)


def _complete(
    run: Run, manifest: Manifest, held: Lock, listing_s: float, missing: Ids
) -> dict[str, Any]:
    """Do what no part holds yet, then write results/ -> the summary's counts and rate."""
    output = run.output
    output.sweep()
    parts = read_parts(output, partial(drop_part, output))
    todo = plan_todo(manifest, parts, run.config.retry_rejected, missing)
    held.progress = todo.progress(Counter(), None)
    trace = dict.fromkeys(TRACE)
    if todo.num_rows:
        with ray_session():
            trace = _segment_all(run, manifest, todo, held, listing_s)
    else:
        manifest.write(output)
    held.check()
    output.delete(SUMMARY)  # its results are about to change
    return compact(output, manifest, run.config.table) | {
        "done_before": todo.num_done,
        **trace,
        "model": asdict(run.checkpoint.card)
        | {"flips": num_scores(run.started.tta), "sha256": run.checkpoint.sha256},
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
        and has_rows(summary, run.config.table)
        and not count_missing_results(run.output, summary)
    )


def _find_missing(run: Run, manifest: Manifest) -> Ids:
    """Inputs of which something was deleted, or damaged, since they were done."""
    drop = partial(drop_part, run.output)
    return np.concatenate(list(find_missing(run.output, manifest.ids(), drop).values()))


def _closing_line(summary: dict[str, Any], output: Store) -> str:
    left = f"{summary['open']} still open, run the same command again, " if summary["open"] else ""
    if summary["ungradable"]:
        left += f"{summary['ungradable']} ungradable, "
    left += skipped_words(summary["skipped"])
    text = f"{summary['seconds']:.0f} s"
    if rate := summary["images_per_second"]:
        text += f", {rate:.1f} images/s ({summary['engine']['name']}), "
        text += f"bottleneck: {summary['bottleneck']}"
    made, reference = Counter(summary["masks_by_engine"]), REFERENCE.name
    wanted = (summary["engine"] or {}).get("name", reference)  # of this run, if it did anything
    if made[reference] and {wanted, *made} != {reference}:
        text += f", {made[reference]} masks by the reference engine ({reference})"
    for name in sorted(set(made) - {wanted, reference}):
        text += f", {made[name]} masks by {name}"
    return (
        f"segment: {summary['ok']} masks, {summary['rejected']} rejected, {left}{text}; "
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
            raise Unfinished(f"{cause}; run the same command again to resume") from error
        if cause is None:
            raise
        raise cause from error


def _exit_code(config: SegmentConfig, summary: dict[str, Any]) -> int:
    share = summary["rejected"] / max(1, summary["inputs"])
    if share > config.max_rejected:
        logger.warning(
            "segment: %.3g %% were rejected, more than --max-rejected %g: exit code 1; %s says why",
            100 * share,
            config.max_rejected,
            SUMMARY,
        )
    return int(share > config.max_rejected or summary["open"] > 0)


def _segment_all(
    run: Run, manifest: Manifest, todo: Todo, held: Lock, listing_s: float
) -> dict[str, Any]:
    """Run the pipeline, showing progress -> what the summary says of it."""
    progress, counts = Progress("segment"), Counter({"ok": 0, "rejected": 0, "open": 0})
    progress.show(f"starting, {todo.num_rows} to do, {todo.num_done} done before")
    device = choose_device(run.config.device)
    if device == "cpu" and run.config.batch_size is not None:
        logger.warning(
            "segment: note: --batch-size %d: has no effect on CPUs; --group-size sets how many are "
            "committed together",
            run.config.batch_size,
        )
    before = read_started(run.output)
    first, matched, chosen, known = _choose_engine(run, device, before)
    place = run.config.output
    if problem := engine.trial_of(known, first).problem:
        text = f"{first.name}, with which {place} was started, does not run here ({problem})"
        progress.show(f"{text}: {chosen.engine.name} takes its place", always=True)
    if before and before.fields_of != PIXELS:
        text = f"{place} was started with a release that finds fields otherwise"
        progress.show(f"{text}: masks that are done stay as they are", always=True)
    manifest.write(run.output)  # nothing is refused any more
    started = replace(run.started, engine=first, matched=matched, fields_of=PIXELS)
    write_json(run.output, SETTINGS, started.to_json())
    run.output.delete(SUMMARY)  # it is not finished any more
    workers = model_workers(device, run.config.workers)
    groups = Groups(todo, group_rows(todo.num_rows, workers, run.config.group_size))
    workers = min(workers, groups.num_groups)
    rate, times, gauges = SteadyRate(), StageTimes(workers, listing_s), Gauges()
    why_open = ""
    job = SegmentJob(run.source, run.output, run.checkpoint.card, started, chosen.matches)
    done = pipeline(groups, job, run.weights, chosen.engine, device, workers, run.config.batch_size)
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
    text = f"{counts['ok'] + counts['rejected']} done, {counts['rejected']} of them rejected"
    if counts["open"]:
        text += f", {counts['open']} still open, one of them: {why_open}"
    progress.show(text, always=True)
    return {
        "images_per_second": rate.value,
        **times.summary(),
        "work_started": round(times.first, 3),
        "work_finished": round(times.last, 3),
        "engine": {"name": chosen.engine.name, "considered": [one.as_dict() for one in known]},
    }


def _choose_engine(
    run: Run, device: str, before: Started | None
) -> tuple[Engine, bool, Trial, list[Trial]]:
    """The engine that the output was started with, whether it matches the reference, how the
    network is run now, and all that was considered.

    What the flags leave open is chosen for a new output, and stays as it was for another. Raises
    UserError where that does not run here and nothing can take its place.
    """
    flags = run.config.backend, run.config.precision
    known = on_network_node(engine.find_trials, run.weights, device)
    if before is None or before.engine is None:
        chosen = engine.select(known, *flags)
        return chosen.engine, chosen.matches, chosen, known
    chosen = engine.resume(known, before.engine, before.matched, *flags)
    return before.engine, before.matched, chosen, known

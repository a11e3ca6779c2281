"""A bulk run, whatever its verb: inputs -> groups -> rows, each input once, resumed, summed up.

A verb says what its rows depend on and how a group becomes rows. All else is the same for all: the
listing, the lock, what is left to do, progress, compaction, the summary and the exit code.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import ray
from ray.data import Dataset

from segpipe.cluster.errors import own_error
from segpipe.cluster.join import check_cluster
from segpipe.cluster.session import ray_session
from segpipe.errors import Unfinished, UserError, must_change
from segpipe.progress import Progress, SteadyRate, process_seconds, time_left
from segpipe.segment.compact import (
    compact,
    count_missing_results,
    delete_old_results,
    has_rows,
)
from segpipe.segment.gauges import Gauges
from segpipe.segment.groups import Groups
from segpipe.segment.inputs import Inputs, skipped_words
from segpipe.segment.manifest import NO_IDS, Ids, Manifest, is_written, list_inputs
from segpipe.segment.output import REPORT, SUMMARY, read_summary
from segpipe.segment.parts import drop_part, read_parts
from segpipe.segment.stopwatch import StageTimes
from segpipe.segment.todo import Todo, find_missing, group_rows, plan_todo
from segpipe.storage import Entry, Source, Store, lock
from segpipe.storage.files import write_json
from segpipe.storage.lock import Lock
from segpipe.storage.places import inside
from segpipe.storage.settings import SETTINGS

logger = logging.getLogger(__name__)

TRACE = ("images_per_second", "stages", "bottleneck", "work_started", "work_finished")


class Flags(Protocol):
    """What every bulk verb's config has."""

    @property
    def input(self) -> str: ...
    @property
    def group_size(self) -> int: ...
    @property
    def table(self) -> str: ...
    @property
    def max_rejected(self) -> float: ...
    @property
    def retry_rejected(self) -> bool: ...
    @property
    def repair(self) -> bool: ...
    @property
    def include(self) -> tuple[str, ...]: ...
    @property
    def exclude(self) -> tuple[str, ...]: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def if_locked(self) -> str: ...
    def check(self) -> None: ...


@dataclass(frozen=True)
class Work:
    """How a verb does what is left."""

    settings: dict[str, Any]
    """What the output is started with, for `_segpipe/settings.json`."""
    workers: int
    """At most."""
    pipeline: Callable[[Groups, int], Dataset]
    """Groups of inputs and workers -> rows as RowGroup.commit makes them."""
    summary: Mapping[str, Any]
    """What the summary tells of it."""


@dataclass(frozen=True)
class Bulk(ABC):
    """What one attempt works with, and what its verb adds."""

    verb: ClassVar[str]
    noun: ClassVar[str]
    """One of its inputs."""

    source: Source
    output: Store
    flags: Flags

    @abstractmethod
    def refuse_changed(self) -> None:
        """Raise UserError where the output was started with something else."""

    @abstractmethod
    def plan(self, progress: Progress) -> Work:
        """How to do what is left, in a Ray session. Raises UserError where it cannot be done."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """What the summary tells of the verb, also where nothing was left to do."""

    @abstractmethod
    def closing_line(self, summary: dict[str, Any], left: str) -> str:
        """The last line, but for the verb; `left` is what stays open and what was skipped."""

    def entries(self, inputs: Inputs) -> Iterable[Entry]:
        """The inputs as the manifest lists them."""
        return inputs

    def report(self, summary: dict[str, Any]) -> bytes | None:
        """The page about the rows, where there is one."""
        return None


def run_bulk(flags: Flags, open_run: Callable[[], Bulk]) -> int:
    """Do what is not done yet -> exit code: 1 when too many were rejected or some stay open.

    `open_run` finds what can be wrong with the flags. Raises UserError for what the user must
    change, Unfinished where the store gave up.
    """
    start = time.monotonic()
    # The whole process, imports included, unless this is one step of a longer one.
    before_s = 0.0 if ray.is_initialized() else process_seconds()
    flags.check()
    check_cluster()
    with store_failures():
        run = open_run()
        with lock.hold(run.output, flags.if_locked, {"listing": 0}) as held:
            run.refuse_changed()  # another run may have ended since
            listing = time.monotonic()
            inputs = _inputs(run, held)
            manifest = list_inputs(run.entries(inputs))
            listing_s = time.monotonic() - listing
            if not manifest.num_inputs:
                raise inputs.nothing(flags.input)
            for note in inputs.notes():
                logger.warning("%s: note: %s", run.verb, note)
            summary = read_summary(run.output)
            missing = _find_missing(run, manifest) if flags.repair else NO_IDS
            if summary and not len(missing) and _finished(run, manifest, summary):
                left_out = skipped_words(inputs.skipped)
                text = f"all {manifest.num_inputs} inputs are done, {left_out}{run.output.uri()}"
                print(f"{run.verb}: {text} is up to date")
                return _exit_code(run, summary)
            summary = _complete(run, manifest, held, listing_s, missing)
            summary["skipped"] = dict(inputs.skipped.most_common())
            summary["notes"] = inputs.notes()
            summary["seconds"] = round(before_s + time.monotonic() - start, 2)
            page = run.report(summary)
            held.check()
            if page is not None:
                run.output.put(REPORT, page)
                held.check()
            if flags.table == "csv":  # the report was the last to read them
                summary["results"] = []
            delete_old_results(run.output, summary["results"] + summary["tables"])
            write_json(run.output, SUMMARY, summary)
    left = f"{summary['open']} still open, run the same command again, " if summary["open"] else ""
    left += skipped_words(summary["skipped"])
    print(f"{run.verb}: {run.closing_line(summary, left)}")
    return _exit_code(run, summary)


def _inputs(run: Bulk, held: Lock) -> Inputs:
    """The inputs to list; the listing tells how far it is, here and in the heartbeat."""
    flags, progress, start = run.flags, Progress(run.verb), time.monotonic()

    def on_listed(number: int) -> None:
        held.check()
        held.progress = {"listing": number}
        rate = number / max(time.monotonic() - start, 1e-3)
        progress.show(f"listing {flags.input}, {number} files, {rate:.0f}/s")

    beside = inside(run.source, run.output)
    globs = flags.include, flags.exclude
    return Inputs(run.source, beside, *globs, flags.limit, on_listed=on_listed, noun=run.noun)


def _complete(
    run: Bulk, manifest: Manifest, held: Lock, listing_s: float, missing: Ids
) -> dict[str, Any]:
    """Do what no part holds yet, then write results/ -> the summary's counts and rate."""
    output = run.output
    output.sweep()
    parts = read_parts(output, partial(drop_part, output, verb=run.verb))
    todo = plan_todo(manifest, parts, run.flags.retry_rejected, missing)
    held.progress = todo.progress(Counter(), None)
    trace, told = dict.fromkeys(TRACE), run.summary()
    if todo.num_rows:
        with ray_session():
            trace, more = _work(run, manifest, todo, held, listing_s)
            told |= more
    else:
        manifest.write(output)
    held.check()
    output.delete(SUMMARY)  # its results are about to change
    return compact(output, manifest, run.flags.table, run.verb) | {
        "done_before": todo.num_done,
        **trace,
        **told,
        "inputs_digest": manifest.digest,
    }


def _finished(run: Bulk, manifest: Manifest, summary: dict[str, Any]) -> bool:
    """Whether a run that ended had these inputs, and nothing is left to do for this one."""
    again = run.flags.retry_rejected and summary["rejected"]
    same = summary["inputs_digest"] == manifest.digest
    done = same and not summary["open"] and not again
    return (
        done
        and is_written(run.output, manifest, pages=run.flags.repair)
        and has_rows(summary, run.flags.table)
        and not count_missing_results(run.output, summary)
    )


def _find_missing(run: Bulk, manifest: Manifest) -> Ids:
    """Inputs of which something was deleted, or damaged, since they were done."""
    drop = partial(drop_part, run.output, verb=run.verb)
    return np.concatenate(list(find_missing(run.output, manifest.ids(), drop).values()))


@contextmanager
def store_failures() -> Iterator[None]:
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


def _exit_code(run: Bulk, summary: dict[str, Any]) -> int:
    share, most = summary["rejected"] / max(1, summary["inputs"]), run.flags.max_rejected
    if share > most:
        logger.warning(
            "%s: %.3g %% were rejected, more than --max-rejected %g: exit code 1; %s says why",
            run.verb,
            100 * share,
            most,
            SUMMARY,
        )
    return int(share > most or summary["open"] > 0)


def _work(
    run: Bulk, manifest: Manifest, todo: Todo, held: Lock, listing_s: float
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Run the pipeline, showing progress -> what the summary says of it, TRACE and the verb's."""
    progress, counts = Progress(run.verb), Counter({"ok": 0, "rejected": 0, "open": 0})
    progress.show(f"starting, {todo.num_rows} to do, {todo.num_done} done before")
    work = run.plan(progress)
    manifest.write(run.output)  # nothing is refused any more
    write_json(run.output, SETTINGS, work.settings)
    run.output.delete(SUMMARY)  # it is not finished any more
    groups = Groups(todo, group_rows(todo.num_rows, work.workers, run.flags.group_size))
    workers = min(work.workers, groups.num_groups)
    rate, times, gauges = SteadyRate(), StageTimes(workers, listing_s), Gauges()
    why_open = ""
    for batch in work.pipeline(groups, workers).iter_batches(batch_size=None):
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
    trace = {
        "images_per_second": rate.value,
        **times.summary(),
        "work_started": round(times.first, 3),
        "work_finished": round(times.last, 3),
    }
    return trace, work.summary

"""Segment: an archive of photographs -> masks, one row for each input, a summary and a report."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ray.data import Dataset

from segpipe.cluster.nodes import check_device, choose_device, model_workers
from segpipe.cluster.workers import on_network_node
from segpipe.data.fitting import PIXELS
from segpipe.models import checkpoint, engine, structures
from segpipe.models.checkpoint import Checkpoint
from segpipe.models.engine import REFERENCE, Engine, Trial
from segpipe.models.tta import num_scores
from segpipe.progress import Progress
from segpipe.segment import report
from segpipe.segment.bulk import Bulk, Work, run_bulk
from segpipe.segment.config import SegmentConfig
from segpipe.segment.groups import Groups
from segpipe.segment.inputs import open_source, refuse_pictures
from segpipe.segment.job import SegmentJob
from segpipe.segment.output import REPORT
from segpipe.segment.pipeline import pipeline
from segpipe.segment.started import Started, read_started
from segpipe.storage import named, open_store
from segpipe.storage.places import inside

logger = logging.getLogger(__name__)


def segment(config: SegmentConfig) -> int:
    """Segment what is not done yet -> exit code: 1 when too many were rejected or some stay open.

    Raises UserError for what the user must change, Unfinished where the store gave up.
    """
    return run_bulk(config, partial(_open, config))


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
    more = structures.wanted(loaded) if config.structures == "all" else None
    of_more = structures.about()["sha256"] if more else ""
    started = Started.of(config, source.uri(), loaded.sha256, loaded.card.tta, of_more)
    run = Run(source, output, config, weights, loaded, more, started)
    run.refuse_changed()
    return run


@dataclass(frozen=True)
class Run(Bulk):
    """What one attempt works with."""

    verb, noun = "segment", "photograph"

    flags: SegmentConfig
    weights: bytes
    checkpoint: Checkpoint
    structures: bytes | None
    """The checkpoint that finds arteries, veins and the disc, where one does."""
    started: Started
    """What this one would start an output with."""

    def refuse_changed(self) -> None:
        if before := read_started(self.output):
            self.started.refuse_changed(self.flags.output, before)

    def plan(self, progress: Progress) -> Work:
        flags = self.flags
        device = choose_device(flags.device)
        if device == "cpu" and flags.batch_size is not None:
            logger.warning(
                "segment: note: --batch-size %d: has no effect on CPUs; --group-size sets how many "
                "are committed together",
                flags.batch_size,
            )
        before = read_started(self.output)
        first, matched, chosen, known = _choose_engine(self, device, before)
        place = flags.output
        if problem := engine.trial_of(known, first).problem:
            text = f"{first.name}, with which {place} was started, does not run here ({problem})"
            progress.show(f"{text}: {chosen.engine.name} takes its place", always=True)
        if before and before.fields_of != PIXELS:
            text = f"{place} was started with a release that finds fields otherwise"
            progress.show(f"{text}: masks that are done stay as they are", always=True)
        started = replace(self.started, engine=first, matched=matched, fields_of=PIXELS)
        job = SegmentJob(self.source, self.output, self.checkpoint.card, started, chosen.matches)

        def stages(groups: Groups, workers: int) -> Dataset:
            arguments = self.structures, chosen.engine, device, workers, flags.batch_size
            return pipeline(groups, job, self.weights, *arguments)

        considered = [one.as_dict() for one in known]
        told = {"engine": {"name": chosen.engine.name, "considered": considered}}
        return Work(started.to_json(), model_workers(device, flags.workers), stages, told)

    def summary(self) -> dict[str, Any]:
        card, num_flips = self.checkpoint.card, num_scores(self.started.tta)
        model = asdict(card) | {"flips": num_flips, "sha256": self.checkpoint.sha256}
        return {"engine": None, "model": model, "min_quality": self.started.min_quality}

    def report(self, summary: dict[str, Any]) -> bytes:
        images = report.OVERLAYS if self.flags.report_images == "on" else 0
        return report.archive_report(self.source, self.output, summary, images)

    def closing_line(self, summary: dict[str, Any], left: str) -> str:
        if summary["ungradable"]:
            left = f"{summary['ungradable']} ungradable, {left}"
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
            f"{summary['ok']} masks, {summary['rejected']} rejected, {left}{text}; "
            f"see {self.output.uri(REPORT)}"
        )


def _choose_engine(
    run: Run, device: str, before: Started | None
) -> tuple[Engine, bool, Trial, list[Trial]]:
    """The engine that the output was started with, whether it matches the reference, how the
    network is run now, and all that was considered.

    What the flags leave open is chosen for a new output, and stays as it was for another. Raises
    UserError where that does not run here and nothing can take its place.
    """
    flags = run.flags.backend, run.flags.precision
    known = on_network_node(engine.find_trials, run.weights, device)
    if before is None or before.engine is None:
        chosen = engine.select(known, *flags)
        return chosen.engine, chosen.matches, chosen, known
    chosen = engine.resume(known, before.engine, before.matched, *flags)
    return before.engine, before.matched, chosen, known

"""Segment: an archive of photographs -> masks, one row for each input, a summary and a report."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import Dataset

from segpipe import archive, report, runtime
from segpipe.archive import Todo
from segpipe.errors import UserError
from segpipe.models import checkpoint
from segpipe.models.predict import Scorer
from segpipe.runtime import Progress
from segpipe.stages import Segmenter, SegmentJob, load, store
from segpipe.storage import Entry, Store, open_store, preflight

FORMATS = ("png", "parquet", "both")


@dataclass(frozen=True)
class SegmentConfig:
    """Segment every photograph of a folder or an S3 prefix.

    Run it again with the same --output to go on where it stopped.
    """

    input: str
    """Folder or s3://bucket/prefix of photographs, searched through all its folders."""
    output: str
    """Folder or s3://bucket/prefix for masks/, results/, summary.json and report.html."""
    checkpoint: str | None = None
    """Checkpoint file, or the name of a shipped one; the shipped default without."""
    workers: int | None = None
    """Processes that run the network; one a core or GPU without. May change when resumed."""
    batch_size: int = 16
    """Photographs that are read, segmented and committed together. May change when resumed."""
    format: str = "png"
    """Where masks go: png files, parquet (the mask_png column of the rows), or both."""
    max_rejected: float = 0.05
    """Share of rejected inputs above which the exit code is 1."""
    max_megapixels: float = 200.0
    """Photographs with more pixels (in millions) are rejected before they are decoded."""
    limit: int | None = None
    """Take only the first so many photographs of the listing."""
    device: str = "auto"
    """Where the network runs: auto, cpu or gpu."""
    report_images: bool = True
    """Show overlays in the report; off where keys and pictures may identify patients."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        for flag in ("workers", "batch_size", "limit"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise UserError(f"--{flag.replace('_', '-')} {value}: must be 1 or more")
        if self.format not in FORMATS:
            raise UserError(f"--format {self.format}: choose from {', '.join(FORMATS)}")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"--max-rejected {self.max_rejected}: must be from 0 to 1")
        if self.max_megapixels <= 0:
            raise UserError(f"--max-megapixels {self.max_megapixels}: must be above 0")


def segment(config: SegmentConfig) -> int:
    """Segment what is not done yet -> exit code: 1 when too many inputs were rejected."""
    start = time.monotonic()
    # The whole process, imports included, unless this is one step of a longer one.
    imports_s = 0.0 if ray.is_initialized() else runtime.process_seconds()
    config.check()
    source, output = open_store(config.input), open_store(config.output)
    preflight(source, output)
    weights = checkpoint.read(config.checkpoint)
    loaded = checkpoint.load(weights, config.checkpoint or checkpoint.DEFAULT)
    settings = _settings(config, source, output, loaded.sha256)
    inputs = archive.open_inputs(source, output, config.limit)
    current: set[str] = set()
    todo = archive.plan_todo(_noted(inputs, current), output, archive.done_ids(output))
    if not todo.num_inputs:
        raise UserError(
            f"--input {config.input}: no photographs there ({inputs.skipped.total()} other files)"
        )
    if archive.read_json(output, archive.SETTINGS) is None:
        archive.write_json(output, archive.SETTINGS, settings)
    summary = archive.read_json(output, archive.SUMMARY)
    if not todo.num_rows and summary and summary["inputs"] == todo.num_inputs:
        print(f"segment: all {todo.num_inputs} inputs are done, {output.uri()} stands")
        return _exit_code(config, summary)
    card = loaded.card
    job = SegmentJob(
        source,
        output,
        card.model,
        card.diameter,
        card.threshold,
        loaded.sha256,
        hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16],
        config.format,
        config.max_megapixels,
    )
    finished: list[float] = []
    if todo.num_rows:
        with runtime.ray_session():
            finished = _run(config, job, todo, weights)
    summary = archive.compact(output, current) | {
        "skipped": dict(inputs.skipped),
        "done_before": todo.num_done,
        "images_per_second": archive.steady_rate(finished),
        "seconds": round(imports_s + time.monotonic() - start, 2),
        "model": asdict(loaded.card) | {"sha256": loaded.sha256},
    }
    images = report.OVERLAYS if config.report_images else 0
    output.put(archive.REPORT, report.archive_report(source, output, summary, images))
    archive.forget_todo(output)
    archive.write_json(output, archive.SUMMARY, summary)
    print(
        f"segment: {summary['ok']} masks, {summary['rejected']} rejected, "
        f"{summary['seconds']:.0f} s; see {output.uri(archive.REPORT)}"
    )
    return _exit_code(config, summary)


def _exit_code(config: SegmentConfig, summary: dict[str, Any]) -> int:
    return int(summary["rejected"] > config.max_rejected * summary["inputs"])


def _noted(inputs: archive.Inputs, current: set[str]) -> Iterator[Entry]:
    """The same inputs, their ids noted on the way."""
    for entry in inputs:
        current.add(archive.input_id(entry.key, entry.version))
        yield entry


def _settings(config: SegmentConfig, source: Store, output: Store, sha256: str) -> dict[str, Any]:
    """What masks depend on; refuses an output that was begun with something else."""
    settings = {
        "--input": source.uri(),
        "--checkpoint": sha256,
        "--format": config.format,
        "--max-megapixels": config.max_megapixels,
    }
    before = archive.read_json(output, archive.SETTINGS) or settings
    for flag, value in settings.items():
        if before[flag] != value:
            raise UserError(
                f"{flag} {value}: {config.output} was begun with {before[flag]}, "
                "choose another --output"
            )
    return settings


def _run(config: SegmentConfig, job: SegmentJob, todo: Todo, weights: bytes) -> list[float]:
    """Run the pipeline, showing progress -> when each photograph was finished."""
    progress, finished = Progress("segment"), []
    progress.show(f"starting, {todo.num_rows} to do, {todo.num_done} done before")
    rejected = 0
    for group in pipeline(config, job, todo, weights).iter_batches(batch_size=None):
        finished += list(np.repeat(group["finished"], group["rows"]))
        rejected += int(group["rejected"].sum())
        rate = archive.steady_rate(finished) or 0.0
        left = runtime.time_left(len(finished), todo.num_rows, rate)
        done = todo.num_done + len(finished)
        total = todo.num_done + todo.num_rows
        progress.show(f"{done}/{total}, {rate:.1f} images/s, {rejected} rejected, {left}")
    progress.show(f"{len(finished)} done, {rejected} of them rejected", always=True)
    return finished


def pipeline(config: SegmentConfig, job: SegmentJob, todo: Todo, weights: bytes) -> Dataset:
    """Groups of inputs -> rows `finished, rows, rejected`, one for each committed group."""
    device = runtime.choose_device(config.device)
    workers = runtime.model_workers(device, config.workers)
    groups = todo.groups(min(config.batch_size, max(1, -(-todo.num_rows // (2 * workers)))))
    workers = min(workers, len(groups))
    listed = ray.data.from_items(groups, override_num_blocks=len(groups))  # page, start, stop
    if device == "cpu":
        # One process does all three: handing pixels from process to process costs a CPU as much
        # as the stages around the network (18 images/s apart, 32 together; results/LOG.md).
        return runtime.network_stage(listed, Segmenter, (job, weights), device, workers)
    tasks = runtime.data_stage()
    loaded = listed.map_batches(partial(load, job=job), batch_size=None, **tasks)  # -> canvases
    scores = runtime.network_stage(loaded, Scorer, (weights,), device, workers)  # -> scores
    return scores.map_batches(partial(store, job=job), batch_size=None, **tasks)  # -> committed

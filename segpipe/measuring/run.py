"""Measure: an archive of masks that were made elsewhere -> a row for each, and a summary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.data import Dataset

from segpipe.cluster.nodes import model_workers
from segpipe.cluster.workers import network_stage
from segpipe.measuring.config import MeasureConfig
from segpipe.measuring.pairs import PairIndex, paired
from segpipe.measuring.stages import MeasureJob, Measurer
from segpipe.measuring.started import Started
from segpipe.progress import Progress
from segpipe.segment.bulk import Bulk, Work, run_bulk
from segpipe.segment.groups import Groups
from segpipe.segment.inputs import Inputs, open_source
from segpipe.segment.lists import ListedFiles
from segpipe.segment.output import SUMMARY
from segpipe.storage import Entry, Store, check_there, named, open_store
from segpipe.storage.places import inside


def measure(config: MeasureConfig) -> int:
    """Measure what is not done yet -> exit code: 1 when too many were rejected or some stay open.

    Raises UserError for what the user must change, Unfinished where the store gave up.
    """
    return run_bulk(config, partial(_open, config))


def _open(config: MeasureConfig) -> Run:
    """Everything that can be wrong with the flags is found here, within seconds."""
    output = open_store(config.output, config.store_patience)
    with named("--input"):
        source = open_source(config.input, config.store_patience, config.anonymous, config.column)
        inside(source, output)  # refuses an output that is the input
        source.check_readable()
    places = {"fov": config.fov, "photographs": config.photographs}
    pairs = {flag: _open_pairs(flag, place, config) for flag, place in places.items() if place}
    with named("--output"):
        output.check_readable()
    started = Started(
        source.uri(),
        pairs["fov"].uri() if "fov" in pairs else None,
        pairs["photographs"].uri() if "photographs" in pairs else None,
        config.av_colours,
        config.max_megapixels,
        config.include,
        config.exclude,
    )
    run = Run(source, output, config, pairs, started)
    run.refuse_changed()
    return run


def _open_pairs(flag: str, place: str, config: MeasureConfig) -> Store:
    with named(f"--{flag}"):
        store = open_store(place, config.store_patience, config.anonymous)
        check_there(store, f"--{flag}")
        store.check_readable()
    return store


@dataclass(frozen=True)
class Run(Bulk):
    """What one attempt works with."""

    verb, noun = "measure", "mask"

    flags: MeasureConfig
    pairs: dict[str, Store]
    """By flag, fov or photographs, where these lie."""
    started: Started
    """What this one would start an output with."""

    def refuse_changed(self) -> None:
        self.started.refuse_changed(self.flags.output, self.output)

    def entries(self, inputs: Inputs) -> Iterable[Entry]:
        if not self.pairs:
            return inputs
        indices = [PairIndex(flag, Inputs(store)) for flag, store in self.pairs.items()]
        return paired(inputs, indices, by_end=isinstance(self.source, ListedFiles))

    def plan(self, progress: Progress) -> Work:
        job = MeasureJob(self.source, dict(self.pairs), self.output, self.started)

        def stages(groups: Groups, workers: int) -> Dataset:
            return network_stage(groups.dataset(), Measurer, (job,), "cpu", workers, light=True)

        return Work(self.started.to_json(), model_workers("cpu", self.flags.workers), stages, {})

    def summary(self) -> dict[str, Any]:
        return {}

    def closing_line(self, summary: dict[str, Any], left: str) -> str:
        text = f"{summary['seconds']:.0f} s"
        if rate := summary["images_per_second"]:
            text += f", {rate:.1f} images/s, bottleneck: {summary['bottleneck']}"
        return (
            f"{summary['ok']} masks measured, {summary['rejected']} rejected, {left}{text}; "
            f"see {self.output.uri(SUMMARY)}"
        )

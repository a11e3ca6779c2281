"""The stages of a run in a row, on Ray Data."""

from __future__ import annotations

from functools import partial

from ray.data import Dataset

from segpipe.cluster.workers import data_stage, network_stage
from segpipe.models.engine import Engine
from segpipe.segment.groups import Groups
from segpipe.segment.job import SegmentJob
from segpipe.segment.stages import Scoring, Segmenter, load, store


def pipeline(
    groups: Groups,
    job: SegmentJob,
    weights: bytes,
    structures: bytes | None,
    engine: Engine,
    device: str,
    workers: int,
    batch_size: int | None,
) -> Dataset:
    """Groups of inputs -> rows as Group.commit makes them, one for each committed group."""
    listed = groups.dataset()  # page, rows; a block is one group: what is committed, or done again
    if device == "cpu":
        # One process does all three: handing pixels from process to process costs a CPU as much
        # as the stages around the network (18 images/s apart, 32 together; results/LOG.md).
        light = engine.backend == "native"
        arguments = job, weights, structures, engine
        return network_stage(listed, Segmenter, arguments, device, workers, light)
    tasks = data_stage()
    loaded = listed.map_batches(partial(load, job=job), batch_size=None, **tasks)  # -> canvases
    arguments_gpu = job, weights, structures, engine.precision, batch_size
    scores = network_stage(loaded, Scoring, arguments_gpu, device, workers)
    return scores.map_batches(partial(store, job=job), batch_size=None, **tasks)  # -> committed

"""One part of segmenting alone, in a process on each core: what the job's rate is measured against.

    python -m segpipe.scaling.ceilings PART ...    (segpipe scale starts it)

    fetch     bytes from the real input, as many at once as a worker fetches
    decode    bytes in memory -> canvas, field of view and geometry, in a decoder's process
    model     canvas and field in memory -> score, by the engine that the job used
    write     score in memory -> mask, PNG in the real output, committed row

Each process does what segment does, by the same functions, over and over for some seconds. They
begin together. One line of JSON tells images and images a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count, cycle, islice
from threading import Barrier

import numpy as np
import tyro

from segpipe.data.decoder import DECODING_S, Decoder
from segpipe.data.photograph import MAX_MEGAPIXELS
from segpipe.errors import RejectedImage, StarvedDecoder, UserError
from segpipe.models import checkpoint, engine
from segpipe.models.engine import Engine
from segpipe.segment import stages
from segpipe.segment.config import SegmentConfig
from segpipe.segment.fetch import fetched
from segpipe.segment.group import Group
from segpipe.segment.inputs import Inputs, open_source
from segpipe.segment.job import SegmentJob
from segpipe.segment.photo import Photo
from segpipe.segment.started import Started
from segpipe.segment.stopwatch import Stopwatch
from segpipe.storage import PATIENCE_S, Entry, open_store
from segpipe.storage.places import inside

SAMPLE = 32  # photographs in memory, drawn from the whole input
SAMPLE_BYTES = 256 << 20  # or fewer, where files are large
GROUP = 16  # photographs that are written before they are committed
WRITTEN = 8  # different masks: each takes an eager network up to a second before the clock runs
ON_GPU = 64  # canvases that a GPU is given at once, as in a group of segment's


@dataclass(frozen=True)
class Part:
    """Measure one part of segmenting alone."""

    part: tyro.conf.Positional[str]
    """fetch, decode, model or write."""
    input: str
    """Folder, prefix or list of photographs."""
    output: str
    """Folder or prefix to write to, left as full as the part makes it."""
    seconds: float
    """For how long each process repeats its part."""
    cores: tuple[int, ...]
    """A process for each of these, pinned to it."""
    checkpoint: str | None = None
    """As segment's."""
    limit: int | None = None
    """As segment's."""
    engine: tuple[str, str] = ("torch", "fp32")
    """--backend and --precision that the job settled on."""
    tta: str = "none"
    """As segment's."""
    gpus: tuple[str, ...] = ()
    """A process for each of these in the place of the cores, where the network runs on GPUs."""


def main(part: Part) -> None:
    entries = _entries(part)
    processes = len(part.gpus or part.cores)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _join, (barrier,)) as pool:
        done = list(pool.map(_measure, [part] * processes, range(processes), [entries] * processes))
    items = sum(number for number, _ in done)
    rate = sum(number / seconds for number, seconds in done)
    print(json.dumps({"items": items, "rate": rate}))


def _entries(part: Part) -> list[Entry]:
    """The inputs in an order that is fair wherever the time runs out."""
    source, output = open_source(part.input, PATIENCE_S), open_store(part.output)
    inputs = Inputs(source, inside(source, output), limit=part.limit)
    entries = list(inputs)
    random.Random(0).shuffle(entries)
    return entries


together: Barrier  # of all processes of this part


def _join(barrier: Barrier) -> None:
    """Runs first in each process: with as many tasks as processes each gets one, and waits."""
    global together
    together = barrier


def _measure(part: Part, number: int, entries: Sequence[Entry]) -> tuple[int, float]:
    """Images and seconds of this process."""
    try:
        if part.gpus:  # before torch looks
            os.environ["CUDA_VISIBLE_DEVICES"] = part.gpus[number]
        else:
            os.sched_setaffinity(0, {part.cores[number]})
        stages.keep_pages()
        step = STEPS[part.part](part, number, entries)
        step()  # what is done once is not counted
        together.wait()
        items, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < part.seconds or not items:
            items += step()
        return items, seconds
    except BaseException:
        together.abort()
        raise


Step = Callable[[], int]
"""Does a part for some images -> how many."""


def _job(part: Part) -> SegmentJob:
    loaded = checkpoint.load(checkpoint.read(part.checkpoint), part.checkpoint or "")
    config = SegmentConfig(part.input, part.output, max_megapixels=MAX_MEGAPIXELS)
    started = Started.of(config, part.input, loaded.sha256, part.tta)
    source = open_source(part.input, PATIENCE_S)
    return SegmentJob(source, open_store(part.output), loaded.card, started)


def _sample(part: Part, entries: Sequence[Entry]) -> list[tuple[Entry, bytes]]:
    """Some inputs with their bytes."""
    source, left = open_source(part.input, PATIENCE_S), SAMPLE_BYTES
    found: list[tuple[Entry, bytes]] = []
    for entry in entries[:SAMPLE]:
        if found and entry.bytes > left:
            break
        left -= entry.bytes
        found.append((entry, source.get(entry.key)))
    return found


def _loaded(part: Part, job: SegmentJob, entries: Sequence[Entry]) -> list[Photo]:
    """Some photographs as the network gets them. Raises UserError where none can be read."""
    watch = Stopwatch()
    photos = [stages.decode(*one, job, watch) for one in _sample(part, entries)]
    if not (whole := [photo for photo in photos if photo.fitted]):
        raise UserError(
            f"--input {part.input}: of {len(photos)} photographs none can be read, check them"
        )
    return whole


def _fetch(part: Part, number: int, entries: Sequence[Entry]) -> Step:
    source = open_source(part.input, PATIENCE_S)
    turned = islice(cycle(entries), number * len(entries) // len(part.cores), None)
    came = fetched(source, turned, Stopwatch())

    def step() -> int:
        next(came)
        return 1

    return step


def _decode(part: Part, number: int, entries: Sequence[Entry]) -> Step:
    job = _job(part)
    decoder = Decoder(job.card.working, MAX_MEGAPIXELS, DECODING_S)
    files = cycle([data for _, data in _sample(part, entries)])

    def step() -> int:
        with suppress(RejectedImage, StarvedDecoder):  # that takes its time too
            decoder.fit(next(files))
        return 1

    return step


def _model(part: Part, number: int, entries: Sequence[Entry]) -> Step:
    fitted = [photo.fitted for photo in _loaded(part, _job(part), entries) if photo.fitted]
    weights = checkpoint.read(part.checkpoint)
    if part.gpus:
        from segpipe.models.predict import Scorer  # torch

        scorer = Scorer(weights, part.tta, "cuda", 1, part.engine[1])
        canvases = np.stack([one.canvas for one in islice(cycle(fitted), ON_GPU)])

        def step() -> int:
            scorer.scores(canvases)
            return len(canvases)

        return step
    score = engine.open_score(weights, Engine(*part.engine), 1, part.tta)
    in_turn = cycle(fitted)

    def step_on_cpu() -> int:
        one = next(in_turn)
        score(one.canvas, one.fov)
        return 1

    return step_on_cpu


def _write(part: Part, number: int, entries: Sequence[Entry]) -> Step:
    job = _job(part)
    weights = checkpoint.read(part.checkpoint)
    score = engine.open_score(weights, Engine(*part.engine), num_threads=1, tta="none")
    photos = _loaded(part, job, entries)[:WRITTEN]
    for photo in photos:
        if photo.fitted:
            photo.score = score(photo.fitted.canvas, photo.fitted.fov)
    in_turn = cycle(photos)
    folders = (f"{number}/{at}" for at in count())  # never a mask over another one

    def step() -> int:
        group = Group(job)
        for photo in islice(in_turn, GROUP):
            key = f"{next(folders)}/{photo.entry.key}"
            group.add(replace(photo, entry=replace(photo.entry, key=key)))
        group.commit()
        return GROUP

    return step


STEPS = {"fetch": _fetch, "decode": _decode, "model": _model, "write": _write}


if __name__ == "__main__":
    main(tyro.cli(Part))

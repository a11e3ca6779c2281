"""What Ray Data does to a photograph before and after the network, one function a stage.

Importing this does not import torch, so that processes that read and write start in half a second
and stay small.
"""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import starmap
from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe.data.arrays import StructureMaps
from segpipe.data.canvas import Diameter, canvas_side
from segpipe.data.decoder import DECODING_S, Decoder
from segpipe.errors import RejectedImage, StarvedDecoder, UserError
from segpipe.models.engine import Engine, open_or_stand_in, open_score
from segpipe.models.forms import Score
from segpipe.models.structures import Maps, open_maps
from segpipe.segment.fetch import Fetched, OpenInput, fetched, transfers
from segpipe.segment.group import Group
from segpipe.segment.job import SegmentJob
from segpipe.segment.manifest import group_entries
from segpipe.segment.photo import Photo
from segpipe.segment.stopwatch import STAGES, Stopwatch
from segpipe.storage import Entry

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h

Batch = dict[str, npt.NDArray[Any]]


class Segmenter:
    """All stages in one process, for networks that run on CPUs: a photograph after the other."""

    maps: Maps | None = None

    def __init__(
        self,
        job: SegmentJob,
        weights: bytes,
        structures: bytes | None,
        engine: Engine,
        device: str,
        num_threads: int,
    ) -> None:
        """`structures`: the checkpoint that finds arteries, veins and the disc, where one does."""
        assert device == "cpu"
        transfers().submit(_decoder_of(job).start)  # takes 0.3 s
        keep_pages()
        self.job = job
        self.score, self.engine = _open_engine(job, weights, engine, num_threads)
        if structures:
            self.maps = open_maps(structures, self.engine, num_threads)

    def __call__(self, batch: Batch) -> Batch:
        """Groups of inputs -> the groups, committed."""
        group = Group(self.job)
        for entry, data in _fetched(self.job, batch, group.watch):
            photo = decode(entry, data, self.job, group.watch)
            if photo.fitted is not None:
                try:
                    with group.watch.time("model"):
                        pixels = photo.fitted.canvas, photo.fitted.fov
                        photo.score = self.score(*pixels)
                        photo.maps = self.maps(*pixels) if self.maps else None
                    photo.engine = self.engine.name
                except Exception as error:
                    photo.fail(error)
            group.add(photo)
        return group.commit()


def _open_engine(
    job: SegmentJob, weights: bytes, engine: Engine, num_threads: int
) -> tuple[Score, Engine]:
    tta = job.started.tta
    if job.stand_in_allowed:
        return open_or_stand_in(weights, engine, num_threads, tta)
    try:
        return open_score(weights, engine, num_threads, tta), engine
    except OSError as error:
        raise UserError(
            f"--backend {engine.backend} --precision {engine.precision}: {error} on "
            f"{platform.node()}, and masks of no other engine are the same; choose another "
            "--output, with auto for both"
        ) from error


def keep_pages() -> None:
    """Arrays of a photograph reuse pages: glibc would give them back after each, at twice the time.

    What mallopt(3) sets; nothing under another allocator.
    """
    with suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(M_TRIM_THRESHOLD, 128 << 20)


def load(batch: Batch, job: SegmentJob) -> Batch:
    """Groups of inputs -> one row each: its canvas [S, S, 3] and fov [S, S] uint8, or why not.

    S is that of the largest canvas."""
    job.log_alike()
    side, watch = canvas_side(job.card.working.most), Stopwatch()
    photos = [decode(*one, job, watch) for one in _fetched(job, batch, watch)]
    rows = [photo.as_columns(side) for photo in photos]
    loaded = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return loaded | {"seconds": np.tile(watch.as_array() / len(rows), (len(rows), 1))}


class Scoring:
    """Rows with a canvas -> the same with a score, in a process that holds the network."""

    maps: Maps | None = None

    def __init__(
        self,
        job: SegmentJob,
        weights: bytes,
        structures: bytes | None,
        precision: str,
        batch_size: int | None,
        device: str,
        num_threads: int,
    ) -> None:
        from segpipe.models.predict import Scorer  # torch: only where the network runs

        # what is measured later takes 1 MB a row to hand on
        self.keep_canvas = job.started.assesses or job.started.overlays
        self.engine = Engine("torch", precision)
        tta = job.started.tta
        self.scorer = Scorer(weights, tta, device, num_threads, precision, batch_size)
        if structures:
            self.maps = open_maps(structures, self.engine, num_threads, device)

    def __call__(self, batch: Batch) -> Batch:
        watch = Stopwatch()
        kept = {"canvas": batch["canvas"]} if self.keep_canvas else {}
        with watch.time("model"):
            if self.maps:
                canvases = zip(batch["canvas"], batch["fov"], strict=True)
                planes = zip(*starmap(self.maps, canvases), strict=True)
                for name, of_all in zip(StructureMaps._fields, planes, strict=True):
                    kept[name] = np.stack(of_all).astype(np.float16)
            batch = self._scored(batch) | kept
        batch["engine"] = np.full(len(batch["path"]), self.engine.name)
        return batch | {"seconds": batch["seconds"] + watch.as_array() / len(batch["path"])}

    def _scored(self, batch: Batch) -> Batch:
        """With a score. Where the batch fails each row is tried alone.

        Where all fail an empty canvas is tried: the error that it meets is raised, being the
        network's or the device's and no photograph's.
        """
        with suppress(Exception):
            return self.scorer(dict(batch))
        rows, num_failed = [], 0
        for n in range(len(batch["path"])):
            row = {name: column[n : n + 1] for name, column in batch.items()}
            try:
                rows.append(self.scorer(dict(row)))
            except Exception as error:
                num_failed += 1
                photo = Photo(Entry(str(row["path"][0]), 0, ""))
                photo.fail(error)
                row |= {name: np.array([value]) for name, value in photo.outcome().items()}
                rows.append(row | {"score": np.zeros(row.pop("canvas").shape[:3], np.float32)})
        if num_failed == (batch["error"] == "").sum():
            row = {name: column[:1] for name, column in batch.items()} | {"error": np.array([""])}
            self.scorer(row | {"canvas": np.zeros_like(row["canvas"])})
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def store(batch: Batch, job: SegmentJob) -> Batch:
    """Scored rows of one group -> the group, committed."""
    job.log_alike()
    group = Group(job)
    for name, seconds in zip(STAGES, batch.pop("seconds").sum(axis=0), strict=True):
        group.watch.seconds[name] += float(seconds)
    for n in range(len(batch["path"])):
        group.add(Photo.from_columns({name: column[n] for name, column in batch.items()}))
    return group.commit()


def _fetched(job: SegmentJob, batch: Batch, watch: Stopwatch) -> Iterator[tuple[Entry, Fetched]]:
    """Each input of these groups with its bytes."""
    entries = (
        entry
        for page, rows in zip(batch["page"], batch["rows"], strict=True)
        for entry in group_entries(job.output, str(page), rows)
    )
    return fetched(job.source, entries, watch)


def decode(entry: Entry, data: Fetched, job: SegmentJob, watch: Stopwatch) -> Photo:
    """An input's bytes -> its canvas and field, or why it has none."""
    photo = Photo(entry)
    if isinstance(data, OpenInput):
        photo.why_open = data.reason
        return photo
    start = time.perf_counter()
    try:
        if isinstance(data, RejectedImage):
            raise data
        fitted = _decoder_of(job).fit(data)
    except StarvedDecoder as error:
        watch.seconds["decode"] += time.perf_counter() - start
        photo.leave_open(error)
        return photo
    except RejectedImage as error:
        watch.seconds["decode"] += time.perf_counter() - start
        photo.rejection = error
        return photo
    for name, seconds in fitted.seconds.items():
        watch.seconds[name] += seconds
    whole = time.perf_counter() - start
    watch.seconds["handover"] += max(0.0, whole - sum(fitted.seconds.values()))
    photo.fitted = fitted
    return photo


def _decoder_of(job: SegmentJob) -> Decoder:
    return own_decoder(job.card.working, job.started.max_megapixels)


@lru_cache(maxsize=1)
def own_decoder(working: Diameter, max_megapixels: float) -> Decoder:
    """This process's child for untrusted bytes."""
    return Decoder(working, max_megapixels, DECODING_S)

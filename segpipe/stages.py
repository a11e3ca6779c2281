"""What Ray Data does to a photograph before and after the network, one function a stage.

Importing this does not import torch, so that processes that read and write start in half a second
and stay small.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe import archive, metrics
from segpipe.data import codecs, fundus
from segpipe.data.datasets import OUTSIDE, VESSEL, Example, load_example, load_second
from segpipe.data.fundus import Geometry
from segpipe.decoder import Decoder
from segpipe.errors import ChangedObject, RejectedImage, StoreDown, UserError
from segpipe.inputs import filed_as
from segpipe.metrics import Confusion
from segpipe.storage import Entry, Source, Store

FETCHES = 8  # objects of a group that are fetched at once
FETCHED_BYTES = 64 << 20  # of files that wait to be decoded in one process, or a single larger one
LARGEST_FILE_BYTES = 1 << 30  # 200 megapixels of 16-bit RGB are 1.2 GB; real files are compressed
DECODING_S = 60.0  # seconds for one photograph; 200 megapixels take some 10

Batch = dict[str, npt.NDArray[Any]]


# ---- segment: an archive's photographs


@dataclass(frozen=True)
class SegmentJob:
    """What the stages of an archive need to know."""

    source: Source
    output: Store
    model: str
    diameter: float
    """Working diameter in px."""
    threshold: float
    sha256: str
    """Of the checkpoint."""
    settings: str
    """Hash of all that a mask depends on."""
    format: str
    max_megapixels: float


def load(batch: Batch, job: SegmentJob) -> Batch:
    """Groups of inputs -> one row each: its canvas [S, S, 3] and fov [S, S] uint8, or why not."""
    entries = [
        entry
        for page, rows in zip(batch["page"], batch["rows"], strict=True)
        for entry in archive.group_entries(job.output, str(page), rows)
    ]
    rows = [_load_one(entry, data, job) for entry, data in _fetched(job.source, entries)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _fetched(
    source: Source, entries: Sequence[Entry]
) -> Iterator[tuple[Entry, bytes | RejectedImage | OpenInput]]:
    """Each entry with its bytes, in order; some are fetched ahead, but never many bytes."""
    waiting: deque[tuple[Entry, Future[bytes | RejectedImage | OpenInput]]] = deque()
    rest = iter(entries)
    ahead_bytes = 0
    with ThreadPoolExecutor(FETCHES) as pool:
        while True:
            while not waiting or ahead_bytes < FETCHED_BYTES:
                entry = next(rest, None)
                if entry is None:
                    break
                waiting.append((entry, pool.submit(_fetch, source, entry)))
                ahead_bytes += entry.bytes
            if not waiting:
                return
            entry, found = waiting.popleft()
            ahead_bytes -= entry.bytes
            yield entry, found.result()


def _fetch(source: Source, entry: Entry) -> bytes | RejectedImage | OpenInput:
    """An input's bytes. Raises OSError where not this input but its whole store fails."""
    if entry.bytes > LARGEST_FILE_BYTES:
        return RejectedImage(f"file larger than {LARGEST_FILE_BYTES >> 20} MiB")
    try:
        return source.get(entry.key, entry.version)
    except FileNotFoundError:
        if not source.answers(entry.key):  # the whole disk has gone
            raise
        return RejectedImage("not found")
    except PermissionError:
        return RejectedImage("permission denied")
    except OSError as error:
        if not isinstance(error, ChangedObject) and not source.answers(entry.key):
            raise
        return OpenInput(str(error))


def _load_one(
    entry: Entry, data: bytes | RejectedImage | OpenInput, job: SegmentJob
) -> dict[str, Any]:
    side = fundus.canvas_side(job.diameter)
    row: dict[str, Any] = {
        "path": entry.key,
        "bytes": entry.bytes,
        "version": entry.version,
        "error": "",
        "open": isinstance(data, OpenInput),
        "note": "",
        "orientation": 1,
        "geometry": np.zeros(8, np.int32),
        "canvas": np.zeros((side, side, 3), np.uint8),
        "fov": np.zeros((side, side), np.uint8),
    }
    if isinstance(data, OpenInput):
        return row
    try:
        if isinstance(data, RejectedImage):
            raise data
        fitted = _decoder(job.diameter, job.max_megapixels).fit(data)
    except RejectedImage as error:
        return row | {"error": str(error)}
    return row | {
        "note": fitted.note,
        "orientation": fitted.orientation,
        "geometry": fitted.geometry.as_array(),
        "canvas": fitted.canvas,
        "fov": fitted.fov,
    }


@lru_cache(maxsize=1)
def _decoder(diameter: float, max_megapixels: float) -> Decoder:
    """This process's child for untrusted bytes."""
    return Decoder(diameter, max_megapixels, DECODING_S)


def store(batch: Batch, job: SegmentJob) -> Batch:
    """Scores -> masks in place, then the group's part: from here on the group is done.

    Raises StoreDown where the output cannot be written.
    """
    try:
        return _store(batch, job)
    except OSError as error:  # with a text alone, which survives the way to the driver
        raise StoreDown(str(error)) from error


def _store(batch: Batch, job: SegmentJob) -> Batch:
    every = [{name: column[n] for name, column in batch.items()} for n in range(len(batch["path"]))]
    rows = [_store_one(values, job) for values in every if not values["open"]]
    if rows:
        archive.commit_part(job.output, rows)
    counts = Counter(row["status"] for row in rows)
    return {
        "finished": np.asarray([time.time()]),
        "ok": np.asarray([counts["ok"]]),
        "rejected": np.asarray([counts["rejected"]]),
        "open": np.asarray([len(every) - len(rows)]),
    }


def _store_one(values: dict[str, Any], job: SegmentJob) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": str(values["path"]),
        "bytes": int(values["bytes"]),
        "version": str(values["version"]),
        "note": str(values["note"]) or None,
        "model": job.model,
        "checkpoint_sha256": job.sha256,
        "threshold": job.threshold,
        "settings": job.settings,
        "finished": time.time(),
    }
    if values["error"]:
        return row | {"status": "rejected", "error": str(values["error"])}
    geometry = Geometry.from_array(values["geometry"])
    mask = fundus.native_mask(values["score"], values["fov"], geometry, job.threshold)
    png = codecs.encode_mask(mask, int(values["orientation"]))
    key = None
    if job.format != "parquet":
        key = archive.mask_key(filed_as(job.source, row["path"]))
        job.output.put(key, png)
    field = int((mask != OUTSIDE).sum())
    return row | {
        "status": "ok",
        "mask_path": key,
        "mask_png": png if job.format != "png" else None,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "fov_fraction": field / mask.size,
        "vessel_density": int((mask == VESSEL).sum()) / max(field, 1),
    }


@dataclass(frozen=True)
class OpenInput:
    """An input that could not be read now, through no fault of its bytes; it stays to do."""

    reason: str


class Segmenter:
    """All three stages in one process, for networks that run on CPUs."""

    def __init__(self, job: SegmentJob, weights: bytes, device: str, num_threads: int) -> None:
        from segpipe.models.predict import Scorer  # torch: only where the network runs

        self.job, self.score = job, Scorer(weights, device, num_threads)

    def __call__(self, batch: Batch) -> Batch:
        return store(self.score(load(batch, self.job)), self.job)


# ---- evaluate: labelled photographs


def load_labelled(row: dict[str, Any], data: Store, diameter: float) -> dict[str, Any]:
    """An example's keys -> the same, its canvas [S, S, 3] uint8 and an error or ''."""
    side = fundus.canvas_side(diameter)
    try:
        labelled = load_example(data, Example(**row))
    except UserError as error:
        return row | {"canvas": np.zeros((side, side, 3), np.uint8), "error": str(error)}
    geometry = fundus.plan_fit(labelled.fov, diameter)
    return row | {"canvas": fundus.fit_image(labelled.image, geometry, side), "error": ""}


def count(row: dict[str, Any], data: Store, diameter: float, threshold: float) -> dict[str, Any]:
    """A scored example -> its histograms of the score, and the second observer's confusion."""
    score, error = row.pop("score"), row.pop("error")
    if error:
        return {"name": row["name"], "error": error}
    example = Example(**row)
    labelled = load_example(data, example)
    native = fundus.restore(score, fundus.plan_fit(labelled.fov, diameter))
    truth, inside = labelled.label == VESSEL, labelled.fov
    second = load_second(data, example, labelled)
    drawn = (
        Confusion(0, 0, 0, 0)
        if second is None
        else metrics.confusion_of(second[inside] == VESSEL, truth[inside])
    )
    return {
        "name": example.name,
        "error": "",
        "counts": metrics.count_scores(native, truth, inside),
        "second": list(asdict(drawn).values()),
        "mask": (native >= np.float32(threshold)) & inside,
    }

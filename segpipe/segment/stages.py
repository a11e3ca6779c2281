"""What Ray Data does to a photograph before and after the network, one function a stage.

Importing this does not import torch, so that processes that read and write start in half a second
and stay small.
"""

from __future__ import annotations

import ctypes
import logging
import math
import platform
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe.data import codecs
from segpipe.data.canvas import (
    Geometry,
    canvas_side,
    native_mask,
    native_score,
)
from segpipe.data.classes import OUTSIDE, VESSEL, classes_of
from segpipe.data.decoder import Decoder
from segpipe.data.photograph import NOTHING_SAID, Acquisition
from segpipe.errors import (
    ChangedObject,
    Fault,
    NotNow,
    RejectedImage,
    StarvedDecoder,
    StoreDown,
    Unfinished,
    UserError,
    internal_error,
    must_change,
    os_error_text,
)
from segpipe.models.engine import Engine, Score, open_or_reference, open_score
from segpipe.progress import LogSettings, log_settings
from segpipe.segment.inputs import filed_as
from segpipe.segment.keys import MASKS, PROBABILITIES, mask_key
from segpipe.segment.manifest import group_entries
from segpipe.segment.parts import commit_part
from segpipe.segment.stopwatch import STAGES, Stopwatch
from segpipe.storage import Entry, Source, Store

logger = logging.getLogger(__name__)

TRANSFERS = 8  # objects that are fetched or written at once by one process
FETCHED_BYTES = 64 << 20  # of files that wait to be decoded in one process, or a single larger one
LARGEST_FILE_BYTES = 1 << 30  # 200 megapixels of 16-bit RGB are 1.2 GB; real files are compressed
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
DECODING_S = 60.0  # seconds of CPU for one photograph; 200 megapixels take some 10
NO_MEMORY = (  # words of torch on a CPU, of OpenCV, and of torch on a GPU
    "can't allocate memory",
    "Insufficient memory",
    "CUDA out of memory",
)

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
    measure: str = "none"
    """Which columns are measured: none or full."""
    probabilities: bool = False
    """Whether scores are written beside masks."""
    flips: int = 1
    """Scores that are averaged, of FLIPS."""
    reference_allowed: bool = True
    """Whether a worker that cannot run the engine uses the reference."""
    log: LogSettings | None = field(default_factory=log_settings)
    """How tasks of `load` and `store` log: as the driver does."""


class Segmenter:
    """All stages in one process, for networks that run on CPUs: a photograph after the other."""

    def __init__(
        self, job: SegmentJob, weights: bytes, engine: Engine, device: str, num_threads: int
    ) -> None:
        assert device == "cpu"
        _transfers().submit(_decoder(job.diameter, job.max_megapixels).start)  # takes 0.3 s
        keep_pages()
        self.job = job
        self.score, self.engine = _open_engine(job, weights, engine, num_threads)

    def __call__(self, batch: Batch) -> Batch:
        """Groups of inputs -> the groups, committed."""
        group = Group(self.job)
        for entry, data in _fetched(self.job, batch, group.watch):
            values = load_one(entry, data, self.job, group.watch)
            if "canvas" in values:
                try:
                    with group.watch.time("model"):
                        values["score"] = self.score(values["canvas"], values["fov"])
                    values["engine"] = self.engine.name
                except Exception as error:
                    values |= failed(values, error)
            group.add(values)
        return group.commit()


def _open_engine(
    job: SegmentJob, weights: bytes, engine: Engine, num_threads: int
) -> tuple[Score, Engine]:
    if job.reference_allowed:
        return open_or_reference(weights, engine, num_threads, job.flips)
    try:
        return open_score(weights, engine, num_threads, job.flips), engine
    except OSError as error:
        raise UserError(
            f"--compile {engine.compile} --precision {engine.precision}: {error} on "
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
    """Groups of inputs -> one row each: its canvas [S, S, 3] and fov [S, S] uint8, or why not."""
    _log_as(job)
    side = canvas_side(job.diameter)
    unread: dict[str, Any] = {
        "note": "",
        "uncertain": 0.0,
        "second": 0.0,
        "orientation": 1,
        **_columns(NOTHING_SAID),
        "geometry": np.zeros(8, np.int32),
        "canvas": np.zeros((side, side, 3), np.uint8),
        "fov": np.zeros((side, side), np.uint8),
    }
    watch = Stopwatch()
    found = _fetched(job, batch, watch)
    rows = [unread | load_one(entry, data, job, watch) for entry, data in found]
    loaded = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return loaded | {"seconds": np.tile(watch.as_array() / len(rows), (len(rows), 1))}


class Scoring:
    """Rows with a canvas -> the same with a score, in a process that holds the network."""

    def __init__(
        self,
        weights: bytes,
        precision: str,
        flips: int,
        keep_canvas: bool,
        device: str,
        num_threads: int,
    ) -> None:
        """`keep_canvas` where the rows are measured later, which takes 1 MB a row to hand on."""
        from segpipe.models.predict import Scorer  # torch: only where the network runs

        self.keep_canvas, self.engine = keep_canvas, Engine("off", precision)
        self.scorer = Scorer(weights, flips, device, num_threads, precision)

    def __call__(self, batch: Batch) -> Batch:
        watch = Stopwatch()
        kept = {"canvas": batch["canvas"]} if self.keep_canvas else {}
        with watch.time("model"):
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
                values = failed({"path": row["path"][0]}, error)
                row |= {name: np.array([value]) for name, value in values.items()}
                rows.append(row | {"score": np.zeros(row.pop("canvas").shape[:3], np.float32)})
        if num_failed == (batch["error"] == "").sum():
            row = {name: column[:1] for name, column in batch.items()} | {"error": np.array([""])}
            self.scorer(row | {"canvas": np.zeros_like(row["canvas"])})
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def store(batch: Batch, job: SegmentJob) -> Batch:
    """Scored rows of one group -> the group, committed."""
    _log_as(job)
    group = Group(job)
    for name, seconds in zip(STAGES, batch.pop("seconds").sum(axis=0), strict=True):
        group.watch.seconds[name] += float(seconds)
    for n in range(len(batch["path"])):
        group.add({name: column[n] for name, column in batch.items()})
    return group.commit()


def _log_as(job: SegmentJob) -> None:
    if job.log and job.log != log_settings():
        job.log.apply()


def _fetched(
    job: SegmentJob, batch: Batch, watch: Stopwatch
) -> Iterator[tuple[Entry, bytes | RejectedImage | OpenInput]]:
    """Each input of these groups with its bytes."""
    entries = (
        entry
        for page, rows in zip(batch["page"], batch["rows"], strict=True)
        for entry in group_entries(job.output, str(page), rows)
    )
    return fetched(job.source, entries, watch)


def fetched(
    source: Source, entries: Iterator[Entry], watch: Stopwatch
) -> Iterator[tuple[Entry, bytes | RejectedImage | OpenInput]]:
    """Each of these inputs with its bytes; some are fetched ahead, but never many bytes."""
    waiting: deque[tuple[Entry, Future[bytes | RejectedImage | OpenInput]]] = deque()
    ahead_bytes = 0
    while True:
        while not waiting or ahead_bytes < FETCHED_BYTES:
            entry = next(entries, None)
            if entry is None:
                break
            waiting.append((entry, _transfers().submit(_fetch, source, entry)))
            ahead_bytes += entry.bytes
        if not waiting:
            return
        entry, found = waiting.popleft()
        ahead_bytes -= entry.bytes
        with watch.time("fetch"):
            data = found.result()
        yield entry, data


@lru_cache(maxsize=1)
def _transfers() -> ThreadPoolExecutor:
    """This process's threads that wait for stores."""
    return ThreadPoolExecutor(TRANSFERS)


def _fetch(source: Source, entry: Entry) -> bytes | RejectedImage | OpenInput:
    """An input's bytes. Raises OSError where not this input but its whole store fails."""
    if entry.bytes > LARGEST_FILE_BYTES:
        return RejectedImage(
            Fault.FILE_TOO_LARGE, f"file larger than {LARGEST_FILE_BYTES >> 20} MiB"
        )
    try:
        return source.get(entry.key, entry.version)
    except FileNotFoundError:
        if not source.answers(entry.key):  # the whole disk has gone
            raise
        return RejectedImage(Fault.NOT_FOUND, "not found")
    except IsADirectoryError:
        return RejectedImage(Fault.NOT_FOUND, "is a folder")
    except PermissionError:
        return RejectedImage(Fault.PERMISSION_DENIED, "permission denied")
    except OSError as error:
        if not isinstance(error, ChangedObject | NotNow) and not source.answers(entry.key):
            raise
        return OpenInput(str(error))


@dataclass(frozen=True)
class OpenInput:
    """An input that could not be read now, through no fault of its bytes; it stays to do."""

    reason: str


def load_one(
    entry: Entry, data: bytes | RejectedImage | OpenInput, job: SegmentJob, watch: Stopwatch
) -> dict[str, Any]:
    """What store needs to know of an input; with canvas, fov and geometry where it was read."""
    row: dict[str, Any] = {
        "path": entry.key,
        "bytes": entry.bytes,
        "version": entry.version,
        "error": "",
        "error_code": "",
        "open": isinstance(data, OpenInput),
    }
    if isinstance(data, OpenInput):
        return row | {"error": data.reason}
    start = time.perf_counter()
    try:
        if isinstance(data, RejectedImage):
            raise data
        fitted = _decoder(job.diameter, job.max_megapixels).fit(data)
    except StarvedDecoder as error:
        watch.seconds["decode"] += time.perf_counter() - start
        return row | _left_open(entry.key, error)
    except RejectedImage as error:
        watch.seconds["decode"] += time.perf_counter() - start
        return row | {"error": str(error), "error_code": error.fault.value}
    for name, seconds in fitted.seconds.items():
        watch.seconds[name] += seconds
    whole = time.perf_counter() - start
    watch.seconds["handover"] += max(0.0, whole - sum(fitted.seconds.values()))
    return row | {
        "note": fitted.note,
        "uncertain": fitted.uncertain_fraction,
        "second": fitted.second_fraction,
        "orientation": fitted.orientation,
        **_columns(fitted.acquisition),
        "geometry": fitted.geometry.as_array(),
        "canvas": fitted.canvas,
        "fov": fitted.fov,
    }


def _columns(acquisition: Acquisition) -> dict[str, Any]:
    """As values of one type each, which a batch can hold: '' and NaN for what is not said."""
    spacing_mm = acquisition.pixel_spacing_mm
    return {
        "laterality": acquisition.laterality or "",
        "pixel_spacing_mm": math.nan if spacing_mm is None else spacing_mm,
        "device": acquisition.device or "",
        "acquired": acquisition.acquired or "",
    }


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """`_columns` -> columns of results, null for what is not said."""
    spacing_mm = float(values["pixel_spacing_mm"])
    return {
        **{name: str(values[name]) or None for name in ("laterality", "device", "acquired")},
        "pixel_spacing_mm": None if math.isnan(spacing_mm) else spacing_mm,
    }


def failed(values: dict[str, Any], error: Exception) -> dict[str, Any]:
    """What changes of an input where our own code failed on it: a rejection, open without memory.

    Raises `error` again where it is not this input's: the user's, or a store's.
    """
    if isinstance(error, UserError | StoreDown | Unfinished):
        raise error
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return _left_open(str(values["path"]), error)
    logger.error("segpipe: %s:", values["path"])  # before the traceback
    rejection = internal_error(error)
    return {"error": str(rejection), "error_code": rejection.fault.value}


def _left_open(key: str, error: Exception) -> dict[str, Any]:
    why = f"{key}: {str(error) or type(error).__name__}"
    logger.warning("segpipe: stays open: %s", why)
    return {"open": True, "error": why}


@lru_cache(maxsize=1)
def _decoder(diameter: float, max_megapixels: float) -> Decoder:
    """This process's child for untrusted bytes."""
    return Decoder(diameter, max_megapixels, DECODING_S)


class Group:
    """Masks of one group of inputs on their way into place; committed, the group is done.

    Raises StoreDown where the output cannot be written.
    """

    def __init__(self, job: SegmentJob) -> None:
        self.job, self.watch, self.started = job, Stopwatch(), time.time()
        self.rows: list[dict[str, Any]] = []
        self.writes: list[Future[None]] = []
        self.keys: list[str] = []
        """Of the pictures that are written."""
        self.num_open, self.why_open = 0, ""

    def add(self, values: dict[str, Any]) -> None:
        """An input with its score, or with the reason why it has none."""
        row: dict[str, Any] = {
            "path": str(values["path"]),
            "bytes": int(values["bytes"]),
            "version": str(values["version"]),
            "model": self.job.model,
            "checkpoint_sha256": self.job.sha256,
            "threshold": self.job.threshold,
            "settings": self.job.settings,
        }
        files: dict[str, bytes] = {}
        if not (values["open"] or values["error"]):
            try:
                row |= self._mask(row["path"], values, files)
            except Exception as error:
                values = values | failed(values, error)
        if values["open"]:
            self.num_open += 1
            self.why_open = self.why_open or str(values["error"])
            return
        if values["error"]:
            why = {name: str(values[name]) for name in ("error", "error_code")}
            row |= {"status": "rejected"} | why
        else:  # a mask is on its way when nothing can reject its photograph any more
            put = partial(self.job.output.put, durable=False)
            self.writes += [_transfers().submit(put, *file) for file in files.items()]
            self.keys += files
        self.rows.append(row | {"finished": datetime.now(UTC)})

    def _mask(self, path: str, values: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
        """An input's columns; its pictures are added to `files`, by their key in the output."""
        geometry = Geometry.from_array(values["geometry"])
        with self.watch.time("mask"):
            mask = native_mask(values["score"], values["fov"], geometry, self.job.threshold)
            field = int(np.count_nonzero(mask != OUTSIDE))
            vessel = int(np.count_nonzero(mask == VESSEL))
        with self.watch.time("encode"):
            png = codecs.encode_mask(mask, int(values["orientation"]))
        key = mask_key(filed_as(self.job.source, path))
        pictures = self._placed("mask", key, png, files)
        if self.job.probabilities:
            with self.watch.time("encode"):
                grey = native_score(values["score"], mask, geometry)
                png = codecs.encode_grey(grey, int(values["orientation"]))
            key = PROBABILITIES + key.removeprefix(MASKS)
            pictures |= self._placed("probability", key, png, files)
        return (
            self._measured(values, geometry)
            | pictures
            | _said(values)
            | {
                "status": "ok",
                "engine": str(values["engine"]),
                "note": str(values["note"]) or None,
                "height": mask.shape[0],
                "width": mask.shape[1],
                "fov_fraction": field / mask.size,
                "fov_uncertain_fraction": float(values["uncertain"]),
                "second_fov_fraction": float(values["second"]),
                "vessel_density": vessel / max(field, 1),
            }
        )

    def _placed(self, name: str, key: str, png: bytes, files: dict[str, bytes]) -> dict[str, Any]:
        """A picture to where --format says -> its columns."""
        if self.job.format != "parquet":
            files[key] = png
        return {
            f"{name}_path": key if self.job.format != "parquet" else None,
            f"{name}_png": png if self.job.format != "png" else None,
        }

    def _measured(self, values: dict[str, Any], geometry: Geometry) -> dict[str, Any]:
        """Columns of vessels and quality, from the canvas."""
        if self.job.measure == "none":
            return {}
        import cv2

        from segpipe.measure import (
            vessels as measure,  # scipy's graphs take 0.2 s, which other runs need not wait for
        )

        cv2.setNumThreads(1)  # the cores are the workers'
        with self.watch.time("measure"):
            vessel = values["score"] >= np.float32(self.job.threshold)
            mask = classes_of(vessel, values["fov"] > 127)
            zoom = geometry.box_height / geometry.scaled_height
            quality = measure.quality(values["canvas"], values["fov"])
            return asdict(measure.measure(mask, zoom)) | asdict(quality)

    def commit(self) -> Batch:
        """-> one row `started, finished, ok, rejected, open, why_open, seconds [STAGES]`."""
        try:
            with self.watch.time("write"):
                for write in self.writes:
                    write.result()
                self.job.output.sync(self.keys)  # before the part that names them
            with self.watch.time("commit"):
                if self.rows:
                    commit_part(self.job.output, self.rows)
        except OSError as error:  # with a text alone, which survives the way to the driver
            if must_change(error):
                raise UserError(
                    f"{os_error_text(error)}, check the path and who may use it"
                ) from error
            raise StoreDown(str(error)) from error
        counts = Counter(row["status"] for row in self.rows)
        return {
            "started": np.asarray([self.started]),
            "finished": np.asarray([time.time()]),
            "ok": np.asarray([counts["ok"]]),
            "rejected": np.asarray([counts["rejected"]]),
            "open": np.asarray([self.num_open]),
            "why_open": np.asarray([self.why_open]),
            "seconds": self.watch.as_array()[None],
        }


# ---- evaluate: labelled photographs

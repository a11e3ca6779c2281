"""What Ray Data does to a photograph before and after the network, one function a stage.

Importing this does not import torch, so that processes that read and write start in half a second
and stay small.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe import archive, metrics
from segpipe.data import codecs, fundus
from segpipe.data.datasets import OUTSIDE, VESSEL, Example, load_example, load_second
from segpipe.data.fundus import Geometry
from segpipe.errors import RejectedImage, UserError
from segpipe.metrics import Confusion
from segpipe.storage import Entry, Store

FETCHES = 8  # objects of a group that are fetched at once

Batch = dict[str, npt.NDArray[Any]]


# ---- segment: an archive's photographs


@dataclass(frozen=True)
class SegmentJob:
    """What the stages of an archive need to know."""

    source: Store
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
    """Groups of inputs -> one row each: its canvas [S, S, 3] and fov [S, S] uint8, or an error."""
    entries = [
        entry
        for page, start, stop in zip(batch["page"], batch["start"], batch["stop"], strict=True)
        for entry in archive.group_entries(job.output, str(page), int(start), int(stop))
    ]
    with ThreadPoolExecutor(FETCHES) as pool:
        rows = [
            _load_one(entry, data, job)
            for entry, data in zip(
                entries, pool.map(lambda e: _fetch(job.source, e), entries), strict=True
            )
        ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _fetch(source: Store, entry: Entry) -> bytes | RejectedImage:
    try:
        return source.get(entry.key)
    except FileNotFoundError:
        return RejectedImage("not found")
    except PermissionError:
        return RejectedImage("permission denied")


def _load_one(entry: Entry, data: bytes | RejectedImage, job: SegmentJob) -> dict[str, Any]:
    side = fundus.canvas_side(job.diameter)
    row: dict[str, Any] = {
        "path": entry.key,
        "bytes": entry.bytes,
        "version": entry.version,
        "error": "",
        "geometry": np.zeros(8, np.int32),
        "canvas": np.zeros((side, side, 3), np.uint8),
        "fov": np.zeros((side, side), np.uint8),
    }
    try:
        if isinstance(data, RejectedImage):
            raise data
        image = codecs.decode_image(data, job.max_megapixels)
        fov = fundus.find_fov(image)
        geometry = fundus.plan_fit(fov, job.diameter)
    except RejectedImage as error:
        return row | {"error": str(error)}
    return row | {
        "geometry": geometry.as_array(),
        "canvas": fundus.fit_image(image, geometry, side),
        "fov": fundus.fit_fov(fov, geometry, side),
    }


def store(batch: Batch, job: SegmentJob) -> Batch:
    """Scores -> masks in place, then the group's part: from here on the group is done."""
    rows = [_store_one({k: v[n] for k, v in batch.items()}, job) for n in range(len(batch["path"]))]
    archive.commit_part(job.output, rows)
    rejected = sum(row["status"] == "rejected" for row in rows)
    return {
        "finished": np.asarray([time.time()]),
        "rows": np.asarray([len(rows)]),
        "rejected": np.asarray([rejected]),
    }


def _store_one(values: dict[str, Any], job: SegmentJob) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": str(values["path"]),
        "bytes": int(values["bytes"]),
        "version": str(values["version"]),
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
    png = codecs.encode_mask(mask)
    key = archive.mask_key(row["path"]) if job.format != "parquet" else None
    if key:
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

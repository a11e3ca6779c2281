"""What happens to a labelled photograph before and after the network."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from segpipe import metrics
from segpipe.data import codecs
from segpipe.data.arrays import DISC_STEP, Image8, Mask, StructureMaps
from segpipe.data.canvas import (
    Diameter,
    Geometry,
    Working,
    canvas_side,
    fit_field,
    fit_fov,
    padded,
    plan_field,
    restore,
)
from segpipe.data.classes import VESSEL, classes_of
from segpipe.data.datasets import Labelled, field_overlap, load_example, load_kinds, load_second
from segpipe.data.layouts import Example
from segpipe.errors import UserError
from segpipe.measurement import agreement, kind_agreement, structures
from segpipe.measurement.disc import Disc
from segpipe.measurement.kind_agreement import KindCounts
from segpipe.measurement.structures import Structures
from segpipe.metrics import Confusion
from segpipe.models.engine import Engine, open_or_stand_in, open_score
from segpipe.models.forms import Score
from segpipe.models.structures import Maps, open_maps
from segpipe.storage import Store


@dataclass(frozen=True)
class EvaluateJob:
    """What the stages of labelled photographs need to know."""

    stores: tuple[Store, ...]
    """Of the sets; a row's `set` says which is its own."""
    working: Diameter
    """Working diameters in px."""
    threshold: float
    find_field: bool
    """Whether the sets' own masks of the field of view are left aside."""

    def load(self, row: dict[str, Any]) -> Labelled:
        """Raises UserError that names the file that does not fit."""
        return load_example(self.stores[row["set"]], Example.from_row(row), self.find_field)


def load_labelled(row: dict[str, Any], job: EvaluateJob) -> dict[str, Any]:
    """An example's keys and `set` -> the same, its canvas [S, S, 3] and fov [S, S], both uint8, of
    the largest canvas's S, its own `side`, and an error or ''."""
    most = canvas_side(Working.of(job.working).most)
    try:
        labelled = job.load(row)
    except UserError as error:
        nothing = np.zeros((most, most, 3), np.uint8)
        return row | {"canvas": nothing, "fov": nothing[..., 0], "side": 0, "error": str(error)}
    canvas, fov, _ = fit_field(labelled.image, labelled.fov, job.working)
    planes = {"canvas": padded(canvas, most), "fov": padded(fov, most)}
    return row | planes | {"side": len(fov), "error": ""}


class Scoring:
    """A checkpoint's network in a process of its own, run as segment would run it."""

    maps: Maps | None = None

    def __init__(
        self,
        weights: bytes,
        tta: str,
        structures: bytes | None,
        engine: Engine,
        stand_in_allowed: bool,
        device: str,
        num_threads: int,
    ) -> None:
        """`structures`: the checkpoint that finds arteries, veins and the disc, where one does;
        `stand_in_allowed`: for an engine that does not run here."""
        self.score: Score
        try:
            if stand_in_allowed:
                opened = open_or_stand_in(weights, engine, num_threads, tta, device)
            else:
                opened = open_score(weights, engine, num_threads, tta, device), engine
        except OSError as error:
            raise UserError(
                f"--backend {engine.backend} --precision {engine.precision}: {error} on "
                f"{platform.node()}; use auto for what each machine has"
            ) from error
        self.score, self.engine = opened
        if structures:
            self.maps = open_maps(structures, self.engine, num_threads, device)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """canvas [N, S, S, 3] and fov [N, S, S] uint8 become score [N, S, S] float32 and engine,
        where structures are found also the names of StructureMaps, each its planes.

        All are 0 where error is not empty.
        """
        canvases, fovs = batch.pop("canvas"), batch.pop("fov")
        num, side, _ = fovs.shape
        found = {"score": np.zeros(fovs.shape, np.float32)}
        if self.maps:
            small = side // DISC_STEP
            found["artery"] = np.zeros((num, side, side), np.float32)
            found["disc"] = np.zeros((num, small, small), np.float32)
        for n in np.flatnonzero(batch["error"] == ""):
            own = np.s_[: batch["side"][n], : batch["side"][n]]
            canvas, fov = (np.ascontiguousarray(one[n][own]) for one in (canvases, fovs))
            found["score"][n][own] = self.score(canvas, fov)
            if self.maps:
                for name, plane in self.maps(canvas, fov)._asdict().items():
                    found[name][n][: len(plane), : len(plane)] = plane
        return batch | found | {"engine": np.full(num, self.engine.name)}


def count(row: dict[str, Any], job: EvaluateJob) -> dict[str, Any]:
    """A scored example -> what evaluation keeps of it, or an error.

    counts [2, BINS] of the score in the field, `hits` [5, 2] of agreement.compare, the second
    observer's confusion `second` [4] and `second_hits` [5, 2] (zeros without one), the fields'
    overlap `field_iou` (NaN where the set gives none), and the prediction as `mask_png`, which is a
    hundredth of its pixels' size. With maps also what `_structures` tells.
    """
    score, error = row.pop("score"), row.pop("error")
    maps = [row.pop(name) for name in StructureMaps._fields if name in row]
    kept = {key: row[key] for key in ("set", "name", "engine")} | {"error": error}
    if error:
        return kept
    store, example, labelled = job.stores[row["set"]], Example.from_row(row), job.load(row)
    geometry, side = plan_field(labelled.fov, job.working)
    native = restore(score, geometry)
    label, inside = labelled.label == VESSEL, labelled.fov
    predicted = classes_of(native >= np.float32(job.threshold), inside)
    kept |= {
        "counts": metrics.count_scores(native, label, inside),
        "hits": agreement.compare(predicted == VESSEL, label, inside),
        "mask_png": codecs.encode_mask(predicted),
    }
    if maps:
        cv2.setNumThreads(1)  # the cores are the workers'
        try:
            drawing = load_kinds(store, example, labelled)
        except UserError as problem:
            return kept | {"error": str(problem)}
        fov = fit_fov(inside, geometry, side)
        score, artery, disc = (
            np.ascontiguousarray(one[:px, :px])
            for one, px in zip((score, *maps), (side, side, side // DISC_STEP), strict=True)
        )
        found = structures.find(score, StructureMaps(artery, disc), fov, geometry, job.threshold)
        kept |= _structures(found, predicted, drawing, inside, geometry)
    second = load_second(store, example, labelled)
    drawn, second_hits = Confusion(0, 0, 0, 0), np.zeros_like(kept["hits"])
    if second is not None:
        drawn = metrics.confusion_of(second[inside] == VESSEL, label[inside])
        second_hits = agreement.compare(second == VESSEL, label, inside)
    overlap = field_overlap(store, example, labelled.image)
    return kept | {
        "second": list(asdict(drawn).values()),
        "second_hits": second_hits,
        "field_iou": math.nan if overlap is None else overlap,
    }


def _structures(
    found: Structures,
    predicted: Image8,
    label: Image8 | None,
    inside: Mask,
    geometry: Geometry,
) -> dict[str, Any]:
    """`kinds`: KindCounts [9], zeros without a label [H, W] of them; `disc` [5] as Disc, in px of
    the photograph, NaN where none is found."""
    counts = KindCounts()
    if label is not None:
        told = structures.native_kinds(found.plane, predicted, geometry)
        counts = kind_agreement.compare(told, label, inside)
    disc = found.disc.in_photograph(geometry) if found.disc else None
    place = astuple(disc) if disc else (math.nan,) * len(fields(Disc))
    return {"kinds": list(astuple(counts)), "disc": list(place)}

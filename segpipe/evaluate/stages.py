"""What happens to a labelled photograph before and after the network."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segpipe import metrics
from segpipe.data import codecs
from segpipe.data.canvas import (
    canvas_side,
    fit_image,
    plan_fit,
    restore,
)
from segpipe.data.classes import VESSEL, classes_of
from segpipe.data.datasets import Labelled, field_overlap, load_example, load_second
from segpipe.data.layouts import Example
from segpipe.errors import (
    UserError,
)
from segpipe.metrics import Confusion
from segpipe.storage import Store


@dataclass(frozen=True)
class EvaluateJob:
    """What the stages of labelled photographs need to know."""

    stores: tuple[Store, ...]
    """Of the sets; a row's `set` says which is its own."""
    diameter: float
    """Working diameter in px."""
    threshold: float
    find_field: bool
    """Whether the sets' own masks of the field of view are left aside."""

    def load(self, row: dict[str, Any]) -> Labelled:
        """Raises UserError that names the file that does not fit."""
        return load_example(self.stores[row["set"]], Example.from_row(row), self.find_field)


def load_labelled(row: dict[str, Any], job: EvaluateJob) -> dict[str, Any]:
    """An example's keys and `set` -> the same, its canvas [S, S, 3] uint8 and an error or ''."""
    side = canvas_side(job.diameter)
    try:
        labelled = job.load(row)
    except UserError as error:
        return row | {"canvas": np.zeros((side, side, 3), np.uint8), "error": str(error)}
    geometry = plan_fit(labelled.fov, job.diameter)
    return row | {"canvas": fit_image(labelled.image, geometry, side), "error": ""}


def count(row: dict[str, Any], job: EvaluateJob) -> dict[str, Any]:
    """A scored example -> what evaluation keeps of it.

    counts [2, BINS] of the score in the field, the second observer's confusion `second` [4] (zeros
    without one), the fields' overlap `field_iou` (NaN where the set gives none), and the prediction
    as `mask_png`, which is a hundredth of its pixels' size.
    """
    score, error = row.pop("score"), row.pop("error")
    kept = {"set": row["set"], "name": row["name"], "error": error}
    if error:
        return kept
    store, example, labelled = job.stores[row["set"]], Example.from_row(row), job.load(row)
    native = restore(score, plan_fit(labelled.fov, job.diameter))
    label, inside = labelled.label == VESSEL, labelled.fov
    second = load_second(store, example, labelled)
    drawn = (
        Confusion(0, 0, 0, 0)
        if second is None
        else metrics.confusion_of(second[inside] == VESSEL, label[inside])
    )
    overlap = field_overlap(store, example, labelled.image)
    predicted = classes_of(native >= np.float32(job.threshold), inside)
    return kept | {
        "counts": metrics.count_scores(native, label, inside),
        "second": list(asdict(drawn).values()),
        "field_iou": math.nan if overlap is None else overlap,
        "mask_png": codecs.encode_mask(predicted),
    }

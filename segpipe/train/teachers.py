"""Teachers: networks whose scores are mixed into the soft labels of another one's training.

So what they know, and what their mean over mirror images knows, is distilled into one network and
one pass (Hinton, Vinyals and Dean, arXiv:1503.02531).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from segpipe.data.arrays import Plane
from segpipe.data.canvas import Geometry, fit_field
from segpipe.data.datasets import Labelled
from segpipe.models import checkpoint, engine

TTA = "flip4"


class Teachers:
    """Networks of checkpoints, one photograph at a time, on one thread."""

    def __init__(self, weights: Sequence[bytes]) -> None:
        self.all = []
        for one in weights:
            chosen = engine.select(engine.find_trials(one, "cpu"), "auto", "fp32").engine
            score, _ = engine.open_or_stand_in(one, chosen, 1, TTA)
            self.all.append((score, checkpoint.load(one, "--teachers").card.working))

    def __call__(self, labelled: Labelled, height: int, width: int) -> Plane:
        """-> [height, width] float32: their mean score, 0 beyond the field, at this size."""
        mean = np.zeros((height, width), np.float32)
        for score, working in self.all:
            canvas, fov, geometry = fit_field(labelled.image, labelled.fov, working)
            mean += resized(score(canvas, fov), geometry, height, width)
        return mean / np.float32(len(self.all))


def resized(score: Plane, geometry: Geometry, height: int, width: int) -> Plane:
    """score [S, S] float32 on a canvas -> [height, width] float32 of the whole photograph."""
    g = geometry
    box = np.ascontiguousarray(score[: g.scaled_height, : g.scaled_width])
    # pixel centres are at halves: of the picture wanted, of the photograph, of the canvas
    across, down = g.width / width, g.height / height  # px of the photograph for one that is wanted
    x, y = g.scaled_width / g.box_width, g.scaled_height / g.box_height  # px of the canvas for one
    back = np.array(
        [
            [across * x, 0, (across / 2 - g.left) * x - 0.5],
            [0, down * y, (down / 2 - g.top) * y - 0.5],
        ]
    )
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(box, back, (width, height), flags=how), np.float32)

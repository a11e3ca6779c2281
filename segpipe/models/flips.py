"""The mean over mirror images: truer scores, for as many times the network's work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

FLIPS: dict[int, tuple[tuple[int, ...], ...]] = {1: ((),), 4: ((), (0,), (1,), (0, 1))}
"""Axes along which a canvas is mirrored, by how many scores are averaged."""


def over_flips(
    score: Callable[..., npt.NDArray[np.float32]], flips: int, rows: int = 0
) -> Callable[..., npt.NDArray[np.float32]]:
    """The mean of the scores of images and of their mirror images, `flips` of FLIPS in all.

    `rows` is the axis of their rows: 0 of one canvas and its field, 1 of a batch of canvases.
    """
    if flips == 1:
        return score

    def mean(*images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        total: Any = 0
        for along in FLIPS[flips]:
            axes = tuple(rows + axis for axis in along)
            total = total + np.flip(score(*(np.flip(image, axes) for image in images)), axes)
        return np.asarray(total / np.float32(flips), np.float32)

    return mean

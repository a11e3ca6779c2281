"""Test-time augmentation: the mean score over mirror images, for as many times the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

TTA: dict[str, tuple[tuple[int, ...], ...]] = {"none": ((),), "flip4": ((), (0,), (1,), (0, 1))}
"""By name, the axes of a canvas along which it is mirrored for each score."""


def num_scores(tta: str) -> int:
    """How many scores are averaged."""
    return len(TTA[tta])


def tta_of(num: int) -> str:
    """The name by which so many scores are averaged, as files tell it. Raises ValueError."""
    for name in TTA:
        if num_scores(name) == num:
            return name
    raise ValueError(f"{num} scores, wanted one of {[num_scores(name) for name in TTA]}")


def averaged(
    score: Callable[..., npt.NDArray[np.float32]], tta: str, rows: int = 0
) -> Callable[..., npt.NDArray[np.float32]]:
    """The mean of the scores of images and of their mirror images, as TTA names them.

    `rows` is the axis of their rows: 0 of one canvas and its field, 1 of a batch of canvases.
    """
    if tta == "none":
        return score

    def mean(*images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        total: Any = 0
        for along in TTA[tta]:
            axes = tuple(rows + axis for axis in along)
            total = total + np.flip(score(*(np.flip(image, axes) for image in images)), axes)
        return np.asarray(total / np.float32(num_scores(tta)), np.float32)

    return mean

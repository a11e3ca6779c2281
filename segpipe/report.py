"""Figures, as PNG bytes, and the HTML report."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from segpipe.data.datasets import CLASSES


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def loss_curves(history: list[dict[str, float]]) -> bytes:
    """Train and test loss over the epochs."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(history) < 20 else None
    for name, label in (("train_loss", "train crops"), ("test_loss", "test images")):
        axes.plot(epochs, [row[name] for row in history], label=label, marker=marker)
    axes.set(xlabel="epoch", ylabel="mean negative log-likelihood per pixel", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def class_probabilities(
    image: npt.NDArray[np.uint8], prob: npt.NDArray[np.float32], label: npt.NDArray[np.uint8]
) -> bytes:
    """image [H, W, 3] uint8; per class its probability (prob [C, H, W]) beside its truth."""
    figure = Figure(figsize=(10, 3.2 * (1 + len(CLASSES)) / 2), layout="constrained")
    grid = figure.subplots(len(CLASSES), 3, squeeze=False)
    for row, name in enumerate(CLASSES):
        for axes in grid[row]:
            axes.set_axis_off()
        grid[row, 1].imshow(prob[row], cmap="gray", vmin=0, vmax=1)
        grid[row, 1].set_title(f"p({name})")
        grid[row, 2].imshow(label == row, cmap="gray", vmin=0, vmax=1)
        grid[row, 2].set_title(f"truth: {name}")
    grid[0, 0].imshow(image)
    grid[0, 0].set_title("image")
    return _png(figure)

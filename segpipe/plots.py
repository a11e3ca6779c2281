"""Figures of training and evaluation, as PNG bytes."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from segpipe.data.classes import CLASSES

FALSE_ALARM, MISSED = (230, 60, 40), (60, 120, 255)  # RGB


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def loss_curves(history: list[dict[str, float]]) -> bytes:
    """Train, validation and test loss over the epochs, those that there are."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(history) < 20 else None
    names = {"train_loss": "train crops", "val_loss": "held back", "test_loss": "test images"}
    for name, label in names.items():
        if history[0].get(name, "") != "":
            axes.plot(epochs, [row[name] for row in history], label=label, marker=marker)
    axes.set(xlabel="epoch", ylabel="mean negative log-likelihood per pixel", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def class_probabilities(
    image: npt.NDArray[np.uint8], prob: npt.NDArray[np.float32], label: npt.NDArray[np.uint8]
) -> bytes:
    """image [H, W, 3] uint8; per class its probability (prob [C, H, W]) beside its truth."""
    figure = Figure(figsize=(9, 3 * len(CLASSES)), layout="constrained")
    grid = figure.subplots(len(CLASSES), 3, squeeze=False)
    left = {"image": image, "likeliest class": prob.argmax(axis=0), "truth": label}
    for index, (name, (title, picture)) in enumerate(zip(CLASSES, left.items(), strict=True)):
        row = {title: picture, f"p({name})": prob[index], f"truth: {name}": label == index}
        for axes, (heading, values) in zip(grid[index], row.items(), strict=True):
            highest = len(CLASSES) - 1 if heading in left else 1
            axes.imshow(values, cmap="gray", vmin=0, vmax=highest)
            axes.set_title(heading)
            axes.set_axis_off()
    return _png(figure)


def comparison(
    shown: list[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]],
) -> bytes:
    """Rows of (title, image [H, W, 3], true vessel [H, W], predicted vessel [H, W])."""
    figure = Figure(figsize=(11, 3.9 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 3, squeeze=False)
    for row, (title, image, truth, predicted) in zip(grid, shown, strict=True):
        drawn = np.zeros((*truth.shape, 3), np.uint8)
        drawn[truth & predicted] = 255
        drawn[predicted & ~truth] = FALSE_ALARM
        drawn[truth & ~predicted] = MISSED
        pictures = {title: image, "truth": truth, "found; false alarm red, missed blue": drawn}
        for axes, (name, picture) in zip(row, pictures.items(), strict=True):
            axes.imshow(picture, cmap="gray")
            axes.set_title(name)
            axes.set_axis_off()
    return _png(figure)

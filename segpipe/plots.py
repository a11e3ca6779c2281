"""Figures of training, evaluation and archives, as PNG bytes."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from segpipe import metrics
from segpipe.data.classes import CLASSES
from segpipe.metrics import Confusion, Counts

FALSE_ALARM, MISSED = (230, 60, 40), (60, 120, 255)  # RGB
OURS, SECOND, QUIET = "#1f6f8b", "#c4512d", "#777777"  # network, second observer, references
NAMED = 60  # photographs that a plot has room to name
LONGEST_NAME = 28  # characters
HISTOGRAM_BINS = 64  # of the score


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # a file's name may have any letter, the font has not
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
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
    return to_png(figure)


def class_probabilities(
    image: npt.NDArray[np.uint8], prob: npt.NDArray[np.float32], label: npt.NDArray[np.uint8]
) -> bytes:
    """image [H, W, 3] uint8; per class its probability (prob [C, H, W]) beside its label."""
    figure = Figure(figsize=(9, 3 * len(CLASSES)), layout="constrained")
    grid = figure.subplots(len(CLASSES), 3, squeeze=False)
    left = {"image": image, "likeliest class": prob.argmax(axis=0), "label": label}
    for index, (name, (title, picture)) in enumerate(zip(CLASSES, left.items(), strict=True)):
        row = {title: picture, f"p({name})": prob[index], f"label: {name}": label == index}
        for axes, (heading, values) in zip(grid[index], row.items(), strict=True):
            highest = len(CLASSES) - 1 if heading in left else 1
            axes.imshow(values, cmap="gray", vmin=0, vmax=highest)
            axes.set_title(heading)
            axes.set_axis_off()
    return to_png(figure)


def errors(label: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """True and predicted vessel [H, W] -> [H, W, 3]: hits white, false alarms red, missed blue."""
    drawn = np.zeros((*label.shape, 3), np.uint8)
    drawn[label & predicted] = 255
    drawn[predicted & ~label] = FALSE_ALARM
    drawn[label & ~predicted] = MISSED
    return drawn


def comparison(shown: Sequence[tuple[str, Any, Any, Any]]) -> bytes:
    """Rows of a title and three pictures: photograph, label, and errors as coloured above.

    A picture is whatever numpy makes [H, W] or [H, W, 3] uint8 of.
    """
    figure = Figure(figsize=(11, 3.9 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 3, squeeze=False)
    for row, (title, image, label, drawn) in zip(grid, shown, strict=True):
        pictures = {title: image, "label": label, "found; false alarm red, missed blue": drawn}
        for axes, (name, picture) in zip(row, pictures.items(), strict=True):
            axes.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
            axes.set_title(name, parse_math=False)
            axes.set_axis_off()
    return to_png(figure)


def roc_and_precision_recall(counts: Counts, threshold: float, second: Confusion | None) -> bytes:
    """Both curves with the point at the threshold, the second observer's, and its line of Dice."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rate, sensitivity = metrics.roc_curve(counts)
    recall, precision = metrics.precision_recall_curve(counts)
    share = float(counts[1].sum() / max(counts.sum(), 1))  # of vessels
    left.plot(rate, sensitivity, color=OURS, label=f"network, AUC {metrics.auc(counts):.4f}")
    name = f"network, average precision {metrics.average_precision(counts):.4f}"
    right.plot(recall, precision, color=OURS, label=name)
    left.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=":", label="chance")
    right.axhline(share, color=QUIET, linewidth=0.8, linestyle=":", label=f"chance, {share:.3f}")
    ours = metrics.confusion(counts, threshold)
    _points(left, right, ours, "o", OURS, f"threshold {threshold:.3f}: Dice {ours.dice:.4f}")
    if second is not None:
        _points(left, right, second, "D", SECOND, f"second observer: Dice {second.dice:.4f}")
        lines_of_equal_dice(left, right, second.dice, share)
    left.set(title="ROC", xlabel="1 - specificity, share of background pixels")
    left.set(ylabel="sensitivity, share of vessel pixels")
    right.set(title="Precision and recall", xlabel="recall (sensitivity), share of vessel pixels")
    right.set(ylabel="precision, share of pixels called vessel")
    for axes, place in ((left, "lower right"), (right, "lower left")):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.grid(alpha=0.3)
        axes.legend(loc=place)
    return to_png(figure)


def _points(left: Any, right: Any, at: Confusion, marker: str, colour: str, label: str) -> None:
    """A confusion's place in the plane of each curve."""
    style: dict[str, Any] = {"marker": marker, "color": colour, "zorder": 3, "label": label}
    style |= {"linestyle": "none", "markersize": 7, "markeredgecolor": "white"}
    left.plot([1 - at.specificity], [at.sensitivity], **style)
    precision = at.tp / (at.tp + at.fp) if at.tp + at.fp else math.nan
    right.plot([at.sensitivity], [precision], **style)


def lines_of_equal_dice(left: Any, right: Any, dice: float, share: float) -> None:
    """Where Dice has this value, in the plane of each curve; `share` of the pixels are vessels.

    Dice = 2 tp / (2 tp + fp + fn), solved for sensitivity and for precision.
    """
    style: dict[str, Any] = {"color": SECOND, "linewidth": 1, "linestyle": "--"}
    style["label"] = f"the same Dice, {dice:.4f}"
    rate = np.linspace(0, 1, 201)
    per_vessel = rate * (1 - share) / share if share else np.full(201, np.nan)
    left.plot(rate, dice * (1 + per_vessel) / (2 - dice), **style)
    recall = np.linspace(dice / (2 - dice), 1, 201)
    right.plot(recall, dice * recall / (2 * recall - dice), **style)


def dice_of_images(
    dice: Sequence[float], second: Sequence[float], pooled: float, names: Sequence[str]
) -> bytes:
    """Each photograph's Dice, from the highest down, beside the second observer's (NaN: none).

    `pooled` is the Dice of all pixels; `names` may be empty.
    """
    order = np.argsort(-np.asarray(dice, float), kind="stable")
    place = np.arange(1, len(order) + 1)
    named = 0 < len(names) <= NAMED
    width = max(7.0, min(15.0, 2.0 + 0.25 * len(order)))
    figure = Figure(figsize=(width, 5.5 if named else 4.5), layout="constrained")
    axes = figure.subplots()
    ours, theirs = np.asarray(dice, float)[order], np.asarray(second, float)[order]
    size = 6 if len(order) <= NAMED else 3
    if np.isfinite(theirs).any():
        axes.vlines(place, ours, theirs, color=QUIET, alpha=0.5, linewidth=0.8)
        axes.plot(place, theirs, "D", color=SECOND, markersize=size - 1, label="second observer")
    axes.plot(place, ours, "o", color=OURS, markersize=size, label="network")
    axes.axhline(pooled, color=OURS, linewidth=1, linestyle="--", label=f"all pixels {pooled:.4f}")
    axes.set(ylabel="Dice", title="Dice of each photograph")
    axes.set_xlabel("photograph" if named else "photographs, from the highest Dice to the lowest")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if named:
        labels = [_short(names[index]) for index in order]
        axes.set_xticks(place, labels, rotation=90, parse_math=False)
    lowest = np.nanmin(np.r_[ours, theirs, pooled, 1.0])
    axes.set_ylim(max(-0.01, np.floor(10 * lowest - 0.5) / 10), 1)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    return to_png(figure)


def _short(name: str) -> str:
    printed = "".join(letter if letter.isprintable() else "?" for letter in name)
    return printed if len(printed) <= LONGEST_NAME else f"{printed[: LONGEST_NAME - 1]}…"


def reliability(counts: Counts, threshold: float) -> bytes:
    """The share of vessels among pixels of each score, and below how many pixels have it."""
    found = metrics.reliability(counts)
    figure = Figure(figsize=(6.5, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle="--", label="calibrated")
    label = f"network, expected calibration error {found.expected_error:.4f}"
    some = found.pixels > 0
    style: dict[str, Any] = {"marker": "o", "color": OURS, "label": label}
    above.plot(found.mean_score[some], found.vessel_share[some], **style)
    above.set(ylabel="vessels, share of the pixels", title="Reliability")
    above.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    pixels = counts.sum(axis=0).reshape(HISTOGRAM_BINS, -1).sum(axis=1)
    below.stairs(
        np.maximum(pixels, 1), np.linspace(0, 1, HISTOGRAM_BINS + 1), fill=True, color=OURS
    )
    below.set(xlabel="score", ylabel="pixels", yscale="log")
    for axes in (above, below):
        axes.axvline(threshold, color=SECOND, linewidth=1, label=f"threshold {threshold:.3f}")
        axes.grid(alpha=0.3)
    above.legend(loc="lower right")
    return to_png(figure)


def bars(
    edges: npt.NDArray[np.float64],
    heights: npt.NDArray[Any],
    unit: str,
    dashed: Sequence[float] = (),
    log: bool = False,
    wide: bool = False,
) -> bytes:
    """A bar of heights [N] from each of edges [N + 1] to the next, and dashed lines at places.

    `unit` is what the x axis tells; `log` has it in octaves.
    """
    figure = Figure(figsize=(14 if wide else 7, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.stairs(heights, edges, fill=True, color=OURS)
    for place in dashed:
        axes.axvline(place, color=SECOND, linewidth=1.2, linestyle="--")
    if log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.3g}")
    axes.set(xlabel=unit, xlim=(edges[0], edges[-1]), ylim=(0, None))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter("{x:,.6g}")
    axes.grid(alpha=0.3)
    return to_png(figure)

"""Counts that add over images, workers and splits -> Dice, MCC, AUC, average precision.

Everything follows from two histograms of the score, one over vessel pixels, one over the rest.
65,536 bins of equal width keep AUC within 1e-5 of the exact one, and a threshold that lies on a
bin's edge counts exactly what `score >= threshold` counts.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 1 << 16
RELIABILITY_BINS = 16  # of the score, each of a whole number of BINS
Counts = npt.NDArray[np.int64]  # [2, BINS]: row 0 pixels that are no vessel, row 1 vessel pixels
Numbers = npt.NDArray[np.float64]


def count_scores(
    score: npt.NDArray[np.float32], vessel: npt.NDArray[np.bool_], inside: npt.NDArray[np.bool_]
) -> Counts:
    """score [H, W] in [0, 1], truth `vessel` [H, W], and where to count -> histograms [2, BINS]."""
    bins = np.minimum((score[inside] * BINS).astype(np.int64), BINS - 1)
    index = bins + BINS * vessel[inside]
    return np.bincount(index, minlength=2 * BINS).reshape(2, BINS)


@dataclass(frozen=True)
class Confusion:
    """Pixels by truth and prediction."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def dice(self) -> float:
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def sensitivity(self) -> float:
        return ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        return ratio(self.tn, self.tn + self.fp)

    @property
    def accuracy(self) -> float:
        return ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def mcc(self) -> float:
        """Matthews correlation coefficient."""
        tp, fp, fn, tn = asdict(self).values()
        return ratio(tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))

    def summary(self) -> dict[str, float]:
        names = ("dice", "mcc", "sensitivity", "specificity", "accuracy")
        return {name: getattr(self, name) for name in names}


def ratio(part: float, whole: float) -> float:
    """NaN of nothing."""
    return part / whole if whole else math.nan


def confusion(counts: Counts, threshold: float) -> Confusion:
    """Counts [2, BINS], a threshold in [0, 1) -> pixels by truth and prediction (score >= it)."""
    edge = math.ceil(threshold * BINS)
    above = counts[:, edge:].sum(axis=1)
    total = counts.sum(axis=1)
    return Confusion(
        tp=int(above[1]),
        fp=int(above[0]),
        fn=int(total[1] - above[1]),
        tn=int(total[0] - above[0]),
    )


def confusion_of(predicted: npt.NDArray[np.bool_], vessel: npt.NDArray[np.bool_]) -> Confusion:
    """Two bool arrays of one shape, the prediction and the truth -> pixels by both."""
    tp, fp = int((predicted & vessel).sum()), int((predicted & ~vessel).sum())
    return Confusion(tp, fp, int(vessel.sum()) - tp, int((~vessel).sum()) - fp)


def _descending(counts: Counts) -> tuple[Numbers, Numbers]:
    """True and false positives at every threshold, from the highest bin down, each [BINS]."""
    falling = counts[:, ::-1].cumsum(axis=1).astype(np.float64)
    return falling[1], falling[0]


def roc_curve(counts: Counts) -> tuple[Numbers, Numbers]:
    """False positive rate and sensitivity, each [BINS + 1], from no pixel called vessel to all.

    NaN where the class is empty.
    """
    tp, fp = _descending(counts)
    return _share_of_last(fp), _share_of_last(tp)


def _share_of_last(rising: Numbers) -> Numbers:
    return np.append(0.0, rising) / (rising[-1] or math.nan)


def precision_recall_curve(counts: Counts) -> tuple[Numbers, Numbers]:
    """Recall (NaN without a vessel pixel) and precision at each threshold that any pixel reaches.

    From the highest threshold down, both of one length, at most [BINS].
    """
    tp, fp = _descending(counts)
    reached = tp + fp > 0
    return tp[reached] / (tp[-1] or math.nan), tp[reached] / (tp + fp)[reached]


def auc(counts: Counts) -> float:
    """Area under the ROC curve by the trapezoidal rule; NaN where a class is empty."""
    false_positive_rate, sensitivity = roc_curve(counts)
    return float(np.trapezoid(sensitivity, false_positive_rate))


def average_precision(counts: Counts) -> float:
    """Sum over thresholds of precision times the gain in recall; NaN without a vessel pixel."""
    if not counts[1].any():
        return math.nan
    recall, precision = precision_recall_curve(counts)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def best_threshold(counts: Counts, spare: float = 0.0) -> float:
    """The bin edge at which Dice is highest, in [0, 1).

    With Dice to spare the highest edge at which it is at most so much lower.
    """
    tp, fp = _descending(counts)
    dice = 2 * tp / np.maximum(tp + fp + tp[-1], 1)
    return float(BINS - 1 - int(np.argmax(dice >= dice.max() - spare))) / BINS


def fit_calibration(counts: Counts) -> tuple[float, float]:
    """(slope, intercept) of the score's logit that make these counts most likely.

    Platt, "Probabilistic outputs for support vector machines" (1999), without his prior: there are
    millions of pixels. Scores are those of their bins' middles. (1, 0) where a class is empty.
    """
    from scipy.optimize import minimize  # takes half a second, and no worker of segment needs it
    from scipy.special import expit, logit

    if not counts.sum(axis=1).all():
        return 1.0, 0.0
    filled = np.flatnonzero(counts.sum(axis=0))
    vessel, total = counts[1, filled], counts[:, filled].sum(axis=0)
    z = logit((filled + 0.5) / BINS)

    def loss(parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        fitted = parameters[0] * z + parameters[1]
        nll = (total * np.logaddexp(0, fitted) - vessel * fitted).sum() / total.sum()
        slope = (total * expit(fitted) - vessel) / total.sum()
        return float(nll), np.array([(slope * z).sum(), slope.sum()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS")
    return float(found.x[0]), float(found.x[1])


def summary(counts: Counts, threshold: float) -> dict[str, float]:
    """All figures of one image or of many added together.

    `best_dice` is what `best_threshold` would give, chosen on these counts themselves; NaN without
    a vessel pixel.
    """
    best = best_threshold(counts) if counts[1].any() else math.nan
    return {
        "auc": auc(counts),
        "average_precision": average_precision(counts),
        **confusion(counts, threshold).summary(),
        "threshold": threshold,
        "best_threshold": best,
        "best_dice": math.nan if math.isnan(best) else confusion(counts, best).dice,
    }


@dataclass(frozen=True)
class Reliability:
    """How a score compares with how often it is right, in bins of the score of equal width.

    Each array is [RELIABILITY_BINS].
    """

    pixels: Counts
    mean_score: Numbers
    """Of the bin's pixels, from the centres of the histograms' bins; NaN where there are none."""
    vessel_share: Numbers
    """Of the bin's pixels; NaN where there are none."""

    @property
    def expected_error(self) -> float:
        """Mean distance of share and score over all pixels (Guo et al. 2017, eq. 3)."""
        distance = np.nan_to_num(np.abs(self.vessel_share - self.mean_score))
        return ratio(float((self.pixels * distance).sum()), int(self.pixels.sum()))

    def summary(self) -> dict[str, Any]:
        """Of each bin, from score 0 up to 1: its range, pixels, mean score and share of vessels."""
        edges = np.linspace(0, 1, RELIABILITY_BINS + 1)
        columns = {
            "low": edges[:-1],
            "high": edges[1:],
            "pixels": self.pixels,
            "mean_score": self.mean_score,
            "vessel_share": self.vessel_share,
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        bins = [dict(zip(columns, row, strict=True)) for row in rows]
        return {"expected_calibration_error": self.expected_error, "bins": bins}


def reliability(counts: Counts) -> Reliability:
    """Counts [2, BINS] -> pixels, mean score and share of vessels in each bin of the score."""
    binned = counts.reshape(2, RELIABILITY_BINS, -1)
    centres = ((np.arange(BINS) + 0.5) / BINS).reshape(RELIABILITY_BINS, -1)
    pixels, vessels = binned.sum(axis=(0, 2)), binned[1].sum(axis=1)
    some = np.where(pixels, pixels, np.nan)
    return Reliability(pixels, (binned.sum(axis=0) * centres).sum(axis=1) / some, vessels / some)

"""Figures from histograms are scikit-learn's figures from pixels.

Run: pytest tests/test_metrics.py
"""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from segpipe import metrics
from segpipe.metrics import BINS


def pixels(kind: str, seed: int = 0, size: int = 20_000):
    rng = np.random.default_rng(seed)
    truth = rng.random(size) < 0.12
    score = 1 / (1 + np.exp(-rng.normal(np.where(truth, 0.5, -1.5), 1.0)))
    if kind == "tied":
        score = np.round(score * 8) / 8
    return score.astype(np.float32).reshape(1, -1), truth.reshape(1, -1)


def counted(score, truth):
    return metrics.count_scores(score, truth, np.ones_like(truth))


@pytest.mark.parametrize("kind", ["smooth", "tied"])
def test_auc_and_average_precision_equal_sklearns(kind):
    score, truth = pixels(kind)
    counts = counted(score, truth)
    assert metrics.auc(counts) == pytest.approx(sk.roc_auc_score(truth[0], score[0]), abs=1e-5)
    wanted = sk.average_precision_score(truth[0], score[0])
    assert metrics.average_precision(counts) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("kind", ["smooth", "tied"])
@pytest.mark.parametrize("threshold", [0.125, 0.375, 20000 / BINS])
def test_figures_at_a_threshold_equal_sklearns(kind, threshold):
    score, truth = pixels(kind)
    predicted, truth_flat = score[0] >= np.float32(threshold), truth[0]
    wanted = {
        "dice": sk.f1_score(truth_flat, predicted),
        "mcc": sk.matthews_corrcoef(truth_flat, predicted),
        "sensitivity": sk.recall_score(truth_flat, predicted),
        "specificity": sk.recall_score(~truth_flat, ~predicted),
        "accuracy": sk.accuracy_score(truth_flat, predicted),
    }
    by_counts = metrics.confusion(counted(score, truth), threshold)
    assert by_counts.summary() == pytest.approx(wanted, abs=1e-12)
    assert metrics.confusion_of(predicted, truth_flat) == by_counts


def test_counts_of_two_images_add_up_to_those_of_both_together():
    a, b = pixels("smooth", 1), pixels("tied", 2)
    together = counted(np.hstack([a[0], b[0]]), np.hstack([a[1], b[1]]))
    np.testing.assert_array_equal(counted(*a) + counted(*b), together)


def test_only_pixels_inside_are_counted():
    score, truth = pixels("smooth")
    inside = np.arange(truth.size).reshape(truth.shape) % 3 == 0
    counts = metrics.count_scores(score, truth, inside)
    np.testing.assert_array_equal(counts, counted(score[:, ::3], truth[:, ::3]))


def test_the_best_threshold_has_the_highest_dice_of_all():
    score, truth = pixels("smooth", size=500)
    best = metrics.best_threshold(counted(score, truth))
    dice = [sk.f1_score(truth[0], score[0] >= t) for t in np.unique(score)]
    assert sk.f1_score(truth[0], score[0] >= np.float32(best)) == pytest.approx(max(dice))


def test_an_empty_class_has_no_auc():
    score, _ = pixels("smooth")
    counts = counted(score, np.zeros(score.shape, bool))
    assert math.isnan(metrics.auc(counts))
    assert math.isnan(metrics.average_precision(counts))
    assert math.isnan(metrics.confusion(counts, 0.5).sensitivity)

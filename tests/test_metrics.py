"""Figures from histograms are scikit-learn's figures from pixels.

Run: pytest tests/test_metrics.py
"""

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

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


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.6, -0.8), (2.5, 1.5)])
def test_a_calibration_is_sklearns_logistic_regression(slope, intercept):
    """And it undoes what was done to scores that had been right."""
    rng = np.random.default_rng(3)
    right = rng.normal(-1.5, 2.0, 40_000)  # logits
    truth = rng.random(right.size) < expit(right)
    z = (right - intercept) / slope
    found = metrics.fit_calibration(counted(expit(z).astype(np.float32)[None], truth[None]))
    fit = LogisticRegression(C=np.inf, tol=1e-8).fit(z[:, None], truth)
    assert found == pytest.approx((fit.coef_[0, 0], fit.intercept_[0]), abs=2e-3)
    assert found == pytest.approx((slope, intercept), abs=0.08)


def test_without_one_of_the_classes_nothing_is_calibrated():
    score, truth = pixels("smooth")
    assert metrics.fit_calibration(counted(score, truth & False)) == (1.0, 0.0)


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


@pytest.mark.parametrize("spare", [0.002, 0.05])
def test_with_dice_to_spare_the_threshold_is_the_highest_that_costs_no_more(spare):
    score, truth = pixels("smooth", size=500)
    found = metrics.best_threshold(counted(score, truth), spare)
    dice = {t: sk.f1_score(truth[0], score[0] >= t) for t in np.unique(score)}
    least = max(dice.values()) - spare
    assert dice[min(t for t in dice if t >= np.float32(found))] >= least
    assert all(dice[t] < least for t in dice if t >= np.float32(found) + 1 / BINS)


def test_an_empty_class_has_no_auc():
    score, _ = pixels("smooth")
    counts = counted(score, np.zeros(score.shape, bool))
    assert math.isnan(metrics.auc(counts))
    assert math.isnan(metrics.average_precision(counts))
    assert math.isnan(metrics.confusion(counts, 0.5).sensitivity)


def test_a_threshold_on_any_bins_edge_counts_what_reaches_it():
    """Scores on, just below and just above edges, against plain numpy."""
    edges = np.array([0, 1, 2, 16384, 20001, 32768, BINS - 1], np.float32) / BINS
    score = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, 1)])
    score = score.astype(np.float32).clip(0, 1).reshape(1, -1)
    truth = (np.arange(score.size) % 3 == 0).reshape(1, -1)
    counts = counted(score, truth)
    for edge in edges:
        predicted = score >= edge
        wanted = metrics.confusion_of(predicted, truth)
        assert wanted.tp + wanted.fp == predicted.sum()
        assert metrics.confusion(counts, float(edge)) == wanted, edge


def test_the_best_dice_stands_beside_that_of_the_threshold_in_use():
    """Against scikit-learn at every score that there is; without a vessel there is none."""
    score, truth = pixels("smooth", seed=6, size=500)
    found = metrics.summary(counted(score, truth), 0.9)
    dice = [sk.f1_score(truth[0], score[0] >= t) for t in np.unique(score)]
    assert found["best_dice"] == pytest.approx(max(dice))
    assert (
        found["best_dice"]
        > found["dice"]
        == pytest.approx(sk.f1_score(truth[0], score[0] >= np.float32(0.9)))
    )
    at_best = sk.f1_score(truth[0], score[0] >= np.float32(found["best_threshold"]))
    assert at_best == pytest.approx(max(dice))
    none = metrics.summary(counted(score, truth & False), 0.5)
    assert math.isnan(none["best_threshold"])
    assert math.isnan(none["best_dice"])


def test_the_best_threshold_beats_every_other_edge():
    score, truth = pixels("tied", seed=4, size=300)
    counts = counted(score, truth)
    best = metrics.confusion(counts, metrics.best_threshold(counts)).dice
    others = [metrics.confusion(counts, edge / BINS).dice for edge in range(0, BINS, 64)]
    assert best == max(others) > sorted(others)[0]


def test_the_best_threshold_parts_neighbouring_bins():
    """Vessels from bin 500 on, the rest up to bin 499: one edge alone is without an error."""
    counts = np.zeros((2, BINS), np.int64)
    counts[1, 500:600] = 3
    counts[0, 400:500] = 2
    assert metrics.best_threshold(counts) == 500 / BINS
    assert metrics.confusion(counts, 500 / BINS).dice == 1.0


def test_a_perfect_and_a_reversed_score_have_the_figures_they_must_have():
    truth = np.array([[True, False, True, False, False]])
    perfect, reversed_ = (
        counted(np.where(t, 0.9, 0.1).astype(np.float32), truth) for t in (truth, ~truth)
    )
    assert metrics.auc(perfect) == metrics.average_precision(perfect) == 1.0
    assert metrics.auc(reversed_) == 0.0
    assert metrics.average_precision(reversed_) == pytest.approx(2 / 5)
    assert metrics.confusion(perfect, 0.5).mcc == 1.0
    assert metrics.confusion(reversed_, 0.5).mcc == -1.0


def test_figures_of_a_hand_made_table():
    """tp 3, fp 1, fn 2, tn 4: worked out by hand."""
    found = metrics.Confusion(tp=3, fp=1, fn=2, tn=4)
    assert found.dice == pytest.approx(6 / 9)
    assert found.sensitivity == pytest.approx(3 / 5)
    assert found.specificity == pytest.approx(4 / 5)
    assert found.accuracy == pytest.approx(7 / 10)
    assert found.mcc == pytest.approx(10 / math.sqrt(4 * 5 * 5 * 6))


def test_mcc_of_an_archives_pixels_does_not_overflow():
    big = 10**11
    assert metrics.Confusion(big, 0, 0, big).mcc == 1.0


def test_nothing_counted_has_no_figures():
    counts = np.zeros((2, BINS), np.int64)
    figures = metrics.summary(counts, 0.5)
    assert figures.pop("threshold") == 0.5
    assert len(figures) == 9
    assert all(math.isnan(value) for value in figures.values())


# ---- curves


def quantised(size: int = 20_000):
    """Scores in the middle of the histograms' bins, so that no rounding parts us and sklearn.

    The highest score is no vessel's: both curves begin with a false alarm.
    """
    score, truth = pixels("smooth", size=size)
    truth[0, score.argmax()] = False
    return ((np.floor(score * BINS) + 0.5) / BINS).astype(np.float32), truth


def test_the_roc_curve_is_sklearns():
    score, truth = quantised()
    rate, sensitivity = metrics.roc_curve(counted(score, truth))
    wanted = sk.roc_curve(truth[0], score[0], drop_intermediate=False)[:2]
    found = np.unique(np.stack([rate, sensitivity], axis=1), axis=0)
    np.testing.assert_allclose(found, np.unique(np.stack(wanted, axis=1), axis=0), atol=1e-12)
    assert (rate[0], sensitivity[0], rate[-1], sensitivity[-1]) == (0, 0, 1, 1)


def test_the_precision_recall_curve_is_sklearns():
    score, truth = quantised()
    recall, precision = metrics.precision_recall_curve(counted(score, truth))
    wanted_precision, wanted_recall, _ = sk.precision_recall_curve(truth[0], score[0])
    # sklearn goes up the thresholds, ours down; its last point belongs to no threshold
    wanted = np.stack([wanted_recall, wanted_precision], axis=1)[-2::-1]
    found = np.stack([recall, precision], axis=1)
    kept = np.append(True, np.any(np.diff(found, axis=0), axis=1))
    np.testing.assert_allclose(found[kept], wanted, atol=1e-12)


@pytest.mark.parametrize("threshold", [0.125, 20000 / BINS])
def test_what_is_counted_at_a_threshold_lies_on_both_curves(threshold):
    counts = counted(*pixels("smooth"))
    at = metrics.confusion(counts, threshold)
    place = BINS - int(threshold * BINS)
    rate, sensitivity = metrics.roc_curve(counts)
    assert (rate[place], sensitivity[place]) == pytest.approx((1 - at.specificity, at.sensitivity))
    points = np.stack(metrics.precision_recall_curve(counts), axis=1)
    wanted = np.array([at.sensitivity, at.tp / (at.tp + at.fp)])
    assert np.abs(points - wanted).max(axis=1).min() < 1e-12


def test_curves_of_an_empty_class_are_no_numbers():
    score, _ = pixels("smooth")
    counts = counted(score, np.zeros(score.shape, bool))
    rate, sensitivity = metrics.roc_curve(counts)
    assert rate[-1] == 1
    assert np.isnan(sensitivity).all()
    recall, precision = metrics.precision_recall_curve(counts)
    assert np.isnan(recall).all()
    assert (precision == 0).all()


# ---- calibration


def test_reliability_is_sklearns():
    score, truth = pixels("smooth")
    found = metrics.reliability(counted(score, truth))
    share, mean = calibration_curve(truth[0], score[0], n_bins=metrics.RELIABILITY_BINS)
    some = found.pixels > 0
    np.testing.assert_allclose(found.vessel_share[some], share, atol=1e-12)
    np.testing.assert_allclose(found.mean_score[some], mean, atol=1 / BINS)
    assert np.isnan(found.vessel_share[~some]).all()
    assert found.pixels.sum() == truth.size


def test_the_calibration_error_of_a_hand_made_table():
    """Of ten pixels at 0.2 one is vessel, of thirty at 0.8 twenty-seven: (10 + 30) / 40 of 0.1."""
    score = np.repeat([0.2, 0.8], [10, 30]).astype(np.float32)
    truth = np.arange(40) % 10 == 0  # one of the first ten
    truth[10:] = ~truth[10:]  # all but one of each ten
    found = metrics.reliability(counted(score[None], truth[None]))
    assert found.expected_error == pytest.approx(0.1, abs=1 / BINS)
    low, high = (b for b in found.summary()["bins"] if b["pixels"])
    assert (low["pixels"], high["pixels"]) == (10, 30)
    assert (low["vessel_share"], high["vessel_share"]) == (0.1, 0.9)
    assert low["low"] < 0.2 < low["high"] == low["low"] + 1 / 16


def test_a_score_that_is_the_vessels_share_is_calibrated():
    score = np.random.default_rng(0).random((1, 1_000_000), np.float32)
    truth = np.random.default_rng(1).random(score.shape) < score
    assert metrics.reliability(counted(score, truth)).expected_error < 2e-3


def test_nothing_counted_has_no_calibration_error():
    assert math.isnan(metrics.reliability(np.zeros((2, BINS), np.int64)).expected_error)

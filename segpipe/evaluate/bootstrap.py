"""How far figures would move with other photographs of the same kind: percentile bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe import metrics
from segpipe.measurement import agreement
from segpipe.measurement.agreement import Hits
from segpipe.metrics import BINS, Confusion, Counts

RESAMPLES, SEED = 2000, 0
LEVEL = 95  # %
FINE = 1.01  # bins of the score grow by so much from both ends to the middle
CONFUSION, HITS = 4, 2 * len(agreement.SHARES)  # places of a kept row, before the histograms

Kept = npt.NDArray[np.int64]


def _starts() -> npt.NDArray[np.int64]:
    """Of BINS, where the coarse bins begin: each of BINS at scores of 0 and 1, 1 % wide inside."""
    rising = np.floor(FINE ** np.arange(np.log(BINS / 2) / np.log(FINE))).astype(np.int64)
    return np.unique(np.concatenate([[0], rising, BINS - rising]))


STARTS = _starts()


def keep(counts: Counts, threshold: float, hits: Hits) -> Kept:
    """What is resampled of a photograph: counts [2, BINS], Hits [5, 2] -> some 22 KB, not 1 MB.

    The score's histograms are coarser: AUC changes by less than 1e-5.
    """
    at = metrics.confusion(counts, threshold)
    coarse = np.add.reduceat(counts, STARTS, axis=1)
    return np.concatenate([[at.tp, at.fp, at.fn, at.tn], hits.ravel(), coarse.ravel()])


def figures(kept: Kept) -> dict[str, float]:
    """The figures of one photograph, or of the sum of several."""
    at = Confusion(*map(int, kept[:CONFUSION]))
    hits, coarse = np.split(kept[CONFUSION:], [HITS])
    return {
        "auc": metrics.auc(coarse.reshape(2, -1)),
        **at.summary(),
        **agreement.summary(hits.reshape(-1, 2)),
    }


def intervals(
    photographs: Sequence[Kept], of: Callable[[Kept], dict[str, float]] = figures
) -> dict[str, dict[str, float]]:
    """`low` and `high` of each figure: between them lie 95 % of RESAMPLES resamples.

    `photographs` are counts that add, and `of` makes figures of their sum. Each resample draws as
    many photographs as there are, with replacement, and pools them (Efron 1979; the percentile
    interval). One without a value, as a sensitivity without a vessel, is left out; NaN where none
    has one.
    """
    num = len(photographs)
    drawn = np.random.default_rng(SEED).multinomial(num, np.full(num, 1 / num), RESAMPLES)
    pooled = (drawn.astype(np.float64) @ np.stack(photographs)).astype(np.int64)
    rows = [of(row) for row in pooled]
    ends: dict[str, dict[str, float]] = {"low": {}, "high": {}}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        values = values[np.isfinite(values)] if np.isfinite(values).any() else values
        both = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
        ends["low"][name], ends["high"][name] = map(float, both)
    return ends


def key_of_intervals(
    photographs: Sequence[Kept], of: Callable[[Kept], dict[str, float]] = figures
) -> dict[str, Any]:
    """`intervals` under their key of metrics.json, which a single photograph does not have."""
    return {"intervals": intervals(photographs, of)} if len(photographs) > 1 else {}

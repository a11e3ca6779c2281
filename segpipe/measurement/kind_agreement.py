"""Arteries and veins as they were told, beside a label of them: counts that add -> Dice, accuracy.

Pixels that the label leaves open count nowhere. Where it has a crossing, either kind is a hit and
neither is asked for. A crossing that was told is right for either on an artery or a vein, and on
the background a false alarm of both.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from segpipe.data.arrays import Image8, Mask
from segpipe.data.colours import MEANINGS
from segpipe.measurement import kinds
from segpipe.metrics import ratio

# of a label, as Drawing.meanings has them
BACKGROUND, ARTERY, VEIN, CROSSING = range(4)
NUM_MEANINGS = 1 + len(MEANINGS)
NUM_KINDS = 1 + kinds.BACKGROUND
FIGURES = ("artery_dice", "vein_dice", "artery_vein_accuracy", "artery_vein_found")


@dataclass(frozen=True)
class KindCounts:
    """Pixels, of one photograph or of several together."""

    artery_hit: int = 0
    artery_missed: int = 0
    artery_wrong: int = 0
    vein_hit: int = 0
    vein_missed: int = 0
    vein_wrong: int = 0
    right: int = 0
    """Of the found ones those of the label's own kind."""
    found: int = 0
    """Of the known ones those that were told to be vessels."""
    known: int = 0
    """Artery or vein by the label."""

    def __add__(self, other: KindCounts) -> KindCounts:
        return KindCounts(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def summary(self) -> dict[str, float]:
        """FIGURES, each NaN of nothing."""
        artery_dice, vein_dice = (
            ratio(2 * hit, 2 * hit + missed + wrong)
            for hit, missed, wrong in (
                (self.artery_hit, self.artery_missed, self.artery_wrong),
                (self.vein_hit, self.vein_missed, self.vein_wrong),
            )
        )
        accuracy, found = ratio(self.right, self.found), ratio(self.found, self.known)
        return dict(zip(FIGURES, (artery_dice, vein_dice, accuracy, found), strict=True))


def compare(told: Image8, label: Image8, inside: Mask) -> KindCounts:
    """told [H, W] uint8, a picture of kinds as structures.native_kinds makes it, label [H, W] uint8
    as Drawing.meanings, and where to count [H, W] bool -> pixels by outcome."""
    pairs = told[inside].astype(np.int64) * NUM_MEANINGS + label[inside]
    table = np.bincount(pairs, minlength=NUM_KINDS * NUM_MEANINGS).reshape(NUM_KINDS, -1)

    def pixels(told_as: tuple[int, ...], labelled: tuple[int, ...]) -> int:
        return int(table[np.ix_(told_as, labelled)].sum())

    def outcomes(kind: int, code: int, other: int) -> tuple[int, int, int, int]:
        own = pixels((kind, kinds.CROSSING), (code,))
        missed = int(table[:, code].sum()) - own
        wrong = pixels((kind,), (other, BACKGROUND)) + pixels((kinds.CROSSING,), (BACKGROUND,))
        return own, own + pixels((kind, kinds.CROSSING), (CROSSING,)), missed, wrong

    arteries, *artery = outcomes(kinds.ARTERY, ARTERY, VEIN)
    veins, *vein = outcomes(kinds.VEIN, VEIN, ARTERY)
    vessel = kinds.ARTERY, kinds.VEIN, kinds.CROSSING
    found = pixels(vessel, (ARTERY, VEIN))
    known = int(table[:, [ARTERY, VEIN]].sum())
    return KindCounts(*[*artery, *vein, arteries + veins, found, known])

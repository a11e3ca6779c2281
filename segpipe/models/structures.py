"""The network of arteries, veins and the optic disc: three maps of one canvas."""

from __future__ import annotations

from typing import ClassVar

from segpipe.models.resunet import ResUNet

KIND, DISC, VESSELS = range(3)
"""Its maps, each of logits: a vessel here is an artery, not a vein; the optic disc is here; a vessel
is here (which is learnt beside the others, and not used)."""


class StructuresUNet(ResUNet):
    """A ResUNet of squares of 4x4 px and more channels: colour and course more than fine detail."""

    LEVELS: ClassVar = (1, 2, 3, 4, 4)
    SQUARE = 4
    STRIDE = SQUARE * 2 ** (len(LEVELS) - 1)

    def __init__(self, width: int = 16, num_classes: int = 3) -> None:
        super().__init__(width, num_classes)

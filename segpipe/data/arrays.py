"""The arrays that all modules hand on, by their dtype; shapes stand where each is used."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Image8 = npt.NDArray[np.uint8]
"""Pixels of 8 bits: [H, W, 3] RGB, [H, W] grey or classes."""
Mask = npt.NDArray[np.bool_]
"""[H, W]: whether a pixel is of a region, as a field of view or the vessels."""
Plane = npt.NDArray[np.float32]
"""[H, W] of values, or [H, W, 3]."""
DISC_STEP = 4
"""px of the canvas for one where the optic disc is looked for."""


class StructureMaps(NamedTuple):
    """What the networks say of a canvas [S, S], in [0, 1]; right in the field of view."""

    artery: Plane
    """[S, S]: of an artery and no vein."""
    disc: Plane
    """[S / DISC_STEP, S / DISC_STEP]: of the optic disc."""

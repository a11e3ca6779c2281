"""What each pixel of a label or mask is: 0 outside the field of view, 1 vessel, 2 background."""

from __future__ import annotations

import numpy as np

from segpipe.data.arrays import Image8, Mask

CLASSES = ("outside", "vessel", "background")
OUTSIDE, VESSEL, BACKGROUND = range(3)


def classes_of(vessel: Mask, fov: Mask) -> Image8:
    """vessel, fov [H, W] bool -> label [H, W] uint8. Outside wins over a drawn vessel."""
    # OUTSIDE 0, VESSEL 1, BACKGROUND 2; np.where takes a hundred times as long, bools four times
    label: Image8 = (np.uint8(BACKGROUND) - vessel.view(np.uint8)) * fov.view(np.uint8)
    return label

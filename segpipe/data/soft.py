"""Soft labels: how sure each pixel is to be a vessel, in place of its class.

They are uint8: 0 outside the field of view, 1 to 254 inside it for a vessel with probability 0 to
1. Where a photograph is reduced to the working diameter, that is the share of a pixel that the
drawn vessels cover.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from segpipe.data.arrays import Image8, Plane
from segpipe.data.canvas import resize_classes
from segpipe.data.classes import OUTSIDE, VESSEL

LEVELS = 253  # steps from surely background to surely vessel


def soft_label(
    label: Image8, height: int, width: int, taught: Plane | None = None, share: float = 0.0
) -> Image8:
    """label [H, W] uint8 classes -> [height, width] uint8 soft label.

    `taught` [height, width] float32 in [0, 1] has `share` of it, 0 to 1, the label the rest.
    """
    drawn = Image.fromarray((label == VESSEL).astype(np.float32))
    sure = np.asarray(drawn.resize((width, height), Image.Resampling.BOX))
    if taught is not None:
        sure = (1 - share) * sure + share * taught
    soft: Image8 = (1 + np.rint(LEVELS * sure.clip(0, 1))).astype(np.uint8)
    soft[resize_classes(label, height, width) == OUTSIDE] = 0
    return soft

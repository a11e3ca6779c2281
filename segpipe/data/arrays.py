"""The arrays that all modules hand on, by their dtype; shapes stand where each is used."""

import numpy as np
import numpy.typing as npt

Image8 = npt.NDArray[np.uint8]
"""Pixels of 8 bits: [H, W, 3] RGB, [H, W] grey or classes."""
Mask = npt.NDArray[np.bool_]
"""[H, W]: whether a pixel is of a region, as a field of view or the vessels."""
Plane = npt.NDArray[np.float32]
"""[H, W] of values, or [H, W, 3]."""

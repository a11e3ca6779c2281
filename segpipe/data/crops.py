"""Random crops, a pure function of (seed, epoch, image, k): no state, any order, any worker."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ORDER, PLACE = 0, 1  # what a random stream is for; keeps streams of one (seed, epoch) apart


def epoch_order(
    seed: int, epoch: int, num_images: int, crops_per_image: int
) -> npt.NDArray[np.int64]:
    """The epoch's crops in training order: [N, 2] int64 of (image, k), a random permutation.

    Every (image, k) with image < num_images and k < crops_per_image occurs exactly once.
    """
    rng = np.random.default_rng((seed, ORDER, epoch))
    order = rng.permutation(num_images * crops_per_image)
    return np.stack(np.divmod(order, crops_per_image), axis=1)


def crop_corner(
    seed: int, epoch: int, image: int, k: int, height: int, width: int, size: int
) -> tuple[int, int]:
    """(top, left) of a size x size px crop, uniform over all places inside [height, width] px."""
    if size > min(height, width):
        raise ValueError(f"a crop of {size} px does not fit into {width}x{height} px")
    rng = np.random.default_rng((seed, PLACE, epoch, image, k))
    return int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))

"""A mask against a label, beyond pixels: centre lines (topology), and vessels by their width."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from segpipe.data.arrays import Image8, Mask, Plane
from segpipe.data.fov import fov_box, fov_diameter
from segpipe.measurement.skeleton import thin, without_spurs
from segpipe.metrics import ratio

UNIT = 1000.0  # px of the field's diameter, in which widths are told
WIDTHS = (3.0, 6.0)  # such px: where a class of widths ends, which this width still belongs to
LEAST_FIELD = 2000.0  # px across the field where widths are measured: 0.5 px there is 0.25 told
SHARES = (
    "cldice_precision",
    "cldice_sensitivity",
    "sensitivity_to_3_px",
    "sensitivity_3_to_6_px",
    "sensitivity_above_6_px",
)

Hits = npt.NDArray[np.int64]  # [5, 2]: of each of SHARES the pixels that count for it, and all


def compare(predicted: Mask, vessel: Mask, fov: Mask) -> Hits:
    """The prediction, the label's vessels and the field of view, each [H, W] bool -> Hits [5, 2].

    They add over photographs; `summary` makes figures of them. Only pixels in the field count,
    which must not be empty.

    `cldice_precision` is of the prediction's centre lines, how much lies on the label's vessels;
    `cldice_sensitivity` of the label's centre lines, how much the prediction holds (Shit et al.
    2021, equations 1 and 2; arXiv:2003.07311), by `skeleton.thin` at this size. `sensitivity_...`
    is that of the label's vessel pixels by local_widths.
    """
    top, left, bottom, right = fov_box(fov)
    box = np.s_[top:bottom, left:right]
    found, drawn = (mask[box] & fov[box] for mask in (predicted, vessel))
    pairs = [(_centre_lines(found), drawn), (_centre_lines(drawn), found)]
    widths = local_widths(drawn, fov_diameter(fov, (top, left, bottom, right)))
    width_class = np.digitize(widths, WIDTHS, right=True)
    of_width = np.bincount(width_class, minlength=len(WIDTHS) + 1)
    hit = np.bincount(width_class[found[drawn]], minlength=len(WIDTHS) + 1)
    lines = [[np.count_nonzero(line & other), np.count_nonzero(line)] for line, other in pairs]
    return np.concatenate([lines, np.stack([hit, of_width], axis=1)]).astype(np.int64)


def summary(hits: Hits) -> dict[str, float]:
    """clDice, the harmonic mean of its precision and sensitivity, and each of SHARES.

    NaN where there is nothing of which to tell a share; clDice is 0 where nothing is right.
    """
    shares = {name: ratio(*row) for name, row in zip(SHARES, hits.tolist(), strict=True)}
    precision, sensitivity = shares["cldice_precision"], shares["cldice_sensitivity"]
    both = precision + sensitivity  # NaN without a line in one of them
    return {"cldice": 2 * precision * sensitivity / both if both else 0.0, **shares}


def _centre_lines(vessel: Mask) -> Mask:
    return thin(np.pad(vessel, 1).astype(np.uint8))[1:-1, 1:-1]


def local_widths(vessel: Mask, diameter: float) -> npt.NDArray[np.float64]:
    """vessel [H, W] bool in a field `diameter` px across -> the width at each of its pixels.

    [M] float64 in row order, in px of a field of UNIT px: twice the distance from the nearest point
    of the centre lines to the nearest pixel beside the vessel. Where walls lie along pixels that is
    the width or, as it is even or odd, one more: half a px is taken off. Small photographs are
    enlarged first, so that this is less than 0.25 px told. Of oblique vessels it is the width
    between the steps of their walls, up to 1 px of the photograph less.
    """
    rows, columns = np.nonzero(vessel)
    if not len(rows):
        return np.zeros(0)
    scale = max(1, int(np.ceil(LEAST_FIELD / diameter)))
    large = np.pad(_enlarged(vessel, scale), 1)
    depth: Plane = np.asarray(
        cv2.distanceTransform(large, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32
    )
    line = np.stack(np.nonzero(without_spurs(thin(large), depth)), axis=1)
    at = np.stack([rows, columns], axis=1) * scale + (scale - 1) / 2 + 1
    nearest = line[cKDTree(line).query(at)[1]]
    widths = 2 * depth[tuple(nearest.T)].astype(np.float64) - 0.5
    return np.asarray(widths / scale / diameter * UNIT)


def _enlarged(vessel: Mask, scale: int) -> Image8:
    """vessel [H, W] bool -> [scale * H, scale * W] uint8, 0 or 1: what is half covered or more."""
    grey = vessel.astype(np.uint8)
    if scale == 1:
        return grey
    grey *= 255
    large = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    return (np.asarray(large) >= 128).astype(np.uint8)

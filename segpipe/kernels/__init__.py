"""Loops in C++ where numpy and torch have none: built with the package, optional.

    build.py       *.cpp -> lib/, a library for each variant of CPU; when the package is built
    native.py      the best of these that this CPU runs, and why there is none
    segnet_lite.py the scores, the loss and the gradients of models.segnet's SegNetLite, quicker
    layers.py      a training step's layers and their gradients, quicker
    resunet.py     the scores of models.resunet, quicker
    distances.py   OpenCV's distances within vessels and to the nearest centre line, quicker
    lines.py       skeleton.thin, fractal's boxes, traced's specks and trust's parts, quicker
    masks.py       canvas.native_mask and structures.native_kinds, quicker
    paths.py       skeleton.trace, without_spurs and what is read along and across lines, quicker
    pictures.py    Pillow's bilinear `resize` and by BOX, OpenCV's by areas, quicker
    scores.py      canvas.native_score and what codecs makes PNGs of, quicker

Where there is none `missing` says so, and those who call take the plain path. Nothing here
knows torch: a process that segments with these starts in half a second.
"""

from segpipe.kernels.distances import nearest_labels, vessel_depth
from segpipe.kernels.layers import Layers
from segpipe.kernels.lines import box_counts, long_parts, thin_lines, without_specks
from segpipe.kernels.masks import native_kinds, native_mask
from segpipe.kernels.native import fingerprint, missing
from segpipe.kernels.paths import cover_sums, filtered_paths, trace_lines, without_spurs
from segpipe.kernels.pictures import averaged, block_means, box_means, resized, resizes
from segpipe.kernels.resunet import ResUNetMaps, ResUNetScores
from segpipe.kernels.scores import native_score, packed_rows
from segpipe.kernels.segnet_lite import REACH_PX, SegNetLiteGradients, SegNetLiteScores

__all__ = [
    "REACH_PX",
    "Layers",
    "ResUNetMaps",
    "ResUNetScores",
    "SegNetLiteGradients",
    "SegNetLiteScores",
    "averaged",
    "block_means",
    "box_counts",
    "box_means",
    "cover_sums",
    "filtered_paths",
    "fingerprint",
    "long_parts",
    "missing",
    "native_kinds",
    "native_mask",
    "native_score",
    "nearest_labels",
    "packed_rows",
    "resized",
    "resizes",
    "thin_lines",
    "trace_lines",
    "vessel_depth",
    "without_specks",
    "without_spurs",
]

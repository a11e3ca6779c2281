"""Loops in C++ where numpy and torch have none: built on first use, kept on disk, optional.

    build          *.cpp -> a shared library for this machine's CPU, in the user's cache folder
    segnet_lite    the scores, the loss and the gradients of models.segnet, quicker
    masks          fundus.native_mask, quicker

Without a C++ compiler `missing` says so, and those who call take the plain path. Nothing here
knows torch: a process that segments with these starts in half a second.
"""

from segpipe.kernels.build import cache_folder, fingerprint, missing
from segpipe.kernels.masks import native_mask
from segpipe.kernels.segnet_lite import REACH_PX, SegNetLiteGradients, SegNetLiteScores, fits

__all__ = [
    "REACH_PX",
    "SegNetLiteGradients",
    "SegNetLiteScores",
    "cache_folder",
    "fingerprint",
    "fits",
    "missing",
    "native_mask",
]

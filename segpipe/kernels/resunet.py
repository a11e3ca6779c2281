"""resunet's score of a canvas in C++: batch norm folded away, and nothing done without need."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe.kernels.build import library, pointer
from segpipe.kernels.segnet_lite import REACH_PX, Image8, Plane, Sums

WIDTH_STEP, MOST_WIDTH = 8, 64  # channels of the first level
LEVELS = (1, 3, 6, 6, 6)  # as models.resunet.LEVELS, which this cannot import: it needs torch
COLOURS = 3
STRIDE = 16  # px: canvas sides are multiples of it
EPSILON = 1e-5  # torch.nn.BatchNorm2d's

State = Mapping[str, npt.NDArray[Any]]


def fits(width: int) -> bool:
    """Whether there is a compiled form of this width: a multiple of 8, at most 64."""
    return width % WIDTH_STEP == 0 and 0 < width <= MOST_WIDTH


class ResUNetScores:
    """resunet's score p(vessel) / (p(vessel) + p(background)) of a canvas, in float32.

    Only the difference of the two retinal logits is computed, and only where the field of view is.
    It keeps its activations from one canvas to the next, so it belongs to one thread.
    """

    def __init__(self, state: State, vessel: int, background: int) -> None:
        """The network's state dict, and the indices of the two classes.

        Raises KeyError or ValueError for a state that is not a resunet's, or a width that does not
        fit.
        """
        width = len(state["first.0.weight"])
        if not fits(width):
            raise ValueError(
                f"{width} channels, wanted a multiple of {WIDTH_STEP}, at most {MOST_WIDTH}"
            )
        flat = [array.ravel() for array in _arrays(state, width, vessel, background)]
        numbers = np.ascontiguousarray(np.concatenate(flat), np.float64)
        run = library()
        self.network = ctypes.c_void_p(run.resunet_open(ctypes.c_int32(width), pointer(numbers)))
        weakref.finalize(self, run.resunet_close, self.network)

    def __call__(self, canvas: Image8, fov: Image8) -> Plane:
        """canvas [S, S, 3] uint8 RGB, fov [S, S] uint8 -> scores [S, S] float32, 16 divides S.

        Right in the field (fov above 0) and REACH_PX around it, 0 where no pixel of it is near.
        """
        side = len(canvas)
        assert side % STRIDE == 0
        assert canvas.shape == (side, side, 3)
        assert fov.shape == (side, side)
        scores = np.empty((side, side), np.float32)
        library().resunet_scores(
            self.network,
            pointer(np.ascontiguousarray(canvas)),
            pointer(np.ascontiguousarray(fov)),
            ctypes.c_int32(side),
            ctypes.c_int32(REACH_PX),
            pointer(scores),
        )
        return scores


def _arrays(state: State, width: int, vessel: int, background: int) -> Iterator[Sums]:
    """Weights and bias of each layer in resunet.cpp's order: [row, column, in, out] and [out]."""
    channels = [width * times for times in LEVELS]
    weight, bias = _folded(state, "first", (width, COLOURS, 3, 3))
    yield weight / 255
    yield bias
    for level, c in enumerate(channels):
        yield from _block(state, f"down.{level}", c)
    for level in range(1, len(LEVELS)):
        after, before = channels[level], channels[level - 1]
        yield from _folded(state, f"smaller.{level - 1}", (after, before, 2, 2))
    for level in range(1, len(LEVELS)):
        name, shape = f"larger.{len(LEVELS) - 1 - level}", (channels[level], channels[level - 1])
        yield _shaped(state, f"{name}.weight", (*shape, 2, 2)).transpose(2, 0, 3, 1)
        yield np.tile(_shaped(state, f"{name}.bias", shape[1:]), 2)  # of both columns
    for level in range(1, len(LEVELS)):
        yield from _block(state, f"up.{len(LEVELS) - 1 - level}", channels[level - 1])
    num_classes = len(state["last.bias"])
    weight = _shaped(state, "last.weight", (num_classes, width, 3, 3))
    yield (weight[vessel] - weight[background]).transpose(1, 2, 0)
    bias = _shaped(state, "last.bias", (num_classes,))
    yield bias[vessel] - bias[background]


def _block(state: State, name: str, channels: int) -> Iterator[Sums]:
    shape = (channels, channels, 3, 3)
    yield from _folded(state, f"{name}.layers", shape)
    yield from _folded(state, f"{name}.layers", shape, at=3)


def _folded(state: State, name: str, shape: tuple[int, ...], at: int = 0) -> tuple[Sums, Sums]:
    """A convolution [out, in, h, w] and the batch norm behind it -> [h, w, in, out] and [out]."""
    weight = _shaped(state, f"{name}.{at}.weight", shape)
    scale, shift, mean, variance = (
        _shaped(state, f"{name}.{at + 1}.{part}", shape[:1])
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / np.sqrt(variance + EPSILON)
    return weight.transpose(2, 3, 1, 0) * scale, shift - mean * scale


def _shaped(state: State, name: str, shape: tuple[int, ...]) -> Sums:
    array = state[name]
    if array.shape != shape:
        raise ValueError(f"{name}: {array.shape}, wanted {shape}")
    return array.astype(np.float64)

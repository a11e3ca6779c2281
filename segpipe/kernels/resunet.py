"""resunet's scores of a canvas in C++: batch norm folded away, and nothing done without need."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, pairwise, takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.native import shaped
from segpipe.kernels.segnet_lite import REACH_PX, Image8, Plane, Sums

WIDTH_STEP, MOST_WIDTH = 8, 64  # channels of the first level
COLOURS = 3
EPSILON = 1e-5  # torch.nn.BatchNorm2d's

State = Mapping[str, npt.NDArray[Any]]


def fits(width: int) -> bool:
    """Whether there is a compiled form of this width: a multiple of 8, at most 64."""
    return width % WIDTH_STEP == 0 and 0 < width <= MOST_WIDTH


def bf16_problem() -> str:
    """Why there are no products in bf16 here, or ''."""
    if problem := native.missing():
        return problem
    has_tiles = native.library().has_tiles()
    return "" if has_tiles else "the native backend wants AMX for bf16, and this CPU has none"


class ResUNetMaps:
    """Maps of a canvas by a resunet, in float32: sigmoids of logits, or of their differences.

    With precision "bf16" weights, and activations between layers, are rounded to bfloat16; sums are
    in float32. bf16_problem says where that is not possible.
    They are computed where the field of view is alone. It keeps its activations from one canvas to
    the next, so it belongs to one thread.
    """

    def __init__(
        self, state: State, maps: Sequence[tuple[int, int | None]], precision: str = "fp32"
    ) -> None:
        """The network's state dict, and of each map the index of its class, and of another whose
        logit is subtracted.

        Raises KeyError or ValueError for a state that is not a resunet's, or a width that does not
        fit, RuntimeError where there are no products in bf16.
        """
        width, planes = state["first.0.weight"].shape[:2]
        if not fits(width):
            raise ValueError(
                f"{width} channels, wanted a multiple of {WIDTH_STEP}, at most {MOST_WIDTH}"
            )
        block = math.isqrt(planes // COLOURS)
        names = (f"down.{level}.layers.0.weight" for level in count())
        channels = [len(state[name]) for name in takewhile(state.__contains__, names)]
        flat = [array.ravel() for array in _arrays(state, block, channels, maps)]
        numbers = np.ascontiguousarray(np.concatenate(flat), np.float64)
        self.library, self.network = native.library(), ctypes.c_void_p()
        levels = np.asarray(channels, np.int32)
        self.block, self.num_maps = block, len(maps)
        in_bf16 = precision == "bf16"
        self.library.resunet_open(
            *(block, len(levels), levels, len(maps), numbers, in_bf16, ctypes.byref(self.network))
        )
        weakref.finalize(self, self.library.resunet_close, self.network)

    def __call__(self, canvas: Image8, fov: Image8) -> Plane:
        """canvas [S, S, 3] uint8 RGB, fov [S, S] uint8 -> maps [M, S, S] float32.

        A block divides S; beyond the canvas all is black. Right in the field (fov above 0) and
        REACH_PX around it, 0 where no pixel of it is near. Raises ValueError for other shapes or
        dtypes, MemoryError.
        """
        side = len(canvas)
        if side % self.block or not side:
            raise ValueError(f"canvas of {side} px, wanted a multiple of {self.block}")
        scores = np.empty((self.num_maps, side, side), np.float32)
        self.library.resunet_scores(
            self.network,
            shaped("canvas", canvas, (side, side, COLOURS), np.uint8),
            shaped("fov", fov, (side, side), np.uint8),
            side,
            REACH_PX,
            scores,
        )
        return scores


class ResUNetScores(ResUNetMaps):
    """resunet's score p(vessel) / (p(vessel) + p(background)) of a canvas, in float32."""

    def __init__(self, state: State, vessel: int, background: int, precision: str = "fp32") -> None:
        """The indices of the two classes; else as ResUNetMaps."""
        super().__init__(state, [(vessel, background)], precision)

    def __call__(self, canvas: Image8, fov: Image8) -> Plane:
        """-> scores [S, S] float32; else as ResUNetMaps."""
        score: Plane = super().__call__(canvas, fov)[0]
        return score


def _arrays(
    state: State, block: int, channels: list[int], maps: Sequence[tuple[int, int | None]]
) -> Iterator[Sums]:
    """Weights and bias of each layer in resunet.cpp's order: [row, column, in, out] and [out].

    The pixels of a block come row by row, of the input with their colours side by side.
    """
    width, square = channels[0], block * block
    weight, bias = _folded(state, "first", (width, COLOURS * square, 3, 3))
    by_pixel = weight.reshape(3, 3, COLOURS, square, width).swapaxes(2, 3)
    yield by_pixel / 255
    yield bias
    for level, c in enumerate(channels):
        yield from _block(state, f"down.{level}", c)
    for level, (before, after) in enumerate(pairwise(channels)):
        yield from _folded(state, f"smaller.{level}", (after, before, 2, 2))
    for level, (after, before) in enumerate(pairwise(channels)):
        name, shape = f"larger.{len(channels) - 2 - level}", (before, after)
        yield _shaped(state, f"{name}.weight", (*shape, 2, 2)).transpose(2, 0, 3, 1)
        yield np.tile(_shaped(state, f"{name}.bias", shape[1:]), 2)  # of both columns
    for level, c in enumerate(channels[:-1]):
        yield from _block(state, f"up.{len(channels) - 2 - level}", c)
    num_classes = len(state["last.bias"]) // square
    weight = _shaped(state, "last.weight", (num_classes * square, width, 3, 3))
    of_class = weight.reshape(num_classes, square, width, 3, 3)
    wanted = [_difference(of_class, *one) for one in maps]
    yield np.concatenate(wanted).transpose(2, 3, 1, 0)
    bias = _shaped(state, "last.bias", (num_classes * square,)).reshape(num_classes, square)
    yield np.concatenate([_difference(bias, *one) for one in maps])


def _difference(of_class: Sums, index: int, less: int | None) -> Sums:
    wanted: Sums = of_class[index] if less is None else of_class[index] - of_class[less]
    return wanted


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

"""segnet-lite's loops: the score of a canvas, and the loss and gradients of crops.

A 2x2 pooling window keeps one value a channel, the first maximum of its four positions, so the
decoder reads a quarter of what a convolution would: each kept value adds its 3x3 kernel to a 4x4
neighbourhood (cf. SegNet's sparse upsampled maps, arXiv:1511.00561, section 3).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.native import shaped

WIDTH_STEP, MOST_WIDTH = 16, 512  # channels, as in segnet_lite.cpp
TAPS, CLASSES = 27, 3  # 3x3 pixels of 3 channels; logits
REACH_PX = 2  # canvas px beyond the field of view whose scores its rim's pixels are mixed from

Image8 = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]


def fits(width: int) -> bool:
    """Whether there are loops for this many channels: a multiple of 16, at most 512."""
    return width % WIDTH_STEP == 0 and 0 < width <= MOST_WIDTH


def _encoder_table(weight: Plane, bias: Plane) -> Plane:
    """weight [C, 3, 3, 3] for pixels in [0, 1], bias [C] -> [C/L, 27 + 1, L] for uint8 pixels."""
    taps = (weight / np.float32(255)).transpose(2, 3, 1, 0).reshape(TAPS, -1)
    return _in_lanes(np.concatenate([taps, bias[None]]))


def _in_lanes(rows: Plane) -> Plane:
    """[N, C] -> [C/L, N, L], L numbers in a vector of the loops"""
    blocks = rows.reshape(len(rows), -1, native.library().segnet_lite_lanes()).transpose(1, 0, 2)
    return np.ascontiguousarray(blocks, np.float32)


def _patches(weight: Plane) -> Plane:
    """weight [K, C, 3, 3] -> [C, 2, 2, 4, 4, K]: what a value kept at each position adds around."""
    flipped = weight[:, :, ::-1, ::-1].transpose(1, 2, 3, 0)
    patches = np.zeros((weight.shape[1], 2, 2, 4, 4, len(weight)), np.float32)
    for row in range(2):
        for column in range(2):
            patches[:, row, column, row : row + 3, column : column + 3] = flipped
    return patches


def _check_even(*sides: int) -> None:
    """Raise ValueError for a side that 2x2 windows do not fill."""
    if any(side % 2 or not side for side in sides):
        raise ValueError(f"{' x '.join(map(str, sides))} px, wanted an even number")


def _check_width(weight: Plane, bias: Plane) -> int:
    """The number of channels. Raises ValueError where it, or a shape or dtype, does not fit."""
    width = len(bias)
    if not fits(width):
        raise ValueError(
            f"{width} channels, wanted a multiple of {WIDTH_STEP}, at most {MOST_WIDTH}"
        )
    shaped("encoder", weight, (width, 3, 3, 3), np.float32)
    shaped("encoder's bias", bias, (width,), np.float32)
    return width


class SegNetLiteScores:
    """segnet-lite's score p(vessel) / (p(vessel) + p(background)) of a canvas, in float32.

    Only the difference of the two retinal logits is computed, and only where the field of view is.
    """

    def __init__(
        self,
        encoder_weight: Plane,
        encoder_bias: Plane,
        decoder_weight: Plane,
        decoder_bias: float,
    ) -> None:
        """encoder [C, 3, 3, 3] and [C] for pixels in [0, 1]; decoder [C, 3, 3] for the difference.

        Raises ValueError for a C that does not fit, other shapes or dtypes.
        """
        self.width = _check_width(encoder_weight, encoder_bias)
        shaped("decoder", decoder_weight, (self.width, 3, 3), np.float32)
        self.encoder = _encoder_table(encoder_weight, encoder_bias)
        self.decoder = _patches(decoder_weight[None])
        self.bias = float(decoder_bias)

    def __call__(self, canvas: Image8, fov: Image8) -> Plane:
        """canvas [S, S, 3] uint8 RGB, fov [S, S] uint8 -> scores [S, S] float32, S even.

        0 where no pixel of the field (fov above 0) is near. Raises ValueError for other shapes or
        dtypes, MemoryError.
        """
        side = len(canvas)
        _check_even(side)
        scores = np.empty((side, side), np.float32)
        native.library().segnet_lite_scores(
            shaped("canvas", canvas, (side, side, 3), np.uint8),
            side,
            window_spans(shaped("fov", fov, (side, side), np.uint8)),
            self.width,
            self.encoder,
            self.decoder,
            self.bias,
            scores,
        )
        return scores


def window_spans(fov: Image8) -> npt.NDArray[np.int32]:
    """fov [S, S] uint8 -> [S/2, 2]: in each row of 2x2 windows the first and behind the last.

    They hold all pixels within REACH_PX of the field, and the windows that reach these.
    """
    side = len(fov)
    reach = REACH_PX + 2  # a window adds to the pixels around it as well
    inside = fov > 0
    lit = inside.any(axis=1)
    first = np.where(lit, inside.argmax(axis=1), side)
    last = np.where(lit, side - inside[:, ::-1].argmax(axis=1), 0)
    around = range(-reach, reach + 1)
    padded_first = np.pad(first, reach, constant_values=side)
    padded_last = np.pad(last, reach, constant_values=0)
    first = np.min([padded_first[reach + k : reach + k + side] for k in around], axis=0)
    last = np.max([padded_last[reach + k : reach + k + side] for k in around], axis=0)
    first, last = first.reshape(-1, 2).min(axis=1), last.reshape(-1, 2).max(axis=1)
    spans = np.stack([(first - reach) // 2, (last + reach + 1) // 2], axis=1).clip(0, side // 2)
    spans[last == 0] = 0
    return spans.astype(np.int32)


class Gradients(NamedTuple):
    """Sums over all pixels of some crops; the arrays are float32 and shaped as the weights."""

    loss: float
    """-log p(true class)"""
    encoder_weight: Plane
    encoder_bias: Plane
    decoder_weight: Plane
    decoder_bias: Plane


class SegNetLiteGradients:
    """segnet-lite's loss and its gradients, crop by crop, forward and backward in one pass.

    Neither the activations nor the pooling indices of a whole crop are stored: a row of windows is
    differentiated as soon as the logits below it are known. Gradients are summed in float64.
    """

    def __init__(self, num_threads: int) -> None:
        """Crops are shared among `num_threads`; the sums do not depend on how many."""
        self.threads = ThreadPoolExecutor(num_threads)

    def __call__(
        self,
        images: Image8,
        labels: Image8,
        encoder_weight: Plane,
        encoder_bias: Plane,
        decoder_weight: Plane,
        decoder_bias: Plane,
    ) -> Gradients:
        """images [N, H, W, 3] uint8 RGB, labels [N, H, W] uint8 of 3 classes, H and W even;
        encoder [C, 3, 3, 3] and [C] for pixels in [0, 1], decoder [3, C, 3, 3] and [3].

        C is a width that `fits`. Raises ValueError for other shapes or dtypes, MemoryError.
        """
        width, num_images, (height, columns) = (
            _check_width(encoder_weight, encoder_bias),
            len(images),
            labels.shape[1:],
        )
        shaped("images", images, (num_images, height, columns, 3), np.uint8)
        shaped("labels", labels, (num_images, height, columns), np.uint8)
        _check_even(height, columns)
        shaped("decoder", decoder_weight, (CLASSES, width, 3, 3), np.float32)
        shaped("decoder's bias", decoder_bias, (CLASSES,), np.float32)
        turned = decoder_weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1).reshape(TAPS, -1)
        tables = (
            _encoder_table(encoder_weight, encoder_bias),
            _in_lanes(turned),
            _patches(decoder_weight),
            np.ascontiguousarray(decoder_bias),
        )
        differentiate = partial(_differentiate, tables)
        done = list(self.threads.map(differentiate, images, labels))
        loss, encoder, decoder, bias = (sum(part) for part in zip(*done, strict=True))
        rows = encoder.transpose(1, 0, 2).reshape(TAPS + 1, -1)
        encoder_gradient = (rows[:TAPS] / 255).reshape(3, 3, 3, -1).transpose(3, 2, 0, 1)
        decoder_gradient = decoder.transpose(1, 0, 2).reshape(3, 3, CLASSES, -1)
        decoder_gradient = decoder_gradient[::-1, ::-1].transpose(2, 3, 0, 1)
        arrays = (encoder_gradient, rows[TAPS], decoder_gradient, bias)
        return Gradients(loss, *(np.ascontiguousarray(array, np.float32) for array in arrays))


def _differentiate(
    tables: tuple[Plane, Plane, Plane, Plane], image: Image8, label: Image8
) -> tuple[float, Sums, Sums, Sums]:
    """One crop -> its loss, and the sums for encoder, decoder and bias as their tables lie."""
    encoder, decoder, _, bias = tables
    of_encoder, of_decoder, of_bias = (np.zeros(table.shape) for table in (encoder, decoder, bias))
    loss, (height, width) = np.zeros(1), label.shape
    native.library().segnet_lite_gradients(
        np.ascontiguousarray(image),
        np.ascontiguousarray(label),
        height,
        width,
        encoder.shape[0] * encoder.shape[2],
        *tables,
        of_encoder,
        of_decoder,
        of_bias,
        loss,
    )
    return float(loss[0]), of_encoder, of_decoder, of_bias

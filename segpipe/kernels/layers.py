"""A training step's layers on a CPU: convolutions, batch norm, ReLU and loss, and their gradients.

Planes are float32 [N, H, W, C] in this order of memory, C a multiple of 4. Batch norm comes in two
parts, for its statistics may be those of more rows than these: a convolution tells the moments of
what it makes, and the next one normalises its input on the way; so does the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from segpipe.kernels import native
from segpipe.kernels.native import shaped
from segpipe.kernels.segnet_lite import CLASSES, Image8, Plane, Sums

CHANNEL_STEP = 4  # channels
SQUARES = (1, 2)  # px, sides of what a cell holds
BAND_CELLS = 8192  # about so many are a band's, which one thread works on

Norm = Plane
"""[3, C] float32 of each channel: mean, scale and shift, (z - mean) * scale + shift"""


class Then(IntEnum):
    """What becomes of the gradient of a convolution's input."""

    KEEP = 0
    ADD = 1
    """It is added to what is there."""
    MASK = 2
    """0 where the input, normalised on the way, is not positive; its sums are told."""


class Moments(NamedTuple):
    """Of each channel."""

    cells: int
    """Over how many."""
    mean: Sums
    squares: Sums
    """Sums of the squares around the mean."""


class Layers:
    """The layers' loops, shared among threads; what they find does not depend on how many."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self.threads = ThreadPoolExecutor(num_threads)

    def convolve(
        self,
        x: Plane,
        weight: Plane,
        norm: Norm | None = None,
        bias: Plane | None = None,
        with_moments: bool = False,
    ) -> tuple[Plane, Moments | None]:
        """x [N, H, W, C], weight [K, C, 3, 3], bias [K] -> [N, H, W, K].

        With a norm the convolution sees the positive part of norm(x). Raises ValueError for other
        shapes or dtypes, MemoryError.
        """
        outputs, inputs = _check_weight(weight)
        shape = _Shape.of("x", x, inputs)
        results = np.empty((*x.shape[:3], outputs), np.float32)
        moments = np.zeros((shape.bands, 2, outputs)) if with_moments else None
        run = native.library().convolution_forward
        words = (
            *(shaped("x", x, x.shape, np.float32), _norm("norm", norm, 3, inputs)),
            *(_in_order(weight), _norm("bias", bias, 1, outputs)),
            *(*shape.rows, inputs, outputs),
        )
        self._share(shape, lambda a, b: run(*words, a, b, results, moments))
        return results, None if moments is None else shape.joined(moments)

    def convolve_backward(
        self,
        gradient: Plane,
        z: Plane | None,
        of_gradient: Plane,
        x: Plane,
        weight: Plane,
        norm: Norm | None = None,
        then: Then = Then.KEEP,
        of_input: Plane | None = None,
        with_bias: bool = False,
    ) -> tuple[Plane, Plane | None, Sums | None]:
        """The gradients of `convolve`'s weight and bias; that of x comes into `of_input`, if given.

        The gradient of its result [N, H, W, K] is p * gradient + q * (z - mean) + r, of_gradient
        [4, K] having rows p, mean, q and r; p * gradient without a z. The sums of MASK [2, C]: of
        the masked gradient, and of that times what x is away from norm's mean.
        """
        outputs, inputs = _check_weight(weight)
        shape = _Shape.of("x", x, inputs)
        plane = (*x.shape[:3], outputs)
        of_weights = np.zeros((shape.bands, 3, 3, inputs, outputs))
        of_bias = np.zeros((shape.bands, outputs)) if with_bias else None
        moved = np.zeros((shape.bands, 2, inputs)) if then == Then.MASK else None
        if then == Then.MASK and norm is None:
            raise ValueError("norm: None, wanted (3, C) float32 for a masked gradient")
        if of_input is not None:
            of_input = _writable("gradient of x", of_input, x.shape)
        run = native.library().convolution_backward
        words = (
            shaped("gradient", gradient, plane, np.float32),
            None if z is None else shaped("z", z, plane, np.float32),
            _norm("of_gradient", of_gradient, 4, outputs),
            shaped("x", x, x.shape, np.float32),
            _norm("norm", norm, 3, inputs),
            _in_order(weight[:, :, ::-1, ::-1].swapaxes(0, 1)),
            *(*shape.rows, inputs, outputs),
        )
        self._share(
            shape, lambda a, b: run(*words, a, b, int(then), of_weights, of_bias, of_input, moved)
        )
        found = of_weights.sum(axis=0).transpose(3, 2, 0, 1).astype(np.float32)
        bias = None if of_bias is None else of_bias.sum(axis=0).astype(np.float32)
        return found, bias, None if moved is None else moved.sum(axis=0)

    def halve(self, x: Plane, weight: Plane) -> tuple[Plane, Moments]:
        """x [N, 2 H, 2 W, C], weight [K, C, 2, 2] of a convolution of stride 2 -> [N, H, W, K]."""
        small, large = _check_weight(weight, 2)
        shape = _halved("x", x, large)
        z, moments = np.empty((*shape, small), np.float32), np.zeros((shape.bands, 2, small))
        run = native.library().halve_forward
        words = (
            *(shaped("x", x, x.shape, np.float32), _in_order(weight)),
            *(*shape.rows, large, small),
        )
        self._share(shape, lambda a, b: run(*words, a, b, z, moments))
        return z, shape.joined(moments)

    def halve_backward(
        self, gradient: Plane, z: Plane, of_gradient: Plane, x: Plane, weight: Plane
    ) -> tuple[Plane, Plane]:
        """The gradients of `halve`'s x and weight; of its result as for `convolve_backward`."""
        small, large = _check_weight(weight, 2)
        shape = _halved("x", x, large)
        of_x = np.empty(x.shape, np.float32)
        of_weights = np.zeros((shape.bands, 2, 2, large, small))
        run = native.library().halve_backward
        words = (
            shaped("gradient", gradient, (*shape, small), np.float32),
            shaped("z", z, (*shape, small), np.float32),
            _norm("of_gradient", of_gradient, 4, small),
            shaped("x", x, x.shape, np.float32),
            np.ascontiguousarray(weight.transpose(2, 0, 3, 1)),
            *(*shape.rows, large, small),
        )
        self._share(shape, lambda a, b: run(*words, a, b, of_weights, of_x))
        return of_x, of_weights.sum(axis=0).transpose(3, 2, 0, 1).astype(np.float32)

    def double(self, x: Plane, weight: Plane, bias: Plane, other: Plane) -> Plane:
        """The positive part of a transposed convolution's result and of its sum with another.

        x [N, H, W, C], weight [C, K, 2, 2] of stride 2, bias [K], other [N, 2 H, 2 W, K].
        """
        small, large = _check_weight(weight, 2)
        shape, y = _Shape.of("x", x, small), np.empty_like(other)
        run = native.library().double_forward
        words = (
            shaped("x", x, x.shape, np.float32),
            np.ascontiguousarray(weight.transpose(2, 0, 3, 1)),
            _norm("bias", bias, 1, large),
            shaped("other", other, shape.doubled(large), np.float32),
            *(*shape.rows, large, small),
        )
        self._share(shape, lambda a, b: run(*words, a, b, y))
        return y

    def double_backward(
        self, gradient: Plane, y: Plane, x: Plane, weight: Plane
    ) -> tuple[Plane, Plane, Plane, Plane]:
        """The gradients of `double`'s x, weight, bias and other, from that of its result y."""
        small, large = _check_weight(weight, 2)
        shape = _Shape.of("x", x, small)
        of_x, of_other = np.empty(x.shape, np.float32), np.empty(shape.doubled(large), np.float32)
        of_weights = np.zeros((shape.bands, 2, small, 2, large))
        of_bias = np.zeros((shape.bands, large))
        run = native.library().double_backward
        words = (
            shaped("gradient", gradient, of_other.shape, np.float32),
            shaped("y", y, of_other.shape, np.float32),
            shaped("x", x, x.shape, np.float32),
            _in_order(weight),
            *(*shape.rows, large, small),
        )
        self._share(shape, lambda a, b: run(*words, a, b, of_other, of_x, of_weights, of_bias))
        of_weight = of_weights.sum(axis=0).transpose(1, 3, 0, 2).astype(np.float32)
        return of_x, of_weight, of_bias.sum(axis=0).astype(np.float32), of_other

    def normalise(self, z: Plane, norm: Norm, other: Plane | None = None) -> Plane:
        """The positive part of norm(z), and of its sum with another plane."""
        channels = z.shape[-1]
        shape, y = _Shape.of("z", z, channels), np.empty_like(z)
        run = native.library().normalise
        words = (
            shaped("z", z, z.shape, np.float32),
            _norm("norm", norm, 3, channels),
            None if other is None else shaped("other", other, z.shape, np.float32),
            *(*shape.rows, channels),
        )
        self._share(shape, lambda a, b: run(*words, a, b, y))
        return y

    def normalise_backward(
        self, gradient: Plane, y: Plane, z: Plane, mean: Plane
    ) -> tuple[Plane, Sums]:
        """The gradient where y is positive, and [2, C] its sum and that of it times (z - mean)."""
        channels = z.shape[-1]
        shape, masked = _Shape.of("z", z, channels), np.empty_like(z)
        moved = np.zeros((shape.bands, 2, channels))
        run = native.library().normalise_backward
        words = (
            shaped("gradient", gradient, z.shape, np.float32),
            shaped("y", y, z.shape, np.float32),
            shaped("z", z, z.shape, np.float32),
            _norm("mean", mean, 1, channels),
            *(*shape.rows, channels),
        )
        self._share(shape, lambda a, b: run(*words, a, b, masked, moved))
        return masked, moved.sum(axis=0)

    def likelihood(
        self, logits: Plane, labels: Image8, targets: Plane, square: int
    ) -> tuple[float, Plane]:
        """The sum of the cross entropies of all pixels, and its gradient by the logits.

        logits [N, H, W, C]: cells of square x square px, for each of 3 classes those of its pixels,
        row by row; labels [N, H * square, W * square] uint8; targets [256, 3]: of each label what
        the classes' probabilities are to be, 0 where it does not count.
        """
        channels = logits.shape[-1]
        shape = _Shape.of("logits", logits, channels)
        pixels = (shape.images, shape.height * square, shape.width * square)
        _check_square(square)
        if CLASSES * square**2 > channels:
            raise ValueError(f"logits: {channels} channels, wanted {CLASSES * square**2} or more")
        gradient, loss = np.empty_like(logits), np.zeros(shape.bands)
        run = native.library().likelihood
        words = (
            shaped("logits", logits, logits.shape, np.float32),
            shaped("labels", labels, pixels, np.uint8),
            shaped("targets", targets, (256, CLASSES), np.float32),
            *(square, *shape.rows, channels),
        )
        self._share(shape, lambda a, b: run(*words, a, b, gradient, loss))
        return float(loss.sum()), gradient

    def cells(self, images: Image8, square: int) -> Plane:
        """images [N, H, W, 3] uint8 -> [N, H/square, W/square, C], in [0, 1]: of each colour the
        pixels of a square, row by row; C is the next multiple of 4, what is too much is 0."""
        num, height, width = images.shape[:3] if images.ndim == 4 else (0, 0, 0)
        shaped("images", images, (num, height, width, 3), np.uint8)
        _check_square(square)
        if not images.size or height % square or width % square:
            raise ValueError(f"images: {height} x {width} px, wanted multiples of {square}")
        channels = -(-3 * square**2 // CHANNEL_STEP) * CHANNEL_STEP
        shape = _Shape(num, height // square, width // square)
        cells = np.empty((*shape, channels), np.float32)
        words = (np.ascontiguousarray(images), square, *shape.rows, channels)
        run = native.library().square_cells
        self._share(shape, lambda a, b: run(*words, a, b, cells))
        return cells

    def _share(self, shape: _Shape, run: Callable[[int, int], object]) -> None:
        """All bands, each thread's side by side."""
        num = min(self.num_threads, shape.bands)
        if num == 1:
            run(0, shape.bands)
            return
        ends = [shape.bands * part // num for part in range(num + 1)]
        list(self.threads.map(run, ends[:-1], ends[1:]))


class _Shape(NamedTuple):
    images: int
    height: int
    width: int

    @classmethod
    def of(cls, name: str, plane: Plane, channels: int) -> _Shape:
        """Raises ValueError for what is no plane of so many channels, or has no cell."""
        fits = plane.ndim == 4 and plane.shape[3] == channels and channels % CHANNEL_STEP == 0
        if not fits or not plane.size:
            wanted = f"[N, H, W, {channels}], channels a multiple of {CHANNEL_STEP}"
            raise ValueError(f"{name}: {plane.shape}, wanted {wanted}")
        return cls(*plane.shape[:3])

    @property
    def rows(self) -> tuple[int, int, int]:
        """Height and width of a plane, height of a band."""
        return self.height, self.width, max(1, BAND_CELLS // self.width)

    def doubled(self, channels: int) -> tuple[int, int, int, int]:
        return self.images, 2 * self.height, 2 * self.width, channels

    @property
    def bands(self) -> int:
        return self.images * -(-self.height // self.rows[2])

    def joined(self, moments: Sums) -> Moments:
        """[bands, 2, C], means and squares of each -> of all together."""
        band = self.rows[2]
        heights = np.minimum(band, self.height - np.arange(0, self.height, band))
        counts = np.tile(heights * self.width, self.images).astype(float)
        return join(counts, moments)


def join(counts: Sums, moments: Sums) -> Moments:
    """Counts [M] and their moments [M, 2, C] -> of all together (Chan, Golub and LeVeque, 1983)."""
    means, squares, count = moments[:, 0], moments[:, 1], counts.sum()
    mean = counts @ means / count
    return Moments(int(count), mean, squares.sum(axis=0) + counts @ (means - mean) ** 2)


def _halved(name: str, plane: Plane, channels: int) -> _Shape:
    """The shape of half its height and width. Raises ValueError where that is none."""
    num, height, width = _Shape.of(name, plane, channels)
    if height % 2 or width % 2:
        raise ValueError(f"{name}: {height} x {width} cells, wanted even numbers")
    return _Shape(num, height // 2, width // 2)


def _check_weight(weight: Plane, side: int = 3) -> tuple[int, int]:
    """[K, C, side, side] float32 -> K and C, multiples of 4. Raises ValueError for others."""
    outputs, inputs = weight.shape[:2] if weight.ndim == 4 else (0, 0)
    if outputs % CHANNEL_STEP or inputs % CHANNEL_STEP or not outputs or not inputs:
        raise ValueError(f"weight: {weight.shape}, wanted channels in multiples of {CHANNEL_STEP}")
    shaped("weight", weight, (outputs, inputs, side, side), np.float32)
    return outputs, inputs


def _check_square(square: int) -> None:
    """Raise ValueError for a square of pixels that there is no loop for."""
    if square not in SQUARES:
        raise ValueError(f"squares of {square} px, wanted one of {SQUARES}")


def _in_order(weight: Plane) -> Plane:
    """[K, C, H, W] -> [H, W, C, K]"""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0))


def _norm(name: str, rows: Plane | None, num: int, channels: int) -> Plane | None:
    shape = (channels,) if num == 1 else (num, channels)
    return None if rows is None else shaped(name, rows, shape, np.float32)


def _writable(name: str, plane: Plane, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The plane itself: C writes into it. Raises ValueError for one that is not as C takes it."""
    if shaped(name, plane, shape, np.float32) is not plane:
        raise ValueError(f"{name}: not contiguous, wanted channels last")
    return plane

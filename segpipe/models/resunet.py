"""A small residual U-Net: few channels where there are many pixels, more below.

U-Net's two paths joined at every level (Ronneberger, Fischer and Brox, arXiv:1505.04597), of
residual blocks (He, Zhang, Ren and Sun, arXiv:1512.03385), joined by sums as in LinkNet (Chaurasia
and Culurciello, arXiv:1707.03718). As in the W-Net (Galdran et al., arXiv:2009.01907) eight
channels do at full size; each level below has a quarter of the pixels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from segpipe.data.classes import CLASSES
from segpipe.models.network import Network


class ResUNet(Network):
    """Two residual blocks a level, one on each path; one on the lowest."""

    LEVELS: ClassVar[tuple[int, ...]] = (1, 3, 6, 6, 6)
    """Channels of each level, half as large as the one before, in widths."""
    SQUARE: ClassVar = 1
    """px: the side of the square of pixels that a cell of the first level stands for."""
    STRIDE = SQUARE * 2 ** (len(LEVELS) - 1)

    def __init__(self, width: int = 8, num_classes: int = len(CLASSES)) -> None:
        super().__init__()
        channels = [width * times for times in self.LEVELS]
        square = self.SQUARE**2
        self.first = _layer(3 * square, width)
        self.down = nn.ModuleList(Residual(c) for c in channels)
        self.smaller = nn.ModuleList(
            _layer(before, after, side=2) for before, after in pairwise(channels)
        )
        self.larger = nn.ModuleList(
            nn.ConvTranspose2d(below, above, 2, stride=2)
            for below, above in pairwise(channels[::-1])
        )
        self.up = nn.ModuleList(Residual(c) for c in channels[-2::-1])
        self.last = nn.Conv2d(width, num_classes * square, 3, padding=1)

    def last_layer(self) -> nn.Conv2d:
        return self.last

    def logits(self, x: Tensor) -> tuple[Tensor]:
        """x [N, 3, H, W], H and W multiples of STRIDE -> the logits [N, classes, H, W]."""
        x = self.down[0](self.first(self._cells(x)))
        skips = []
        for smaller, block in zip(self.smaller, self.down[1:], strict=True):
            skips.append(x)
            x = block(smaller(x))
        for larger, block in zip(self.larger, self.up, strict=True):
            x = block(F.relu(larger(x).add_(skips.pop()), inplace=True))
        return (self._pixels(self.last(x)),)

    def _cells(self, x: Tensor) -> Tensor:
        """Squares of pixels as channels of cells."""
        return x if self.SQUARE == 1 else F.pixel_unshuffle(x, self.SQUARE)

    def _pixels(self, x: Tensor) -> Tensor:
        return x if self.SQUARE == 1 else F.pixel_shuffle(x, self.SQUARE)


class FineUNet(ResUNet):
    """A ResUNet that sees squares of 2x2 px: twice the detail in the same arithmetic.

    Pixels of a square are channels of one cell, in and out (Shi et al., arXiv:1609.05158).
    """

    LEVELS = (1, 2, 4, 4, 4)
    SQUARE = 2
    STRIDE = SQUARE * 2 ** (len(LEVELS) - 1)


class DiscUNet(ResUNet):
    """A ResUNet of squares of 4x4 px: colour and course more than fine detail (structures.py)."""

    LEVELS: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 4)
    SQUARE = 4
    STRIDE = SQUARE * 2 ** (len(LEVELS) - 1)

    def __init__(self, width: int = 8, num_classes: int = 1) -> None:
        super().__init__(width, num_classes)


class KindsUNet(DiscUNet):
    """One of a level more, whose cells of 128 px see the whole photograph."""

    LEVELS = (*DiscUNet.LEVELS, 3)
    STRIDE = DiscUNet.SQUARE * 2 ** (len(LEVELS) - 1)

    def __init__(self, width: int = 16, num_classes: int = 3) -> None:
        super().__init__(width, num_classes)


class Residual(nn.Module):
    """Two 3x3 convolutions, and the input added to what they give."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.layers = nn.Sequential(
            *_layer(channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [N, channels, H, W] -> the same shape."""
        return F.relu(self.layers(x) + x)


def _layer(before: int, after: int, side: int = 3) -> nn.Sequential:
    """Convolution, batch norm, ReLU; of side 2 it halves height and width."""
    convolution = (
        nn.Conv2d(before, after, 3, padding=1, bias=False)
        if side == 3
        else nn.Conv2d(before, after, 2, stride=2, bias=False)
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))

"""U-Net: a contracting and an expanding path, joined at every level.

Ronneberger, Fischer and Brox, arXiv:1505.04597. Unlike there, convolutions are padded, so that the
logits have the image's size, and nothing is dropped out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpipe.data.classes import CLASSES
from segpipe.models.network import Network

LEVELS = 5


class UNet(Network):
    """23 convolutional layers, `width` channels at full size and twice as many a level down."""

    STRIDE = 2 ** (LEVELS - 1)

    def __init__(self, width: int = 64, num_classes: int = len(CLASSES)) -> None:
        super().__init__()
        channels = [width << level for level in range(LEVELS)]
        self.down = nn.ModuleList(
            _twice(before, after) for before, after in zip([3, *channels], channels, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in channels[-2::-1])
        self.merge = nn.ModuleList(_twice(2 * c, c) for c in channels[-2::-1])
        self.last = nn.Conv2d(width, num_classes, 1)
        for layer in self.modules():
            _initialise(layer)

    def last_layer(self) -> nn.Conv2d:
        return self.last

    def logits(self, x: Tensor) -> tuple[Tensor]:
        """x [N, 3, H, W], H and W multiples of 16 -> the logits [N, classes, H, W]."""
        skips = [self.down[0](x)]
        for block in self.down[1:]:
            skips.append(block(F.max_pool2d(skips[-1], 2)))  # half the size, twice the channels
        x = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return (self.last(x),)


def _twice(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1),
        nn.ReLU(inplace=True),
    )


def _initialise(layer: nn.Module) -> None:
    """Normal weights of variance 2 / (inputs of a neuron), section 3 of the paper; no bias."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        # windows of the up-convolution do not overlap, so each of its outputs sees one position
        positions = layer.weight[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
        nn.init.normal_(layer.weight, std=(2 / (layer.in_channels * positions)) ** 0.5)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)

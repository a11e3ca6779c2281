"""W-Net: two small U-Nets in a row, 68,482 parameters with one class.

Galdran, Anjos, Dolz, Chakor, Lombaert and Ben Ayed, "State-of-the-art retinal vessel segmentation
with minimalistic models", Scientific Reports 2022, arXiv:2009.01907. Details that the paper leaves
open are those of the authors' agaldran/lwnet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpipe.data.classes import CLASSES
from segpipe.models.network import Network

LEVELS = 3


class WNet(Network):
    """Two U-Nets; the second sees the image and the first one's logits, and corrects them."""

    STRIDE = 2 ** (LEVELS - 1)

    def __init__(self, width: int = 8, num_classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.first = SmallUNet(3, width, num_classes)
        self.second = SmallUNet(3 + num_classes, width, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="leaky_relu")

    def last_layer(self) -> nn.Conv2d:
        return self.second.last

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, 3, H, W], H and W multiples of 4 -> both nets' logits [N, classes, H, W]."""
        first = self.first(x)
        return first, self.second(torch.cat([x, first], dim=1))


class SmallUNet(nn.Module):
    """A U-Net of `width`, 2 width and 4 width channels."""

    def __init__(self, in_channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        channels = [width << level for level in range(LEVELS)]
        self.down = nn.ModuleList(
            Block(before, after)
            for before, after in zip([in_channels, *channels], channels, strict=False)
        )
        self.bridge = nn.ModuleList(_layer(c, c) for c in channels[-2::-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in channels[-2::-1])
        self.merge = nn.ModuleList(Block(2 * c, c) for c in channels[-2::-1])
        self.last = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, in_channels, H, W], H and W multiples of 4 -> logits [N, classes, H, W]."""
        skips = [self.down[0](x)]
        for block in self.down[1:]:
            skips.append(block(F.max_pool2d(skips[-1], 2)))  # half the size, twice the channels
        x = skips.pop()
        for bridge, up, merge in zip(self.bridge, self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), bridge(skips.pop())], dim=1))
        logits: Tensor = self.last(x)
        return logits


class Block(nn.Module):
    """Two layers, and a shortcut past both."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_layer(before, after), *_layer(after, after))
        self.shortcut = nn.Sequential(
            nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [N, before, H, W] -> [N, after, H, W]."""
        out: Tensor = self.layers(x) + self.shortcut(x)
        return out


def _layer(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(), nn.BatchNorm2d(after)
    )

"""SegNet: an encoder whose pooling positions steer the decoder's upsampling.

`segnet-lite` is the single level of it that the lecture "Fully convolutional networks: SegNet"
trains (Sheet, Deep Learning for Visual Computing, iitkliv/dlvcnptel, lecture 50); `segnet` is the
published network, and the idea of passing pooling indices with it: Badrinarayanan, Kendall and
Cipolla, arXiv:1511.00561, section 3.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpipe.data.classes import CLASSES
from segpipe.models.network import Network


class KeepFirstMaxima(torch.autograd.Function):
    """x [N, C, H, W], H and W even -> x where it is the first maximum of its 2x2 window, else 0.

    That is unpool(pool(x)) in one pass and without stored indices, for windows read row by row;
    the gradient passes where x was kept.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        a, b, c, d = _corners(x)
        highest = torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
        keep = torch.empty_like(x, dtype=torch.bool)
        free = torch.ones_like(highest, dtype=torch.bool)  # windows whose maximum is yet to come
        for corner, kept in zip((a, b, c, d), _corners(keep), strict=True):
            torch.logical_and(corner == highest, free, out=kept)
            free &= ~kept
        ctx.save_for_backward(keep)
        return x * keep

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (keep,) = ctx.saved_tensors  # type: ignore[attr-defined]
        kept: Tensor = gradients[0] * keep
        return kept


def _corners(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four corners of every 2x2 window, each [N, C, H/2, W/2], as views."""
    return x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]


def unpool_of_pool(x: Tensor) -> Tensor:
    """x [N, C, H, W], H and W even -> unpool(pool(x)), same shape."""
    if torch.is_grad_enabled():
        kept: Tensor = KeepFirstMaxima.apply(x)  # type: ignore[no-untyped-call]
        return kept
    # torch's own kernels are 1.5 times quicker here, but their backward is slower than ours
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(pooled, indices, (2, 2), output_size=x.shape[-2:])


class SegNetLite(Network):
    """conv 3 -> width, ReLU, pool, unpool, conv width -> classes; 3,523 parameters by default."""

    STRIDE = 2

    def __init__(self, width: int = 64, num_classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, width, 3, padding=1)
        self.decoder = nn.Conv2d(width, num_classes, 3, padding=1)

    def last_layer(self) -> nn.Conv2d:
        return self.decoder

    def logits(self, x: Tensor) -> tuple[Tensor]:
        """x [N, 3, H, W], H and W even -> the logits [N, classes, H, W]."""
        return (self.decoder(unpool_of_pool(F.relu(self.encoder(x)))),)


VGG16 = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Each level of arXiv:1409.1556's network D: channels, in widths, and number of convolutions."""


class SegNet(Network):
    """VGG16's 13 convolutions and their mirror image, 13 more; batch norm after all but the last.

    Each of the five poolings passes on where in its 2x2 windows the maxima were. The decoder puts
    its values there and zeros elsewhere, and convolutions fill the gaps.
    """

    STRIDE = 2 ** len(VGG16)

    def __init__(self, width: int = 64, num_classes: int = len(CLASSES)) -> None:
        super().__init__()
        channels = [width * times for times, _ in VGG16]
        levels = [
            [before] + depth * [after]
            for before, after, (_, depth) in zip([3, *channels], channels, VGG16, strict=False)
        ]
        self.encoder = nn.ModuleList(_layers(level) for level in levels)
        self.decoder = nn.ModuleList(_layers(level[::-1]) for level in levels[:0:-1])
        last = nn.Conv2d(width, num_classes, 3, padding=1)
        self.decoder.append(nn.Sequential(*_layers([width, width]), last))
        for layer in self.modules():  # as the paper says, its reference [56]
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def last_layer(self) -> nn.Conv2d:
        last: nn.Conv2d = self.decoder[-1][-1]  # type: ignore[index]
        return last

    def logits(self, x: Tensor) -> tuple[Tensor]:
        """x [N, 3, H, W], H and W multiples of 32 -> the logits [N, classes, H, W]."""
        maxima = []
        for level in self.encoder:
            x, where = F.max_pool2d(level(x), 2, return_indices=True)
            maxima.append(where)
        for level in self.decoder:
            x = level(F.max_unpool2d(x, maxima.pop(), [2, 2]))
        return (x,)


def _layers(channels: list[int]) -> nn.Sequential:
    """Convolution, batch norm and ReLU from each number of channels to the next."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)]
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)

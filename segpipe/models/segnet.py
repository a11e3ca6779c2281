"""SegNet: an encoder whose pooling positions steer the decoder's upsampling.

`segnet-lite` is the single level of it that the lecture "Fully convolutional networks: SegNet"
trains (Sheet, Deep Learning for Visual Computing, iitkliv/dlvcnptel, lecture 50); the idea of
passing pooling indices is Badrinarayanan, Kendall and Cipolla, arXiv:1511.00561, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpipe.data.datasets import CLASSES


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


class SegNetLite(nn.Module):
    """conv 3 -> width, ReLU, pool, unpool, conv width -> classes; 3,523 parameters by default."""

    STRIDE = 2  # height and width must be multiples of it

    def __init__(self, width: int = 64, num_classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, width, 3, padding=1)
        self.decoder = nn.Conv2d(width, num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, 3, H, W] float32 in [0, 1] -> logits [N, classes, H, W]."""
        logits: Tensor = self.decoder(unpool_of_pool(F.relu(self.encoder(x))))
        return logits

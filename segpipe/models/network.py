"""What all networks share: how pixels come in, and any size of image."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpipe.data.classes import BACKGROUND, CLASSES, VESSEL

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Network(nn.Module):
    """A network from x [N, 3, H, W] to logits [N, classes, H, W] for H and W of any size.

    Subclasses take `width`, the channels of their first layer, and `num_classes`, both with a
    default, and implement `logits`.
    """

    STRIDE: ClassVar[int]
    """px: `logits` wants heights and widths that are multiples of it."""

    def logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [N, 3, H, W] in [0, 1], H and W multiples of STRIDE -> logits, each like x's size.

        The loss counts all of them; the last is the network's answer.
        """
        raise NotImplementedError

    def last_layer(self) -> nn.Conv2d:
        """The convolution that makes the network's answer, a class's logits after the other's."""
        raise NotImplementedError

    @torch.no_grad()
    def calibrate(self, slope: float, intercept: float) -> None:
        """Change the weights so that the score's logit z becomes slope * z + intercept.

        Platt's scaling ("Probabilistic outputs for support vector machines", 1999) without a layer
        of its own. The class with the highest logit can change.
        """
        layer = self.last_layer()
        assert layer.bias is not None
        layer.weight *= slope
        layer.bias *= slope
        of_classes = layer.bias.view(len(CLASSES), -1)  # a view: blocks have several a class
        of_classes[VESSEL] += intercept / 2
        of_classes[BACKGROUND] -= intercept / 2

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [N, 3, H, W] in [0, 1] -> what `logits` gives, [N, classes, H, W] each.

        Where STRIDE does not divide H or W, the last row and column are repeated below and to the
        right, and what the network says about them is cut off.
        """
        height, width = x.shape[-2:]
        below, right = -height % self.STRIDE, -width % self.STRIDE
        if not below and not right:
            return self.logits(x)
        padded = F.pad(x, (0, right, 0, below), mode="replicate")
        return tuple(logits[..., :height, :width] for logits in self.logits(padded))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, 3, H, W] float32 in [0, 1] -> logits [N, classes, H, W]."""
        return self.outputs(x)[-1]


def to_planes(images: Tensor) -> Tensor:
    """images [N, H, W, 3] uint8 -> [N, 3, H, W] float32 in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float() / 255


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Where convolutions run in bfloat16 with sums in fp32 if `precision` is bf16, not fp32."""
    half = precision != "fp32"
    return torch.autocast(device.type, PRECISIONS[precision], enabled=half)

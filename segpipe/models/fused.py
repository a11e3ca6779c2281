"""Fewer passes over a network's activations on a CPU: what follows a convolution is done with it.

A third of resunet's time goes to reading and writing what the convolution before has just written:
for ReLU and for sums. oneDNN does both while a convolution's results are in registers ("post-ops"
in its documentation). torch has the operation for its own compiler; torch.compile would find the
same and take half a minute and a C++ compiler for it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segpipe.models import torch_compat
from segpipe.models.network import PRECISIONS, Network
from segpipe.models.resunet import Residual


def folded(network: Network) -> Network:
    """The network, in evaluation mode, with each batch norm in the convolution just before it.

    In place, and the same function up to rounding; resunet takes an eighth less time so. It is no
    longer the network that its checkpoint names: for scoring alone.
    """
    for layers in network.modules():
        if not isinstance(layers, nn.Sequential):
            continue
        for at, (layer, norm) in enumerate(pairwise(layers)):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                layers[at], layers[at + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()
    return network


def fused(network: Network, device: str, precision: str) -> Network:
    """The folded network with ReLU and a block's sum done in the convolutions before them.

    In place, and the same function up to rounding. Only folded where it is not for a CPU, or where
    torch has no oneDNN for this precision.
    """
    folded(network)
    if device != "cpu" or not torch_compat.fuses(PRECISIONS[precision]):
        return network
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Residual) and child.channels > 1:  # one knows no order of memory
                setattr(parent, name, _FusedResidual(child, PRECISIONS[precision]))
            elif isinstance(child, nn.Sequential):
                _fuse_relu(child, PRECISIONS[precision])
    return network


def _fuse_relu(layers: nn.Sequential, dtype: torch.dtype) -> None:
    """Where a ReLU comes after a convolution, with nothing between."""
    convolution: int | None = None
    for at, layer in enumerate(layers):
        if isinstance(layer, nn.ReLU) and convolution is not None:
            layers[convolution] = _Convolution(layers[convolution], dtype)
            layers[at] = nn.Identity()
        if not isinstance(layer, nn.Identity):
            convolution = at if isinstance(layer, nn.Conv2d) else None


class _Convolution(nn.Module):
    """A convolution and the ReLU of what it gives, of the sum with another where there is one."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(layer, nn.Conv2d)
        assert layer.padding_mode == "zeros"
        assert not isinstance(layer.padding, str)
        # whatever the input's order: without this one torch would not fuse, and has no sum in bf16
        self.weight = layer.weight.detach().to(dtype, memory_format=torch.channels_last)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.shape = layer.padding, layer.stride, layer.dilation, layer.groups

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """x [N, C, H, W], `other` as large as the result, which is in the weights' precision."""
        x = x.to(self.weight.dtype)
        return torch_compat.convolution_relu(x, other, self.weight, self.bias, self.shape)


class _FusedResidual(nn.Module):
    def __init__(self, block: Residual, dtype: torch.dtype) -> None:
        super().__init__()
        first, second = (layer for layer in block.layers if isinstance(layer, nn.Conv2d))
        self.first, self.second = _Convolution(first, dtype), _Convolution(second, dtype)

    def forward(self, x: Tensor) -> Tensor:
        done: Tensor = self.second(self.first(x), x)
        return done

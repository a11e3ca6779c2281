"""resunet's and fineunet's loss on a CPU by native layers: forward and backward, fp32.

torch's own convolutions are quick for many channels, and walk over memory once for each batch norm,
ReLU and sum; with eight channels that is half of the time. Here a convolution normalises what it
reads and tells the moments of what it makes. Planes are [N, H, W, C]. The same sums as those of
`Loss` in fp32, in another order; with several ranks batch norm is over all of them (norm.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from segpipe import kernels
from segpipe.data.arrays import Image8
from segpipe.data.classes import CLASSES
from segpipe.kernels.layers import CHANNEL_STEP, Layers, Moments, Then, join
from segpipe.kernels.segnet_lite import Plane, Sums
from segpipe.models import norm
from segpipe.models.loss import NativeLoss, probabilities
from segpipe.models.network import Network
from segpipe.models.resunet import ResUNet

NOT_COUNTED = 255  # a label


def native_loss(network: Network, num_threads: int, soft: bool = False) -> nn.Module:
    """A network's loss by its native form, which forms.training_problem has nothing against.

    `soft` labels are those of data/soft.py.
    """
    if isinstance(network, ResUNet):
        return NativeResUNetLoss(network, num_threads, soft)
    return NativeLoss(network, num_threads)


def targets_of(soft: bool) -> Plane:
    """[256, 3] float32: what the probabilities of the classes are to be, by label."""
    targets = np.zeros((256, len(CLASSES)), np.float32)
    if soft:
        targets[:NOT_COUNTED] = probabilities(torch.arange(NOT_COUNTED)[:, None, None])[..., 0, 0]
    else:
        targets[: len(CLASSES)] = np.eye(len(CLASSES))
    return targets


class NativeResUNetLoss(nn.Module):
    """The loss of a ResUNet, as `Loss` in fp32 finds it."""

    def __init__(self, network: Network, num_threads: int, soft: bool = False) -> None:
        super().__init__()
        assert isinstance(network, ResUNet)
        self.network, self.targets = network, targets_of(soft)
        self.layers = kernels.Layers(num_threads)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """images [N, H, W, 3] uint8 RGB, labels [N, H, W] uint8: classes or soft labels -> []."""
        network, layers = self.network, self.layers
        below, right = (-size % network.STRIDE for size in labels.shape[1:])
        edges = ((0, 0), (0, below), (0, right))
        pixels = np.pad(images.numpy(), (*edges, (0, 0)), mode="edge")
        truth = np.pad(labels.numpy(), edges, constant_values=NOT_COUNTED)
        x = torch.from_numpy(layers.cells(pixels, network.SQUARE))
        x = self._residual(self._first(x, network.first), network.down[0])
        skips = []
        for smaller, block in zip(network.smaller, network.down[1:], strict=True):
            skips.append(x)
            x = self._residual(self._smaller(x, smaller), block)
        for larger, block in zip(network.larger, network.up, strict=True):
            doubled = _Larger.apply(  # type: ignore[no-untyped-call]
                layers, x, larger.weight, larger.bias, skips.pop()
            )
            x = self._residual(doubled, block)
        last = network.last
        loss: Tensor = _Last.apply(  # type: ignore[no-untyped-call]
            *(layers, network.SQUARE, (truth, self.targets), labels.numel()),
            *(x, last.weight, last.bias),
        )
        return loss

    def _first(self, x: Tensor, layer: nn.Module) -> Tensor:
        convolution, norm, _ = layer.children()
        y: Tensor = _First.apply(  # type: ignore[no-untyped-call]
            self.layers, norm, x, convolution.weight, norm.weight, norm.bias
        )
        return y

    def _smaller(self, x: Tensor, layer: nn.Module) -> Tensor:
        convolution, norm, _ = layer.children()
        y: Tensor = _Smaller.apply(  # type: ignore[no-untyped-call]
            self.layers, norm, x, convolution.weight, norm.weight, norm.bias
        )
        return y

    def _residual(self, x: Tensor, block: nn.Module) -> Tensor:
        first, inner, _, second, outer = block.layers  # type: ignore[misc]
        y: Tensor = _Residual.apply(  # type: ignore[no-untyped-call]
            self.layers,
            (inner, outer),
            x,
            *(first.weight, inner.weight, inner.bias),
            *(second.weight, outer.weight, outer.bias),
        )
        return y


# ---- batch norm


class Statistics(NamedTuple):
    """A batch norm's, of all ranks' rows."""

    cells: int
    mean: Sums
    rstd: Sums
    weight: Sums
    table: Plane
    """[3, C]: mean, scale and shift."""
    synchronised: bool

    @classmethod
    def of(cls, layer: nn.BatchNorm2d, moments: Moments) -> Statistics:
        """Updates the layer's running statistics. Raises ValueError for a single value."""
        synchronised = norm.is_synchronised(layer)
        if synchronised:
            counts = np.full_like(moments.mean, moments.cells)
            own = torch.from_numpy(np.stack([counts, moments.mean, moments.squares]))
            of_ranks = norm.of_all_ranks(own).numpy()
            moments = join(of_ranks[:, 0, 0], of_ranks[:, 1:])
        cells, mean, squares = moments
        if cells <= 1:
            raise ValueError(f"batch norm of {cells} values of a channel, wanted 2 or more")
        variance = squares / cells
        norm.remember(layer, torch.from_numpy(mean), torch.from_numpy(squares / (cells - 1)))
        weight, bias = (part.detach().double().numpy() for part in (layer.weight, layer.bias))
        rstd = 1 / np.sqrt(variance + layer.eps)
        table = np.stack([mean, weight * rstd, bias]).astype(np.float32)
        return cls(cells, mean, rstd, weight, table, synchronised)

    def backward(self, moved: Sums) -> tuple[Plane, Tensor, Tensor]:
        """moved [2, C]: the sums of this rank's gradients, and of them times (z - mean).

        -> [4, C], of what the gradient of z is made (Layers.convolve_backward), and the gradients
        of weight and bias for this rank's rows.
        """
        total = moved
        if self.synchronised:
            total = norm.of_all_ranks(torch.from_numpy(moved)).sum(dim=0).numpy()
        scale = self.weight * self.rstd
        together, along = total / self.cells
        parts = [scale, self.mean, -scale * self.rstd**2 * along, -scale * together]
        of_weight, of_bias = torch.from_numpy(moved[1] * self.rstd), torch.from_numpy(moved[0])
        return np.stack(parts).astype(np.float32), of_weight.float(), of_bias.float()


# ---- layers


def _normalised(
    ctx: Any,
    layers: Layers,
    layer: nn.BatchNorm2d,
    z: Plane,
    moments: Moments,
    x: Tensor,
    weight: Tensor,
) -> Tensor:
    """Batch norm and ReLU of z, which `weight` made of x; `ctx` keeps what the way back needs."""
    ctx.statistics = Statistics.of(layer, moments)
    y = torch.from_numpy(layers.normalise(z, ctx.statistics.table))
    ctx.layers, ctx.z = layers, z
    ctx.save_for_backward(x, weight, y)
    return y


def _before_norm(ctx: Any, of_y: Tensor) -> tuple[tuple[Plane, Plane, Plane], Tensor, Tensor]:
    """The gradient of _normalised's y -> what that of z is made of, those of scale and shift."""
    layers, statistics, z = ctx.layers, ctx.statistics, ctx.z
    y = ctx.saved_tensors[2].numpy()
    g, moved = layers.normalise_backward(of_y.contiguous().numpy(), y, z, statistics.table[0])
    table, of_scale, of_shift = statistics.backward(moved)
    return (g, z, table), of_scale, of_shift


class _First(torch.autograd.Function):
    """Convolution, batch norm and ReLU of pixels, which have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, layers: Layers, layer: nn.BatchNorm2d, x: Tensor, weight: Tensor, *_: Tensor
    ) -> Tensor:
        z, moments = layers.convolve(x.numpy(), _wide(weight), with_moments=True)
        assert moments
        return _normalised(ctx, layers, layer, z, moments, x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, weight, _ = ctx.saved_tensors
        made, of_scale, of_shift = _before_norm(ctx, gradients[0])
        of_weight, _, _ = ctx.layers.convolve_backward(*made, x.numpy(), _wide(weight))
        return None, None, None, _as(weight, of_weight), of_scale, of_shift


class _Smaller(torch.autograd.Function):
    """A 2x2 convolution of stride 2, batch norm and ReLU."""

    @staticmethod
    def forward(
        ctx: Any, layers: Layers, layer: nn.BatchNorm2d, x: Tensor, weight: Tensor, *_: Tensor
    ) -> Tensor:
        z, moments = layers.halve(x.numpy(), weight.detach().numpy())
        return _normalised(ctx, layers, layer, z, moments, x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, weight, _ = ctx.saved_tensors
        made, of_scale, of_shift = _before_norm(ctx, gradients[0])
        of_x, of_weight = ctx.layers.halve_backward(*made, x.numpy(), weight.detach().numpy())
        return None, None, torch.from_numpy(of_x), _as(weight, of_weight), of_scale, of_shift


class _Larger(torch.autograd.Function):
    """A transposed 2x2 convolution of stride 2, and ReLU of the sum with another plane."""

    @staticmethod
    def forward(
        ctx: Any, layers: Layers, x: Tensor, weight: Tensor, bias: Tensor, other: Tensor
    ) -> Tensor:
        arrays = (part.detach().numpy() for part in (x, weight, bias, other))
        y = torch.from_numpy(layers.double(*arrays))
        ctx.layers = layers
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, weight, y = ctx.saved_tensors
        of_x, of_weight, of_bias, of_other = ctx.layers.double_backward(
            gradients[0].contiguous().numpy(), y.numpy(), x.numpy(), weight.detach().numpy()
        )
        of_bias, of_other = torch.from_numpy(of_bias), torch.from_numpy(of_other)
        return None, torch.from_numpy(of_x), _as(weight, of_weight), of_bias, of_other


class _Residual(torch.autograd.Function):
    """Two 3x3 convolutions with batch norm, ReLU between them, and of the sum with the input."""

    @staticmethod
    def forward(
        ctx: Any,
        layers: Layers,
        norms: tuple[nn.BatchNorm2d, nn.BatchNorm2d],
        x: Tensor,
        first: Tensor,
        *others: Tensor,
    ) -> Tensor:
        second = others[2]
        a, moments = layers.convolve(x.numpy(), first.detach().numpy(), with_moments=True)
        assert moments
        inner = Statistics.of(norms[0], moments)
        b, moments = layers.convolve(a, second.detach().numpy(), inner.table, with_moments=True)
        assert moments
        outer = Statistics.of(norms[1], moments)
        y = torch.from_numpy(layers.normalise(b, outer.table, x.numpy()))
        ctx.layers, ctx.statistics, ctx.planes = layers, (inner, outer), (a, b)
        ctx.save_for_backward(x, y, first, second)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, y, first, second = ctx.saved_tensors
        layers, (inner, outer), (a, b) = ctx.layers, ctx.statistics, ctx.planes
        of_y = gradients[0].contiguous().numpy()
        of_x, moved = layers.normalise_backward(of_y, y.numpy(), b, outer.table[0])
        table, of_outer_scale, of_outer_shift = outer.backward(moved)
        of_a = np.empty_like(a)
        of_second, _, moved = layers.convolve_backward(
            *(of_x, b, table, a, second.detach().numpy(), inner.table, Then.MASK, of_a)
        )
        table, of_inner_scale, of_inner_shift = inner.backward(moved)
        # of_x serves twice: the sum's gradient is the input's, and what the convolution adds to
        of_first, _, _ = layers.convolve_backward(
            *(of_a, a, table, x.numpy(), first.detach().numpy(), None, Then.ADD, of_x)
        )
        return (
            *(None, None, torch.from_numpy(of_x)),
            *(_as(first, of_first), of_inner_scale, of_inner_shift),
            *(_as(second, of_second), of_outer_scale, of_outer_shift),
        )


class _Last(torch.autograd.Function):
    """A convolution, and the mean cross entropy over so many pixels."""

    @staticmethod
    def forward(
        ctx: Any,
        layers: Layers,
        square: int,
        truth: tuple[Image8, Plane],
        num_pixels: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        wide = _wide(weight)
        of_outputs = np.zeros(len(wide), np.float32)
        of_outputs[: len(bias)] = bias.detach().numpy()
        logits, _ = layers.convolve(x.numpy(), wide, bias=of_outputs)
        loss, ctx.gradient = layers.likelihood(logits, *truth, square)
        ctx.layers, ctx.num_pixels = layers, num_pixels
        ctx.save_for_backward(x, weight, bias)
        return weight.new_tensor(loss / num_pixels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        table = np.zeros((4, ctx.gradient.shape[-1]), np.float32)
        table[0] = float(gradients[0]) / ctx.num_pixels
        of_x = np.empty(x.shape, np.float32)
        of_weight, of_bias, _ = ctx.layers.convolve_backward(
            *(ctx.gradient, None, table, x.numpy(), _wide(weight), None, Then.KEEP, of_x, True)
        )
        assert of_bias is not None
        of_bias = torch.from_numpy(of_bias[: len(bias)].copy())
        return *[None] * 4, torch.from_numpy(of_x), _as(weight, of_weight), of_bias


def _wide(weight: Tensor) -> Plane:
    """[K, C, 3, 3] with zeros up to numbers of channels that the loops know."""
    more = [-size % CHANNEL_STEP for size in weight.shape[:2]]
    return np.pad(weight.detach().numpy(), ((0, more[0]), (0, more[1]), (0, 0), (0, 0)))


def _as(weight: Tensor, gradient: Plane) -> Tensor:
    """A weight's gradient, laid out as the weight: the fused step takes memory as it lies."""
    outputs, inputs = weight.shape[:2]
    return torch.empty_like(weight).copy_(torch.from_numpy(gradient[:outputs, :inputs].copy()))

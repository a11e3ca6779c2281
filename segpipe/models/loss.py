"""What training makes small, as one module, so that DDP sees network and loss together."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpipe import kernels
from segpipe.data.classes import BACKGROUND, OUTSIDE, VESSEL
from segpipe.data.soft import LEVELS
from segpipe.models.network import PRECISIONS, Network, autocast, to_planes
from segpipe.models.segnet import SegNetLite

LOSSES = ("nll", "nll+dice")
DICE_SMOOTH = 1.0  # px, so that a crop without a vessel has a loss


class Loss(nn.Module):
    """Mean negative log-likelihood per pixel, summed over the network's outputs.

    W-Net's first net is held to the label as well as its second (arXiv:2009.01907). `nll+dice` adds
    1 - Dice of the vessels, with probabilities in the place of pixels (Milletari, Navab and Ahmadi,
    arXiv:1606.04797, but their squares), the mean over the crops.
    """

    def __init__(
        self, network: Network, precision: str = "fp32", loss: str = "nll", soft: bool = False
    ) -> None:
        """`precision` fp32, or bf16 for the network's convolutions; the loss itself is in fp32.

        `soft` labels are those of data/soft.py.
        """
        super().__init__()
        assert precision in PRECISIONS
        assert loss in LOSSES
        self.network, self.precision, self.soft = network, precision, soft
        self.with_dice = loss == "nll+dice"

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """images [N, H, W, 3] uint8 RGB, labels [N, H, W] uint8: classes or soft labels -> [].

        Both on the network's device, which is not waited for.
        """
        x = to_planes(images)
        with autocast(x.device, self.precision):
            outputs = self.network.outputs(x)
        truth = probabilities(labels) if self.soft else labels.long()
        return torch.stack([self._of_one(o.float(), truth) for o in outputs]).sum()

    def _of_one(self, logits: Tensor, truth: Tensor) -> Tensor:
        likelihood = F.cross_entropy(logits, truth)
        if not self.with_dice:
            return likelihood
        vessel = truth[:, VESSEL] if self.soft else (truth == VESSEL).float()
        return likelihood + dice_loss(logits, vessel)


def probabilities(soft: Tensor) -> Tensor:
    """Soft labels [N, H, W] uint8, as data/soft.py has them -> [N, classes, H, W] float32."""
    vessel = (soft.float() - 1) / LEVELS
    inside = (soft > 0).float()
    parts = {OUTSIDE: 1 - inside, VESSEL: vessel * inside, BACKGROUND: (1 - vessel) * inside}
    return torch.stack([parts[index] for index in sorted(parts)], dim=1)


def dice_loss(logits: Tensor, vessel: Tensor) -> Tensor:
    """logits [N, classes, H, W], vessel [N, H, W] float32 from 0 to 1 -> []: 1 - Dice of the
    vessels, with probabilities in the place of pixels."""
    prob = logits.softmax(dim=1)[:, VESSEL]
    both, total = (prob * vessel).sum(dim=(1, 2)), (prob + vessel).sum(dim=(1, 2))
    return (1 - (2 * both + DICE_SMOOTH) / (total + DICE_SMOOTH)).mean()


class NativeLoss(nn.Module):
    """segnet-lite's loss on a CPU by its own compiled loop, which finds the gradients as well.

    The same sums as `Loss` in float32, in another order.
    """

    def __init__(self, network: Network, num_threads: int) -> None:
        super().__init__()
        assert isinstance(network, SegNetLite)
        self.network = network
        self.differentiate = kernels.SegNetLiteGradients(num_threads)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """As that of `Loss`, H and W even."""
        encoder, decoder = self.network.encoder, self.network.decoder
        found: Tensor = _Differentiated.apply(  # type: ignore[no-untyped-call]
            self.differentiate, images, labels, *encoder.parameters(), *decoder.parameters()
        )
        return found


class _Differentiated(torch.autograd.Function):
    """A loss whose gradients are known as soon as it is."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        differentiate: kernels.SegNetLiteGradients,
        images: Tensor,
        labels: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        arrays = [weight.detach().numpy() for weight in weights]
        loss, *gradients = differentiate(images.numpy(), labels.numpy(), *arrays)
        pixels = labels.numel()
        scaled = [torch.from_numpy(gradient / np.float32(pixels)) for gradient in gradients]
        laid_out = [torch.empty_like(w).copy_(g) for w, g in zip(weights, scaled, strict=True)]
        ctx.save_for_backward(*laid_out)
        return weights[0].new_tensor(loss / pixels)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # type: ignore[attr-defined]
        return None, None, None, *(gradients[0] * gradient for gradient in saved)

"""What training makes small, as one module, so that DDP sees network and loss together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpipe.models.network import PRECISIONS, Network, autocast, to_planes


class Loss(nn.Module):
    """Mean negative log-likelihood per pixel, summed over the network's outputs.

    W-Net's first net is held to the truth as well as its second (arXiv:2009.01907).
    """

    def __init__(self, network: Network, precision: str = "fp32") -> None:
        """`precision` fp32, or bf16 for the network's convolutions; the loss itself is in fp32."""
        super().__init__()
        assert precision in PRECISIONS
        self.network, self.precision = network, precision

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """images [N, H, W, 3] uint8 RGB, labels [N, H, W] uint8, the class of each pixel -> [].

        Both on the network's device, which is not waited for.
        """
        x = to_planes(images)
        with autocast(x.device, self.precision):
            outputs = self.network.outputs(x)
        truth = labels.long()
        return torch.stack([F.cross_entropy(o.float(), truth) for o in outputs]).sum()

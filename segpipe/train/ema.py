"""The exponential moving average of a training's weights."""

from __future__ import annotations

import copy

import torch

from segpipe.models.network import Network

EMA_WARMUP = 10  # steps: the average first spans about a tenth of those that were done


class ExponentialMovingAverage:
    """Of a network's weights over its steps, the latest counting most.

    As Polyak and Juditsky 1992, Tarvainen and Valpola, arXiv:1703.01780; batch norm's statistics
    included. The decay is lower in the first steps.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network, self.decay = copy.deepcopy(network).eval(), decay
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        self.pairs = [pair for pair in pairs if pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after this step, counted from the run's first."""
        share = 1 - min(self.decay, (step + 1) / (step + EMA_WARMUP))
        for mean, latest in self.pairs:
            mean.lerp_(latest, share)

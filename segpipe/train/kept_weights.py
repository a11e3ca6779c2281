"""Which weights of a training are told and ship: their mean over the steps, the best by a loss."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from segpipe.models.network import Network
from segpipe.train.states import State

AVERAGE_WARMUP = 10  # steps: the average first spans about a tenth of those that were done


class Average:
    """The mean of a network's weights over its steps, the latest counting most.

    An exponential moving average (Polyak and Juditsky 1992; Tarvainen and Valpola,
    arXiv:1703.01780), batch norm's statistics included, and it follows quicker in the beginning.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network, self.decay = copy.deepcopy(network).eval(), decay
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        self.pairs = [pair for pair in pairs if pair[0].is_floating_point()]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the weights after this step, counted from the run's first."""
        share = 1 - min(self.decay, (step + 1) / (step + AVERAGE_WARMUP))
        for mean, latest in self.pairs:
            mean.lerp_(latest, share)


@dataclass
class Best:
    """The weights with the lowest validation loss so far."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    loss: float = math.inf

    def offer(self, epoch: int, loss: float, network: nn.Module) -> None:
        if loss < self.loss:
            self.weights = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
            self.epoch, self.loss = epoch, loss

    def stale(self, epoch: int, patience: int | None) -> bool:
        """Whether the loss has not become lower for `patience` epochs."""
        return patience is not None and epoch - self.epoch >= patience

    def figures(self) -> dict[str, float]:
        return {"epoch": self.epoch, "loss": self.loss if self.epoch else 0.0}

    @classmethod
    def told(cls, state: State) -> Best:
        """As a state tells it, without weights."""
        figures = state.progress["best"]
        return cls({}, figures["epoch"], figures["loss"]) if figures["epoch"] else cls()

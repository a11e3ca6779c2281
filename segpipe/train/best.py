"""The weights of a training with the lowest validation loss, and when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from segpipe.train.states import State


@dataclass
class Best:
    """The weights with the lowest validation loss so far."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    loss: float = math.inf

    def update(self, epoch: int, loss: float, network: nn.Module) -> None:
        """Keep the network's weights where this epoch's loss is the lowest."""
        if loss < self.loss:
            self.weights = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
            self.epoch, self.loss = epoch, loss

    def should_stop(self, epoch: int, patience: int | None) -> bool:
        """Whether the loss has not become lower for `patience` epochs."""
        return patience is not None and epoch - self.epoch >= patience

    def figures(self) -> dict[str, float]:
        return {"epoch": self.epoch, "loss": self.loss if self.epoch else 0.0}

    @classmethod
    def of(cls, state: State) -> Best:
        """A state's, without weights."""
        figures = state.progress["best"]
        return cls({}, figures["epoch"], figures["loss"]) if figures["epoch"] else cls()


def finished(state: State, epochs: int, patience: int | None) -> bool:
    """Whether no epoch is left to train after this state."""
    return state.epoch >= epochs or Best.of(state).should_stop(state.epoch, patience)

"""Which networks there are, and a checkpoint's network with its weights."""

from __future__ import annotations

import torch
from torch import nn

from segpipe.errors import UserError
from segpipe.models.checkpoint import Checkpoint
from segpipe.models.segnet import SegNetLite

MODELS = {"segnet-lite": SegNetLite}


def build_model(name: str, classes: int) -> nn.Module:
    """A freshly initialised network. Raises UserError for an unknown name."""
    return model_class(name)(num_classes=classes)


def model_class(name: str) -> type[SegNetLite]:
    if name not in MODELS:
        raise UserError(f"--model {name}: unknown network, choose from {', '.join(MODELS)}")
    return MODELS[name]


def load_network(checkpoint: Checkpoint) -> nn.Module:
    """The network with its weights, in evaluation mode. Raises UserError where they do not fit."""
    try:
        network = build_model(checkpoint.card.model, classes=len(checkpoint.card.classes))
        state = {name: torch.from_numpy(array.copy()) for name, array in checkpoint.state.items()}
        network.load_state_dict(state)
    except (ValueError, TypeError, RuntimeError, UserError) as error:
        raise checkpoint.misfit() from error
    return network.eval()

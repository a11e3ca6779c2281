"""Which networks there are, and a checkpoint's network with its weights."""

from __future__ import annotations

import torch

from segpipe.errors import UserError
from segpipe.models.checkpoint import Checkpoint
from segpipe.models.network import Network
from segpipe.models.resunet import FineUNet, ResUNet
from segpipe.models.segnet import SegNet, SegNetLite
from segpipe.models.unet import UNet
from segpipe.models.wnet import WNet

MODELS: dict[str, type[Network]] = {
    "segnet-lite": SegNetLite,
    "segnet": SegNet,
    "unet": UNet,
    "wnet": WNet,
    "resunet": ResUNet,
    "fineunet": FineUNet,
}


def build_model(name: str, classes: int, width: int | None = None) -> Network:
    """A freshly initialised network, `width` channels wide or as wide as its default.

    Raises UserError for an unknown name.
    """
    of_width = {} if width is None else {"width": width}
    return model_class(name)(num_classes=classes, **of_width)


def model_class(name: str) -> type[Network]:
    """Raises UserError for an unknown name."""
    if name not in MODELS:
        raise UserError(f"--model {name}: unknown network, choose from {', '.join(MODELS)}")
    return MODELS[name]


def load_network(checkpoint: Checkpoint) -> Network:
    """The network with its weights, in evaluation mode. Raises UserError where they do not fit."""
    card = checkpoint.card
    try:
        with torch.device("meta"):  # nothing is allocated for a width that the weights do not have
            network = build_model(card.model, len(card.classes), card.width)
        state = {name: torch.from_numpy(array.copy()) for name, array in checkpoint.state.items()}
        network.load_state_dict(state, assign=True)
    except (ValueError, TypeError, RuntimeError, UserError) as error:
        raise checkpoint.misfit() from error
    return network.float().eval()

"""The network of arteries, veins and the optic disc, and its shipped checkpoint.

It sees the canvas that the vessels' network sees, and says two things of each pixel: whether a
vessel here is an artery and no vein, and whether the optic disc is here. Which pixels are vessel
the other network says. One file is shipped, and no other is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from segpipe import kernels
from segpipe.data.arrays import Image8, Plane
from segpipe.errors import UserError
from segpipe.models import weights
from segpipe.models.bf16 import bf16_problem
from segpipe.models.checkpoint import Checkpoint
from segpipe.models.engine import Engine
from segpipe.models.forms import native_problem

if TYPE_CHECKING:
    from segpipe.models.resunet import StructuresUNet

NAME = "structures"
FILE = f"{NAME}.maps"
"""In weights/, beside NAME.json: safetensors, of another suffix than the checkpoints of vessels."""
DIAMETER = 1024.0
"""px: the working diameter that it was trained at, and that of the shipped default."""
KIND, DISC, VESSELS = range(3)
"""Its maps, each of logits: artery, not vein; optic disc; vessel (learnt beside them, not used)."""
USED = (KIND, DISC)

Maps = Callable[[Image8, Image8], Plane]
"""canvas [S, S, 3] uint8 RGB, fov [S, S] uint8 -> maps [2, S, S] float32 in [0, 1]: artery and not
vein, optic disc; right where fov is not 0"""


@cache
def about() -> dict[str, Any]:
    """What is known of the shipped checkpoint: weights/structures.json."""
    found: dict[str, Any] = json.loads((resources.files(weights) / f"{NAME}.json").read_bytes())
    return found


def read() -> bytes:
    """The shipped checkpoint. Raises UserError where it is not what was shipped."""
    data = (resources.files(weights) / FILE).read_bytes()
    if hashlib.sha256(data).hexdigest() != about()["sha256"]:
        raise UserError(f"--structures all: {FILE} is damaged, install segpipe again")
    return data


def wanted(loaded: Checkpoint) -> bytes:
    """The shipped checkpoint, for use beside this one of vessels.

    Raises UserError where that one's canvas is another.
    """
    if loaded.card.diameter != DIAMETER:
        raise UserError(
            f"--structures all: {loaded.source} has a working diameter of {loaded.card.diameter:g} "
            f"px, arteries and veins are found at {DIAMETER:g}; leave --checkpoint out"
        )
    return read()


def dump(network: StructuresUNet) -> bytes:
    """A trained network's file: the weights of convolutions in half precision, half the bytes."""
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    return safetensors.numpy.save(
        {
            name: np.ascontiguousarray(one, np.float16 if one.ndim == 4 else one.dtype)
            for name, one in state.items()
        }
    )


def open_maps(data: bytes, engine: Engine, num_threads: int = 1, device: str = "cpu") -> Maps:
    """The checkpoint's network by this engine; by torch in fp32 where that does not run here."""
    state = {
        name: one.astype(np.float32) if one.dtype == np.float16 else one
        for name, one in safetensors.numpy.load(data).items()
    }
    width = len(state["first.0.weight"])
    problem = native_problem("resunet", width, engine.precision, device)
    if engine.backend == "native" and not problem:
        return kernels.ResUNetMaps(state, [(one, None) for one in USED], engine.precision)
    return _torch(state, engine.precision, num_threads, device)


def _torch(
    state: dict[str, npt.NDArray[Any]], precision: str, num_threads: int, device: str
) -> Maps:
    import torch

    from segpipe.models.network import autocast
    from segpipe.models.predict import channels_last, to_input
    from segpipe.models.resunet import StructuresUNet

    torch.set_num_threads(num_threads)
    network = StructuresUNet(len(state["first.0.weight"]))
    network.load_state_dict({name: torch.from_numpy(one.copy()) for name, one in state.items()})
    place = torch.device(device)
    network = channels_last(network.eval().to(place))
    used = "fp32" if bf16_problem(precision, device) else precision

    @torch.inference_mode()
    def maps(canvas: Image8, _: Image8) -> Plane:
        with autocast(place, used):
            logits = network(to_input(canvas[None], place))[0]
        found: Plane = torch.sigmoid(logits[list(USED)].float()).cpu().numpy()
        return found

    return maps

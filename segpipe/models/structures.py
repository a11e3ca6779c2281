"""The networks of arteries, veins and the optic disc, and their shipped checkpoint.

One sees the canvas that the vessels' network sees, and says of each pixel whether a vessel here is
an artery and no vein; which pixels are vessel the other network says. The second sees the whole
canvas at a quarter of its size, and says where the optic disc is. One file with both is shipped,
and no other is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import safetensors.numpy

from segpipe import kernels
from segpipe.data.arrays import DISC_STEP, Image8, Plane, StructureMaps
from segpipe.errors import UserError
from segpipe.models import weights
from segpipe.models.bf16 import bf16_problem
from segpipe.models.checkpoint import Checkpoint
from segpipe.models.engine import Engine
from segpipe.models.forms import native_problem

if TYPE_CHECKING:
    from torch import Tensor

NAME = "structures"
KINDS_NETWORK, DISC_NETWORK = "kinds", "disc"
FILE = f"{NAME}.maps"
"""In weights/, beside NAME.json: safetensors, of another suffix than the checkpoints of vessels."""
DIAMETER = 1024.0
"""px: the working diameter that it was trained at, and that of the shipped default."""
KIND, DISC, VESSELS = range(3)
"""Maps of the first, each of logits: artery, not vein; optic disc and vessel, which are learnt
beside it and not used."""

Maps = Callable[[Image8, Image8], StructureMaps]
"""canvas [S, S, 3] uint8 RGB, fov [S, S] uint8 -> float32 maps of it"""
Map = Callable[[Image8, Image8], Plane]
"""The same of one network: the map [S, S]."""
Planes = dict[str, npt.NDArray[Any]]


@cache
def about() -> dict[str, Any]:
    """What is known of the shipped checkpoint: weights/structures.json."""
    found: dict[str, Any] = json.loads((resources.files(weights) / f"{NAME}.json").read_bytes())
    return found


def read() -> bytes:
    """The shipped checkpoint. Raises UserError where it is not what was shipped."""
    file = resources.files(weights) / FILE
    data = file.read_bytes() if file.is_file() else b""
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


def dump(name: str, state: Mapping[str, Tensor]) -> Planes:
    """A trained network's arrays in the file, below its name: the weights of convolutions in half
    precision, half the bytes."""
    arrays = {f"{name}.{part}": value.numpy() for part, value in state.items()}
    return {
        part: np.ascontiguousarray(one, np.float16 if one.ndim == 4 else one.dtype)
        for part, one in arrays.items()
    }


def loaded(name: str, data: bytes) -> dict[str, Tensor]:
    """A network of a file of `dump`s, as `load_state_dict` takes it."""
    return _tensors(_state(safetensors.numpy.load(data), name))


def replaced(name: str, state: Mapping[str, Tensor]) -> bytes:
    """The shipped checkpoint with another network of that name."""
    others = safetensors.numpy.load(read())
    kept = {part: one for part, one in others.items() if not part.startswith(f"{name}.")}
    return safetensors.numpy.save(kept | dump(name, state))


def open_maps(data: bytes, engine: Engine, num_threads: int = 1, device: str = "cpu") -> Maps:
    """The checkpoint's networks by this engine; by torch in fp32 where that does not run here."""
    arrays, place = safetensors.numpy.load(data), (engine, num_threads, device)
    of_kinds, of_disc = (
        _open(name, _state(arrays, name), wanted, *place)
        for name, wanted in ((KINDS_NETWORK, KIND), (DISC_NETWORK, 0))
    )

    def maps(canvas: Image8, fov: Image8) -> StructureMaps:
        return StructureMaps(of_kinds(canvas, fov), of_disc(*reduced(canvas, fov)))

    return maps


def reduced(canvas: Image8, fov: Image8) -> tuple[Image8, Image8]:
    """canvas [S, S, 3], fov [S, S] -> what the disc's network sees, 0 outside the field, and 255 in
    it: S / DISC_STEP px."""
    small, field = _means(canvas), _means(fov[..., None])
    inside = (field[..., 0] > 127) * np.uint8(255)
    return np.asarray(cv2.copyTo(small, inside), np.uint8), inside


def _means(picture: Image8) -> Image8:
    """picture [S, S, C] -> the means of squares of DISC_STEP px."""
    if not kernels.missing():
        return kernels.block_means(picture, DISC_STEP)
    size = (len(picture) // DISC_STEP,) * 2
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _state(arrays: Planes, name: str) -> Planes:
    """What `dump` wrote, in float32."""
    return {
        part.removeprefix(f"{name}."): one.astype(np.float32) if one.dtype == np.float16 else one
        for part, one in arrays.items()
        if part.startswith(f"{name}.")
    }


def _tensors(state: Planes) -> dict[str, Tensor]:
    import torch

    return {part: torch.from_numpy(one.copy()) for part, one in state.items()}


def _open(
    name: str, state: Planes, index: int, engine: Engine, num_threads: int, device: str
) -> Map:
    width = len(state["first.0.weight"])
    problem = native_problem("resunet", width, engine.precision, device)
    if engine.backend == "native" and not problem:
        found = kernels.ResUNetMaps(state, [(index, None)], engine.precision)
        return lambda canvas, fov: found(canvas, fov)[0]
    return _torch(name, state, index, engine.precision, num_threads, device)


def _torch(
    name: str, state: Planes, index: int, precision: str, num_threads: int, device: str
) -> Map:
    import torch

    from segpipe.models.network import autocast
    from segpipe.models.predict import channels_last, to_input
    from segpipe.models.resunet import DiscUNet, KindsUNet

    torch.set_num_threads(num_threads)
    network = KindsUNet() if name == KINDS_NETWORK else DiscUNet()
    network.load_state_dict(_tensors(state))
    place = torch.device(device)
    network = channels_last(network.eval().to(place))
    used = "fp32" if bf16_problem(precision, device) else precision

    @torch.inference_mode()
    def found(canvas: Image8, _: Image8) -> Plane:
        with autocast(place, used):
            logits = network(to_input(canvas[None], place))[0, index]
        prob: Plane = torch.sigmoid(logits.float()).cpu().numpy()
        return prob

    return found

"""The one checkpoint format: safetensors whose metadata holds all that others need.

Nothing is unpickled. The file names its network, its classes, the working diameter that images
are scaled to, the threshold chosen on the training split, the data and the package's version.
Nothing here imports torch, which takes two seconds: networks.py makes a network of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from segpipe.data.canvas import Working
from segpipe.data.classes import CLASSES
from segpipe.errors import UserError
from segpipe.models import weights
from segpipe.models.tta import tta_of
from segpipe.storage import read_uri

FORMAT = "segpipe-1"
LARGER = {"fineunet": 1.25}
"""Of some networks how much larger than its working diameter a field may be that has more px: what
it tells of vessels seen so is better. Chosen on training photographs (results/LOG.md)."""
DEFAULT = "fineunet"  # the shipped checkpoint that is used where none is named


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself."""

    model: str
    """Name of the network, a key of networks.MODELS."""
    diameter: float
    """Working diameter of the field of view in px, to which images are scaled; see `working`."""
    threshold: float
    """A pixel in the field is vessel where its score reaches this; chosen on the training split."""
    training_data: str
    """What it was trained on."""
    classes: tuple[str, ...]
    """Class names in order of their indices."""
    version: str
    """Version of segpipe that wrote it."""
    width: int | None = None
    """Channels of the network's first layer; None, also in older files: the network's default."""
    flips: int = 1
    """Scores that test-time augmentation averages where nothing else is asked for, and averaged
    when the threshold was chosen; 1, also in older files: none."""

    @property
    def working(self) -> Working:
        """Working diameters in px, from those of small fields to those of large ones."""
        return Working(self.diameter, self.diameter * LARGER.get(self.model, 1.0))

    @property
    def tta(self) -> str:
        """The name of that test-time augmentation."""
        return tta_of(self.flips)

    def check(self) -> None:
        """Raise ValueError for a figure that cannot be, or classes in another order than ours."""
        if not 0 <= self.threshold < 1 or not 0 < self.diameter < math.inf:
            raise ValueError(f"threshold {self.threshold}, diameter {self.diameter}")
        if self.width is not None and not (isinstance(self.width, int) and self.width > 0):
            raise ValueError(f"width {self.width}")
        tta_of(self.flips)
        if self.classes != CLASSES:
            raise ValueError(f"classes {self.classes}, wanted {CLASSES}")


@dataclass(frozen=True)
class Checkpoint:
    card: Card
    state: dict[str, npt.NDArray[Any]]
    sha256: str
    source: str
    """Its name or place, for messages."""

    def misfit(self) -> UserError:
        """The error for weights that are not this network's."""
        return UserError(
            f"{self.source}: a segpipe checkpoint that does not fit together, {GIVE_ANOTHER}"
        )


def dump(state: Mapping[str, npt.NDArray[Any]], card: Card) -> bytes:
    metadata = {"format": FORMAT, "card": json.dumps(asdict(card))}
    arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
    return safetensors.numpy.save(arrays, metadata)


def shipped() -> list[str]:
    """Names of the checkpoints in the package."""
    files = resources.files(weights).iterdir()
    return sorted(f.name.removesuffix(SUFFIX) for f in files if f.name.endswith(SUFFIX))


SUFFIX = ".safetensors"


def about(name: str) -> dict[str, Any]:
    """What is known of a shipped checkpoint beside what it says itself: weights/NAME.json."""
    values: dict[str, Any] = json.loads((resources.files(weights) / f"{name}.json").read_bytes())
    return values


def read(name_or_uri: str | None) -> bytes:
    """The bytes of a shipped checkpoint (by name; the default without one) or of the file there.

    Raises UserError where there is none, or where a shipped one is not what was shipped.
    """
    name = name_or_uri or DEFAULT
    if name in shipped():
        data = (resources.files(weights) / f"{name}{SUFFIX}").read_bytes()
        if hashlib.sha256(data).hexdigest() != about(name)["sha256"]:
            raise UserError(f"--checkpoint {name}: its weights are damaged, install segpipe again")
        return data
    try:
        return read_uri(name)
    except UserError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            raise UserError(f"--checkpoint {error}") from error
        raise UserError(
            f"--checkpoint {name}: neither a file nor a shipped checkpoint, check the path or "
            f"choose from {', '.join(shipped())}"
        ) from error


PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How files of torch.save begin: zip archives, and before PyTorch 1.6 bare pickles."""


def _no_safetensors(data: bytes, source: str) -> UserError:
    what = "not a safetensors file, or a damaged one"
    if data.startswith(PICKLES):
        what = "PyTorch pickles are not read, as they may run code"
    return UserError(f"{source}: {what}, {GIVE_ANOTHER}")


GIVE_ANOTHER = "give a .safetensors of `segpipe train` or the name of a shipped checkpoint"


def load(data: bytes, source: str) -> Checkpoint:
    """Parse a checkpoint. Raises UserError that names `source`."""
    if len(data) < 8 or not 0 < int.from_bytes(data[:8], "little") < len(data):
        raise _no_safetensors(data, source)
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        state = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise _no_safetensors(data, source) from error
    metadata = header.get("__metadata__") or {}
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{source}: safetensors, but not a segpipe checkpoint ({FORMAT}), {GIVE_ANOTHER}"
        )
    try:
        values = {"width": None, "flips": 1} | json.loads(metadata["card"])
        card = Card(**{f.name: values[f.name] for f in fields(Card)})
        card = replace(card, classes=tuple(card.classes))
        card.check()
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{source}: a segpipe checkpoint that does not fit together, {GIVE_ANOTHER}"
        ) from error
    return Checkpoint(card, state, hashlib.sha256(data).hexdigest(), source)

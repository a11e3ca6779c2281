"""Checkpoints come back whole, say what they are, and are never unpickled.

Run: pytest tests/test_checkpoint.py
"""

import hashlib
import json
import pickle
import re

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from segpipe.errors import UserError
from segpipe.models import checkpoint, networks
from segpipe.models.checkpoint import Card
from segpipe.models.segnet import SegNetLite

CARD = Card("segnet-lite", 540.0, 0.25, "drawn", ("outside", "vessel", "background"), "0")


def state() -> dict[str, np.ndarray]:
    torch.manual_seed(3)
    return {name: weights.numpy() for name, weights in SegNetLite().state_dict().items()}


def test_a_checkpoint_comes_back_whole():
    data = checkpoint.dump(state(), CARD)
    loaded = checkpoint.load(data, "x")
    assert loaded.sha256 == hashlib.sha256(data).hexdigest()
    assert loaded.card.diameter == 540.0
    assert loaded.card.threshold == 0.25
    network = networks.load_network(loaded)
    assert not network.training
    for name, weights in state().items():
        assert (network.state_dict()[name].numpy() == weights).all()


def test_other_tools_read_the_same_weights(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(checkpoint.dump(state(), CARD))
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert all((read[name].numpy() == weights).all() for name, weights in state().items())


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


WHOLE = checkpoint.dump(state(), CARD)
DAMAGED = {
    "empty": b"",
    "cut off": WHOLE[:2000],
    "header alone": WHOLE[:8],
    "pickle": pickle.dumps(Payload()),
    "not ours": safetensors.numpy.save(state()),
    "noise": bytes(range(256)) * 40,
    "wrong shapes": checkpoint.dump({"encoder.weight": np.zeros(1, np.float32)}, CARD),
    "unknown network": WHOLE.replace(b"segnet-lite", b"segnet-huge"),
    "no card": safetensors.numpy.save(state(), {"format": checkpoint.FORMAT}),
}


@pytest.mark.parametrize("kind", list(DAMAGED))
def test_a_damaged_or_foreign_file_is_refused_by_name(kind):
    with pytest.raises(UserError, match="there/model"):
        networks.load_network(checkpoint.load(DAMAGED[kind], "there/model"))


def test_the_shipped_checkpoint_is_the_default():
    assert checkpoint.read(None) == checkpoint.read(checkpoint.DEFAULT)
    card = checkpoint.load(checkpoint.read(None), "default").card
    assert card.training_data.startswith("DRIVE + HRF, 35 images")


def test_an_unknown_network_is_told_the_known_ones():
    with pytest.raises(UserError, match=r"resnet.*segnet-lite"):
        networks.build_model("resnet", classes=3)


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def parts() -> tuple[dict, bytes]:
    """The header and the weights of a whole checkpoint."""
    length = int.from_bytes(WHOLE[:8], "little")
    return json.loads(WHOLE[8 : 8 + length]), WHOLE[8 + length :]


def test_the_parts_of_a_checkpoint_put_together_again_are_a_checkpoint():
    """Else the damaged ones below would be refused for another reason."""
    assert checkpoint.load(with_header(*parts()), "x").card.model == "segnet-lite"


def test_a_card_comes_back_equal():
    assert checkpoint.load(WHOLE, "x").card == CARD


def test_a_checkpoint_cut_off_anywhere_is_refused():
    for length in [*range(0, 600, 7), *range(600, len(WHOLE), 997), len(WHOLE) - 1]:
        with pytest.raises(UserError, match="there/model"):
            checkpoint.load(WHOLE[:length], "there/model")


def test_a_header_nested_without_end_is_refused():
    with pytest.raises(UserError, match="there/model"):
        checkpoint.load(with_header(b"[" * 100_000, bytes(16)), "there/model")


def test_a_header_whose_metadata_is_null_is_refused():
    header, data = parts()
    with pytest.raises(UserError, match="there/model"):
        checkpoint.load(with_header(header | {"__metadata__": None}, data), "there/model")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", "half"),
        ("threshold", float("nan")),
        ("diameter", -540.0),
        ("diameter", "x"),
        ("flips", 3),
    ],
)
def test_a_card_with_a_figure_that_cannot_be_is_refused(name, value):
    header, data = parts()
    metadata = header["__metadata__"]
    card = json.loads(metadata["card"]) | {name: value}
    damaged = header | {"__metadata__": metadata | {"card": json.dumps(card)}}
    with pytest.raises(UserError, match="there/model"):
        networks.load_network(checkpoint.load(with_header(damaged, data), "there/model"))


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_and_never_run(tmp_path, zipped):
    trap, sprung = tmp_path / "trap.pt", tmp_path / "sprung"
    torch.save({"x": Trap(str(sprung))}, trap, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=re.escape(str(trap))):
        checkpoint.load(trap.read_bytes(), str(trap))
    assert not sprung.exists()
    torch.load(trap, weights_only=False)["x"].close()
    assert sprung.exists()  # the trap does work


def test_a_name_that_is_nothing_is_told_what_is_shipped(tmp_path):
    with pytest.raises(UserError, match=r"neither a file nor a shipped.*segnet-lite"):
        checkpoint.read(str(tmp_path / "nothing"))

"""Checkpoints come back whole, say what they are, and are never unpickled.

Run: pytest tests/test_checkpoint.py
"""

import hashlib
import pickle

import pytest
import safetensors.torch
import torch

from segpipe.errors import UserError
from segpipe.models import checkpoint
from segpipe.models.checkpoint import Card
from segpipe.models.segnet import SegNetLite

CARD = Card("segnet-lite", 540.0, 0.25, "drawn", ("outside", "vessel", "background"), "0")


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return SegNetLite().state_dict()


def test_a_checkpoint_comes_back_whole():
    data = checkpoint.dump(state(), CARD)
    loaded = checkpoint.load(data, "x")
    assert loaded.sha256 == hashlib.sha256(data).hexdigest()
    assert loaded.card.diameter == 540.0
    assert loaded.card.threshold == 0.25
    network = loaded.build()
    assert not network.training
    for name, weights in state().items():
        assert network.state_dict()[name].equal(weights)


def test_other_tools_read_the_same_weights(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(checkpoint.dump(state(), CARD))
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert all(read[name].equal(weights) for name, weights in state().items())


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


WHOLE = checkpoint.dump(state(), CARD)
DAMAGED = {
    "empty": b"",
    "cut off": WHOLE[:2000],
    "header alone": WHOLE[:8],
    "pickle": pickle.dumps(Payload()),
    "not ours": safetensors.torch.save(state()),
    "noise": bytes(range(256)) * 40,
    "wrong shapes": checkpoint.dump({"encoder.weight": torch.zeros(1)}, CARD),
    "unknown network": WHOLE.replace(b"segnet-lite", b"segnet-huge"),
    "no card": safetensors.torch.save(state(), {"format": checkpoint.FORMAT}),
}


@pytest.mark.parametrize("kind", list(DAMAGED))
def test_a_damaged_or_foreign_file_is_refused_by_name(kind):
    with pytest.raises(UserError, match="there/model"):
        checkpoint.load(DAMAGED[kind], "there/model")


def test_the_shipped_checkpoint_is_the_default():
    assert checkpoint.read(None) == checkpoint.read("segnet-lite")
    card = checkpoint.load(checkpoint.read(None), "default").card
    assert card.training_data.startswith("DRIVE")


def test_an_unknown_network_is_told_the_known_ones():
    with pytest.raises(UserError, match=r"resnet.*segnet-lite"):
        checkpoint.build_model("resnet", classes=3)

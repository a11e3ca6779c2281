"""What the package ships fits together, is small, and is what was shipped.

Run: pytest tests/test_shipped.py
"""

import json
from importlib import resources

import pytest
from verbs import run

from segpipe.errors import UserError
from segpipe.models import checkpoint, networks, structures, weights
from segpipe.models.resunet import DiscUNet, KindsUNet

NAMES = checkpoint.shipped()


def test_the_default_and_segnet_lite_are_shipped_in_less_than_2_mib():
    assert {"segnet-lite", checkpoint.DEFAULT} <= set(NAMES)
    assert sum(len(checkpoint.read(name)) for name in NAMES) < 2 << 20


@pytest.mark.parametrize("name", NAMES)
def test_what_is_told_of_a_checkpoint_is_true(name):
    loaded = checkpoint.load(checkpoint.read(name), name)
    network = networks.load_network(loaded)
    told = checkpoint.about(name)
    assert told["parameters"] == sum(p.numel() for p in network.parameters())
    assert told["sha256"] == loaded.sha256
    assert loaded.card.training_data.startswith("DRIVE")
    assert all(
        0 < figure < 1 for figures in told["accuracy"].values() for figure in figures.values()
    )


@pytest.mark.parametrize("verb", ["segment", "evaluate"])
def test_damaged_weights_are_refused_in_one_line(verb, labelled, tmp_path, monkeypatch, capsys):
    """One bit of the last weight is another."""
    for file in resources.files(weights).iterdir():
        if file.name.endswith((".json", ".safetensors")):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "segnet-lite.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="segnet-lite: its weights are damaged, install"):
        checkpoint.read("segnet-lite")
    flags = {"segment": "--input", "evaluate": "--data"}
    words = [flags[verb], labelled, "--output", tmp_path / "out", "--checkpoint", "segnet-lite"]
    assert run(verb, *words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_models_lists_them_with_parameters_accuracy_speed_data_and_terms(capsys):
    assert run("models") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{checkpoint.DEFAULT} (default)\n")
    for word in (
        "3,523 parameters",
        "DRIVE test AUC 0.8718 Dice 0.5796",
        "ms a photograph",
        "Apache",
        "692,016 parameters",
        "HRF 06 to 15 artery Dice 0.7277 vein Dice 0.7781",
    ):
        assert word in text
    assert run("models", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {*NAMES, structures.NAME}
    both = [*KindsUNet().parameters(), *DiscUNet().parameters()]
    assert told[structures.NAME]["parameters"] == sum(p.numel() for p in both)

"""A training's states: whole or not there, the newest two, and the one before a damaged one.

Run: pytest tests/test_states.py
"""

from pathlib import Path

import numpy as np
import pytest

from segpipe.storage import Store, open_store
from segpipe.train import states
from segpipe.train.states import State


@pytest.fixture(params=["disk", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "disk":
        return open_store(str(tmp_path))
    return open_store(f"{request.getfixturevalue('s3').uri}/{request.node.name}")


def state(epoch: int) -> State:
    arrays = {"model.weight": np.full((2, 3), epoch, np.float32), "adam.0.step": np.float32(epoch)}
    return State(arrays, {"epoch": epoch, "history": [{"epoch": n} for n in range(1, epoch + 1)]})


def files(store: Store) -> set[str]:
    return {Path(entry.key).name for entry in store.list(states.FOLDER)}


def test_what_was_put_comes_back(store):
    assert states.newest(store) is None
    assert states.finished_epochs(store) == 0
    states.put(store, state(3))
    found = states.newest(store)
    assert found.progress == state(3).progress
    assert {k: v.tolist() for k, v in found.arrays.items()} == {
        "model.weight": [[3.0] * 3] * 2,
        "adam.0.step": 3.0,
    }
    assert states.finished_epochs(store) == 3


def test_the_newest_two_are_kept(store):
    for epoch in (9, 10, 11):
        states.put(store, state(epoch))
    kept = {"00010.json", "00010.safetensors", "00011.json", "00011.safetensors"}
    assert files(store) == kept


def test_files_of_others_are_no_states(store):
    mine = ["99.json", "00099.json.bak", "notes.json", "sub/00098.json", "00098.safetensors.txt"]
    for name in mine:
        store.put(f"{states.FOLDER}{name}", b"mine")
    for epoch in (1, 2, 3):
        states.put(store, state(epoch))
    assert states.newest(store, pytest.fail).epoch == 3
    kept = {"00002.json", "00002.safetensors", "00003.json", "00003.safetensors"}
    assert files(store) == kept | {Path(name).name for name in mine}


def test_an_epoch_put_again_replaces_its_state(store):
    states.put(store, state(1))
    again = State({"model.weight": np.zeros(1, np.float32)}, {"epoch": 1, "history": []})
    states.put(store, again)
    assert states.newest(store).progress == again.progress


@pytest.mark.parametrize(
    "damage",
    [
        lambda data, marker: (data[:-1], marker),
        lambda data, marker: (data[:-1] + bytes([data[-1] ^ 1]), marker),
        lambda data, marker: (b"", marker),
        lambda data, marker: (None, marker),
        lambda data, marker: (data, marker[:-1]),
        lambda data, marker: (data, b""),
        lambda data, marker: (data, None),  # killed before the marker: as if it were not there
    ],
    ids=["short", "bit", "empty", "gone", "marker short", "marker empty", "marker gone"],
)
def test_of_a_damaged_state_the_one_before_counts(tmp_path, damage):
    store, warnings = open_store(str(tmp_path)), []
    states.put(store, state(1))
    states.put(store, state(2))
    folder = tmp_path / states.FOLDER
    paths = (folder / "00002.safetensors", folder / "00002.json")
    damaged = damage(*(path.read_bytes() for path in paths))
    for path, content in zip(paths, damaged, strict=True):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    assert states.newest(store, warnings.append).epoch == 1
    wanted = [] if damaged[1] is None else [f"{paths[0]} is damaged, the state before it counts"]
    assert warnings == wanted
    states.put(store, state(2))
    assert states.newest(store).epoch == 2


def test_strange_files_beside_the_states_are_no_states(tmp_path):
    store = open_store(str(tmp_path))
    states.put(store, state(1))
    (tmp_path / states.FOLDER / "notes.json").write_text("{}")
    assert states.newest(store).epoch == 1

"""What a training resumes from: a state after every epoch, of which the newest two are kept.

    _segpipe/states/00003.safetensors   weights, optimiser, progress
    _segpipe/states/00003.json          its length and digest; written after it: the state is whole

A state that its marker does not describe is damaged, and the one before it counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from segpipe.storage import Store

FOLDER = "_segpipe/states/"
MARKER = re.compile(FOLDER + r"([0-9]{5,})\.json")  # other files there are the user's
KEPT = 2

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class State:
    arrays: Arrays
    """Weights and the optimiser's, by name."""
    progress: dict[str, Any]
    """`epoch`, the number of finished ones, and what else is JSON."""

    @property
    def epoch(self) -> int:
        return int(self.progress["epoch"])


def put(store: Store, state: State) -> None:
    """Store a state, then its marker, then delete all but the newest two."""
    arrays = {name: np.asarray(array, order="C") for name, array in state.arrays.items()}
    data = safetensors.numpy.save(arrays, {"progress": json.dumps(state.progress)})
    store.put(_data_key(state.epoch), data)
    store.put(_marker_key(state.epoch), _description(data))
    for epoch in _epochs(store)[KEPT:]:
        store.delete(_marker_key(epoch))
        store.delete(_data_key(epoch))


def newest(store: Store, warn: Callable[[str], None] = lambda text: None) -> State | None:
    """The newest state that is whole, or None; `warn` is told of every damaged one."""
    for epoch in _epochs(store):
        with suppress(FileNotFoundError):
            data = store.get(_data_key(epoch))
            if store.get(_marker_key(epoch)) == _description(data):
                header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
                progress = json.loads(header["__metadata__"]["progress"])
                return State(safetensors.numpy.load(data), progress)
        warn(f"{store.uri(_data_key(epoch))} is damaged, the state before it counts")
    return None


def finished_epochs(store: Store) -> int:
    """Epochs after which the newest whole state was stored; 0 without one."""
    state = newest(store)
    return state.epoch if state else 0


def _epochs(store: Store) -> list[int]:
    """Epochs with a marker, the newest first."""
    markers = (MARKER.fullmatch(entry.key) for entry in store.list(FOLDER))
    return sorted((int(marker[1]) for marker in markers if marker), reverse=True)


def _data_key(epoch: int) -> str:
    return f"{FOLDER}{epoch:05d}.safetensors"


def _marker_key(epoch: int) -> str:
    return f"{FOLDER}{epoch:05d}.json"


def _description(data: bytes) -> bytes:
    found = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return json.dumps(found).encode()

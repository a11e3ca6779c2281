"""Files below _segpipe/ that are empty, cut off or something else: nobody is stuck for ever.

Run: pytest tests/test_damage.py
"""

import io
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from verbs import rows_of, run

from segpipe.errors import UserError
from segpipe.scaling import run as scale
from segpipe.segment import run as segment
from segpipe.segment.manifest import list_inputs
from segpipe.segment.output import MANIFEST, PARTS
from segpipe.segment.parts import commit_part, read_parts
from segpipe.segment.run import SegmentConfig
from segpipe.segment.todo import plan_todo
from segpipe.storage import lock, open_store
from segpipe.storage.files import write_json
from segpipe.storage.settings import SETTINGS
from segpipe.train import states
from segpipe.train.config import TrainConfig
from segpipe.train.settings import Started
from segpipe.train.states import State

NUM_IMAGES = 3
WHEN = datetime(2026, 1, 1, tzinfo=UTC)
HELD_BACK = 4  # all training images of the drawn set
LOCK = lock.LOCK


def foreign_table() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"path": [1], "other": ["x"]}), buffer)
    return buffer.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "picture": lambda data: b"\x89PNG\r\n\x1a\n",
    "list": lambda data: b"[1, 2]",
    "object": lambda data: b'{"other": 1}',
    "table": lambda data: foreign_table(),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """An archive with the output of a run that is finished, each row twice; and a training's."""
    root = tmp_path_factory.mktemp("damage")
    os.makedirs(root / "in")
    for number in range(NUM_IMAGES):
        (root / "in" / f"{number}.png").write_bytes(b"no photograph")
    source, output = open_store(str(root / "in")), open_store(str(root / "out"))
    opened = segment._open(SegmentConfig(source.uri(), output.uri()))
    write_json(output, SETTINGS, opened.started.to_json())
    entries = list(source.list())
    done = [
        {"path": e.key, "version": e.version, "status": "rejected", "error": "?", "finished": WHEN}
        for e in entries
    ]
    commit_part(output, done)
    commit_part(output, done[:2])
    assert segmented(root) == 0
    write_json(output, LOCK, lock.Lock(output).card | {"beat": 0, "progress": {}})
    return root


def segmented(root: Path) -> int:
    words = ["--input", root / "in", "--output", root / "out"]
    return run("segment", *words, "--max-rejected", 1, "--report-images", "off")


@pytest.fixture
def place(finished, tmp_path, monkeypatch) -> Path:
    """A copy of it, under its own name for its settings to hold."""
    monkeypatch.setattr(lock, "SILENCE_S", 0.3)
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "FIRST_BEAT_S", 0.05)
    shutil.copytree(finished / "out", tmp_path / "out", dirs_exist_ok=True)
    shutil.copytree(finished / "in", tmp_path / "in", copy_function=shutil.copy2)
    settings = tmp_path / "out" / SETTINGS
    settings.write_text(settings.read_text().replace(str(finished), str(tmp_path)))
    return tmp_path


def files_of(output: Path) -> dict[str, list[Path]]:
    """What decides over a run, by kind; the part is one whose rows another part holds as well."""
    below = output / "_segpipe"
    parts = sorted((below / "parts").iterdir(), key=lambda path: pq.read_metadata(path).num_rows)
    return {
        "settings": [below / "settings.json"],
        "lock": [below / "lease.json"],
        "manifest": [below / "manifest.json"],
        "page": sorted((below / "manifest").iterdir()),
        "part": parts[:1],
        "summary": [output / "summary.json"],
    }


def contents(output: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}


STOPPED = ("settings", "lock", "manifest", "page", "part")
ENDED = ("settings", "lock", "manifest", "summary")


def cases() -> list[object]:
    """By night all; by day what both runs have is damaged in turn in the one and the other."""
    found = []
    for (number, damage), ended in product(enumerate(DAMAGES), (False, True)):
        for kind in ENDED if ended else STOPPED:
            by_night = kind in STOPPED and kind in ENDED and ended == number % 2
            marks = [pytest.mark.nightly] if by_night else []
            found.append(pytest.param(kind, damage, ended, marks=marks))
    return found


@pytest.mark.parametrize(("kind", "damage", "ended"), cases())
def test_segment_and_status_go_on_or_name_the_file(place, kind, damage, ended, capsys):
    """Of a run that has ended, and of one that was stopped before its summary."""
    output = place / "out"
    files = files_of(output)[kind]
    for path in files:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    if not ended:
        (output / "summary.json").unlink()

    code, told = run("status", "--output", output), capsys.readouterr()
    if kind == "manifest" and not ended:
        assert code == 2
        assert f"{output / MANIFEST}: damaged, run the same `segpipe segment` again" in told.err
    else:
        assert code == 0, told.err
        assert ("finished" in told.out) == (ended and kind != "summary")

    before, code, err = contents(output), segmented(place), capsys.readouterr().err
    if kind == "settings":
        assert code == 2
        [line] = err.splitlines()
        assert f"{output / SETTINGS}: damaged, " in line
        assert "choose another --output" in line
        assert contents(output) == before
        return
    assert code == 0, err
    assert [row["path"] for row in rows_of(output)] == [f"{n}.png" for n in range(NUM_IMAGES)]
    assert json.loads((output / "summary.json").read_text())["rejected"] == NUM_IMAGES
    if kind == "part":
        assert f"segment: warning: {files[0]} is damaged, its inputs are done again" in err
        assert not files[0].exists()
    assert run("status", "--output", output) == 0


@pytest.mark.parametrize("kind", ["manifest", "summary"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_a_damaged_manifest_and_takes_a_damaged_summary_for_none(
    place, kind, damage, capsys
):
    [path] = files_of(place / "out")[kind]
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    code, told = run("status", "--output", place / "out", "--verify"), capsys.readouterr()
    if kind == "manifest":
        assert code == 2
        assert f"{path}: damaged, run the same `segpipe segment` again" in told.err
    else:
        assert code == 0, told.err
        assert "stopped" in told.out


def test_what_a_damaged_part_held_is_to_do_again(place):
    output = open_store(str(place / "out"))
    manifest = list_inputs(open_store(str(place / "in")).list())
    for entry in list(output.list(PARTS)):
        output.put(entry.key, b"cut off")
    dropped: list[str] = []
    todo = plan_todo(manifest, read_parts(output, dropped.append))
    assert len(dropped) == 2
    assert (todo.num_done, todo.num_rows) == (0, NUM_IMAGES)


@pytest.fixture
def trained(labelled, tmp_path) -> Path:
    """The output of a training of two epochs that is finished, with all images held back."""
    output, data = open_store(str(tmp_path / "trained")), open_store(str(labelled))
    flags = {"epochs": 2, "validation_images": HELD_BACK}
    config = TrainConfig.by_recipe("lecture", data.uri(), output.uri(), **flags)
    Started(config.settings(data)).write(output)
    for epoch in (1, 2):
        progress = {"epoch": epoch, "history": [], "best": {"epoch": 0, "loss": 0.0}}
        states.put(output, State({"model.x": np.zeros(9)}, progress))
    output.put("model.safetensors", b"weights")
    return tmp_path / "trained"


@pytest.mark.parametrize("kind", ["settings", "state", "marker", "under way"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_train_resumes_or_names_the_file(trained, labelled, kind, damage, capsys):
    """It would resume from the state before; with all images held back it cannot."""
    below = trained / "_segpipe"
    path = {
        "settings": below / "settings.json",
        "state": below / "states" / "00002.safetensors",
        "marker": below / "states" / "00002.json",
        "under way": below / "under-way.json",
    }[kind]
    words = ["--data", labelled, "--output", trained, "--recipe", "lecture", "--epochs", 2]
    words += ["--validation-images", HELD_BACK]
    assert run("train", *words) == 0
    assert "2 epochs are finished" in capsys.readouterr().out
    path.write_bytes(DAMAGES[damage](path.read_bytes() if path.exists() else b"{}"))
    before, code, err = contents(trained), run("train", *words), capsys.readouterr().err
    assert code == 2
    assert contents(trained) == before
    if kind == "settings":
        [line] = err.splitlines()
        assert f"{path}: damaged, " in line
        return
    assert f"--validation-images {HELD_BACK}: {labelled} has" in err.splitlines()[-1]
    warning = f"train: warning: {below}/states/00002.safetensors is damaged, the state before it"
    assert (warning in err) == (kind != "under way")


def test_a_damaged_line_of_measurements_is_named(tmp_path):
    output = open_store(str(tmp_path))
    output.put(scale.RESULTS, b'{"rate": 1}\n{"ra')
    with pytest.raises(UserError, match=rf"{tmp_path}/{scale.RESULTS}: has a line that is damaged"):
        scale._read_rows(output)

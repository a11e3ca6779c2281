"""A killed run goes on by the same command: nothing is lost, nothing is done twice.

Run: pytest -m cluster tests/test_kill.py
"""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from segpipe.data import synthetic
from segpipe.models import checkpoint

pytestmark = pytest.mark.cluster
DEADLINE_S = 180.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"no {what} within {DEADLINE_S:.0f} s"
        time.sleep(0.05)


@contextmanager
def running(*words: object) -> Iterator[subprocess.Popen[bytes]]:
    """A job in a process group of its own; killed, with its whole Ray, at the end."""
    command = [sys.executable, *map(str, words)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.wait()


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants, the driver first."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it has ended
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    family = [pid]
    for one in family:
        family += [child for child, parent in parents.items() if parent == one]
    for one in family:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue


def finish(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], check=True, timeout=DEADLINE_S)


def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(labelled, tmp_path):
    flags = ["--epochs", "4", "--workers", "2", "--crops-per-image", "20", "--crop-size", "96"]
    train = ["-m", "jobs.train", "--data", labelled, *flags, "--output"]
    finish(*train, tmp_path / "undisturbed")
    killed = tmp_path / "killed"
    with running(*train, killed) as process:
        history = killed / "history.csv"
        wait_until(lambda: history.exists() and len(history.read_text().splitlines()) > 1, "epoch")
        assert process.poll() is None
    assert not (killed / "model.safetensors").exists()
    finish(*train, killed)
    epochs = [row["epoch"] for row in csv.DictReader((killed / "history.csv").open())]
    assert epochs == ["1", "2", "3", "4"]
    weights = [
        checkpoint.load((folder / "model.safetensors").read_bytes(), folder.name).state
        for folder in (tmp_path / "undisturbed", killed)
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("trial", range(3))
def test_a_killed_segmentation_goes_on_and_each_input_ends_once(tmp_path, trial):
    images, output = tmp_path / "images", tmp_path / "output"
    for index in range(12):
        synthetic.write_archive_image(images, index, seed=trial)
    for copy in range(1, 8):
        for path in [p for p in images.iterdir() if p.is_file() and "~" not in p.name]:
            (images / f"{path.stem}~{copy}{path.suffix}").write_bytes(path.read_bytes())
    inputs = {str(p.relative_to(images)) for p in images.rglob("*") if p.is_file()}
    words = ["-m", "jobs.segment", "--input", images, "--output", output, "--batch-size", 2]
    parts = output / "_segpipe" / "parts"
    with running(*words) as process:
        wait_until(lambda: parts.is_dir() and len(list(parts.iterdir())) > trial, "part")
        assert process.poll() is None
    assert not (output / "summary.json").exists()
    done = {
        row["mask_path"]: (output / row["mask_path"]).stat().st_mtime_ns
        for part in parts.glob("*.parquet")
        for row in pq.read_table(part).to_pylist()
    }
    assert 0 < len(done) < len(inputs)
    finish(*words)
    rows = [r for f in (output / "results").iterdir() for r in pq.read_table(f).to_pylist()]
    assert sorted(row["path"] for row in rows) == sorted(inputs)
    masks = {str(p.relative_to(output)) for p in (output / "masks").rglob("*") if p.is_file()}
    assert masks == {f"masks/{path}.png" for path in inputs}
    assert all((output / mask).stat().st_mtime_ns == when for mask, when in done.items())

"""What counts as done survives a power cut, and a full disk ends a run in one line.

Run: pytest tests/test_durable.py; -m cluster for the one that starts Ray
"""

import errno
import io
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from processes import finish, last_words
from segmenting import job_of

from segpipe.errors import StoreDown, Unfinished
from segpipe.segment import stages
from segpipe.segment.compact import compact
from segpipe.segment.group import Group
from segpipe.segment.manifest import list_inputs
from segpipe.segment.output import PARTS, SUMMARY
from segpipe.segment.parts import commit_part, read_parts
from segpipe.segment.stopwatch import Stopwatch
from segpipe.storage import Entry, Store, open_store
from segpipe.storage.files import write_json
from segpipe.train import history, states
from segpipe.train.states import State

MIB = 2**20


class Disk:
    """What a power cut would leave: contents and names that were synced, by inode."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path, commits: str) -> None:
        """At every rename to a name that matches `commits`, `lost` must be empty."""
        self.root, self.commits = root, re.compile(commits)
        self.contents: set[int] = set()
        self.names: dict[str, dict[str, int]] = {}
        self.committed: list[str] = []
        self.fsync, self.replace = os.fsync, os.replace
        patch.setattr(os, "fsync", self._fsync)
        patch.setattr(os, "replace", self._replace)

    def _fsync(self, handle: int) -> None:
        self.fsync(handle)
        found, path = os.fstat(handle), os.readlink(f"/proc/self/fd/{handle}")
        if stat.S_ISDIR(found.st_mode):
            self.names[path] = {item.name: item.inode() for item in os.scandir(path)}
        else:
            self.contents.add(found.st_ino)

    def _replace(self, source: str, target: str) -> None:
        if self.commits.search(target):
            assert self.lost() == []
            self.committed.append(target)
        self.replace(source, target)

    def lost(self) -> list[str]:
        """Files that would be empty or not there; temporary ones need not survive."""
        files = [path for path in self.root.rglob("*") if path.is_file()]
        kept = [path for path in files if path.parent != self.root / "_segpipe" / "tmp"]
        return [str(path) for path in kept if not self._survives(path)]

    def _survives(self, path: Path) -> bool:
        named = (
            self.names.get(str(one.parent), {}).get(one.name) == one.stat().st_ino
            for one in (path, *path.parents)
            if one.is_relative_to(self.root)
        )
        return path.stat().st_ino in self.contents and all(named)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "above" / "out"  # neither is there


def group(photograph, output: Store, name: str = "a") -> Group:
    """Some photographs on their way to their masks."""
    data = io.BytesIO()
    photograph.save(data, "PNG")
    job = job_of(output, output, format="both", probabilities=True)
    started = Group(job)
    for key in (f"{name}/x.png", f"{name}/y/z.png", f"{name}.png"):
        photo = stages.decode(Entry(key, 1, "1"), data.getvalue(), job, Stopwatch())
        photo.score, photo.engine = np.zeros(photo.fitted.fov.shape, np.float32), "native fp32"
        started.add(photo)
    assert [row["status"] for row in started.rows] == ["ok"] * 3
    return started


def test_masks_and_their_folders_survive_before_the_part_that_names_them(
    photograph, root, monkeypatch
):
    disk = Disk(monkeypatch, root, r"_segpipe/parts/")
    output = open_store(str(root))
    for name in ("a", "b"):
        group(photograph, output, name).commit()
    assert len(disk.committed) == 2
    assert len(list(output.list("masks/"))) == len(list(output.list("probabilities/"))) == 6
    assert disk.lost() == []  # the parts too


def test_a_state_survives_before_its_marker_and_results_before_the_summary(root, monkeypatch):
    disk = Disk(monkeypatch, root, r"states/.*json|summary")
    output = open_store(str(root))
    for epoch in (1, 2, 3):
        history.write_history(output, [{"epoch": epoch}])
        states.put(output, state(epoch))
    commit_part(output, [{"path": "a", "version": "1", "status": "ok"}])
    summary = compact(output, list_inputs([Entry("a", 1, "1")]))
    write_json(output, SUMMARY, summary)
    assert len(disk.committed) == 4
    assert disk.lost() == []


def test_a_deleted_object_stays_deleted(root, monkeypatch):
    disk = Disk(monkeypatch, root, "^$")
    output = open_store(str(root))
    output.put("summary.json", b"{}")
    output.delete("summary.json")
    assert "summary.json" not in disk.names[str(root)]


def failing_sync(monkeypatch, number: int, folders: bool) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == folders:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_fails_no_run(photograph, root, monkeypatch, number):
    failing_sync(monkeypatch, number, folders=True)
    output = open_store(str(root))
    group(photograph, output).commit()
    assert len(read_parts(output).ids) == 3


@pytest.mark.parametrize("folders", [False, True])
def test_a_disk_that_fails_to_sync_masks_has_no_part(photograph, root, monkeypatch, folders):
    output = open_store(str(root))
    started = group(photograph, output)
    failing_sync(monkeypatch, errno.EIO, folders)
    with pytest.raises(StoreDown, match=f"Input/output error: '{root}"):
        started.commit()
    assert list(output.list(PARTS)) == []


# ---- full disks


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place]
    mounted = subprocess.run(words, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def state(epoch: int, num_bytes: int = 100) -> State:
    weights = np.zeros(num_bytes, np.uint8)
    return State({"model.weight": weights}, {"epoch": epoch, "history": []})


def told(place: Path, free: str = "0 MiB") -> str:
    return (
        rf"{place}.*: No space left on device, {free} of 2 MiB are free there; make room and run "
        "the same command again$"
    )


def fill(place: Path) -> None:
    (place / "filler").write_bytes(bytes(MIB + MIB // 2))
    with (place / "rest").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_told_with_its_path_and_what_was_there_stays(small_disk):
    output = open_store(str(small_disk / "out"))
    output.put("a/x", b"old")
    with pytest.raises(Unfinished, match=told(small_disk / "out" / "a" / "x", "[12] MiB")):
        output.put("a/x", bytes(4 * MIB))
    assert output.get("a/x") == b"old"
    assert list((small_disk / "out" / "_segpipe" / "tmp").iterdir()) == []
    fill(small_disk)
    with pytest.raises(Unfinished, match=told(small_disk)):
        output.put_new("b/y", bytes(MIB))
    (small_disk / "filler").unlink()
    output.put("a/x", b"new")


def test_a_group_on_a_full_disk_is_not_done_and_the_one_before_it_stays(photograph, small_disk):
    output = open_store(str(small_disk))
    group(photograph, output, "a").commit()
    fill(small_disk)
    with pytest.raises(Unfinished, match=told(small_disk / "masks" / "b")):
        group(photograph, output, "b").commit()
    assert len(read_parts(output).ids) == 3


def test_a_state_on_a_full_disk_is_not_there_and_the_one_before_it_counts(small_disk):
    output = open_store(str(small_disk))
    states.put(output, state(1))
    with pytest.raises(Unfinished, match=told(small_disk / states.FOLDER, "[12] MiB")):
        states.put(output, state(2, 4 * MIB))
    assert states.newest(output).epoch == 1


def listing(output: Store) -> None:
    list_inputs(Entry(f"{n}", 1, os.urandom(20).hex()) for n in range(20000))


def events(output: Store) -> None:
    steps = [{"step": n, "loss": 1.0, "learning_rate": 1.0} for n in range(3)]
    history.write_epoch(output, {"epoch": 1}, steps)


@pytest.mark.parametrize("write", [listing, events])
def test_a_full_temporary_folder_is_told_with_its_path(
    small_disk, monkeypatch, root, write: Callable[[Store], None]
):
    fill(small_disk)
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(Unfinished, match=told(small_disk)):
        write(open_store(str(root)))


def test_a_quota_is_told_as_a_full_disk_is(root, monkeypatch):
    failing_sync(monkeypatch, errno.EDQUOT, folders=False)  # network file systems tell it so late
    with pytest.raises(Unfinished, match=r"out/x: Disk quota exceeded, [\d,]+ MiB of"):
        open_store(str(root)).put("x", b"x")


@pytest.mark.cluster
def test_a_run_whose_disk_is_full_says_so_in_one_line_and_goes_on_when_there_is_room(
    photograph, small_disk, tmp_path
):
    folder, output = tmp_path / "in", small_disk / "out"
    folder.mkdir()
    for number in range(40):
        photograph.save(folder / f"{number:02}.png")
    (small_disk / "filler").write_bytes(bytes(MIB + MIB // 2))
    words = ["-m", "jobs.segment", "--input", folder, "--output", output, "--tta", "none"]
    words += ["--workers", 1, "--group-size", 4, "--report-images", "off", "--backend", "torch"]
    ended = finish(*words)
    lines = last_words(ended.stderr)
    assert ended.returncode == 1
    assert len(lines) == 1
    assert re.search(told(output), lines[0])
    done = read_parts(open_store(str(output)))
    assert 0 < len(done.ids) < 40
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert finish(*words).returncode == 0
    assert set(done.keys) <= set(read_parts(open_store(str(output))).keys)

"""The kernels are built once on a node, whoever asks, and what does not build is not tried again.

A stub stands for the compiler: it counts its calls and copies the library that is built already.

Run: pytest tests/test_build.py
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import needs
import pytest
from processes import wait_until

from segpipe import kernels
from segpipe.kernels import build

# Ends when all are waiting, so that every process asks while the first one builds.
COMPILER = """#!/bin/sh
echo call >> "{calls}"
until [ "$(ls "{ready}" | wc -l)" -ge "$WAITING" ]; do sleep 0.02; done
for last; do :; done
{then}
"""
MISSING = """
import json, os, sys
from pathlib import Path
from segpipe import kernels
Path(os.environ["READY"], str(os.getpid())).touch()
print(json.dumps(kernels.missing()))
"""


class Node:
    """Processes that share a cache and a compiler."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache, self.calls = root, root / "cache", root / "calls"
        self.compiler, self.ready = root / "compiler", root / "ready"
        self.ready.mkdir()

    def set_compiler(self, then: str) -> None:
        self.compiler.write_text(COMPILER.format(calls=self.calls, ready=self.ready, then=then))
        self.compiler.chmod(0o755)

    @property
    def num_calls(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    def libraries(self) -> list[Path]:
        return sorted(self.cache.glob("*.so"))

    def ask(self, count: int = 1, **env: str) -> list[str]:
        """What so many processes that start at once say of missing kernels."""
        own = {
            "SEGPIPE_CACHE": str(self.cache),
            "CXX": str(self.compiler),
            "READY": str(self.ready),
            "WAITING": str(count),
        }
        for path in self.ready.iterdir():
            path.unlink()
        started = [
            subprocess.Popen(
                [sys.executable, "-c", MISSING],
                env=os.environ
                | {k: str(v) for k, v in own.items()}
                | {"WAITING": str(count)}
                | env,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        told = [process.communicate(timeout=120)[0] for process in started]
        assert [process.returncode for process in started] == [0] * count
        return [json.loads(line) for line in told]


@pytest.fixture
def node(tmp_path) -> Node:
    """With a compiler that copies the library."""
    found = Node(tmp_path)
    found.set_compiler(f'cp "{kept()}" "$last"')
    return found


def kept() -> Path:
    """The library that this machine's compiler built."""
    if problem := needs.why_skip():
        pytest.skip(problem)
    return Path(build.library()._name)


def test_processes_that_start_at_once_build_once(node):
    assert node.ask(4) == [""] * 4
    assert node.num_calls == 1
    assert len(node.libraries()) == 1


def test_a_build_that_fails_is_tried_by_one_process_and_told_by_all(node):
    node.set_compiler("echo 'no such instruction' >&2; exit 1")
    first = node.ask(4)
    again = node.ask()
    assert node.num_calls == 1
    assert all("does not build the kernels: no such instruction" in told for told in first + again)
    assert re.search(r"delete (\S+) to try again", again[0])[1] in map(str, node.cache.iterdir())


def test_a_failure_is_forgotten_after_a_day_with_another_compiler_and_when_deleted(node):
    node.set_compiler("exit 1")
    node.ask()
    [record] = node.cache.glob("*.failed")
    told = json.loads(record.read_text())
    record.write_text(json.dumps(told | {"time": told["time"] - 3600}))
    node.ask()
    assert node.num_calls == 1
    record.write_text(json.dumps(told | {"time": told["time"] - 86401}))
    node.ask()
    assert node.num_calls == 2
    node.set_compiler("exit 01")  # another file
    node.ask()
    assert node.num_calls == 3
    record.write_bytes(b"")
    node.ask()
    assert node.num_calls == 4
    record.unlink()
    node.set_compiler(f'cp "{kept()}" "$last"')
    assert node.ask() == [""]
    assert not record.exists()


@pytest.mark.parametrize(
    "fails",
    [
        "kill -9 $$",
        "echo 'fatal error: Killed signal terminated program cc1plus' >&2; exit 1",
        "echo 'error: No space left on device' >&2; exit 1",
    ],
)
def test_a_compiler_that_lacked_memory_or_disk_is_asked_again(node, fails):
    node.set_compiler(fails)
    assert "does not build the kernels" in node.ask()[0]
    node.set_compiler(f'cp "{kept()}" "$last"')
    assert node.ask() == [""]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def one_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, one_bit, lambda _: b""])
def test_a_damaged_library_is_built_again_once(node, damage):
    assert node.ask() == [""]
    [built] = node.libraries()
    whole = built.read_bytes()
    built.write_bytes(damage(whole))
    assert node.ask(2) == ["", ""]
    assert node.num_calls == 2
    [built] = node.libraries()
    assert built.read_bytes() == whole
    assert node.ask() == [""]
    assert node.num_calls == 2


def test_a_compiler_whose_libraries_do_not_load_is_asked_once(node):
    node.set_compiler('echo "no library" > "$last"')
    assert node.ask()[0].endswith("builds kernels that do not load")
    assert "do not load" in node.ask()[0]
    assert node.num_calls == 1


def test_what_was_built_once_needs_no_compiler_and_no_lock(node):
    assert node.ask() == [""]
    for path in set(node.cache.iterdir()) - set(node.libraries()):
        path.unlink()
    assert node.ask(PATH="", CXX="") == [""]
    assert list(node.cache.iterdir()) == node.libraries()


def test_without_a_compiler_it_says_so(node):
    assert node.ask(PATH="", CXX="")[0].startswith("no C++ compiler")
    assert node.ask(CXX="no-such")[0].startswith("CXX no-such: no such command")
    assert not list(node.cache.glob("*.failed"))


def test_a_cache_that_cannot_be_written_is_done_without(node):
    node.root.joinpath("file").write_text("not a folder")
    assert node.ask(SEGPIPE_CACHE=str(node.root / "file" / "cache")) == [""]


@pytest.mark.parametrize("error", ["ENOLCK", "ENOTSUP", "ENOSYS"])
def test_a_file_system_without_locks_is_done_without(tmp_path, monkeypatch, error):
    def refuses(*_):
        raise OSError(getattr(build.errno, error), "as on some network file systems")

    monkeypatch.setattr(build.fcntl, "flock", refuses)
    with build._lock(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()


def test_a_lock_is_waited_for_as_long_as_a_build_takes(tmp_path, monkeypatch):
    """Its holder may hang; one that was killed holds none."""
    holds = f"""
import sys
from pathlib import Path
from segpipe.kernels import build
with build._lock(Path({str(tmp_path / "lock")!r})):
    Path({str(tmp_path / "held")!r}).touch()
    sys.stdin.read()
"""
    words = [sys.executable, "-c", holds]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as holder:
        wait_until((tmp_path / "held").exists, "lock")
        with (tmp_path / "lock").open() as file, pytest.raises(BlockingIOError):
            build.fcntl.flock(file, build.fcntl.LOCK_EX | build.fcntl.LOCK_NB)
        monkeypatch.setattr(build, "BUILD_S", 0.2)
        with build._lock(tmp_path / "lock"):
            assert holder.poll() is None
        holder.kill()
    with (tmp_path / "lock").open() as file:
        build.fcntl.flock(file, build.fcntl.LOCK_EX | build.fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("missing", "ci", "skipped"),
    [
        ("", "", False),
        ("no C++ compiler (c++ ...)", "", True),
        ("no C++ compiler (c++ ...)", "true", False),
        ("c++ does not build the kernels: error", "", False),
    ],
)
def test_kernels_that_do_not_build_fail_their_tests(monkeypatch, missing, ci, skipped):
    monkeypatch.setattr(kernels, "missing", lambda: missing)
    monkeypatch.setenv("CI", ci)
    assert bool(needs.why_skip()) == skipped


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)]
)
def test_in_ci_a_set_or_a_program_that_is_missing_fails_its_tests(
    monkeypatch, tmp_path, ci, outcome
):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("SEGPIPE_DATA", str(tmp_path))
    with pytest.raises(outcome, match="holds no DRIVE/"):
        needs.real_set("DRIVE")
    (tmp_path / "DRIVE").mkdir()
    assert needs.real_set("DRIVE") == tmp_path / "DRIVE"

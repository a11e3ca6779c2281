"""A Ray of our own, in surroundings that do not allow it.

Run: pytest tests/test_start.py (with -m cluster those that start Ray)
"""

import os
import subprocess
from pathlib import Path

import pytest
import ray
from processes import finish
from ray._private.utils import validate_socket_filepath

from segpipe.cluster.session import running_ray
from segpipe.cluster.start import TRIES, start_ray, too_deep
from segpipe.errors import Unfinished, UserError
from segpipe.ray_compat import SOCKET

SEGMENT = ["-m", "segpipe", "segment", "--tta", "none", "--backend", "torch", "--precision", "fp32"]
SEGMENT += ["--workers", 1, "--report-images", "off", "--input"]


def test_a_temporary_folder_is_too_deep_where_ray_says_so():
    """Of each length the path that Ray makes, and its own look at it."""
    for length in range(1, 110):
        folder = "/" + "x" * length
        try:
            validate_socket_filepath(f"{folder}/{SOCKET.format(pid=os.getpid())}")
            deep = False
        except OSError:
            deep = True
        assert too_deep(folder) == deep


def test_a_temporary_folder_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "/dev/null")
        wanted = pytest.raises(UserError, match=f"^{name} /dev/null: Ray cannot write there")
        with wanted, running_ray():
            pass


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_start_that_fails_is_tried_again_without_what_it_left(monkeypatch, capfd, failures):
    """The part of Ray is played: it starts a process and does not get further, so many times."""
    left: list[subprocess.Popen[bytes]] = []
    ended: list[int] = []

    def init(**_: object) -> None:
        assert all(process.poll() is not None for process in left)
        if len(left) < failures:
            left.append(subprocess.Popen(["sleep", "1000"]))
            raise Exception("The current node timed out during startup. This could happen")

    monkeypatch.setattr("segpipe.cluster.start.init_ray", init)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(len(left)))  # not another's
    if failures < TRIES:
        start_ray({})
    else:
        with pytest.raises(Unfinished) as raised:
            start_ray({})
        assert str(raised.value).startswith("Ray did not start in 3 tries (The current node timed")
        assert str(raised.value).endswith("run the same command again when less runs here")
    told = capfd.readouterr().err.splitlines()
    assert [line[-10:] for line in told] == ["try 2 of 3", "try 3 of 3"][:failures]
    assert ended == [1, 2, 3][:failures]


SLOW_ONCE = """
import os, pathlib, sys, time
told = pathlib.Path(os.environ["SLOW_ONCE"])
if any("dashboard/agent.py" in word for word in sys.orig_argv) and not told.exists():
    told.touch()
    time.sleep(20)
"""


@pytest.mark.nightly
@pytest.mark.cluster
def test_a_ray_whose_agents_are_too_slow_is_started_again(labelled, tmp_path):
    """A sitecustomize.py makes the first of them late."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_ONCE)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    env = {"PYTHONPATH": path, "SLOW_ONCE": str(tmp_path / "told")}
    ended = finish(*SEGMENT, labelled / "test/images", "--output", tmp_path / "output", env=env)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "told").exists()
    assert "try 2 of 3" in ended.stderr


@pytest.mark.cluster
def test_a_batch_node_with_a_deep_temporary_folder_and_no_home_segments(labelled, tmp_path):
    folder = tmp_path / ("scratch" * 13)
    folder.mkdir()
    before = set(Path("/tmp").glob("segpipe-ray-*"))
    env = {"HOME": "/proc/nohome", "TMPDIR": str(folder)}
    images, output = labelled / "test/images", tmp_path / "output"
    ended = finish(*SEGMENT, images, "--output", output, env=env)
    assert ended.returncode == 0, ended.stderr
    assert len(list((output / "masks").iterdir())) == len(list(images.iterdir()))
    told = [line for line in ended.stderr.splitlines() if "Ray did not start" not in line]
    assert all(line.startswith("segment: ") for line in told)
    assert set(Path("/tmp").glob("segpipe-ray-*")) <= before  # Ray's folder is gone

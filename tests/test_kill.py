"""A killed run goes on: nothing is lost, nothing is done twice, nothing half-written is seen.

Run: pytest -m cluster tests/test_kill.py; with --trials 20 as benchmarks/stress.py does.
"""

import csv
import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest
import ranks
from PIL import Image
from processes import (
    Job,
    command_of,
    family,
    finish,
    kill,
    kill_tree,
    last_words,
    ray_nodes,
    running,
    token,
    wait_until,
)
from proxy import Proxy

from segpipe.models import checkpoint
from segpipe.storage import lock, open_store
from segpipe.storage.files import read_parquet
from segpipe.train import states

pytestmark = pytest.mark.cluster
VICTIMS = ("driver", "actor", "node", "worker", "decoder", "raylet")  # in turn
DEADLY = ("driver", "raylet")  # without its own node's raylet Ray ends the driver
SEGMENT = ["-m", "jobs.segment", "--group-size", 2, "--tta", "none"]
COPIES = 24
NUM_INPUTS = 6 * COPIES + 2


FLAGS = ["--epochs", 3, "--workers", 2, "--backend", "torch", "--model", "unet", "--width", 4]
FLAGS += ["--crops-per-image", 30, "--validation-images", 1, "--ema-decay", 0.9]
FLAGS += ["--warmup-steps", 5, "--schedule", "cosine", "--cycle-epochs", 2]
TRAIN = ["-m", "jobs.train", *FLAGS]


@pytest.fixture(scope="module")
def trained(labelled, tmp_path_factory) -> Path:
    """A training that nobody killed: two ranks without a Ray."""
    return ranks.train(labelled, tmp_path_factory.mktemp("trained"), *FLAGS, world_size=2)


@pytest.mark.parametrize("place", ["s3", pytest.param("disk", marks=pytest.mark.nightly)])
def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    place, trained, labelled, tmp_path, request
):
    """Killed amid its second epoch and its third. A worker is replaced, a driver needs the command
    again.
    """
    output = str(tmp_path)
    if place == "s3":
        output = f"{request.getfixturevalue('s3').uri}/{request.node.name}"
    store, train = open_store(output), [*TRAIN, "--data", labelled, "--output", output]
    with running(*train) as job:
        wait_until(lambda: states.finished_epochs(store) == 1, "epoch")
        kill(next(p for p in family(job.process.pid) if "RayTrainWorker" in command_of(p)))
        wait_until(lambda: states.finished_epochs(store) == 2, "epoch of a worker's successor")
    assert store.head("model.safetensors") is None
    assert finish(*train).returncode == 0
    table = csv.DictReader(io.StringIO(store.get("history.csv").decode()))
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    wanted = checkpoint.load((trained / "model.safetensors").read_bytes(), "").state
    found = checkpoint.load(store.get("model.safetensors"), "").state
    assert all((wanted[name] == found[name]).all() for name in wanted)


STOPS = [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.nightly)]


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_stopped_training_says_so_in_one_line(number, code, labelled, tmp_path):
    with running(*TRAIN, "--data", labelled, "--output", tmp_path) as job:
        wait_until(lambda: states.finished_epochs(open_store(str(tmp_path))) == 1, "epoch")
        job.process.send_signal(number)
        assert job.wait() == code
        told = last_words(job.told())
    assert told == ["segpipe train: stopped, run the same command again to resume"]


def test_a_training_whose_lock_another_run_takes_stops_and_the_old_model_stays(
    labelled, tmp_path, trained
):
    """An extension of a finished one. Then the same command with no epoch left writes the model."""
    shutil.copytree(trained, tmp_path / "out")
    output, train = open_store(str(tmp_path / "out")), [*TRAIN, "--data", labelled]
    train += ["--output", output.uri(), "--epochs"]
    old = output.get("model.safetensors")
    with running(*train, 1000) as job:
        wait_until(lambda: states.finished_epochs(output) > 3, "epoch")
        card = lock.read_holder(output) | {"owner": "another", "host": "far", "place": "elsewhere"}
        output.put(lock.LOCK, json.dumps(card).encode())
        assert job.wait() == 1
        lines = last_words(job.told())
    assert len(lines) == 1
    assert re.search(r"segpipe train: .*another run has taken over|has taken over, this", lines[0])
    assert lock.read_holder(output) == card
    assert output.get("model.safetensors") == old
    output.delete(lock.LOCK)
    done = states.finished_epochs(output)
    assert finish(*train, done).returncode == 0
    epochs = f"{done} epochs of"
    assert epochs in checkpoint.load(output.get("model.safetensors"), "").card.training_data
    assert output.head("_segpipe/under-way.json") is None


def losses(output: Path) -> list[float]:
    """Of the epochs that are told so far."""
    history = output / "history.csv"
    if not history.exists():
        return []
    with history.open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_elastic_workers_follow_the_nodes_of_the_cluster(labelled, tmp_path):
    """Three workers, two when a node is taken, three when one is added; the same losses."""
    flags = ["-m", "jobs.train", "--recipe", "lecture", "--data", labelled]
    whole, output = tmp_path / "whole", tmp_path / "elastic"
    slow = ["--epochs", 1000, "--backend", "torch"]  # enough for nodes to come and go
    env = token() | {"RAY_health_check_period_ms": "1000"}  # a dead node is noticed in seconds

    def wait_for_an_epoch() -> None:
        before = len(losses(output))
        wait_until(lambda: len(losses(output)) > before, "epoch of that many workers")

    with ray_nodes([1, 1, 1], env) as cluster:
        joined = env | {"RAY_ADDRESS": cluster.address}
        with running(*flags, *slow, "--workers", "1:3", "--output", output, env=joined) as job:
            wait_until(lambda: ", 3 workers" in job.told(), "three workers")
            wait_for_an_epoch()
            kill_tree(cluster.nodes[2])
            wait_until(lambda: ", 2 workers" in job.told(), "two workers")
            wait_for_an_epoch()
            cluster.add(1)
            wait_until(lambda: ", 3 workers" in job.told().rpartition(", 2 workers")[2], "third")
            wait_for_an_epoch()
    found = losses(output)
    assert len(found) >= 3
    assert finish(*flags, "--epochs", len(found), "--output", whole).returncode == 0
    assert found == pytest.approx(losses(whole), rel=1e-3)


@pytest.fixture(scope="module")
def photographs(labelled, tmp_path_factory) -> Path:
    """Some hundred files, two of which are no photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    for path in labelled.glob("*/images/*"):
        for copy in range(COPIES):
            (folder / f"{path.stem}~{copy}{path.suffix}").write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def undisturbed(photographs, tmp_path_factory) -> dict[str, bytes]:
    """The masks of a run that nobody killed."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert finish(*SEGMENT, "--input", photographs, "--output", output).returncode == 0
    return masks(output)


def masks(output: Path) -> dict[str, bytes]:
    found = [p for p in (output / "masks").rglob("*") if p.is_file()]
    return {str(p.relative_to(output)): p.read_bytes() for p in found}


def part_rows(output: Path) -> list[dict]:
    files = (output / "_segpipe" / "parts").glob("*.parquet")
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def assert_nothing_half_written(output: Path) -> None:
    """Each mask in place is whole, and so is what each committed part names."""
    for mask in masks(output).values():
        assert mask.endswith(b"IEND\xaeB`\x82")
    for row in part_rows(output):
        assert row["status"] == "rejected" or (output / row["mask_path"]).exists()


def assert_whole(output: Path, photographs: Path, undisturbed: dict[str, bytes]) -> None:
    inputs = sorted(str(p.relative_to(photographs)) for p in photographs.rglob("*") if p.is_file())
    rows = [r for f in (output / "results").iterdir() for r in pq.read_table(f).to_pylist()]
    assert [row["path"] for row in rows] == inputs
    rejected = {row["path"] for row in rows if row["status"] == "rejected"}
    assert rejected == {"broken.jpg", "empty.png"}
    assert masks(output) == undisturbed
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["inputs"], summary["rejected"], summary["open"]) == (len(inputs), 2, 0)
    assert not (output / "_segpipe" / "lease.json").exists()
    assert [p for p in (output / "_segpipe" / "tmp").glob("*") if p.is_file()] == []


def victim_of(kind: str, driver: int, nodes: Sequence[int]) -> int | None:
    """A living process of this kind, None while there is none."""
    processes = {pid: command_of(pid) for root in (driver, *nodes) for pid in family(root)}
    actors = [p for p, words in processes.items() if words.startswith("ray::") and "Segm" in words]
    if kind == "driver":
        return driver
    if kind == "node":  # a worker node on which photographs are segmented
        return next((n for n in nodes[1:] if set(family(n)) & set(actors)), None)
    if kind == "actor":
        return next(iter(actors), None)
    if kind == "decoder":
        return next((p for p, words in processes.items() if "segpipe.data.decoder" in words), None)
    if kind == "raylet":
        return next((p for p, words in processes.items() if "/raylet/raylet " in words), None)
    # Of Ray's own workers any; its agents die and live with their raylet.
    workers = [p for p, words in processes.items() if words.startswith("ray::")]
    others = [p for p in workers if p not in actors and "Agent" not in processes[p]]
    return others[driver % len(others)] if others else None


def test_runs_in_which_one_of_each_kind_is_killed_end_as_an_undisturbed_one(
    photographs, undisturbed, tmp_path
):
    """Three in one run that goes on, and then its driver; the raylet of the next; a third ends it.

    A node of a cluster dies in tests/test_submission.py.
    """
    words = [*SEGMENT, "--input", photographs, "--output", tmp_path]
    with running(*words) as job:
        for kind in ("decoder", "worker", "actor", "driver"):
            kill_amid(kind, job, tmp_path, 3)
        assert job.wait() != 0
    assert_only_begun(tmp_path, undisturbed)
    with running(*words) as job:
        kill_amid("raylet", job, tmp_path, 3)
        assert job.wait() != 0
        wait_until(lambda: job.told().endswith("; run the same command again\n"), "last word")
    assert_only_begun(tmp_path, undisturbed)
    finish_what_was_begun(words, tmp_path)
    assert_whole(tmp_path, photographs, undisturbed)


@pytest.mark.nightly
def test_a_run_in_which_something_is_killed_ends_as_an_undisturbed_one(
    trial, photographs, undisturbed, tmp_path
):
    """By itself, or, where the driver died of it, by the same command."""
    chance, output = random.Random(trial), tmp_path / "output"
    kind = VICTIMS[trial % len(VICTIMS)]
    words = [*SEGMENT, "--input", photographs, "--output", output]
    secret = token()
    with ray_nodes([1, 1, 1], secret) if kind == "node" else nullcontext() as cluster:
        env = secret | {"RAY_ADDRESS": cluster.address} if cluster else {}
        with running(*words, env=env) as job:
            kill_amid(kind, job, output, chance.randint(1, 30), cluster.nodes if cluster else [])
            assert (job.wait() == 0) == (kind not in DEADLY), job.told()
    if kind in DEADLY:
        assert_only_begun(output, undisturbed)
        finish_what_was_begun(words, output)
    assert_whole(output, photographs, undisturbed)


def kill_amid(kind: str, job: Job, output: Path, more: int, nodes: Sequence[int] = ()) -> None:
    """Kill one of this kind when so many more parts are committed, while others are in flight."""
    parts = output / "_segpipe" / "parts"

    def committed() -> int:
        assert job.runs(), job.told()
        return len(list(parts.iterdir())) if parts.is_dir() else 0

    wanted = committed() + more
    wait_until(lambda: committed() >= wanted, "part")
    wait_until(lambda: victim_of(kind, job.process.pid, nodes), kind)
    time.sleep(random.random() / 5)  # the moment is meant to be any
    victim = victim_of(kind, job.process.pid, nodes)
    assert 0 < committed() < NUM_INPUTS // 2
    assert victim
    (kill_tree if kind in ("driver", "node") else kill)(victim)


def assert_only_begun(output: Path, undisturbed: dict[str, bytes]) -> None:
    assert not (output / "summary.json").exists()
    assert_nothing_half_written(output)
    assert 0 < len(part_rows(output)) < len(undisturbed) + 2


def finish_what_was_begun(words: list[object], output: Path) -> None:
    """By the same command, which does nothing twice."""
    before = {row["path"]: row["finished"] for row in part_rows(output)}
    ended = finish(*words)
    assert ended.returncode == 0, ended.stderr
    after = {row["path"]: row["finished"] for row in part_rows(output)}
    assert {path: after[path] for path in before} == before


def test_what_was_done_before_a_kill_is_not_downloaded_again(s3, photographs, tmp_path):
    source = open_store(f"{s3.uri}/killed-in")
    for path in sorted(photographs.iterdir())[:40]:
        if path.is_file():
            source.put(path.name, path.read_bytes())
    output = open_store(f"{s3.uri}/killed-out")
    words = [
        *SEGMENT,
        "--input",
        source.uri(),
        "--output",
        output.uri(),
        "--max-rejected",
        1,
        "--report-images",
        "off",
    ]
    with Proxy(s3.endpoint) as proxy:
        env = {"AWS_ENDPOINT_URL": proxy.endpoint}
        with running(*words, env=env) as job:
            wait_until(lambda: len(list(output.list("_segpipe/parts/"))) > 3, "part")
            assert job.runs()
        done = {
            row["path"]
            for entry in output.list("_segpipe/parts/")
            for row in read_parquet(output, entry.key).to_pylist()
        }
        proxy.requests.clear()
        ended = finish(*words, env=env)
        assert ended.returncode == 0, ended.stderr
        got = [path for method, path, _ in proxy.requests if method == "GET"]
    downloaded = {unquote(path).rsplit("/", 1)[1] for path in got if "/killed-in/" in path}
    assert downloaded == {entry.key for entry in source.list()} - done


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_stopped_run_keeps_what_is_done_and_says_so_in_one_line(
    number, code, photographs, undisturbed, tmp_path
):
    words = [*SEGMENT, "--input", photographs, "--output", tmp_path]
    parts = tmp_path / "_segpipe" / "parts"
    with running(*words) as job:
        wait_until(lambda: parts.is_dir() and len(list(parts.iterdir())) > 2, "part")
        job.process.send_signal(number)
        assert job.wait() == code
        told = last_words(job.told())
    assert told == ["segpipe segment: stopped, run the same command again to resume"]
    assert not (tmp_path / "_segpipe" / "lease.json").exists()
    assert_nothing_half_written(tmp_path)
    assert finish(*words).returncode == 0
    assert_whole(tmp_path, photographs, undisturbed)


def test_of_two_runs_on_one_output_one_is_refused_and_nothing_is_doubled(
    photographs, undisturbed, tmp_path
):
    words = [*SEGMENT, "--input", photographs, "--output", tmp_path]
    with running(*words) as first, running(*words) as second:
        codes = sorted(job.wait() for job in (first, second))
        told = first.told() + second.told()
    assert codes == [0, 2]
    assert "locked by process" in told
    assert_whole(tmp_path, photographs, undisturbed)


def test_a_crash_of_the_decoder_rejects_and_a_kill_from_outside_leaves_open(labelled, tmp_path):
    """A sitecustomize.py gives every Python that is started a codec that ends its process."""
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "sitecustomize.py").write_text(DEADLY_CODEC)
    images, output = tmp_path / "images", tmp_path / "output"
    images.mkdir()
    drawn = next(labelled.glob("test/images/*")).read_bytes()
    for number in range(6):
        (images / f"{number}.tif").write_bytes(drawn)
    (images / "3a.ppm").write_bytes(b"P6 # SIGSEGV\n40 40 255\n" + bytes(4800))
    with Image.open(io.BytesIO(drawn)) as photograph:
        pixels = photograph.convert("RGB")
    header = f"P6 # SIGKILL\n{pixels.width} {pixels.height} 255\n".encode()
    (images / "4a.ppm").write_bytes(header + pixels.tobytes())
    words = [*SEGMENT, "--input", images, "--output", output, "--max-rejected", 0.5]
    for number, (env, code) in enumerate([({"PYTHONPATH": str(tmp_path / "codec")}, 1), ({}, 0)]):
        ended = finish(*words, env=env)
        assert ended.returncode == code, ended.stderr
        rows = {row["path"]: row for row in pq.read_table(output / "results").to_pylist()}
        assert len(rows) == 7 + number
        assert {path for path, row in rows.items() if row["error"]} == {"3a.ppm"}
        assert rows["3a.ppm"]["error"] == "the decoder crashed twice on this file (signal 11)"
        assert rows["3a.ppm"]["error_code"] == "decoder_crashed"
        summary = json.loads((output / "summary.json").read_text())
        assert summary["open"] == 1 - number
    assert len(set(masks(output).values())) == 1
    assert len(masks(output)) == 7


DEADLY_CODEC = """
import os, signal
from PIL import PpmImagePlugin

whole = PpmImagePlugin.PpmImageFile._open

def deadly(self):
    words = self.fp.read(20).split()
    if words[1] == b"#":
        os.kill(os.getpid(), signal.Signals[words[2].decode()])
    self.fp.seek(0)
    whole(self)

PpmImagePlugin.PpmImageFile._open = deadly
"""


def test_status_tells_a_running_a_stopped_and_a_finished_run(photographs, tmp_path):
    words = [*SEGMENT, "--input", photographs, "--output", tmp_path]

    def state() -> dict:
        told = subprocess.run(
            [sys.executable, "-m", "segpipe", "status", "--output", tmp_path, "--json"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        return json.loads(told.stdout)

    with running(*words) as job:
        wait_until(lambda: (tmp_path / "_segpipe" / "lease.json").exists(), "lock")
        wait_until(lambda: (state()["done"] or 0) > 0, "progress")
        now = state()
        assert (now["state"], now["inputs"]) == ("running", NUM_INPUTS)
        assert f"process {job.process.pid} on" in now["writer"]
    now = state()
    assert now["state"] == "stopped"
    assert now["done"] + now["open"] == NUM_INPUTS
    assert finish(*words).returncode == 0
    assert state() | {"images_per_second": None} == {
        "state": "finished",
        "inputs": NUM_INPUTS,
        "done": NUM_INPUTS,
        "ok": 6 * COPIES,
        "rejected": 2,
        "open": 0,
        "images_per_second": None,
        "writer": None,
        "heartbeat_age_s": None,
    }

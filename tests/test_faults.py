"""A store that fails now and then changes nothing; one that stays away ends the run in order.

Run: pytest -m cluster tests/test_faults.py
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from processes import (
    arguments,
    finish,
    last_words,
    ray_nodes,
    running,
    s3_answers,
    token,
    wait_until,
)
from proxy import Proxy, random_faults
from verbs import masks, rows

from segpipe.segment.output import PARTS, SUMMARY
from segpipe.segment.parts import read_parts
from segpipe.storage import Store, open_store
from segpipe.storage.files import read_json
from segpipe.storage.settings import SETTINGS

pytestmark = pytest.mark.cluster
SEGMENT = ["-m", "jobs.segment", "--group-size", 4, "--max-rejected", 1, "--tta", "none"]
NUM_IMAGES = 60
STRANGE = ["with space.jpg", "ä/ö.jpg", "a#b?c%20d&e+f.jpg", ".dot/x.jpg", "k.png", "k.png2/x.jpg"]
VERY_STRANGE = ["a//b.jpg", "/lead.jpg", "c/../d.jpg", f"{'l' * 300}.jpg", "k", "k.png/x.jpg"]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """A second S3 server, of another make; holds any key, in memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            endpoint = f"http://127.0.0.1:{port}"
            wait_until(lambda: s3_answers(endpoint), "moto")
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="bucket")
            yield endpoint
        finally:
            server.kill()


@pytest.fixture(params=["rclone", pytest.param("moto", marks=pytest.mark.nightly)])
def endpoint(request, s3, monkeypatch) -> str:
    found = s3.endpoint if request.param == "rclone" else request.getfixturevalue("moto")
    monkeypatch.setenv("AWS_ENDPOINT_URL", found)
    return found


@pytest.fixture(scope="module")
def photographs(labelled) -> dict[str, bytes]:
    """Key -> bytes; some keys are strange, two files are broken."""
    drawn = [path.read_bytes() for path in sorted(labelled.glob("*/images/*"))]
    keys = [f"plain/{n:03d}.jpg" for n in range(NUM_IMAGES - len(STRANGE) - 2)] + STRANGE
    good = {key: drawn[n % len(drawn)] for n, key in enumerate(keys)}
    return good | {"cut.jpg": drawn[0][:500], "empty.jpg": b""}


@pytest.fixture(scope="module")
def undisturbed(photographs, tmp_path_factory) -> dict[str, bytes]:
    """Masks of the same photographs from and to a local disk."""
    source, output = (open_store(str(tmp_path_factory.mktemp(name))) for name in ("in", "out"))
    fill(source, photographs)
    source.sweep()
    ended = finish(*SEGMENT, "--input", source.uri(), "--output", output.uri())
    assert ended.returncode == 0, ended.stderr
    return masks(output)


def fill(store: Store, photographs: dict[str, bytes]) -> None:
    for key, data in photographs.items():
        store.put(key, data)


def in_bucket(photographs: dict[str, bytes], tmp_path: Path) -> tuple[list[object], Store]:
    """A command over these photographs in a place of this test's own, and its output."""
    source = open_store(f"s3://bucket/{tmp_path.name}/in")
    output = open_store(f"s3://bucket/{tmp_path.name}/out")
    fill(source, photographs)
    return [*SEGMENT, "--input", source.uri(), "--output", output.uri()], output


def assert_right(output: Store, undisturbed: dict[str, bytes]) -> None:
    assert masks(output) == undisturbed
    rejected = {row["path"] for row in rows(output) if row["status"] == "rejected"}
    assert rejected == {"cut.jpg", "empty.jpg"}
    summary = read_json(output, SUMMARY)
    assert summary
    assert (summary["inputs"], summary["rejected"], summary["open"]) == (NUM_IMAGES, 2, 0)


@pytest.mark.timeout(600)
def test_faults_in_5_percent_of_all_requests_change_nothing(
    endpoint, photographs, undisturbed, tmp_path
):
    """503, 500, refused, reset before and after, cut-off and stalled answers, on every kind."""
    words, output = in_bucket(photographs, tmp_path)
    with Proxy(endpoint, fault=random_faults(0.05, seed=1)) as proxy:
        env = {"AWS_ENDPOINT_URL": proxy.endpoint}
        ended = finish(*words, env=env)
        hurt = [(m, path) for m, path, status in proxy.requests if status in (0, 500, 503)]
    assert ended.returncode == 0, ended.stderr
    assert_right(output, undisturbed)
    assert {method for method, _ in hurt} >= {"GET", "PUT"}


def test_a_store_that_stays_away_ends_the_run_and_the_same_command_goes_on(
    s3, photographs, undisturbed, tmp_path
):
    words, output = in_bucket(photographs, tmp_path)
    with Proxy(s3.endpoint) as proxy:
        env = {"AWS_ENDPOINT_URL": proxy.endpoint}
        with running(*words, "--store-patience", 3, env=env) as job:
            wait_until(lambda: list(output.list(PARTS)), "part")
            proxy.fault = lambda *_: "503"
            assert job.wait() == 1
            told = job.told()
        (last,) = last_words(told)
        assert last == told.splitlines()[-1]
        assert "run the same command again" in last
        assert "SlowDown" in last
        assert read_json(output, SUMMARY) is None
        proxy.fault = None
        done = len(read_parts(output).ids)
        assert 0 < done < NUM_IMAGES
        ended = finish(*words, env=env)
        assert ended.returncode == 0, ended.stderr
    assert_right(output, undisturbed)


def test_one_sick_object_stays_open_while_the_others_are_done(
    s3, photographs, undisturbed, tmp_path
):
    words, output = in_bucket(photographs, tmp_path)

    def sick(method: str, path: str, _: int) -> str | None:
        return "500" if method == "GET" and path.endswith("plain/007.jpg") else None

    with Proxy(s3.endpoint, fault=sick) as proxy:
        env = {"AWS_ENDPOINT_URL": proxy.endpoint}
        ended = finish(*words, "--store-patience", 2, env=env)
        assert ended.returncode == 1
        assert "1 still open, run the same command again" in ended.stdout
        assert len(masks(output)) == len(undisturbed) - 1
        summary = read_json(output, SUMMARY)
        assert summary
        assert (summary["inputs"], summary["open"]) == (NUM_IMAGES - 1, 1)
        proxy.fault = None
        assert finish(*words, env=env).returncode == 0
    assert_right(output, undisturbed)


def test_keys_that_only_object_stores_hold_are_done_and_land_on_disk(
    moto, photographs, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    source = open_store(f"s3://bucket/{tmp_path.name}/in")
    output = open_store(str(tmp_path / "out"))
    keys = [*STRANGE, *VERY_STRANGE]
    fill(source, {key: photographs["k.png"] for key in keys})
    ended = finish(*SEGMENT, "--input", source.uri(), "--output", output.uri())
    assert ended.returncode == 0, ended.stderr
    found = {row["path"]: row["mask_path"] for row in rows(output)}
    assert set(found) == set(keys)
    assert len(set(found.values())) == len(keys) == len(masks(output))
    assert len(set(masks(output).values())) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


BEGINNINGS = {
    "unreachable": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "is the store up"),
    "no endpoint": ({"AWS_ENDPOINT_URL": "nonsense"}, "AWS_ENDPOINT_URL nonsense"),
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong-word"}, "AWS_SECRET_ACCESS_KEY"),
    "unknown key": ({"AWS_ACCESS_KEY_ID": "wrong-word"}, "AWS_ACCESS_KEY_ID"),
}


@pytest.mark.parametrize("case", BEGINNINGS)
def test_what_the_user_must_mend_is_told_in_one_line_at_the_beginning(s3, case, tmp_path):
    env, line = BEGINNINGS[case]
    words = [*SEGMENT, "--input", f"{s3.uri}/x", "--output", tmp_path / "out"]
    ended = finish(*words, env=env)
    assert ended.returncode == 2, ended.stderr
    assert line in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_server_that_never_answers_is_told_within_30_seconds(s3, tmp_path):
    """A deadline, not a speed: the process is given 30 s and its own start."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{deaf.getsockname()[1]}"}
        start = time.monotonic()
        ended = finish(*SEGMENT, "--input", f"{s3.uri}/x", "--output", tmp_path / "out", env=env)
    assert ended.returncode == 2
    assert "is the store up" in ended.stderr
    assert time.monotonic() - start < 45


@pytest.mark.parametrize("place", ["no such bucket", "read-only"])
def test_an_output_that_cannot_be_written_is_told_before_anything_is_done(
    s3, photographs, tmp_path, place
):
    source = open_store(f"{s3.uri}/{tmp_path.name}/in")
    source.put("x.jpg", photographs["k.png"])
    output = "s3://missing-bucket/out" if place == "no such bucket" else f"{s3.uri}/out-ro"

    def read_only(method: str, *_: object) -> str | None:
        return "403" if method in ("PUT", "DELETE") else None

    with Proxy(s3.endpoint, fault=read_only if place == "read-only" else None) as proxy:
        words = [*SEGMENT, "--input", source.uri(), "--output", output]
        ended = finish(*words, env={"AWS_ENDPOINT_URL": proxy.endpoint})
    assert ended.returncode == 2, ended.stderr
    assert place in ended.stderr or "access denied" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


TABLES = """
import sys, ray
from ray._private.state import state
ray.init(sys.argv[1], logging_level="ERROR")
print(state.job_table(), state.actor_table(None, None, None))
"""


def test_a_cluster_whose_nodes_never_heard_of_the_endpoint_uses_the_drivers_and_no_secret_leaks(
    s3, photographs, undisturbed, tmp_path
):
    """Nodes have credentials of their own and no endpoint; secrets are searched everywhere."""
    words, output = in_bucket(photographs, tmp_path)
    secret = token()
    hidden = {os.environ["AWS_SECRET_ACCESS_KEY"], secret["RAY_AUTH_TOKEN"]}
    with ray_nodes([1, 1, 1], secret | {"AWS_ENDPOINT_URL": ""}) as cluster:
        with running(*words, env=secret | {"RAY_ADDRESS": cluster.address}) as job:
            wait_until(lambda: list(output.list(PARTS)) or not job.runs(), "part")
            words_of_all = arguments()
            tables = finish("-c", TABLES, cluster.address, env=secret).stdout.encode()
            assert job.wait() == 0, job.told()
            told = job.told().encode()
        logs = [path.read_bytes() for path in cluster.folder.rglob("*") if path.is_file()]
    assert_right(output, undisturbed)
    written = [output.get(entry.key) for entry in output.list()]
    assert len(logs) > 10
    assert b"entrypoint" in tables.lower()
    for place in (words_of_all, logs, written, [told], [tables]):
        assert not [text for text in place for word in hidden if word.encode() in text]
    settings = read_json(output, SETTINGS)
    assert settings
    assert s3.endpoint not in json.dumps(settings)

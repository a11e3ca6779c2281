"""A run that is killed after any one request to its store loses nothing and shows nothing half.

A proxy before a real S3 server counts the requests and kills the client when the server has
answered one of them, so that the client never hears of it: between every pair of requests.

Run: pytest -m cluster tests/test_requests.py
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from proxy import Proxy
from verbs import masks, rows

from segpipe.data.synthetic_sets import write_archive_image
from segpipe.segment.manifest import list_inputs
from segpipe.segment.output import SUMMARY
from segpipe.segment.parts import read_parts
from segpipe.segment.rows import ROW
from segpipe.storage import Store, lock, open_store
from segpipe.storage.files import read_json, write_parquet
from segpipe.storage.s3 import PROBE

pytestmark = pytest.mark.cluster
NUM_IMAGES = 3


class Forker:
    def __init__(self) -> None:
        program = str(Path(__file__).with_name("support") / "forker.py")
        self.process = subprocess.Popen(
            [sys.executable, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, proxy: Proxy, kill_after: int | None, verb: str, *words: str) -> int:
        """Exit code of a run that is killed after this request; -9 when it was."""
        pids: list[int] = []
        started = threading.Event()
        first = len(proxy.requests)

        def after(_method: str, _path: str, _number: int) -> None:
            if kill_after is not None and len(proxy.requests) - first == kill_after:
                started.wait()
                os.kill(pids[0], signal.SIGKILL)

        order = {"env": {"AWS_ENDPOINT_URL": proxy.endpoint}, "verb": verb, "words": words}
        proxy.after = after
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(order), file=self.process.stdin, flush=True)
        pids.append(int(self.process.stdout.readline()))
        started.set()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def forker(s3) -> Iterator[Forker]:
    server = Forker()
    yield server
    server.process.kill()
    server.process.communicate()


@pytest.fixture(scope="module")
def source(s3, tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("few")
    write_archive_image(folder, 0, seed=2)
    data = next(path for path in folder.rglob("*") if path.is_file()).read_bytes()
    store = open_store(f"{s3.uri}/few-in")
    for number in range(NUM_IMAGES - 1):
        store.put(f"{number}.jpg", data)
    store.put("broken.jpg", b"\xff\xd8 cut off")
    return store


def timeless(output: Store) -> list[dict]:
    return [row | {"finished": 0} for row in rows(output)]


def segment(source: Store, output: Store) -> tuple[str, ...]:
    return ("segment", "--input", source.uri(), "--output", output.uri(), *FLAGS)


FLAGS = ("--max-rejected", "1", "--format", "both", "--report-images", "off")


def copy(template: Store, output: Store) -> None:
    for entry in template.list():
        output.put(entry.key, template.get(entry.key))


def group_of(source: Store, output: Store, rows: str) -> tuple[str, ...]:
    page = list_inputs(source.list()).key(0)
    return ("group", source.uri(), output.uri(), page, rows)


def prepared(s3, source: Store, name: str, forker: Forker, groups: list[str]) -> Store:
    """An output with a manifest, and with these groups committed."""
    output = open_store(f"{s3.uri}/{name}")
    list_inputs(source.list()).write(output)
    with Proxy(s3.endpoint) as proxy:
        for group in groups:
            assert forker.run(proxy, None, *group_of(source, output, group)) == 0
    return output


def test_a_commit_killed_after_any_of_its_requests_is_whole_or_not_there(s3, source, forker):
    whole = prepared(s3, source, "commit", forker, ["0,1,2"])
    killed = 0
    for number in range(100):
        output = prepared(s3, source, f"commit-{number}", forker, [])
        words = group_of(source, output, "0,1,2")
        with Proxy(s3.endpoint) as proxy:
            code = forker.run(proxy, number, *words)
            if code == 0:
                break
            assert code == -signal.SIGKILL
            killed += 1
            parts = read_parts(output)
            assert len(parts.ids) in (0, NUM_IMAGES)
            if len(parts.ids):
                assert masks(output) == masks(whole)
            assert all(data.endswith(b"IEND\xaeB`\x82") for data in masks(output).values())
            assert forker.run(proxy, None, *words) == 0
        assert masks(output) == masks(whole)
        assert len(read_parts(output).ids) == NUM_IMAGES
    assert killed >= NUM_IMAGES + 1 + NUM_IMAGES  # page and photographs read, masks and part put


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_run_killed_after_any_request_of_its_end_is_finished_by_the_same_command(
    s3, source, forker, every
):
    """All groups are committed; what is left is the manifest, the compaction and the summary.

    Results of an earlier run, as 0.1.0 named them, go on the way.
    """
    template = prepared(s3, source, f"end-{every}", forker, ["0,1", "2"])
    old = pa.Table.from_pylist([{"path": "old"}], schema=ROW)
    write_parquet(template, "results/part-00000.parquet", old)
    undisturbed = open_store(f"{s3.uri}/end-{every}-undisturbed")
    copy(template, undisturbed)
    with Proxy(s3.endpoint) as proxy:
        assert forker.run(proxy, None, *segment(source, undisturbed)) == 0
        proxy.requests.clear()
        assert forker.run(proxy, None, *segment(source, undisturbed)) == 0  # a finished run again
        written = {path for method, path, _ in proxy.requests if method in ("PUT", "DELETE")}
        names = {path.partition("?")[0].rpartition("-undisturbed/")[2] for path in written}
        assert names <= {lock.LOCK, PROBE}
        listings = [path for _, path, _ in proxy.requests if "list-type=2" in path]
        assert len([path for path in listings if "max-keys" not in path]) == 2  # input, results
    killed = 0
    for number in range(0, 200, every):
        output = open_store(f"{s3.uri}/end-{every}-{number}")
        copy(template, output)
        with Proxy(s3.endpoint) as proxy:
            code = forker.run(proxy, number, *segment(source, output))
            if code == 0:
                break
            assert code == -signal.SIGKILL
            killed += 1
            assert rows(output)
            if read_json(output, SUMMARY):
                assert timeless(output) == timeless(undisturbed)  # what has a summary is whole
            assert forker.run(proxy, None, *segment(source, output)) == 0
        assert timeless(output) == timeless(undisturbed)
        assert masks(output) == masks(undisturbed)
        summary = read_json(output, SUMMARY)
        assert summary
        assert (summary["inputs"], summary["rejected"], summary["open"]) == (NUM_IMAGES, 1, 0)
    assert killed > 20 // every

"""What the driver and the store cost segpipe itself: keys, pages, groups, parts, rows, requests.

    python benchmarks/driver.py [--inputs 200000]

Prints one JSON object of the names of `segpipe.planning.costs.Costs`: seconds of one core, bytes.
Keys come from a loopback server that makes up pages of 1,000 keys. Parts of 16 and of 64 rows, as
full as a run's, are indexed, compacted and reported from a local disk: parts and rows are told
apart by the two. Pages and groups pass through Ray Data to an actor that does nothing. A request
is a GET of 400 kB and a PUT of 50 kB from eight threads to `rclone serve s3` on loopback, less the
same on a local disk; only this process's CPU counts. Four minutes on 2 cores; 200 MB under /tmp.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT
from listing import Pages, rss_mib

from segpipe.cluster.session import ray_session
from segpipe.segment import report
from segpipe.segment.fetch import TRANSFERS
from segpipe.segment.groups import Groups
from segpipe.segment.inputs import Inputs
from segpipe.segment.manifest import Manifest
from segpipe.segment.todo import Todo
from segpipe.storage import Store, open_store

sys.path.insert(0, str(ROOT / "tests" / "support"))
from processes import s3_server

from segpipe.cluster.workers import network_stage
from segpipe.segment.compact import compact
from segpipe.segment.keys import mask_key
from segpipe.segment.manifest import PAGE_ROWS, list_inputs
from segpipe.segment.parts import commit_part, read_parts
from segpipe.segment.todo import plan_todo

PART_ROWS = 16, 64
FEW_PAGES, MANY_PAGES = 20, 1000  # more groups than are handed over without read tasks
REQUESTS = 400  # of each kind
GET_BYTES, PUT_BYTES = 400_000, 50_000
CARD = {
    "model": "resunet",
    "checkpoint_sha256": "0" * 64,
    "threshold": 0.4,
    "settings": "0" * 16,
    "status": "ok",
}


def commit(output: Store, manifest: Manifest, part_rows: int) -> None:
    """A part for each group, with what a run without measures writes into a row."""
    random = np.random.default_rng(0)
    for number in range(len(manifest.pages)):
        inputs = manifest.page(number).to_pylist()
        for start in range(0, len(inputs), part_rows):
            rows = [
                CARD
                | {"path": one["path"], "version": one["version"], "bytes": one["bytes"]}
                | {"mask_path": mask_key(one["path"]), "height": 2000, "width": 2000}
                | {"fov_fraction": random.random(), "vessel_density": random.random()}
                | {"finished": datetime.fromtimestamp(1.7e9 + start, UTC)}
                for one in inputs[start : start + part_rows]
            ]
            commit_part(output, rows)


def archive_steps(source: str, part_rows: int) -> dict[str, float]:
    """Seconds of the driver's steps over a made-up archive, and its memory's growth."""
    with tempfile.TemporaryDirectory() as folder:
        output = open_store(folder)
        begun, start = rss_mib(), time.monotonic()
        manifest = list_inputs(Inputs(open_store(source)))
        manifest.write(output)
        plan_todo(manifest, read_parts(output))
        listed = time.monotonic() - start
        commit(output, manifest, part_rows)
        start = time.monotonic()
        summary = compact(output, manifest)
        report.gather(output, summary, 0).plots()
        ended = time.monotonic() - start
    assert summary["ok"] == manifest.num_inputs, summary
    grown = (rss_mib("VmHWM") - begun) * 2**20
    return {"list": listed, "end": ended, "inputs": manifest.num_inputs, "bytes": grown}


class Nothing:
    """An actor that does nothing with a group."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"num": np.array([len(rows) for rows in batch["rows"]])}


def handed_over() -> dict[str, float]:
    """Seconds until the first group comes, by pages; the driver's CPU for a group after it."""
    with ray_session():
        for pages in (FEW_PAGES, FEW_PAGES):  # the first time starts processes
            start, used, batches = time.monotonic(), time.process_time(), _groups(pages)
            next(batches)
            few_s, first = time.monotonic() - start, time.process_time() - used
            count = sum(1 for _ in batches)
            group_s = (time.process_time() - used - first) / count
        start, batches = time.monotonic(), _groups(MANY_PAGES)
        next(batches)
        many_s = time.monotonic() - start
        page_s = (many_s - few_s) / (MANY_PAGES - FEW_PAGES)
        return {"page_s": max(1e-6, page_s), "driver_group_s": group_s}


def _groups(pages: int) -> Iterator[Any]:
    """What the driver gets back of so many whole pages."""
    rows = np.arange(PAGE_ROWS, dtype=np.int32)
    todo = Todo(0, 0, [(f"_segpipe/manifest/{n:06d}", rows) for n in range(pages)])
    stage = network_stage(Groups(todo, 64).dataset(), Nothing, (), "cpu", 1, light=True)
    return iter(stage.iter_batches(batch_size=None))


def request_cpu(store: Store) -> float:
    """This process's CPU seconds for a request, of GETs and PUTs in equal parts."""
    store.put("in", bytes(GET_BYTES))
    store.get("in")
    with ThreadPoolExecutor(TRANSFERS) as pool:
        start = time.process_time()
        list(pool.map(lambda _: store.get("in"), range(REQUESTS)))
        list(pool.map(lambda n: store.put(f"out/{n}", bytes(PUT_BYTES)), range(REQUESTS)))
        return (time.process_time() - start) / (2 * REQUESTS)


def requests() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        with s3_server(Path(folder)):
            far = request_cpu(open_store("s3://bucket/far"))
        shutil.rmtree(Path(folder) / "bucket")
        near = request_cpu(open_store(f"{folder}/near"))
    return {"request_s": far - near}


def costs(inputs: int) -> dict[str, float]:
    """All of them; each archive in a process of its own, for its memory."""
    Pages.num_keys = inputs
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
        env |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word"}
        small, large = (_alone(["--part-rows", str(rows)], env) for rows in PART_ROWS)
        server.shutdown()
    num = small["inputs"]
    parts = num / PART_ROWS[0], num / PART_ROWS[1]
    part_s = (small["end"] - large["end"]) / (2 * (parts[0] - parts[1]))
    return {
        "key_s": min(small["list"], large["list"]) / num,
        "part_s": part_s,
        "row_s": (large["end"] - 2 * parts[1] * part_s) / num,
        "row_bytes": large["bytes"] / num,
        **_alone(["--only", "handed_over"], {}),
        **_alone(["--only", "requests"], {}),
    }


def _alone(words: list[str], env: dict[str, str]) -> dict[str, float]:
    told = subprocess.run(
        [sys.executable, __file__, *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )
    found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--part-rows", type=int)
    parser.add_argument("--only", choices=["handed_over", "requests"])
    asked = parser.parse_args()
    if asked.part_rows:
        found = archive_steps("s3://bucket/in", asked.part_rows)
    elif asked.only:
        found = {"handed_over": handed_over, "requests": requests}[asked.only]()
    else:
        found = costs(asked.inputs)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

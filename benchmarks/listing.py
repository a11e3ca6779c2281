"""What a million inputs cost the driver before and after Ray works: listing, done-set, compaction.

    python benchmarks/listing.py [--inputs 1000000]

Each case is a process of its own: it lists, writes the manifest, indexes parts that hold every
second input, plans what is left, then compacts all. Memory is the highest RSS of that process less
its RSS before it began. `folder` is a real folder with all files side by side; `s3` a loopback
server that makes up pages of 1,000 keys and times, as no real server here lists a million keys in
reasonable time. About six minutes on 2 cores; needs 5 GB under /tmp. Writes results/listing.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from common import facts, write

from segpipe.segment.compact import compact
from segpipe.segment.inputs import Inputs
from segpipe.segment.keys import mask_key
from segpipe.segment.manifest import PAGE_ROWS, Manifest, list_inputs
from segpipe.segment.parts import commit_part, read_parts
from segpipe.segment.todo import plan_todo
from segpipe.storage import Store, open_store

PART_ROWS = 16
FINISHED = datetime(2026, 1, 1, tzinfo=UTC)
KEY = "clinic-{:02d}/{:08d}_left.jpg"


def rss_mib(field: str = "VmRSS") -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def commit(output: Store, manifest: Manifest, wanted: int, of: int) -> None:
    """Parts as a run leaves them, for every `of`th group from `wanted` on."""
    for number in range(len(manifest.pages)):
        inputs = manifest.page(number).to_pylist()
        groups = range(0, len(inputs), PART_ROWS)
        for start in groups[wanted::of]:
            commit_part(
                output,
                [
                    {"path": one["path"], "version": one["version"], "status": "ok"}
                    | {"mask_path": mask_key(one["path"]), "finished": FINISHED}
                    for one in inputs[start : start + PART_ROWS]
                ],
            )


def measure(source: str, folder: str) -> None:
    """Print MiB and seconds of each step, this process's own."""
    output = open_store(folder)
    begun = rss_mib()
    lines = []

    def told(step: str, start: float) -> None:
        lines.append(f"{step}|{rss_mib('VmHWM') - begun:.0f}|{time.monotonic() - start:.1f}")

    start = time.monotonic()
    manifest = list_inputs(Inputs(open_store(source)))
    manifest.write(output)
    told("list, write the manifest", start)
    commit(output, manifest, 0, 2)
    start = time.monotonic()
    todo = plan_todo(manifest, read_parts(output))
    assert abs(todo.num_rows - manifest.num_inputs / 2) < PAGE_ROWS, todo.num_rows
    told(f"index {todo.num_done:,} rows of parts, plan what is left", start)
    commit(output, manifest, 1, 2)
    start = time.monotonic()
    summary = compact(output, manifest)
    assert summary["ok"] == manifest.num_inputs, summary
    told("compact all", start)
    print("\n".join(lines))


class Pages(BaseHTTPRequestHandler):
    """ListObjectsV2 alone."""

    protocol_version = "HTTP/1.1"
    num_keys = 0

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        first = int(query.get("continuation-token", ["0"])[0])
        last = min(first + 1000, self.num_keys)
        items = "".join(
            f"<Contents><Key>in/{KEY.format(n * 32 // self.num_keys, n)}</Key><Size>400000</Size>"
            f"<ETag>&quot;{n:032x}&quot;</ETag></Contents>"
            for n in range(first, last)
        )
        more = (
            f"<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
        )
        end = more if last < self.num_keys else "<IsTruncated>false</IsTruncated>"
        body = f"<ListBucketResult>{items}{end}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def case(source: str, env: dict[str, str]) -> list[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--source", source, "--output", folder]
        told = subprocess.run(
            words, check=True, capture_output=True, text=True, env=os.environ | env
        )
    return [line.split("|") for line in told.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--source")
    parser.add_argument("--output")
    asked = parser.parse_args()
    if asked.source:
        measure(asked.source, asked.output)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.inputs):
            Path(folder, f"{number:08d}_left.jpg").touch()
        rows += [["folder", *row] for row in case(folder, {})]
    Pages.num_keys = asked.inputs
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
        env |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word"}
        rows += [["s3", *row] for row in case("s3://bucket/in", env)]
        server.shutdown()
    lines = [
        *facts(f"python benchmarks/listing.py --inputs {asked.inputs}"),
        "| input | step | MiB beyond the start, highest so far | seconds |",
        "|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    write("listing.md", lines)


if __name__ == "__main__":
    main()

"""A hundred thousand tiny objects on a real S3 server: listing, a run that rejects all, a resume.

    python benchmarks/tiny_objects.py [--objects 100000]

`rclone serve s3` on loopback holds objects of a few bytes, no two alike, whose names end in .jpg.
`segpipe segment` lists them, fetches each, finds that none is an image, commits and compacts a row
for each; given again it lists and says that all is done. Then half of the parts are deleted and it
is given once more. Server and run share the machine. Some minutes on 2 cores; 1 GB under /tmp.
Writes results/tiny-objects.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, facts, write
from usage import Usage, measure

from segpipe.segment.inputs import Inputs
from segpipe.storage import open_store

sys.path.insert(0, str(ROOT / "tests" / "support"))
from processes import s3_server

from segpipe.segment.manifest import list_inputs
from segpipe.segment.output import PARTS, SUMMARY

FOLDER = 1000  # objects that share a prefix


def objects(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / f"clinic-{number // FOLDER:04d}" / f"{number:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"no image {number}")


def segmented(bucket: Path) -> tuple[Usage, dict[str, Any]]:
    words = ["-m", "jobs.segment", "--input", "s3://bucket/in", "--output", "s3://bucket/out"]
    used = measure([*words, "--max-rejected", "1", "--report-images", "off"], memory=True)
    return used, json.loads((bucket / "out" / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=100_000)
    count = parser.parse_args().objects
    lines = [
        *facts(f"python benchmarks/tiny_objects.py --objects {count}"),
        f"| {count:,} objects on `rclone serve s3` | seconds | objects/s | peak, MiB |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder)) as server:
        bucket = server.folder
        objects(bucket / "in", count)
        start = time.monotonic()
        manifest = list_inputs(Inputs(open_store("s3://bucket/in")))
        listed = time.monotonic() - start
        assert manifest.num_inputs == count
        lines.append(
            f"| listing alone, {count // 1000} pages | {listed:.1f} | {count / listed:.0f} | |"
        )

        def told(step: str) -> None:
            used, summary = segmented(bucket)
            assert summary["rejected"] == summary["inputs"] == count, summary
            rate, peak = count / used.wall_s, used.peak_mib
            lines.append(f"| {step} | {used.wall_s:.1f} | {rate:.0f} | {peak:.0f} |")

        told("whole run: all fetched, all rejected")
        told("the same command again")
        output = open_store("s3://bucket/out")  # not its folder: the server remembers listings
        for entry in list(output.list(PARTS))[::2]:
            output.delete(entry.key)
        output.delete(SUMMARY)
        told("half of the parts deleted: the rest indexed, half done")
    write("tiny-objects.md", lines)


if __name__ == "__main__":
    main()

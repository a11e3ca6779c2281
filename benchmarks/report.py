"""What the report of a large archive costs: seconds, memory beyond the start, size of the page.

    python benchmarks/report.py [--inputs 1000000]

The rows are made up: two cameras, three attempts with pauses of 20 minutes and two days, 2 % of
the inputs rejected for 30 reasons. Each photograph that is shown is one drawn JPEG of 4,288 x
2,848 px. Half a minute on 2 cores.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from listing import KEY, rss_mib
from PIL import Image

from segpipe.data import codecs, synthetic
from segpipe.segment import report
from segpipe.segment.compact import Results, Totals
from segpipe.segment.keys import MASKS, mask_key
from segpipe.segment.rows import ROW
from segpipe.storage import open_store

HEIGHT, WIDTH, RATE = 2848, 4288, 28.0  # px, px, photographs per second
CHUNK = 4096


def write_results(folder: str, num_inputs: int) -> dict[str, object]:
    """results/ as a run leaves them -> their summary."""
    rng = np.random.default_rng(0)
    finished = 1.76e9 + np.arange(num_inputs) / RATE
    finished += 1200.0 * (np.arange(num_inputs) > num_inputs // 5)
    finished += 172800.0 * (np.arange(num_inputs) > num_inputs // 2)
    totals, results = Totals(), Results(open_store(folder))
    for start in range(0, num_inputs, CHUNK):
        number = np.arange(start, min(start + CHUNK, num_inputs))
        keys = [KEY.format(n * 32 // num_inputs, n) for n in number]
        ok, small = rng.random(len(number)) > 0.02, rng.random(len(number)) < 0.4
        reasons = [f"cannot be decoded: fault {n}" for n in rng.integers(30, size=len(number))]
        table = {
            "path": pa.array(keys),
            "mask_path": pa.array([mask_key(key) for key in keys], mask=~ok),
            "version": pa.array([f"{n:032x}" for n in number]),
            "status": pa.array(np.where(ok, "ok", "rejected")),
            "error": pa.array(reasons, mask=ok),
            "height": pa.array(np.where(small, 584, HEIGHT), mask=~ok),
            "width": pa.array(np.where(small, 565, WIDTH), mask=~ok),
            "vessel_density": pa.array(rng.beta(9, 90, len(number)), mask=~ok),
            "finished": pa.array(finished[number]),
        }
        absent = [name for name in ROW.names if name not in table]
        table |= {name: pa.nulls(len(number), ROW.field(name).type) for name in absent}
        rows = pa.table({name: table[name] for name in ROW.names})
        totals.add(rows)
        results.add(rows)
    results.close()
    return totals.summary() | {
        "images_per_second": RATE,
        "seconds": num_inputs / RATE,
        "skipped": {},
        "model": {"model": "segnet-lite", "training_data": "made up"},
        "bottleneck": "network",
        "stages": {"fetch": 900.0, "decode": 21000.0, "network": 44000.0, "store": 4100.0},
    }


class Always:
    """A store that holds the same under every key."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def get(self, key: str, version: str | None = None) -> bytes:
        return self.data


class Output:
    """Results of a folder; every mask is the same."""

    def __init__(self, folder: str, mask: bytes) -> None:
        self.folder, self.mask = open_store(folder), mask

    def list(self, prefix: str = "") -> object:
        return self.folder.list(prefix)

    def get(self, key: str, version: str | None = None) -> bytes:
        return self.mask if key.startswith(MASKS) else self.folder.get(key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--page", type=Path, default=Path("report.html"), help="where it is put")
    asked = parser.parse_args()
    image, vessel, fov = synthetic.draw_fundus(1, HEIGHT, WIDTH)
    photograph = io.BytesIO()
    Image.fromarray(image).save(photograph, "JPEG", quality=92)
    mask = codecs.encode_mask(np.where(vessel, 1, np.where(fov, 2, 0)).astype(np.uint8))
    del image, vessel, fov
    with tempfile.TemporaryDirectory() as folder:
        summary = write_results(folder, asked.inputs)
        source, output = Always(photograph.getvalue()), Output(folder, mask)
        for overlays in (0, report.OVERLAYS):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
            begun, start = rss_mib(), time.monotonic()
            page = report.archive_report(source, output, summary, overlays)  # type: ignore[arg-type]
            seconds, mib = time.monotonic() - start, rss_mib("VmHWM") - begun
            print(
                f"{asked.inputs:,} rows, {overlays} photographs: {seconds:.1f} s, "
                f"{mib:.0f} MiB beyond the start, page of {len(page) / 1e3:.0f} kB"
            )
    asked.page.write_bytes(page)


if __name__ == "__main__":
    main()

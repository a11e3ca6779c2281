"""Both sides of --min-quality: what the summary counts and the report shows of them.

Run: pytest tests/test_cut.py
"""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from verbs import ONE, rows_of, run

from segpipe.segment.cut import EXAMPLES, Cut

FLAGS = ["--checkpoint", "segnet-lite", "--format", "both", "--max-rejected", 1]


def table(quality: list[float | None], ungradable: list[bool | None]) -> pa.Table:
    columns = {"path": [f"{n:03d}" for n in range(len(quality))], "quality": quality}
    types = pa.schema(
        [("path", pa.string()), ("quality", pa.float32()), ("ungradable", pa.bool_())]
    )
    return pa.table(columns | {"ungradable": ungradable}, schema=types)


def test_those_nearest_to_the_cut_are_shown_of_all_row_groups():
    rng = np.random.default_rng(0)
    quality = rng.permutation(1000) / 1000
    cut, reads = Cut(24), 0

    def read() -> pa.Table:
        nonlocal reads
        reads += 1
        return some

    for first in range(0, 1000, 50):
        part = [float(one) for one in quality[first : first + 50]]
        some = table(part, [one < 0.4 for one in part])
        cut.add(some, read)
    shown = [round(row["quality"], 3) for row in cut.shown]
    assert shown == [0.397, 0.398, 0.399, 0.4, 0.401, 0.402]
    assert len(shown) == 2 * EXAMPLES
    assert (cut.num_kept, cut.num_ungradable, cut.share_kept) == (600, 400, 0.6)
    assert reads < 20  # not of every group


def test_what_has_no_quality_is_ungradable_and_no_example():
    cut = Cut(24)
    some = table([float("nan"), 0.2, 0.9], [True, True, False])
    cut.add(some, lambda: some)
    assert [row["path"] for row in cut.shown] == ["001", "002"]
    assert cut.share_kept == pytest.approx(1 / 3)


def test_rows_that_were_not_marked_have_no_share():
    cut = Cut(24)
    some = table([0.2, None], [None, None])
    cut.add(some, lambda: pytest.fail("read"))
    assert (cut.share_kept, cut.shown) == (None, [])


@pytest.fixture(scope="module")
def plain(archive: Path, tmp_path_factory, ray_cluster) -> Path:
    """An output that is measured and not marked."""
    output = tmp_path_factory.mktemp("plain")
    words = [*ONE, "--input", archive, "--output", output, *FLAGS]
    assert run("segment", *words, "--measure", "full") == 0
    return output


@pytest.fixture(scope="module")
def marked(archive: Path, plain: Path, tmp_path_factory) -> tuple[Path, float]:
    """The same with half of them below --min-quality, not measured, and that quality."""
    output = tmp_path_factory.mktemp("marked")
    least = float(np.median([row["quality"] for row in rows_of(plain) if row["status"] == "ok"]))
    words = [*ONE, "--input", archive, "--output", output, *FLAGS]
    assert run("segment", *words, "--min-quality", least) == 0
    return output, least


def test_rows_below_the_cut_are_marked_and_keep_their_mask(plain, marked):
    output, least = marked
    before = {row["path"]: row for row in rows_of(plain)}
    for row in rows_of(output):
        same = before[row["path"]]
        for name in ("status", "error", "mask_png", "vessel_density", "settings", "quality"):
            assert row[name] == same[name], name
        assert same["ungradable"] is None
        assert row["focus"] is row["calibre_mean"] is None  # measured without the flag
        wanted = row["quality"] < least if row["status"] == "ok" else None
        assert row["ungradable"] is wanted
        assert row["status"] == "rejected" or (output / row["mask_path"]).is_file()


def test_the_summary_counts_them_among_those_that_are_ok(plain, marked):
    output, least = marked
    summary = json.loads((output / "summary.json").read_text())
    rows = rows_of(output)
    assert summary["ungradable"] == sum(bool(row["ungradable"]) for row in rows) == 3
    assert (summary["inputs"], summary["ok"], summary["rejected"]) == (7, 6, 1)
    assert summary["min_quality"] == least
    without = json.loads((plain / "summary.json").read_text())
    assert (without["ungradable"], without["min_quality"]) == (0, None)


def test_the_report_tells_the_share_kept_and_shows_both_sides(plain, marked):
    page = (marked[0] / "report.html").read_text()
    assert "<b>50.0 %</b>of masks kept" in page
    section = page.partition("<h2>At the cut")[2].partition("<h2>")[0]
    shown = [float(text) for text in re.findall(r", quality ([\d.]+)</figcaption>", section)]
    quality = [row["quality"] for row in rows_of(marked[0]) if row["status"] == "ok"]
    assert shown == pytest.approx(sorted(quality), abs=0.0006)
    other = (plain / "report.html").read_text()
    assert "At the cut" not in other
    assert "masks kept" not in other
    assert "Quality, photographs" in other


def test_another_cut_is_refused_on_resume(archive, marked, capfd):
    output, least = marked
    words = ["segment", *ONE, "--input", archive, "--output", output, *FLAGS]
    assert run(*words, "--min-quality", least) == 0
    capfd.readouterr()
    assert run(*words, "--min-quality", 0.99) == 2
    assert f"--min-quality 0.99: {output} was started with {least}" in capfd.readouterr().err
    assert run(*words) == 2
    assert "without --min-quality: " in capfd.readouterr().err

"""What a bulk run knows: which files are inputs, what is left to do, what the rows add up to.

Run: pytest tests/test_archive.py
"""

import pyarrow.parquet as pq
import pytest

from segpipe import archive
from segpipe.errors import UserError
from segpipe.storage import open_store


@pytest.fixture
def source(tmp_path):
    store = open_store(str(tmp_path / "in"))
    for key in ("a.jpg", "B.PNG", "sub/c.tif", "noextension", "notes.txt", "sub/table.csv"):
        store.put(key, key.encode())
    return store


def row(path: str, version: str, status: str = "ok", error: str | None = None) -> dict:
    return {"path": path, "version": version, "status": status, "error": error}


def test_images_and_files_without_extension_are_inputs_and_the_rest_is_counted(source, tmp_path):
    inputs = archive.open_inputs(source, open_store(str(tmp_path / "out")), limit=None)
    assert [e.key for e in inputs] == ["B.PNG", "a.jpg", "noextension", "sub/c.tif"]
    assert inputs.skipped == {".txt": 1, ".csv": 1}


def test_an_output_inside_the_input_is_left_out_of_it(source):
    output = open_store(f"{source.uri()}/out")
    output.put("masks/a.jpg.png", b"x")
    inputs = archive.open_inputs(source, output, limit=None)
    assert "out/masks/a.jpg.png" not in [e.key for e in inputs]
    assert len(list(inputs)) == 4


def test_an_output_that_is_the_input_is_refused(source):
    with pytest.raises(UserError, match="is the input itself"):
        archive.open_inputs(source, source, limit=None)


def test_a_limit_takes_the_first_of_the_listing(source, tmp_path):
    inputs = archive.open_inputs(source, open_store(str(tmp_path / "out")), limit=2)
    assert [e.key for e in inputs] == ["B.PNG", "a.jpg"]


def test_what_a_part_holds_is_not_to_do_and_a_changed_input_is(source, tmp_path):
    output = open_store(str(tmp_path / "out"))
    entries = {e.key: e for e in archive.open_inputs(source, output, limit=None)}
    archive.commit_part(output, [row("a.jpg", entries["a.jpg"].version), row("B.PNG", "older")])
    todo = archive.plan_todo(entries.values(), output, archive.done_ids(output))
    assert (todo.num_inputs, todo.num_done, todo.num_rows) == (4, 1, 3)
    groups = todo.groups(2)
    found = [e.key for g in groups for e in archive.group_entries(output, *g.values())]
    assert found == ["B.PNG", "noextension", "sub/c.tif"]


def test_compaction_keeps_one_row_of_each_current_input(tmp_path):
    output = open_store(str(tmp_path))
    archive.commit_part(output, [row("b", "1"), row("gone", "1")])
    archive.commit_part(output, [row("b", "2", "rejected", "empty file"), row("a", "1")])
    current = {archive.input_id("a", "1"), archive.input_id("b", "2")}
    summary = archive.compact(output, current)
    assert summary == {
        "inputs": 2,
        "ok": 1,
        "rejected": 1,
        "rejected_by_reason": {"empty file": 1},
        "gone": 1,
    }
    rows = pq.read_table(tmp_path / "results" / "part-00000.parquet").to_pylist()
    assert [(r["path"], r["version"]) for r in rows] == [("a", "1"), ("b", "2")]
    before = (tmp_path / "results" / "part-00000.parquet").read_bytes()
    archive.compact(output, current)
    assert (tmp_path / "results" / "part-00000.parquet").read_bytes() == before


def test_the_steady_rate_leaves_the_first_group_out():
    """Two at once start the clock; four more in the next two seconds are two a second."""
    assert archive.steady_rate([10.0, 10.0, 11.0, 11.0, 12.0, 12.0]) == 2.0
    assert archive.steady_rate([10.0, 10.0]) is None

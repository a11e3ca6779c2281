"""What a bulk run knows: what is left to do, where masks go, what the rows add up to.

Run: pytest tests/test_archive.py
"""

import hashlib
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.errors import UserError
from segpipe.segment.compact import compact, delete_old_results
from segpipe.segment.keys import input_id, mask_key
from segpipe.segment.manifest import Manifest, group_entries, list_inputs
from segpipe.segment.output import PAGES, PARTS, SUMMARY
from segpipe.segment.parts import commit_part, read_parts
from segpipe.segment.rows import ROW
from segpipe.segment.todo import plan_todo
from segpipe.storage import Entry, Store, open_store
from segpipe.storage.files import read_parquet, write_json, write_parquet


def row(path: str, version: str, status: str = "ok", error: str | None = None, **more) -> dict:
    return {"path": path, "version": version, "status": status, "error": error} | more


def at(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def manifest_of(*inputs: tuple[str, str]) -> Manifest:
    return list_inputs(Entry(path, 1, version) for path, version in inputs)


@pytest.fixture
def output(tmp_path):
    return open_store(str(tmp_path / "out"))


# ---- names


def test_a_mask_keeps_its_inputs_key_and_extension():
    assert mask_key("a/x.jpg") == "masks/a/x.jpg.png"
    assert mask_key("ä ö#?%&+.tif") == "masks/ä ö#?%&+.tif.png"
    assert mask_key(".hidden/.x.jpg") == "masks/.hidden/.x.jpg.png"


HARD = ["k", "k.png", "k.png/x", "K.PNG/x", "k/x", "/k", "//k", "k//x", "../k", "./k", "k/../x"]
HARD += ["x" * 255 + ".jpg", "x" * 256 + ".jpg", "ä" * 200, "/".join(["d" * 100] * 10), "a\\b"]
HARD += [
    "a\nb",
    "a\x00b",
    "a\u202eb",
    *(mask_key(k)[6:-4] for k in ("../k", "a\nb", "//k")),
]


def test_masks_of_strange_keys_can_all_lie_side_by_side(output):
    """On a real file system: no mask is another's folder, leaves masks/ or replaces another."""
    for key in HARD:
        output.put(mask_key(key), key.encode())
    assert len(list(output.list("masks/"))) == len(HARD)
    assert [e.key for e in output.list() if not e.key.startswith("masks/")] == []
    assert all(output.get(mask_key(key)) == key.encode() for key in HARD)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("k./~a\\\0é", min_size=1, max_size=8), unique=True, max_size=30))
def test_two_keys_never_share_a_mask(keys):
    names = [mask_key(key) for key in keys]
    assert len(set(names)) == len(keys)
    for name in names:
        assert os.path.normpath(name) == name
        assert name.startswith("masks/")
        assert not any(other.startswith(f"{name}/") for other in names)
        assert max(len(part.encode()) for part in name.split("/")) <= 255


# ---- the manifest and what is done


def test_a_manifest_keeps_all_inputs_in_order_over_its_pages(output, monkeypatch):
    monkeypatch.setattr("segpipe.segment.manifest.PAGE_ROWS", 3)
    inputs = [(f"{n:02d}.jpg", f"v{n}") for n in range(10)]
    manifest = manifest_of(*inputs)
    assert (manifest.num_inputs, manifest.num_bytes, len(manifest.pages)) == (10, 10, 4)
    manifest.write(output)
    rows = [
        (entry.key, entry.version)
        for number in range(4)
        for entry in group_entries(output, manifest.key(number), [0, 1, 2][: 10 - 3 * number])
    ]
    assert rows == inputs
    manifest_of(*inputs[:4]).write(output)
    assert len(list(output.list(PAGES))) == 2


def test_equal_inputs_and_no_others_give_an_equal_digest():
    same = [manifest_of(("a", "1"), ("b", "2")).digest for _ in range(2)]
    others = [
        manifest_of(*inputs).digest
        for inputs in ([("a", "1")], [("a", "1"), ("b", "3")], [("a", "1"), ("c", "2")])
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 4


def test_what_a_part_holds_is_not_to_do_and_a_changed_input_is(output, monkeypatch):
    monkeypatch.setattr("segpipe.segment.manifest.PAGE_ROWS", 2)
    manifest = manifest_of(("a", "1"), ("b", "2"), ("c", "1"), ("d", "1"), ("e", "1"))
    commit_part(output, [row("a", "1"), row("b", "1")])
    commit_part(output, [row("c", "1"), row("d", "1", "rejected", "empty file")])
    todo = plan_todo(manifest, read_parts(output))
    assert (todo.num_done, todo.num_rows) == (3, 2)
    assert [(key, list(rows)) for key, rows in todo.pages] == [
        (manifest.key(0), [1]),
        (manifest.key(2), [0]),
    ]
    again = plan_todo(manifest, read_parts(output), retry_rejected=True)
    assert (again.num_done, again.num_rows) == (2, 3)


def test_without_parts_everything_is_to_do(output):
    todo = plan_todo(manifest_of(("a", "1"), ("b", "2")), read_parts(output))
    assert (todo.num_done, todo.num_rows) == (0, 2)


def test_every_id_is_found_where_its_row_lies(output):
    rng = np.random.default_rng(0)
    rows = [row(f"{n}", "v") for n in rng.permutation(500)]
    for start in range(0, 500, 7):
        commit_part(output, rows[start : start + 7])
    parts = read_parts(output)
    ids = np.array([input_id(f"{n}", "v") for n in range(600)], "S16")
    places = parts.find(ids)
    assert (places[500:] == -1).all()
    tables = [read_parquet(output, key) for key in parts.keys]
    for number, place in enumerate(places[:500]):
        table = tables[parts.part[place]]
        assert table["path"][int(parts.row[place])].as_py() == f"{number}"


def test_a_damaged_part_is_named(output):
    name = f"{0:032x}.parquet"
    output.put(PARTS + name, b"PAR1 not really")
    with pytest.raises(UserError, match=f"{name}: damaged"):
        read_parts(output)


# ---- the end


def results(folder: Path) -> list[dict]:
    files = sorted((folder / "results").iterdir())
    return [r for file in files for r in pq.read_table(file).to_pylist()]


def test_compaction_keeps_one_row_of_each_current_input(output, tmp_path):
    commit_part(output, [row("b", "1"), row("gone", "1")])
    commit_part(
        output, [row("b", "2", "rejected", "empty file"), row("a", "1", engine="eager fp32")]
    )
    manifest = manifest_of(("a", "1"), ("b", "2"), ("open", "1"))
    summary = compact(output, manifest)
    assert summary == {
        "inputs": 2,
        "ok": 1,
        "rejected": 1,
        "ungradable": 0,
        "rejected_by_code": {"unknown": 1},
        "rejected_by_reason": {"empty file": 1},
        "masks_by_engine": {"eager fp32": 1},
        "open": 1,
        "gone": 1,
        "results": [f"results/{file.name}" for file in (tmp_path / "out/results").iterdir()],
        "tables": [],
    }
    assert [(r["path"], r["version"]) for r in results(tmp_path / "out")] == [
        ("a", "1"),
        ("b", "2"),
    ]
    [file] = (tmp_path / "out" / "results").iterdir()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.name == f"part-00000-{digest[:16]}.parquet"
    before = file.stat()
    assert compact(output, manifest) == summary
    assert file.stat() == before  # not even written again


def test_of_two_rows_of_one_input_the_mask_wins_and_then_the_newer(output, tmp_path):
    commit_part(output, [row("a", "1", finished=at(1)), row("x", "1")])
    commit_part(output, [row("a", "1", "rejected", "late", finished=at(2)), row("y", "1")])
    commit_part(output, [row("b", "1", "rejected", "first", finished=at(1)), row("x", "2")])
    commit_part(output, [row("b", "1", "rejected", "second", finished=at(2)), row("y", "2")])
    compact(output, manifest_of(("a", "1"), ("b", "1")))
    assert [(r["status"], r["error"]) for r in results(tmp_path / "out")] == [
        ("ok", None),
        ("rejected", "second"),
    ]


def test_a_shorter_result_leaves_no_file_of_a_longer_one(output, tmp_path, monkeypatch):
    monkeypatch.setattr("segpipe.segment.compact.RESULT_BYTES", 1)
    monkeypatch.setattr("segpipe.segment.compact.ROW_GROUP_BYTES", 1)
    inputs = [(f"{n}", "1") for n in range(4)]
    commit_part(output, [row(*one) for one in inputs])
    compact(output, manifest_of(*inputs))
    assert len(list((tmp_path / "out" / "results").iterdir())) == 4
    finish(output, *inputs[:2])
    assert [r["path"] for r in results(tmp_path / "out")] == ["0", "1"]


@pytest.mark.nightly  # it writes half a gigabyte
def test_results_of_64_to_256_mib_are_read_by_the_usual_readers(output, tmp_path, ray_cluster):
    """300 MB of rows that cannot be compressed."""
    rng = np.random.default_rng(0)
    inputs = [(f"{n:04d}.jpg", "1") for n in range(300)]
    for start in range(0, 300, 16):
        commit_part(
            output,
            [
                row(*one, mask_png=rng.bytes(1_000_000), height=7)
                for one in inputs[start : start + 16]
            ],
        )
    compact(output, manifest_of(*inputs))
    folder = tmp_path / "out" / "results"
    sizes = [file.stat().st_size for file in sorted(folder.iterdir())]
    assert len(sizes) >= 2
    assert all(64 << 20 <= size <= 256 << 20 for size in sizes[:-1])
    names = [path for path, _ in inputs]
    assert pq.read_table(folder, columns=["path"])["path"].to_pylist() == names
    assert list(pd.read_parquet(folder, columns=["path"])["path"]) == names
    found = duckdb.sql(f"select path, octet_length(mask_png) from '{folder}/*.parquet' order by 1")
    assert found.fetchall() == [(name, 1_000_000) for name in names]
    import ray

    dataset = ray.data.read_parquet(str(folder)).select_columns(["path", "height"])
    assert sorted(r["path"] for r in dataset.take_all()) == names
    assert dataset.sum("height") == 7 * 300


def test_parts_of_a_release_with_fewer_columns_go_into_the_results(output):
    """Rows without measurements, beside rows that have them, and alone."""
    newer = ["tortuosity", "engine", "fov_uncertain_fraction", "second_fov_fraction"]
    newer += ["laterality", "pixel_spacing_mm", "device", "acquired"]
    old = pa.schema([field for field in ROW if field.name not in newer])
    manifest = manifest_of(("a", "1"), ("b", "1"))
    first = pa.Table.from_pylist([row("a", "1")], schema=old)
    write_parquet(output, f"{PARTS}{0:032x}.parquet", first)
    assert compact(output, manifest)["ok"] == 1
    commit_part(output, [row("b", "1", tortuosity=1.5)])
    summary = compact(output, manifest)
    assert summary["ok"] == 2
    [key] = summary["results"]
    found = read_parquet(output, key)
    assert found.schema.names == ROW.names
    assert found["tortuosity"].to_pylist() == [None, 1.5]
    for name in newer[1:]:
        assert found[name].null_count == 2


# ---- files of earlier runs


def finish(output: Store, *inputs: tuple[str, str]) -> dict:
    """The end of a run over these inputs, which are done."""
    summary = compact(output, manifest_of(*inputs))
    delete_old_results(output, summary["results"])
    write_json(output, SUMMARY, summary)
    return summary


def test_a_temporary_file_of_a_killed_writer_is_swept(output, tmp_path):
    folder = tmp_path / "out" / "_segpipe" / "tmp"
    folder.mkdir(parents=True)
    handle, name = tempfile.mkstemp(dir=folder)
    os.close(handle)
    output.sweep()
    assert not Path(name).exists()


def test_results_of_0_1_0_are_replaced(output, tmp_path):
    """Named by their number alone, and not listed by the summary."""
    commit_part(output, [row("a", "1")])
    old = pa.Table.from_pylist([row("a", "0")], schema=ROW)
    for number in range(2):
        write_parquet(output, f"results/part-{number:05d}.parquet", old)
    summary = finish(output, ("a", "1"))
    assert [(r["path"], r["version"]) for r in results(tmp_path / "out")] == [("a", "1")]
    assert [entry.key for entry in output.list("results/")] == summary["results"]

"""An archive that lives: new, changed and vanished photographs, strange ones, lists, refusals.

Run: pytest tests/test_bulk.py
"""

import io
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from verbs import ONE, rows_of, run

from segpipe.segment import run as segment
from segpipe.segment.groups import Groups
from segpipe.segment.keys import mask_key
from segpipe.segment.output import MANIFEST, PARTS, read_summary
from segpipe.segment.parts import commit_part
from segpipe.segment.run import SegmentConfig
from segpipe.segment.todo import Todo
from segpipe.storage import Store, lock, open_store
from segpipe.storage.files import read_parquet, write_json
from segpipe.storage.local import LocalStore
from segpipe.storage.settings import SETTINGS

WHEN = datetime(2026, 1, 1, tzinfo=UTC)


def by_path(output: Path) -> dict[str, dict]:
    rows = rows_of(output)
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def summary_of(output: Path) -> dict:
    return json.loads((output / "summary.json").read_text())


def summary_of_store(output: Store) -> dict:
    return json.loads(output.get("summary.json"))


def fill(root: Path, photograph: Image.Image) -> Path:
    root.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        photograph.save(root / name)
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    return root


@pytest.fixture
def folder(photograph, tmp_path) -> Path:
    return fill(tmp_path / "in", photograph)


def test_a_run_does_what_is_new_or_changed_and_counts_what_has_gone(
    folder, photograph, tmp_path, ray_cluster, capfd
):
    words = ["segment", *ONE, "--input", folder, "--output", tmp_path / "out", "--max-rejected", 1]
    assert run(*words) == 0
    first = by_path(tmp_path / "out")
    (folder / "a.png").unlink()
    photograph.crop((0, 0, 500, 560)).save(folder / "b.png")
    photograph.save(folder / "d.png")
    assert run(*words) == 0
    second, summary = by_path(tmp_path / "out"), summary_of(tmp_path / "out")
    assert set(second) == {"b.png", "c.png", "d.png", "broken.png"}
    assert (summary["inputs"], summary["ok"], summary["gone"]) == (4, 3, 1)
    assert second["c.png"] == first["c.png"]
    assert second["broken.png"] == first["broken.png"]
    assert (second["b.png"]["height"], second["b.png"]["width"]) == (560, 500)
    mask = Image.open(tmp_path / "out/masks/b.png.png")
    assert mask.size == (500, 560)
    capfd.readouterr()
    assert run(*words) == 0
    assert "all 4 inputs are done" in capfd.readouterr().out


def test_rejected_inputs_are_done_again_when_asked_for(folder, photograph, tmp_path, ray_cluster):
    """The file is mended in place and keeps size and time, as after a store's own repair."""
    words = ["segment", *ONE, "--input", folder, "--output", tmp_path / "out"]
    words += ["--max-rejected", 0.1]
    broken = folder / "broken.png"
    buffer = io.BytesIO()
    photograph.save(buffer, "PNG")
    broken.write_bytes(bytes(len(buffer.getvalue())))
    before = broken.stat()
    assert run(*words) == 1
    rejected = by_path(tmp_path / "out")["broken.png"]
    assert rejected["error"] == "not an image in a known format"
    broken.write_bytes(buffer.getvalue())
    os.utime(broken, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(*words) == 1  # a version is done once
    assert run(*words, "--retry-rejected") == 0
    assert by_path(tmp_path / "out")["broken.png"]["status"] == "ok"
    assert summary_of(tmp_path / "out")["done_before"] == 3
    assert run(*words, "--retry-rejected") == 0


def test_an_input_that_stays_broken_is_tried_once_more_and_no_more(folder, tmp_path, ray_cluster):
    words = ["segment", *ONE, "--input", folder, "--output", tmp_path / "out", "--max-rejected", 1]
    assert run(*words) == 0
    first = by_path(tmp_path / "out")["broken.png"]
    assert run(*words, "--retry-rejected") == 0
    again = by_path(tmp_path / "out")["broken.png"]
    assert again["finished"] > first["finished"]
    assert again | {"finished": 0} == first | {"finished": 0}


@pytest.mark.parametrize("few", [0, 64])
def test_groups_come_to_the_network_one_by_one_handed_over_or_read(few, ray_cluster, monkeypatch):
    monkeypatch.setattr("segpipe.segment.groups.FEW_GROUPS", few)
    pages = [("p0", np.arange(0, 20, 2, dtype=np.int32)), ("p1", np.array([7], np.int32))]
    blocks = Groups(Todo(0, 0, pages), 4).dataset().iter_batches(batch_size=None)
    found = [(list(b["page"]), [[int(r) for r in rows] for rows in b["rows"]]) for b in blocks]
    assert sorted(found) == [
        (["p0"], [[0, 2, 4, 6]]),
        (["p0"], [[8, 10, 12, 14]]),
        (["p0"], [[16, 18]]),
        (["p1"], [[7]]),
    ]


def test_a_list_is_segmented_under_its_own_names(folder, tmp_path, ray_cluster):
    (tmp_path / "list.csv").write_text("path\nin/a.png\nin/missing.png\nin/a.png\nin/notes.txt\n")
    words = ["segment", *ONE, "--input", tmp_path / "list.csv", "--output", tmp_path / "out"]
    assert run(*words, "--max-rejected", 1) == 0
    rows = by_path(tmp_path / "out")
    assert set(rows) == {f"{folder}/{name}" for name in ("a.png", "missing.png", "notes.txt")}
    for name in ("missing.png", "notes.txt"):  # a list's names are taken, whatever their suffix
        assert rows[f"{folder}/{name}"]["error"] == "not found"
    assert rows[f"{folder}/a.png"]["mask_path"] == f"masks{folder}/a.png.png"
    assert (tmp_path / "out" / f"masks{folder}/a.png.png").exists()
    assert summary_of(tmp_path / "out")["skipped"] == {"named again in the list": 1}


def test_one_photograph_in_many_forms_gets_one_mask(photograph, tmp_path, ray_cluster):
    """Lossless forms give the same mask; a grey one its own, whatever its depth."""
    root = tmp_path / "in"
    root.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = {
        "png.png": {},
        "interlaced": {"format": "PNG"},
        "tiff.TIF": {"compression": "tiff_lzw"},
        "bmp.bmp": {},
        "webp.webp": {"lossless": True},
        "ppm.ppm": {},
        "turned.png": {"exif": exif},
        "pages.tif": {"save_all": True, "append_images": [photograph.convert("L")]},
    }
    for name, options in forms.items():
        photograph.save(root / name, **options)
    photograph.convert("RGBA").save(root / "alpha.png")
    grey = photograph.convert("L")
    grey.save(root / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(root / "grey16.png")
    out = tmp_path / "out"
    assert run("segment", "--input", root, "--output", out, "--format", "both") == 0
    rows = by_path(out)
    found = {name: np.asarray(Image.open(out / row["mask_path"])) for name, row in rows.items()}
    assert set(found) == {*forms, "alpha.png", "grey.png", "grey16.png"}
    for name in (*forms, "alpha.png"):
        np.testing.assert_array_equal(found[name], found["png.png"], err_msg=name)
    np.testing.assert_array_equal(found["grey16.png"], found["grey.png"])
    assert rows["pages.tif"]["note"] == "first of 2 pages"
    assert rows["png.png"]["note"] is None
    assert Image.open(out / "masks/turned.png.png").getexif()[0x0112] == 6
    levels = cv2.imdecode(np.frombuffer(rows["png.png"]["mask_png"], np.uint8), cv2.IMREAD_COLOR)
    colours = np.array([0, 255, 128], np.uint8)[found["png.png"]]
    np.testing.assert_array_equal(levels, np.repeat(colours[..., None], 3, axis=2))


def test_a_report_without_images_names_no_key_either(folder, tmp_path, ray_cluster):
    words = ["segment", *ONE, "--input", folder, "--max-rejected", 1, "--exclude", "[bc].png"]
    for setting in ("on", "off"):
        output = tmp_path / setting
        assert run(*words, "--output", output, "--report-images", setting) == 0
        page = (output / "report.html").read_text()
        assert ("broken.png" in page) == (setting == "on")
        assert ("data:image/jpeg" in page) == (setting == "on")
        assert "1 masks, 1 rejected" in page


@pytest.fixture(scope="module")
def begun(labelled, tmp_path_factory, ray_cluster) -> list[object]:
    """The words of a run that stopped after one photograph; its output is their last."""
    root = tmp_path_factory.mktemp("begun")
    with Image.open(labelled / "test/images/01_test.tif") as photograph:
        fill(root / "in", photograph)
    words = ["segment", *ONE, "--input", root / "in", "--max-rejected", 1, "--output", root / "out"]
    assert run(*words, "--limit", 1) == 0
    return words


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--include", "*.png"], "--include"),
        (["--exclude", "a*"], "--exclude"),
        (["--max-megapixels", "50"], "--max-megapixels 50"),
        (["--format", "both"], "--format both"),
        (["--measure", "full"], "--measure full"),
        (["--min-quality", "0.5"], "--min-quality 0.5"),
    ],
)
def test_what_would_change_the_result_is_refused(begun, capfd, flags, named):
    output = begun[-1]
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file()}
    capfd.readouterr()
    assert run(*begun, *flags) == 2
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert named in told[0]
    assert "choose another --output" in told[0]
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file()} == before


def test_status_of_what_is_no_output_is_told(tmp_path, capfd):
    assert run("status", "--output", tmp_path) == 2
    assert "no run of `segpipe segment`" in capfd.readouterr().err


# ---- the end of a run, and what becomes of its files


@pytest.fixture(params=["disk", "s3"])
def root(request, tmp_path) -> str:
    if request.param == "disk":
        return str(tmp_path)
    return f"{request.getfixturevalue('s3').uri}/{tmp_path.name}"


def write_done(root: str, names: str, probabilities: bool = False) -> list[object]:
    """An archive below root of which everything is done, as a run leaves it before it ends.

    -> the words of that run. No network is needed: masks and rows are made up.
    """
    source, output = open_store(f"{root}/in"), open_store(f"{root}/out")
    for name in names:
        source.put(f"{name}.png", b"")
    rows = []
    for entry in source.list():
        row = {"path": entry.key, "version": entry.version, "bytes": 0, "finished": WHEN}
        rows.append(row | {"status": "ok", "mask_path": mask_key(entry.key)})
        for folder in ("masks", "probabilities") if probabilities else ("masks",):
            output.put(f"{folder}/{entry.key}.png", f"{folder} of {entry.key}".encode())
    commit_part(output, rows)
    config = SegmentConfig(source.uri(), output.uri(), tta="none", probabilities=probabilities)
    write_json(output, SETTINGS, segment._open(config).started.to_json())
    return [*words_of(root), *(["--probabilities"] if probabilities else [])]


def words_of(root: object) -> list[object]:
    words = ["segment", "--input", f"{root}/in", "--output", f"{root}/out"]
    return [*words, "--tta", "none", "--report-images", "off"]


def paths_in(folder: Path) -> list[str]:
    """Of all rows in results/, as a reader of the whole folder sees them."""
    files = sorted((folder / "results").glob("part-*"))
    return [row["path"] for file in files for row in pq.read_table(file).to_pylist()]


FOREIGN = [  # in every folder of an output, some with names that look like its own
    "readme.md",
    "masks/mine.png",
    "masks/sub/notes.txt",
    "probabilities/mine.csv",
    "results/.DS_Store",
    "results/_delta_log/00000000000000000000.json",
    "results/part-00000-6f1e7a52-8a4c-4c7e-9b1d-0f5a7d3c2b1e-c000.snappy.parquet",
    "results/part-00000.parquet.bak",
    "results/part-0000.parquet",
    "results/part-00001-0123456789ABCDEF.parquet",
    "results/selected.csv",
    "results/sub/mine.parquet",
    "results/zzz",
    "_segpipe/notes.txt",
    "_segpipe/manifest/mine.parquet",
    "_segpipe/manifest/sub/0123456789abcdef-000000.parquet",
    "_segpipe/parts/mine.parquet",
    "_segpipe/parts/.DS_Store",
    "_segpipe/run/notes.txt",
    "_segpipe/run/sub/notes.txt",
    "_segpipe/states/7.json",
    "_segpipe/states/notes.txt",
    "_segpipe/tmp/notes.txt",
    "_segpipe/tmp/sub/tmp01234567",
]


def test_files_of_others_stay_wherever_they_lie_in_an_output(root, capfd):
    """And are in no verb's way, while photographs come and go."""
    words, output = write_done(root, "abc"), open_store(f"{root}/out")
    assert run(*words) == 0
    first = summary_of_store(output)["results"]
    mine = {key: f"mine: {key}".encode() for key in FOREIGN}
    for key, data in mine.items():
        output.put(key, data)
    source = open_store(f"{root}/in")
    source.delete("b.png")
    assert run(*words) == 0
    second = summary_of_store(output)
    assert {key: output.get(key) for key in mine} == mine
    assert [output.head(key) for key in first] == [None] * len(first)
    assert second["inputs"] == 2
    assert "2 masks, 0 rejected" in output.get("report.html").decode()
    rows = [pq.read_table(io.BytesIO(output.get(key))) for key in second["results"]]
    assert [path for table in rows for path in table["path"].to_pylist()] == ["a.png", "c.png"]
    output.delete("summary.json")  # as while a run is under way
    capfd.readouterr()
    assert run("status", "--output", output.uri(), "--verify", "--json") == 0
    assert json.loads(capfd.readouterr().out)["ok"] == 3


class Killed(BaseException):
    """At this moment."""


def stop_at(number: int, patched: pytest.MonkeyPatch, seen: list[str]) -> None:
    """Have the store stop at its number-th write; `seen` is told of those that were made."""
    for name in ("put", "delete"):
        known: Callable[..., None] = getattr(LocalStore, name)

        def write(self, key, *data, known=known, **options):
            if key != lock.LOCK:
                if len(seen) == number:
                    raise Killed
                seen.append(key)
            known(self, key, *data, **options)

        patched.setattr(LocalStore, name, write)


def test_a_run_stopped_at_any_write_leaves_old_or_new_results_and_ends_at_the_next(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("segpipe.segment.compact.RESULT_BYTES", 1)
    monkeypatch.setattr("segpipe.segment.compact.ROW_GROUP_BYTES", 1)
    begun = tmp_path / "begun"
    assert run(*write_done(str(begun), "abcd")) == 0
    old = [f"{name}.png" for name in "abcd"]
    assert paths_in(begun / "out") == old
    new = [f"{name}.png" for name in "bd"]  # which renumbers every file
    writes = 0
    for number in range(100):
        shutil.rmtree(tmp_path / "now", ignore_errors=True)
        shutil.copytree(begun, tmp_path / "now")
        output, words = tmp_path / "now/out", words_of(tmp_path / "now")
        settings = output / SETTINGS
        settings.write_text(settings.read_text().replace(str(begun), str(tmp_path / "now")))
        for name in "ac":
            (tmp_path / "now/in" / f"{name}.png").unlink()
        seen: list[str] = []
        with monkeypatch.context() as patched:
            stop_at(number, patched, seen)
            try:
                assert run(*words) == 0
                break
            except Killed:
                writes += 1
        left = paths_in(output)
        assert set(left) >= set(old) or set(left) >= set(new), seen
        if (output / "summary.json").exists():
            assert left == old, seen
        assert run(*words) == 0
        assert paths_in(output) == new, seen
        kept = [f"results/{path.name}" for path in sorted((output / "results").iterdir())]
        assert summary_of(output)["results"] == kept
    assert writes >= 8  # page, marker, summary, 2 new files, report, 4 old ones, summary
    assert paths_in(output) == new


def test_results_that_were_deleted_are_made_again_by_the_same_command(tmp_path, capfd):
    words = write_done(str(tmp_path), "ab")
    assert run(*words) == 0
    [file] = (tmp_path / "out/results").iterdir()
    before = file.read_bytes()
    file.unlink()
    assert run("status", "--output", tmp_path / "out", "--verify", "--json") == 1
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["missing"]["results"] == 1
    assert run(*words) == 0
    assert file.read_bytes() == before
    assert run("status", "--output", tmp_path / "out", "--verify") == 0


def test_rows_are_written_as_the_flag_says_and_anew_where_it_changes(tmp_path, capfd):
    words, output = write_done(str(tmp_path), "ab"), tmp_path / "out"

    def files(folder: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (output / folder).glob("*")}

    assert run(*words) == 0
    parquet = files("results")
    assert (len(parquet), files("tables")) == (1, {})
    assert run(*words, "--table", "both") == 0
    assert files("results") == parquet
    [table] = files("tables").values()
    assert len(table.splitlines()) == 3
    assert run(*words, "--table", "csv") == 0
    assert (files("results"), list(files("tables").values())) == ({}, [table])
    assert "2 masks, 0 rejected" in (output / "report.html").read_text()
    capfd.readouterr()
    assert run(*words, "--table", "csv") == 0
    assert "is up to date" in capfd.readouterr().out
    next((output / "tables").iterdir()).unlink()
    assert run("status", "--output", output, "--verify") == 1
    assert run(*words, "--table", "csv") == 0
    assert list(files("tables").values()) == [table]
    assert run(*words) == 0
    assert (files("results"), files("tables")) == (parquet, {})


def missing_in(output: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, dict[str, int]]:
    """Exit code and count of `segpipe status --verify`."""
    capfd.readouterr()
    code = run("status", "--output", output, "--verify", "--json")
    return code, json.loads(capfd.readouterr().out)["missing"]


def test_verify_counts_what_was_deleted(root, capfd):
    words, output = write_done(root, "abcdef", probabilities=True), open_store(f"{root}/out")
    output.put("masks/foreign.png", b"mine")
    assert run(*words) == 0
    nothing = {"rows": 0, "masks": 0, "probabilities": 0, "results": 0}
    assert missing_in(output.uri(), capfd) == (0, nothing)
    output.delete("masks/a.png.png")
    output.put("masks/b.png.png", b"")  # cut off
    output.delete("probabilities/c.png.png")
    assert missing_in(output.uri(), capfd) == (1, nothing | {"masks": 2, "probabilities": 1})
    assert run("status", "--output", output.uri(), "--verify") == 1
    told = capfd.readouterr().out.splitlines()[-1]
    assert told.startswith("missing 2 masks, 1 probabilities, ")
    assert "--repair" in told
    for entry in list(output.list(PARTS)):  # a purge takes them as well
        output.delete(entry.key)
    assert missing_in(output.uri(), capfd) == (1, nothing | {"rows": 6})
    assert run("status", "--output", output.uri()) == 0


def test_masks_of_vanished_inputs_and_of_rows_alone_are_not_missing(tmp_path, capfd):
    words, output = write_done(str(tmp_path), "ab"), open_store(str(tmp_path / "out"))
    (tmp_path / "in/a.png").unlink()
    [entry] = output.list(PARTS)
    rows = read_parquet(output, entry.key).to_pylist()
    commit_part(output, [row | {"mask_path": None} for row in rows])  # --format parquet
    assert run(*words) == 0
    output.delete("masks/a.png.png")
    output.delete("masks/b.png.png")
    assert missing_in(output.uri(), capfd) == (0, {"rows": 0, "masks": 0, "results": 0})


@pytest.mark.parametrize("damage", [b"", b"{}", b"null", b"\x89PNG"])
def test_a_finished_run_writes_a_damaged_marker_of_its_manifest_anew(tmp_path, damage):
    words, output = write_done(str(tmp_path), "ab"), open_store(str(tmp_path / "out"))
    assert run(*words) == 0
    whole = output.get(MANIFEST)
    for flags in ([], ["--repair"]):
        output.put(MANIFEST, damage)
        assert run(*words, *flags) == 0
        assert output.get(MANIFEST) == whole


def test_results_that_are_empty_are_missing_and_made_again(tmp_path, capfd):
    words, output = write_done(str(tmp_path), "ab"), open_store(str(tmp_path / "out"))
    assert run(*words) == 0
    [key] = read_summary(output)["results"]
    whole = output.get(key)
    output.put(key, b"")
    assert missing_in(output.uri(), capfd) == (1, {"rows": 0, "masks": 0, "results": 1})
    assert run(*words) == 0
    assert output.get(key) == whole


def test_verify_counts_the_rows_of_a_damaged_part(tmp_path, capfd):
    words, output = write_done(str(tmp_path), "ab"), open_store(str(tmp_path / "out"))
    assert run(*words) == 0
    [part] = output.list(PARTS)
    output.put(part.key, b"PAR1 cut off")
    assert missing_in(output.uri(), capfd) == (1, {"rows": 2, "masks": 0, "results": 0})


def test_a_repair_with_nothing_to_do_changes_nothing(tmp_path, capfd):
    words = write_done(str(tmp_path), "ab")
    assert run(*words) == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert run(*words, "--repair") == 0
    assert "all 2 inputs are done" in capfd.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_repair_makes_exactly_what_is_missing_the_same(folder, tmp_path, ray_cluster, capfd):
    """On a finished output; the files of others that lie there stay as they are."""
    words = ["segment", *ONE, "--input", folder, "--output", tmp_path / "out", "--max-rejected", 1]
    assert run(*words, "--probabilities") == 0
    output = open_store(str(tmp_path / "out"))
    before = {entry.key: output.get(entry.key) for entry in output.list()}
    foreign = [f"{key.rpartition('/')[0]}/notes.txt".lstrip("/") for key in before]
    for key in foreign:
        output.put(key, b"mine")
    rows = by_path(tmp_path / "out")
    gone = ["masks/a.png.png", "probabilities/b.png.png"]
    for key in gone:
        output.delete(key)
    assert run(*words, "--probabilities") == 0
    assert "all 4 inputs are done" in capfd.readouterr().out
    assert run(*words, "--probabilities", "--repair") == 0
    pictures = [key for key in before if key.startswith(("masks/", "probabilities/"))]
    assert {key: output.get(key) for key in pictures} == {key: before[key] for key in pictures}
    again = by_path(tmp_path / "out")
    assert [path for path in again if again[path]["finished"] > rows[path]["finished"]] == [
        "a.png",
        "b.png",
    ]
    assert [row | {"finished": 0} for row in again.values()] == [
        row | {"finished": 0} for row in rows.values()
    ]
    assert summary_of(tmp_path / "out")["done_before"] == 2
    assert missing_in(output.uri(), capfd)[0] == 0
    assert {output.get(key) for key in foreign} == {b"mine"}

"""Lists as clinics and data sets have them: other columns, encodings, names.

Run: pytest tests/test_lists.py
"""

import json
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from verbs import ONE, rows_of, run

from segpipe.errors import RejectedImage, UserError
from segpipe.segment.compact import compact
from segpipe.segment.fetch import OpenInput, fetch
from segpipe.segment.inputs import Inputs, open_source
from segpipe.segment.lists import ListedFiles
from segpipe.segment.manifest import list_inputs
from segpipe.segment.output import PARTS
from segpipe.segment.rows import ROW
from segpipe.storage import Entry, open_store
from segpipe.storage.files import read_parquet, write_parquet


@pytest.fixture
def write(tmp_path):
    """A function: a list of this text, or table, in this encoding -> what it names, with ids."""
    for name in ("a.jpg", "b.jpg", "ä.jpg"):
        (tmp_path / name).write_bytes(name.encode())

    def found(content: str | pa.Table, encoding: str = "utf-8", column: str = "path") -> list:
        if isinstance(content, pa.Table):
            place = tmp_path / "list.parquet"
            pq.write_table(content, place)
        else:
            place = tmp_path / "list.csv"
            place.write_bytes(content.encode(encoding))
        entries = Inputs(open_source(str(place), 1.0, column=column))
        return [
            (entry.key.removeprefix(f"{tmp_path}/"), entry.list_id, entry.bytes)
            for entry in entries
        ]

    return found


def test_other_columns_are_neither_guessed_at_nor_converted(write, monkeypatch):
    """Numbers for more than a block, then a word: as ages, grades and dates are in exports."""
    rows = "".join(f"{'ab'[n % 2]}.jpg,{n % 90},2020-01-01\n" for n in range(60_000))
    assert len(rows) > 1 << 20
    found = write(f"path,age,date\n{rows}ä.jpg,unknown,\n")
    assert found == [("a.jpg", None, 5), ("b.jpg", None, 5), ("ä.jpg", None, 6)]


def test_a_note_may_have_lines_wherever_a_block_ends(write):
    note = "first line\nsecond line\n" * 8
    rows = "".join(f'{"ab"[n % 2]}.jpg,"{note}"\n' for n in range(8_000))
    assert [key for key, *_ in write(f"path,remark\n{rows}")] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_text_is_read_in_what_programs_save_it_in(write, encoding, ends):
    assert write(ends.join(["path,größe", "ä.jpg,1", ""]), encoding) == [("ä.jpg", None, 6)]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp437"])
def test_text_in_anything_else_is_refused_in_a_line_that_names_the_list(write, tmp_path, encoding):
    with pytest.raises(UserError) as told:
        write("path,größe\nä.jpg,1\n", encoding)
    assert str(told.value).startswith(f"{tmp_path}/list.csv: is neither UTF-8 nor UTF-16")
    assert "save it anew as CSV in UTF-8" in str(told.value)


def test_another_column_in_another_encoding_is_refused_too(write):
    """It goes into the rows. Far behind the first block, before a file is looked for."""
    rows = "a.jpg,tall\n" * 200_000
    with pytest.raises(UserError, match="is neither UTF-8 nor UTF-16"):
        write(f"path,height of patient\n{rows}a.jpg,größer\n", "latin-1")


def test_columns_may_be_parted_by_semicolons_and_tabs(write):
    """Of Excel, where commas are decimal, and of its Unicode text; a name may hold any of them."""
    text = 'id;path;age\n7;a.jpg;60,5\n8;"b.jpg";61\n'
    assert write(text) == [("a.jpg", "7", 5), ("b.jpg", "8", 5)]
    assert write('path;age\n"a;x.jpg";1,5\n')[0][0] == "a;x.jpg"
    assert write("path\tid\nä.jpg\t7\n", "utf-16") == [("ä.jpg", "7", 6)]
    assert write("path\na;x.jpg\n")[0][0] == "a;x.jpg"
    assert write("path,a;b\na.jpg,1\n") == [("a.jpg", None, 5)]
    with pytest.raises(UserError, match="has no column 'path', only file, age: name one so"):
        write("file;age\na.jpg;1\n")


def test_a_column_that_is_not_there_is_told_with_few_of_those_that_are(write):
    names = [f"column_{number}_{'x' * 90}" for number in range(40)]
    with pytest.raises(UserError, match=r"column_4_x+[.]{3} and 35 more") as told:
        write(",".join(names))
    assert len(str(told.value)) < 500


@pytest.mark.parametrize("many", [0, 1000])
def test_a_nul_byte_is_told_with_its_line(write, tmp_path, many):
    with pytest.raises(UserError) as told:
        write("path\n" + "a.jpg\n" * many + "b\0.jpg\n")
    assert str(told.value) == (
        f"{tmp_path}/list.csv: has a NUL byte in line {many + 2}, wanted text, save it anew as CSV "
        "in UTF-8"
    )


@pytest.mark.parametrize(
    ("rows", "told"),
    [("", "no row"), (None, "no row"), ("\n\n", "no row"), (",1\n,2\n", "2 rows without a name")],
)
def test_a_list_that_names_nothing_is_told_so(no_ray, tmp_path, capfd, rows, told):
    """None: without the end of its line."""
    (tmp_path / "list.csv").write_text("path,id" if rows is None else f"path,id\n{rows}")
    words = ["--input", tmp_path / "list.csv", "--output", tmp_path / "out"]
    assert run("segment", *words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"list.csv: names no file ({told} below its header), give each photograph a row" in line


def test_a_cut_off_utf_16_is_refused_in_a_line(tmp_path):
    (tmp_path / "list.csv").write_bytes("path\na.jpg".encode("utf-16")[:-1])
    with pytest.raises(UserError, match="is neither UTF-8"):
        open_source(str(tmp_path / "list.csv"), 1.0).check_readable()


def test_ids_are_text_and_the_first_row_of_a_file_counts(write):
    assert write("id,path\n007,a.jpg\n8,b.jpg\n9,a.jpg\n,ä.jpg\n") == [
        ("a.jpg", "007", 5),
        ("b.jpg", "8", 5),
        ("ä.jpg", "", 6),
    ]
    table = pa.table({"path": ["b.jpg", "a.jpg"], "id": [12, None], "age": [1.5, 2.5]})
    assert write(table) == [("b.jpg", "12", 5), ("a.jpg", None, 5)]


def test_rows_that_name_a_file_again_are_counted(tmp_path):
    (tmp_path / "list.csv").write_text("path\na.jpg\n./a.jpg\nb.jpg\na.jpg\n\n")
    found = Inputs(open_source(str(tmp_path / "list.csv"), 1.0))
    assert len(list(found)) == len(list(found)) == 2
    assert found.skipped == {"named again in the list": 2}


def test_a_column_of_another_name_and_a_path_around_it(write):
    """EyePACS has `image` and no suffix, APTOS `id_code`."""
    assert write("image,level\na.jpg,0\n", column="image") == [("a.jpg", None, 5)]
    assert write("id_code\nb\n", column="./{id_code}.jpg") == [("b.jpg", None, 5)]
    assert write("id\na.jpg\n", column="id") == [("a.jpg", "a.jpg", 5)]
    with pytest.raises(UserError, match="has no column 'image', only path, id: name one so"):
        write("path,id\na.jpg,1\n", column="{image}.jpg")


@pytest.mark.parametrize("column", ["", " ", "{}", "a{b", "{a}{b}", "{{a}}"])
def test_a_column_that_cannot_be_meant_is_refused(tmp_path, column, capsys):
    words = ["--input", tmp_path / "l.csv", "--output", tmp_path / "out", "--column", column]
    assert run("segment", *words) == 2
    assert "--column" in capsys.readouterr().err


def test_a_column_without_a_list_is_refused(tmp_path, capsys):
    words = ["--input", tmp_path, "--output", tmp_path / "out", "--column", "image"]
    assert run("segment", *words) == 2
    assert "--column image: --input is no list" in capsys.readouterr().err


# ---- ids in the rows


@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_ids_go_into_the_rows_of_parts_that_had_none_and_of_another_list(
    tmp_path, monkeypatch, at_once
):
    """Of the list at hand: parts are of any release and any list before."""
    monkeypatch.setattr("segpipe.segment.compact.ROW_GROUP_BYTES", at_once)
    output = open_store(str(tmp_path / "out"))
    old = pa.schema([field for field in ROW if field.name != "id"])
    done = [{"path": name, "version": "v", "status": "ok"} for name in "abc"]
    part = pa.Table.from_pylist(done, schema=old)
    write_parquet(output, f"{PARTS}{0:032x}.parquet", part)
    digests = []
    for ids in ([None, None, None], ["1", None, "3"], ["4", "5", "6"]):
        listed = [Entry(n, 1, "v", one) for n, one in zip("abc", ids, strict=True)]
        manifest = list_inputs([*listed[:1], Entry("open", 1, "v", "x"), *listed[1:]])
        digests.append(manifest.digest)
        summary = compact(output, manifest)
        table = read_parquet(output, summary["results"][0])
        assert table.schema.names == ROW.names
        assert table["id"].to_pylist() == ids
        assert table["path"].to_pylist() == list("abc")
    assert len(set(digests)) == 3  # else a finished run would keep the ids that it has


def test_the_last_line_tells_what_was_skipped_and_rows_have_ids(
    photographs, tmp_path, ray_cluster, capfd
):
    names = [path.name for path in sorted(photographs.iterdir())]
    text = f"id,path,age\n7,{photographs}/{names[0]},60\n8,{photographs}/{names[0]},x\n"
    (tmp_path / "list.csv").write_text(text, encoding="utf-16")
    words = ["segment", "--input", tmp_path / "list.csv", "--output", tmp_path / "out", *ONE]
    assert run(*words, "--checkpoint", "segnet-lite") == 0
    told = "1 file skipped (1 named again in the list), "
    assert f"1 masks, 0 rejected, {told}" in capfd.readouterr().out
    assert [(row["id"], row["status"]) for row in rows_of(tmp_path / "out")] == [("7", "ok")]
    assert json.loads((tmp_path / "out/summary.json").read_text())["skipped"] == {
        "named again in the list": 1
    }
    assert run(*words, "--checkpoint", "segnet-lite") == 0
    assert f"all 1 inputs are done, {told}" in capfd.readouterr().out


def test_a_name_that_a_server_refuses_is_an_input_of_its_own(s3, tmp_path):
    """rclone answers 400 for //; the others are listed, and a run tells of this one by its name."""
    store = open_store(f"{s3.uri}/{tmp_path.name}")
    store.put("a/b.jpg", b"x")
    names = [f"{store.uri()}//a.jpg", f"{store.uri()}/a/b.jpg"]
    (tmp_path / "list.csv").write_text("\n".join(["path", *names]))
    source = open_source(str(tmp_path / "list.csv"), 1.0)
    source.check_readable()
    first, second = Inputs(source)
    assert (first.bytes, second.bytes) == (0, 1)
    told = fetch(source, first)
    assert isinstance(told, OpenInput)
    assert f"{store.uri()}//a.jpg: the store refuses the request" in told.reason


def test_a_lists_s3_is_the_drivers_on_every_node(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example:9000")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    (tmp_path / "list.csv").write_text("path\ns3://bucket/1.jpg\n")
    source = pickle.dumps(open_source(str(tmp_path / "list.csv"), 1.0))
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    store, name = pickle.loads(source)._place("bucket/1.jpg")
    assert (store.endpoint, store.region) == ("http://store.example:9000", "eu-west-1")
    assert (store.bucket, name) == ("bucket", "1.jpg")


@pytest.mark.parametrize(
    ("path", "key"),
    [("./1.jpg", "b/d/1.jpg"), ("../x/1.jpg", "b/x/1.jpg"), ("a//1.jpg", "b/d/a//1.jpg")],
)
def test_relative_paths_of_a_list_on_s3_start_at_its_place(path, key):
    assert ListedFiles("s3://b/d/list.csv", 1.0)._key(path) == key


def test_a_path_that_leaves_the_lists_bucket_is_refused():
    with pytest.raises(UserError, match=r"\.\./\.\./1\.jpg: leaves the bucket"):
        ListedFiles("s3://b/d/list.csv", 1.0)._key("../../1.jpg")


def test_rows_that_name_no_file_are_rejected_and_end_nothing(s3, tmp_path):
    """A folder, a pipe without a writer, keys that no store takes."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for rows, names in (
        ("", [f"{tmp_path}/folder", f"{tmp_path}/pipe"]),
        ("s3://", ["bucket/", f"bucket/{'n' * 2000}", "Bad Bucket!/x.jpg"]),
    ):
        (tmp_path / "list.csv").write_text("path\n" + "".join(f"{rows}{name}\n" for name in names))
        source = open_source(str(tmp_path / "list.csv"), 5.0)
        found = {name: fetch(source, Entry(name, 0, "")) for name in names}
        assert {name: type(one) for name, one in found.items()} == dict.fromkeys(
            names, RejectedImage
        )


def test_rows_without_a_name_are_counted(write, tmp_path):
    (tmp_path / "list.csv").write_text("path,id\na.jpg,1\n,2\nb.jpg,3\n")
    source = open_source(str(tmp_path / "list.csv"), 1.0)
    assert len(list(source.list())) == 2
    assert source.skipped == {"rows without a name": 1}

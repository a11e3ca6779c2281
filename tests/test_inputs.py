"""Which photographs a run takes: folders, prefixes and lists.

Run: pytest tests/test_inputs.py
"""

import os
import signal
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import running, wait_until
from proxy import Proxy

from segpipe.errors import UserError
from segpipe.segment import inputs, lists
from segpipe.segment.inputs import Inputs, filed_as, open_source
from segpipe.segment.keys import mask_key
from segpipe.storage import open_store
from segpipe.storage.places import inside


@pytest.fixture
def source(tmp_path):
    store = open_store(str(tmp_path / "in"))
    for key in ("a.jpg", "B.PNG", "sub/c.tif", "noextension", "notes.txt", "sub/table.csv"):
        store.put(key, key.encode())
    store.sweep()
    return store


def keys(found: Inputs) -> list[str]:
    return [entry.key for entry in found]


def test_images_and_files_without_extension_are_inputs_and_the_rest_is_counted(source):
    found = Inputs(source)
    assert keys(found) == ["B.PNG", "a.jpg", "noextension", "sub/c.tif"]
    assert found.skipped == {".txt": 1, ".csv": 1}


def test_an_output_inside_the_input_is_left_out_of_it(source):
    output = open_store(f"{source.uri()}/out")
    output.put("masks/a.jpg.png", b"x")
    assert "out/masks/a.jpg.png" in keys(Inputs(source))
    assert len(keys(Inputs(source, inside(source, output)))) == 4


def test_an_output_that_is_the_input_is_refused(source):
    with pytest.raises(UserError, match="is the input itself"):
        inside(source, source)


def test_a_limit_takes_the_first_of_the_listing(source):
    assert keys(Inputs(source, limit=2)) == ["B.PNG", "a.jpg"]


def test_globs_choose_among_the_photographs_and_the_others_are_counted(source):
    found = Inputs(source, include=("*.jpg", "sub/*"), exclude=("*c.tif",))
    assert keys(found) == ["a.jpg"]
    assert found.skipped["by --include or --exclude"] == 3


def test_a_folder_that_links_to_itself_is_listed_once(source, tmp_path):
    (tmp_path / "in" / "sub" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "nowhere.jpg").symlink_to(tmp_path / "missing")
    assert keys(Inputs(source)) == ["B.PNG", "a.jpg", "noextension", "sub/c.tif"]


def test_a_name_that_is_not_utf8_is_read_under_an_escaped_one(source, tmp_path):
    with open(os.fsencode(tmp_path / "in") + b"/z\xff.jpg", "wb") as file:
        file.write(b"content")
    assert keys(Inputs(source))[-1] == "z\\xff.jpg"
    assert source.get("z\\xff.jpg") == b"content"
    assert mask_key("z\\xff.jpg").isprintable()


# ---- lists


def write_list(folder, paths, kind):
    file = folder / f"list.{kind}"
    if kind == "csv":
        file.write_text("\n".join(["id,path", *(f'{n},"{path}"' for n, path in enumerate(paths))]))
    else:
        pq.write_table(pa.table({"id": range(len(paths)), "path": paths}), file)
    return open_source(str(file), 1.0)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_names_local_files_absolute_or_from_its_own_place(source, tmp_path, kind):
    absolute = f"{tmp_path}/in/a.jpg"
    listed = write_list(tmp_path, [absolute, "in/sub/c.tif", "in/../in/a.jpg", "in/no.jpg"], kind)
    entries = list(Inputs(listed))
    assert [e.key for e in entries] == [
        absolute,
        f"{tmp_path}/in/sub/c.tif",
        f"{tmp_path}/in/no.jpg",
    ]
    assert [e.bytes for e in entries] == [5, 9, 0]
    assert listed.get(absolute, entries[0].version) == b"a.jpg"
    with pytest.raises(FileNotFoundError):
        listed.get(entries[2].key, entries[2].version)
    assert mask_key(filed_as(listed, absolute)) == f"masks{absolute}.png"


def test_a_list_of_s3_uris_goes_by_bucket_and_key(s3, tmp_path):
    store = open_store(f"{s3.uri}/listed")
    store.put("x y.jpg", b"one")
    open_store(s3.uri).put("listed/list.csv", b"path\nx y.jpg\ns3://bucket/listed/none.jpg\n")
    for uri in (f"{s3.uri}/listed/list.csv", str(tmp_path / "list.csv")):
        (tmp_path / "list.csv").write_text(f"path\n{store.uri('x y.jpg')}\n")
        listed = open_source(uri, 1.0)
        first = next(iter(Inputs(listed)))
        assert first.key == "bucket/listed/x y.jpg"
        assert listed.get(first.key, first.version) == b"one"
        assert filed_as(listed, first.key) == first.key


def test_a_listed_file_that_changed_has_another_version(source, tmp_path):
    listed = write_list(tmp_path, ["in/a.jpg"], "csv")
    before = list(Inputs(listed))
    source.put("a.jpg", b"another")
    assert list(Inputs(listed)) != before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("file,id\nx,1\n", "no column 'path', only file, id"),
        ("", "is empty, wanted a header with 'path' and a row for each file"),
        ("\n \n", "is empty"),
        ("path,id\na.jpg,1,2\n", "cannot be read as a list"),
        ("path\nhttp://host/x.jpg\n", "http://host/x.jpg: use local paths or s3"),
        ("path\n/x.jpg\ns3://bucket/x.jpg\n", "local paths beside s3"),
    ],
)
def test_a_list_that_cannot_be_meant_is_told(tmp_path, monkeypatch, content, reason):
    monkeypatch.setattr(lists.ListedFiles, "_entry", lambda *_: None)
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(UserError, match=reason):
        list(open_source(str(tmp_path / "list.csv"), 1.0).list())


def test_a_list_that_is_not_there_or_no_parquet_is_told(tmp_path):
    (tmp_path / "list.parquet").write_text("no table")
    for name, reason in (("list.parquet", "as a list"), ("none.csv", "no such file")):
        with pytest.raises(UserError, match=reason):
            open_source(str(tmp_path / name), 1.0).check_readable()


# ---- what is not there, and a single file


@pytest.mark.parametrize("place", ["local", "s3"])
def test_an_input_that_is_not_there_is_told_so(s3, tmp_path, place):
    root, wrong = (s3.uri, "holds no object") if place == "s3" else (tmp_path, "does not exist")
    open_store(f"{root}/photos").put("eye-1.jpg", b"x")
    for name in ("photos/eye", "nowhere", "nowhere/deeper"):
        with pytest.raises(UserError, match=f"--input {root}/{name}: {wrong}, check the path"):
            open_source(f"{root}/{name}", 1.0)
    assert keys(Inputs(open_source(f"{root}/photos/", 1.0))) == ["eye-1.jpg"]


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("name", ["eye.jpg", "1.2.840.10008", "eye", "scan.raw"])
def test_a_single_file_is_an_input_whatever_its_suffix(s3, tmp_path, place, name):
    root = f"{s3.uri}/single" if place == "s3" else str(tmp_path)
    store = open_store(root)
    store.put(name, b"bytes")
    store.put(f"{name}.other.jpg", b"of another")
    found = open_source(f"{root}/{name}", 1.0)
    [entry] = Inputs(found)
    assert entry == store.head(name)
    assert found.get(entry.key, entry.version) == b"bytes"
    assert found.uri() == found.uri(name) == store.uri(name)
    assert mask_key(filed_as(found, entry.key)) == mask_key(name)
    assert inside(found, open_store(f"{root}/out")) is None
    store.delete(name)
    assert list(found.list()) == []
    store.delete(f"{name}.other.jpg")


def test_what_is_no_regular_file_is_no_input(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is neither a file"):
        open_source(str(tmp_path / "pipe"), 1.0)


def test_a_listing_tells_how_many_files_it_has_seen(source, monkeypatch):
    """Photographs or not: of a million others a user wants to know as well."""
    monkeypatch.setattr(inputs, "LISTED", 2)
    seen: list[int] = []
    assert keys(Inputs(source, include=("none",), on_listed=seen.append)) == []
    assert seen == [2, 4, 6]


def test_names_that_no_file_can_have_are_inputs_of_a_list_and_no_photographs_of_a_folder(tmp_path):
    """A link to itself, a name of 300 characters, a zero byte: each ends as a rejection."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    folder = open_store(str(tmp_path))
    assert [entry.key for entry in folder.list()] == ["a.jpg"]
    names = ["a.jpg", "self.jpg", f"{'n' * 300}.jpg", "zero\0.jpg"]
    pq.write_table(pa.table({"path": names}), tmp_path / "list.parquet")
    source = open_source(str(tmp_path / "list.parquet"), 1.0)
    entries = list(source.list())
    assert [entry.key for entry in entries] == [f"{tmp_path}/{name}" for name in names]
    assert [entry.bytes for entry in entries] == [1, 0, 0, 0]
    for entry in entries[1:]:
        with pytest.raises(FileNotFoundError):
            source.get(entry.key, entry.version)


def test_a_row_without_a_bucket_is_refused_by_the_lists_name(tmp_path):
    (tmp_path / "list.csv").write_text("path\ns3://\n")
    with pytest.raises(UserError, match=r"list\.csv: s3://: no bucket named"):
        open_source(str(tmp_path / "list.csv"), 1.0).check_readable()


def test_a_stopped_run_does_not_wait_for_a_store_that_went_deaf_while_it_was_listed(s3, tmp_path):
    store = open_store(f"{s3.uri}/deaf")
    store.put("0.jpg", b"x")
    names = "".join(f"{store.uri(f'{number}.jpg')}\n" for number in range(100))
    (tmp_path / "list.csv").write_text(f"path\n{names}")
    with Proxy(s3.endpoint, fault=lambda method, *_: "503" if method == "HEAD" else None) as proxy:
        proxy.fault, deaf = None, proxy.fault
        proxy.after = lambda method, *_: method == "HEAD" and setattr(proxy, "fault", deaf)
        words = ("segment", "--input", tmp_path / "list.csv", "--output", tmp_path / "out")
        with running("-m", "segpipe", *words, env={"AWS_ENDPOINT_URL": proxy.endpoint}) as job:
            wait_until(lambda: [s for *_, s in proxy.requests if s == 503], "deaf store")
            job.process.send_signal(signal.SIGINT)
            assert job.process.wait(timeout=60) == 130
            assert (
                job.told()
                .splitlines()[-1]
                .endswith("stopped, run the same command again to resume")
            )


def test_the_store_of_a_list_is_asked_before_it_is_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "PREFLIGHT_S", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    (tmp_path / "list.csv").write_text("path\ns3://bucket/1.jpg\n")
    with pytest.raises(UserError, match=r"--input s3://bucket/1\.jpg: .*AWS_ENDPOINT_URL"):
        open_source(str(tmp_path / "list.csv"), 600.0).check_readable()


# ---- what is no photograph


def test_suffixes_of_digits_are_none_and_content_decides(tmp_path):
    """Names of a PACS export, and of numbered scans."""
    store = open_store(str(tmp_path))
    names = ["1.2.826.0.1.3680043.8.498.10000177", "IM.0001", "scan.001", "x.dcm", "y.7z", "z.h5"]
    for name in names:
        store.put(name, b"x")
    found = Inputs(store)
    assert keys(found) == sorted(names[:4])
    assert found.skipped == {".7z": 1, ".h5": 1}


SYSTEM = ["._a.jpg", "sub/._c.tif", ".DS_Store", "sub/Thumbs.db", "desktop.ini", "DICOMDIR"]
SYSTEM += ["__MACOSX/a.jpg", "__MACOSX/sub/._a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg"]


def test_files_that_systems_leave_are_skipped_and_counted(source):
    for name in SYSTEM:
        source.put(name, b"\0\5\26\7x")
    found = Inputs(source)
    assert keys(found) == ["B.PNG", "a.jpg", "noextension", "sub/c.tif"]
    assert found.skipped == {".txt": 1, ".csv": 1, "of the operating system": len(SYSTEM)}


def test_a_list_is_taken_as_it_is(source, tmp_path):
    """Whatever the suffix, and wherever a file lies; --exclude alone leaves some out."""
    names = ["notes.txt", *SYSTEM, "o/masks/a.jpg.png", "sub/table.csv"]
    for name in [*names, "o/_segpipe/settings.json"]:
        source.put(name, b"x")
    listed = write_list(tmp_path, [f"in/{name}" for name in [*names, "in/notes.txt"]], "csv")
    assert keys(Inputs(listed)) == [f"{tmp_path}/in/{name}" for name in [*names, "in/notes.txt"]]
    found = Inputs(listed, exclude=("*.csv",))
    assert len(keys(found)) == len(names)
    assert found.skipped == {"by --include or --exclude": 1}


def test_kinds_of_skipped_files_are_bounded_in_number_and_length(tmp_path):
    """Suffixes may be parts of names: they are neither kept nor told without end."""
    store = open_store(str(tmp_path))
    for number in range(60):
        store.put(f"x.k{number}", b"x")
    store.put("Dr. Anna Muster 1970", b"x")
    store.put(f"x.{'y' * 100}", b"x")
    found = Inputs(store)
    assert keys(found) == []
    assert len(found.skipped) <= inputs.KINDS + 1
    assert found.skipped.total() == 62
    assert max(map(len, found.skipped)) < 30
    assert not any("muster" in kind for kind in found.skipped)
    told = str(found.nothing("folder"))
    assert "62 other files: 33 of other kinds, 1 .k0, 1 .k1" in told
    assert "25 more)" in told


def test_what_can_never_be_read_is_counted_by_kind_and_never_opened(source, tmp_path, monkeypatch):
    """A pipe that is opened is waited for, and a device has no end."""
    folder = tmp_path / "in"
    for name, target in (("to_nothing.jpg", "none"), ("self", "self"), ("x.tif", "a.jpg/x.tif")):
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "sub" / "pipe")
    (folder / "null.png").symlink_to(os.devnull)
    (folder / "again").symlink_to(folder)  # every photograph in it is listed already
    with socket.socket(socket.AF_UNIX) as one:
        monkeypatch.chdir(folder)  # a socket's path has at most 107 bytes
        one.bind("socket.jpg")
    found = Inputs(source)
    special = {"broken links": 3, "pipes": 2, "sockets": 1, "devices": 1}
    for _ in range(2):
        assert keys(found) == ["B.PNG", "a.jpg", "noextension", "sub/c.tif"]
        assert found.skipped == {".txt": 1, ".csv": 1} | special
    told = inputs.skipped_words(found.skipped)
    assert told == "9 files skipped (3 broken links, 2 pipes, 1 .txt, 1 .csv, 1 device, 1 more), "


def test_a_folder_of_what_can_never_be_read_is_told_so(tmp_path):
    os.mkfifo(tmp_path / "eye.jpg")
    found = Inputs(open_store(str(tmp_path)))
    assert keys(found) == []
    assert "no photographs there (1 other file: 1 pipe)" in str(found.nothing("x"))


# ---- an output and an input under two names


def fill_output(store) -> None:
    for name in ("_segpipe/settings.json", "_segpipe/tmp/tmpabcdefgh", "masks/a.jpg.png", "Z.jpg"):
        store.put(name, b"{}")


def test_an_output_in_an_input_that_is_named_by_a_link_is_left_out(source, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(source.uri())
    (tmp_path / "far").symlink_to(tmp_path / "in" / "sub")
    output = open_store(str(tmp_path / "far" / "out"))
    for place in (source.uri(), str(link)):
        assert inside(open_store(place), output) == "sub/out/"
    assert inside(open_store(str(tmp_path / "far")), open_store(f"{link}/sub/ö/x")) == "ö/x/"
    assert inside(source, open_store(str(tmp_path / "in-2"))) is None
    assert inside(source, open_store(str(tmp_path / "no" / "in"))) is None
    for place, other in ((link, source.uri()), (source.uri(), link)):
        with pytest.raises(UserError, match=f"--output {other}: is the input itself"):
            inside(open_store(str(place)), open_store(str(other)))


@pytest.mark.parametrize("where", ["in/sub/out", "in/out", "elsewhere/out"])
def test_a_second_run_takes_what_the_first_one_took(source, tmp_path, where):
    """Also of an output that lies elsewhere, and to which a link leads from within the input."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "to").symlink_to(tmp_path / where.rpartition("/")[0])
    output = open_store(str(tmp_path / where))
    output.put("_segpipe/lease.json", b"{}")  # as the first run finds it
    first = keys(Inputs(source, inside(source, output)))
    assert {"B.PNG", "a.jpg", "noextension", "sub/c.tif"} <= set(first)
    fill_output(output)
    assert keys(Inputs(source, inside(source, output))) == first


def test_nothing_in_an_output_is_a_photograph_and_it_is_counted(source):
    """Not what was listed before the file that tells, either."""
    for place in ("trial", "deep/er/trial"):
        fill_output(open_store(f"{source.uri()}/{place}"))
    found = Inputs(source)
    assert keys(found) == ["B.PNG", "a.jpg", "noextension", "sub/c.tif"]
    assert found.skipped["of segpipe's outputs"] == 8
    assert found.outputs == {"trial/", "deep/er/trial/"}
    assert keys(Inputs(source, limit=3)) == ["B.PNG", "a.jpg", "noextension"]


def test_an_input_that_is_an_output_is_refused_by_name(source, tmp_path):
    fill_output(source)
    found = Inputs(source)
    assert keys(found) == []
    told = str(found.nothing(source.uri()))
    assert told.startswith(f"--input {source.uri()}: is an output of segpipe")
    assert "masks.png" not in told


@pytest.mark.parametrize("place", ["local", "s3"])
def test_masks_that_segpipe_wrote_are_refused_as_an_input(s3, tmp_path, place):
    """Those of another program are photographs like all others."""
    root = f"{s3.uri}/{tmp_path.name}" if place == "s3" else str(tmp_path / "archive")
    fill_output(open_store(f"{root}/out"))
    open_store(f"{root}/out").put("masks/sub/b.jpg.png", b"x")
    open_store(root).put("masks/a.jpg", b"x")
    for name in ("out/masks", "out/masks/sub", "out/masks/a.jpg.png"):
        with pytest.raises(UserError, match=f"--input {root}/{name}: holds what segpipe made"):
            inputs.refuse_pictures(open_source(f"{root}/{name}", 1.0))
    inputs.refuse_pictures(open_source(f"{root}/masks", 1.0))
    if place == "local":
        (tmp_path / "link").symlink_to(f"{root}/out/masks")
        with pytest.raises(UserError, match="holds what segpipe made"):
            inputs.refuse_pictures(open_source(str(tmp_path / "link"), 1.0))

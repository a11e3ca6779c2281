"""Masks made elsewhere, measured in bulk: their rows, fields of view, pairs, rejections, resuming.

Run: pytest tests/test_measure_verb.py, and with -m cluster the kill
"""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from processes import finish, kill, running, wait_until
from verbs import ONE, rows, rows_of, run

import segpipe
from segpipe.data.canvas import fit_field
from segpipe.data.classes import BACKGROUND, OUTSIDE, VESSEL, classes_of
from segpipe.data.codecs import encode_mask
from segpipe.data.colours import SCHEMES
from segpipe.data.mask_files import read_mask
from segpipe.data.synthetic import draw_fundus
from segpipe.errors import Fault, RejectedImage
from segpipe.measurement.quality import assess_quality
from segpipe.measurement.vessels import Measurements
from segpipe.measuring.child import MeasuringChild, packed, unpacked
from segpipe.measuring.measured import Files
from segpipe.measuring.measured import measured as measured_here
from segpipe.measuring.pairs import PairIndex, names_of, paired, parted
from segpipe.segment.rows import COLUMNS
from segpipe.storage import Entry, open_store

QUALITY = "focus", "exposure", "underexposed_fraction", "overexposed_fraction", "readable_fraction"
IMAGE, DRAWN, FOV = draw_fundus(5)  # [584, 565]
CLASSES = classes_of(DRAWN, FOV)
OTHER_IMAGE, OTHER_DRAWN, OTHER_FOV = draw_fundus(6)
WIDE_IMAGE, WIDE_DRAWN, WIDE_FOV = draw_fundus(7, 1060, 1060, 1024.0)  # as wide as a canvas's
RED_BLUE = np.stack([DRAWN, np.zeros_like(DRAWN), DRAWN & (np.arange(565) > 300)], axis=2)


def white(mask: np.ndarray) -> Image.Image:
    """[H, W] bool as white on black."""
    return Image.fromarray(mask.astype(np.uint8) * np.uint8(255))


def saved(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def coloured() -> Image.Image:
    """Vessels in red, those on the right in magenta."""
    return Image.fromarray(RED_BLUE.astype(np.uint8) * np.uint8(255))


def write(root: Path, files: dict[str, bytes | Image.Image]) -> Path:
    for key, content in files.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else saved(content, kind_of(key))
        (root / key).write_bytes(data)
    return root


def kind_of(key: str) -> str:
    return {"tif": "TIFF", "gif": "GIF"}.get(key.rpartition(".")[2], "PNG")


def by_path(output: Path) -> dict[str, dict]:
    rows = rows_of(output)
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def assert_measured(row: dict, found: Measurements) -> None:
    """A row says the same as `segpipe.measure`, in numbers of 32 bits."""
    for name, value in asdict(found).items():
        if isinstance(value, float):
            assert row[name] == pytest.approx(value, rel=1e-6, nan_ok=True), name
        else:
            assert row[name] == value, name


# ---- what a file says


@pytest.mark.parametrize(
    "data",
    [
        encode_mask(CLASSES),
        encode_mask(CLASSES, orientation=6),
        saved(Image.fromarray(CLASSES)),
        saved(Image.fromarray(CLASSES), "TIFF"),
        saved(Image.open(io.BytesIO(encode_mask(CLASSES))).convert("L")),
        saved(Image.open(io.BytesIO(encode_mask(CLASSES))).convert("RGB")),
    ],
    ids=["palette", "turned", "grey", "tiff", "levels", "colours"],
)
def test_classes_are_read_from_each_form_that_they_are_kept_in(data):
    found = read_mask(data)
    assert (found.vessel == (CLASSES == VESSEL)).all()
    assert found.fov is not None
    assert (found.fov == (CLASSES != OUTSIDE)).all()


def test_a_mask_of_ours_without_a_vessel_has_its_field():
    found = read_mask(encode_mask(np.where(FOV, BACKGROUND, OUTSIDE).astype(np.uint8)))
    assert not found.vessel.any()
    assert (found.fov == FOV).all()


@pytest.mark.parametrize(
    ("picture", "scheme"),
    [
        (white(DRAWN), None),
        (white(DRAWN).convert("1"), None),
        (Image.fromarray(DRAWN.astype(np.uint8)), None),
        (coloured(), SCHEMES["RITE"]),
    ],
    ids=["white", "bits", "ones", "colours"],
)
def test_a_binary_mask_has_vessels_and_no_field(picture, scheme):
    if scheme is not None:  # magenta is none of its colours
        picture = Image.fromarray((RED_BLUE & ~RED_BLUE[..., 2:]).astype(np.uint8) * np.uint8(255))
    found = read_mask(saved(picture), scheme)
    assert (found.vessel == (np.asarray(picture.convert("RGB")).max(axis=2) > 0)).all()
    assert found.fov is None


@pytest.mark.parametrize(
    ("data", "fault", "words"),
    [
        (saved(coloured()), Fault.INVALID_PIXEL_VALUES, "colours FF0000, FF00FF, --av-colours"),
        (saved(Image.fromarray(CLASSES * np.uint8(50))), Fault.INVALID_PIXEL_VALUES, "holds 0, 50"),
        (saved(Image.fromarray(CLASSES + np.uint8(1))), Fault.INVALID_PIXEL_VALUES, "1, 2, 3"),
        (b"", Fault.EMPTY_FILE, "empty"),
        (b"\x89PNG\r\n\x1a\n cut off", Fault.UNREADABLE_FILE, "damaged or unsupported PNG"),
        (b"not a picture at all", Fault.UNKNOWN_FORMAT, "not an image"),
    ],
    ids=["colours", "levels", "shifted", "empty", "broken", "text"],
)
def test_values_without_a_known_meaning_are_rejected(data, fault, words):
    with pytest.raises(RejectedImage) as rejection:
        read_mask(data)
    assert rejection.value.fault is fault
    assert words in str(rejection.value)


# ---- which file belongs to a mask


@pytest.mark.parametrize(
    ("mask", "files", "found"),
    [
        ("a/x.jpg.png", ["a/x.jpg", "a/x.png"], "a/x.jpg"),
        ("a/x.png", ["a/x.jpg", "b/x.jpg"], "a/x.jpg"),
        ("a/x.png", ["a/x.jpg", "a/x.png"], "a/x.png"),
        ("a/x_mask.png", ["a/x.JPG", "a/y.jpg"], "a/x.JPG"),
        ("a/x.png", ["a/x_fov.gif"], "a/x_fov.gif"),
        ("21_training.tif.png", ["21_training_mask.gif"], "21_training_mask.gif"),
        ("x.1.png", ["x.1.dcm", "x.dcm"], "x.1.dcm"),
        ("a/\udcff.png", ["a/\udcff.jpg"], "a/\udcff.jpg"),
    ],
)
def test_a_mask_finds_the_file_that_is_named_like_it(mask, files, found):
    index = PairIndex("photographs", [Entry(key, 5, "v") for key in files])
    assert index.find(mask).entry == Entry(found, 5, "v")


@pytest.mark.parametrize(
    ("mask", "files", "words"),
    [
        ("a/x.png", ["b/x.jpg", "x.jpg"], "nothing is named like x below --photographs"),
        ("a/x.png", ["a/x.jpg", "a/x.tif"], "a/x.jpg and a/x.tif are named alike"),
    ],
)
def test_a_mask_without_one_such_file_is_told_why(mask, files, words):
    found = PairIndex("photographs", [Entry(key, 5, "v") for key in files]).find(mask)
    assert found.entry is None
    assert words in found.problem


def test_a_mask_of_a_list_is_paired_by_the_longest_end_of_its_path():
    files = [Entry(key, 5, "v") for key in ("x.jpg", "a/x.jpg", "b/a/x.jpg", "y.jpg")]
    index = PairIndex("fov", files)
    keys = {"/data/masks/a/x.png": "a/x.jpg", "/b/a/x.png": "b/a/x.jpg", "/c/y.png": "y.jpg"}
    assert {k: index.find(k, by_end=True).entry.key for k in keys} == keys
    assert index.find("/data/masks/ax.png", by_end=True).entry is None


def test_names_go_from_the_surest_to_the_shortest():
    assert names_of("a/x_mask.jpg.png") == ["a/x_mask.jpg.png", "a/x_mask.jpg", "a/x_mask", "a/x"]
    assert names_of("_mask.png") == ["_mask.png", "_mask"]
    assert names_of(".png") == [".png"]


def test_pairs_travel_in_the_version_and_change_it():
    mask = Entry("a/x.png", 7, "etag")
    one, other = (
        next(paired([mask], [PairIndex("fov", [Entry("a/x.gif", 5, v)])], by_end=False))
        for v in ("old", "new")
    )
    assert one.version != other.version
    assert parted(one)[0] == parted(other)[0] == mask
    assert parted(other)[1][0].entry == Entry("a/x.gif", 5, "new")


def test_a_child_measures_as_this_process_does_and_hands_rejections_on():
    files = Files(saved(white(DRAWN)), photograph=saved(Image.fromarray(IMAGE)))
    with MeasuringChild(None, 1.0, 60.0) as child:
        assert str(child.measure(files)[0]) == str(measured_here(files, None, 1.0)[0])
        with pytest.raises(RejectedImage, match="its field of view: empty file") as rejection:
            child.measure(Files(files.mask, b""))
        assert rejection.value.fault is Fault.EMPTY_FILE
        with pytest.raises(RejectedImage) as rejection:
            child.measure(Files(saved(Image.new("L", (1001, 1000)))))
        assert rejection.value.fault is Fault.TOO_MANY_PIXELS


def test_neither_side_imports_a_network_or_a_store():
    code = "import json, sys, segpipe.measuring.child; print(json.dumps(list(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    assert not set(json.loads(printed)) & {"torch", "ray", "pyarrow", "boto3", "botocore"}


def test_files_travel_to_the_child_as_they_are():
    for files in (Files(b"mask"), Files(b"mask", b"", b"\0photo"), Files(b"m", photograph=b"p")):
        assert unpacked(packed(files, "RITE")) == (files, "RITE")


# ---- runs


MASKS = {
    "a/own.jpg.png": encode_mask(CLASSES),
    "a/binary.png": white(DRAWN),
    "b/binary_mask.gif": Image.fromarray(OTHER_DRAWN.astype(np.uint8)),
    "b/colours.png": coloured(),
    "b/deep.png": Image.fromarray(CLASSES.astype(np.uint16)),
    "b/larger.png": white(np.pad(DRAWN, 1)),
    "b/alone.png": white(DRAWN),
    "b/inverted.png": white(~DRAWN),
    "broken.png": b"\x89PNG\r\n\x1a\n cut off",
    "notes.txt": b"no mask",
}
PHOTOGRAPHS = {
    "a/own.jpg": Image.fromarray(IMAGE),
    "a/own.png": Image.fromarray(OTHER_IMAGE),
    "a/binary.tif": Image.fromarray(IMAGE),
    "b/binary.png": Image.fromarray(OTHER_IMAGE),
    **{
        f"b/{name}.png": Image.fromarray(IMAGE)
        for name in ("colours", "deep", "larger", "inverted")
    },
    "broken.png": Image.fromarray(IMAGE),
}
REJECTED = {
    "b/colours.png": ("invalid_pixel_values", "holds colours FF0000, FF00FF, --av-colours says"),
    "b/deep.png": ("invalid_pixel_values", "or the classes 0, 1 and 2 in 8 bits"),
    "b/larger.png": (
        "size_mismatch",
        "its photograph has 565 x 584 px, the mask itself 567 x 586 px",
    ),
    "b/alone.png": ("no_pair", "nothing is named like alone below --photographs"),
    "b/inverted.png": ("invalid_pixel_values", "is black drawn on white?"),
    "broken.png": ("unreadable_file", "cannot be decoded: damaged or unsupported PNG"),
}


@pytest.fixture(scope="module")
def measured(ray_cluster, tmp_path_factory) -> Path:
    """Masks of all kinds with their photographs, measured."""
    root = tmp_path_factory.mktemp("measured")
    masks, photographs = write(root / "masks", MASKS), write(root / "photographs", PHOTOGRAPHS)
    words = ["measure", *ONE, "--input", masks, "--photographs", photographs]
    assert run(*words, "--output", root / "out", "--table", "both") == 1  # too many are rejected
    return root


def test_each_mask_has_a_row_that_says_what_measure_says(measured):
    rows, summary = (
        by_path(measured / "out"),
        json.loads((measured / "out/summary.json").read_text()),
    )
    assert set(rows) == set(MASKS) - {"notes.txt"}
    assert (summary["ok"], summary["rejected"], summary["open"]) == (3, 6, 0)
    assert summary["skipped"] == {".txt": 1}
    assert_measured(rows["a/own.jpg.png"], segpipe.measure(CLASSES))
    for path, image, vessel in (
        ("a/binary.png", IMAGE, DRAWN),
        ("b/binary_mask.gif", OTHER_IMAGE, OTHER_DRAWN),
    ):
        field = segpipe.find_fov(image)
        assert_measured(rows[path], segpipe.measure(vessel, field))
        assert rows[path]["fov_fraction"] == pytest.approx(field.mean(), rel=1e-6)
        assert (rows[path]["height"], rows[path]["width"]) == vessel.shape


def test_rows_have_the_photographs_quality_and_nothing_of_a_network(measured):
    rows = by_path(measured / "out")
    quality = asdict(assess_quality(*fit_field(IMAGE, FOV, 1024.0)[:2]))
    own = rows["a/own.jpg.png"]  # of a/own.jpg, not of a/own.png
    assert [own[name] for name in QUALITY] == pytest.approx([quality[n] for n in QUALITY], rel=1e-5)
    for row in rows.values():
        assert list(row) == [column.name for column in COLUMNS]
        names = ("mask_path", "mask_png", "model", "checkpoint_sha256", "threshold", "engine")
        assert [row[name] for name in names] == [None] * len(names)
    assert len({row["settings"] for row in rows.values()}) == 1
    (table,) = (measured / "out/tables").iterdir()
    assert len(table.read_text().splitlines()) == 1 + len(rows)


def test_what_cannot_be_measured_is_rejected_with_its_reason(measured):
    rows = by_path(measured / "out")
    assert {path for path, row in rows.items() if row["status"] == "rejected"} == set(REJECTED)
    for path, (code, words) in REJECTED.items():
        assert rows[path]["error_code"] == code
        assert words in rows[path]["error"]


def test_a_finished_run_is_up_to_date_and_other_settings_are_refused(measured, capfd):
    words = ["measure", "--input", measured / "masks", "--output", measured / "out"]
    pairs = ["--photographs", measured / "photographs"]
    assert run(*words, *pairs, "--table", "both", "--max-rejected", 1) == 0
    assert "measure: all 9 inputs are done, 1 file skipped" in capfd.readouterr().out
    assert run(*words) == 2
    told = capfd.readouterr().err
    assert f"without --photographs: {measured / 'out'} was started with" in told
    assert run(*words, *pairs, "--av-colours", "RITE") == 2
    assert "--av-colours RITE: " in capfd.readouterr().err
    assert run("segment", *words[1:]) == 2
    assert "of another verb" in capfd.readouterr().err


def test_what_changed_is_measured_anew_also_where_its_photograph_did(measured, tmp_path):
    """Its own mask's field has changed with the photograph's frame; the others' rows stay."""
    root = tmp_path / "copy"
    shutil.copytree(measured, root)  # with times, which versions are made of
    words = ["measure", *ONE, "--input", root / "masks", "--photographs", root / "photographs"]
    words += ["--max-rejected", 1]
    assert run(*words, "--output", root / "again", "--limit", 3, "--include", "a/*", "b/b*") == 0
    before = by_path(root / "again")
    Image.fromarray(np.where(FOV[..., None] & (np.arange(565) < 400)[:, None], IMAGE, 0)).save(
        root / "photographs/a/binary.tif"
    )
    assert run(*words, "--output", root / "again", "--include", "a/*", "b/b*") == 0
    after = by_path(root / "again")
    assert {path for path in before if before[path] != after[path]} == {"a/binary.png"}
    assert after["a/binary.png"]["fov_fraction"] < 0.9 * before["a/binary.png"]["fov_fraction"]
    assert json.loads((root / "again/summary.json").read_text())["done_before"] == 2


def test_a_list_with_fields_of_view_and_columns_of_its_own(ray_cluster, tmp_path):
    """A given field counts, also for a mask that has its own; without a field none is guessed."""
    half = OTHER_FOV & (np.arange(OTHER_FOV.shape[1]) < 282)
    fields = {"m/x_fov.png": white(FOV), "m/own.gif": Image.fromarray(half.astype(np.uint8))}
    masks = {"m/x.png": white(DRAWN), "m/own.png": encode_mask(classes_of(OTHER_DRAWN, OTHER_FOV))}
    write(tmp_path / "set", masks)
    write(tmp_path / "fields", fields)
    (tmp_path / "list.csv").write_text("label,eye,id\nset/m/x.png,left,07\nset/m/own.png,right,8\n")
    words = ["measure", *ONE, "--input", tmp_path / "list.csv", "--column", "label"]
    assert run(*words, "--fov", tmp_path / "fields", "--output", tmp_path / "out") == 0
    one, other = rows_of(tmp_path / "out")
    assert [(one[n], other[n]) for n in ("id", "eye")] == [("07", "8"), ("left", "right")]
    assert_measured(one, segpipe.measure(DRAWN, FOV))
    assert_measured(other, segpipe.measure(OTHER_DRAWN, half))
    assert run(*words, "--output", tmp_path / "alone") == 1
    alone, own = rows_of(tmp_path / "alone")
    assert alone["error_code"] == "no_field_of_view"
    assert "give --fov or --photographs" in alone["error"]
    assert_measured(own, segpipe.measure(OTHER_DRAWN, OTHER_FOV))


def test_masks_and_fields_on_s3_in_the_colours_of_a_scheme(s3, ray_cluster):
    root = open_store(f"{s3.uri}/test_measure_verb")
    picture = Image.fromarray((RED_BLUE & ~RED_BLUE[..., 2:]).astype(np.uint8) * np.uint8(255))
    root.put("masks/a/x.png", saved(picture))
    root.put("fields/a/x.gif", saved(white(FOV), "GIF"))
    words = ["measure", *ONE, "--input", root.uri("masks"), "--fov", root.uri("fields")]
    assert run(*words, "--av-colours", "RITE", "--output", root.uri("out")) == 0
    (row,) = rows(root.below("out"))
    assert row["path"] == "a/x.png"
    assert_measured(row, segpipe.measure(np.asarray(picture).max(axis=2) > 0, FOV))


def test_masks_of_segment_measured_again_give_its_rows(ray_cluster, tmp_path):
    """Equal where the network saw the photograph at its own size; of one that it saw enlarged, as
    near as masks of two sizes are (tests/test_measure.py, SIZES).
    """
    write(
        tmp_path / "in",
        {"same.png": Image.fromarray(WIDE_IMAGE), "small.png": Image.fromarray(IMAGE)},
    )
    flags = ["segment", *ONE, "--input", tmp_path / "in", "--output", tmp_path / "masks"]
    assert run(*flags, "--measure", "full", "--tta", "none") == 0
    words = ["measure", *ONE, "--input", tmp_path / "masks/masks", "--photographs", tmp_path / "in"]
    assert run(*words, "--output", tmp_path / "out") == 0
    first, again = rows_of(tmp_path / "masks"), rows_of(tmp_path / "out")
    assert again[0]["measure_note"] == first[0]["measure_note"]
    names = [field for field in Measurements.__dataclass_fields__ if field != "measure_note"]
    for name in ("height", "width", *names, *QUALITY):
        assert again[0][name] == pytest.approx(first[0][name], rel=1e-6, nan_ok=True), name
    near = {"vessel_density": 1e-6, "length_density": 0.06, "calibre_mean": 0.06}
    near |= {"tortuosity": 0.02, "fractal_dimension": 0.04, "field_diameter_px": 0.01}
    for name, share in (near | dict.fromkeys(QUALITY, 1e-6)).items():
        assert again[1][name] == pytest.approx(first[1][name], rel=share), name


def test_an_output_as_input_says_which_folder_holds_masks(tmp_path, no_ray, capfd):
    write(tmp_path / "out", {"masks/a.png": encode_mask(CLASSES), "_segpipe/settings.json": b"{}"})
    assert run("measure", "--input", tmp_path / "out", "--output", tmp_path / "new") == 2
    assert "name the folder of the masks" in capfd.readouterr().err


@pytest.mark.cluster
def test_a_killed_run_resumes_and_each_mask_has_one_row(tmp_path):
    for number in range(40):
        write(tmp_path / "masks", {f"{number:02d}.png": encode_mask(np.roll(CLASSES, number, 1))})
    words = ["-m", "segpipe", "measure", "--workers", 2, "--group-size", 1]
    words += ["--input", tmp_path / "masks", "--output", tmp_path / "out"]
    parts = tmp_path / "out/_segpipe/parts"
    with running(*words) as job:
        wait_until(lambda: parts.exists() and len(os.listdir(parts)) >= 3, "three parts")
        kill(job.process.pid)
    before = {row["path"]: row for f in parts.iterdir() for row in pq.read_table(f).to_pylist()}
    assert len(before) >= 3
    assert not (tmp_path / "out/summary.json").exists()
    assert finish(*words).returncode == 0
    rows = by_path(tmp_path / "out")
    assert sorted(rows) == [f"{number:02d}.png" for number in range(40)]
    shown = {path: {name: rows[path][name] for name in row} for path, row in before.items()}
    assert str(shown) == str(before)  # NaN is as good as NaN
    assert_measured(rows["07.png"], segpipe.measure(np.roll(CLASSES, 7, 1)))

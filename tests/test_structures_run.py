"""`segpipe segment --structures all` end to end: pictures, columns, resuming, and what it refuses.

Run: pytest tests/test_structures_run.py
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from verbs import rows_of, run

from segpipe.data.arrays import StructureMaps
from segpipe.data.synthetic import draw_fundus
from segpipe.segment import stages
from segpipe.segment.columns import OF_DISC, structure_columns
from segpipe.segment.rows import COLUMNS, FIRST_COLUMNS

BASE = ["--measure", "full", "--format", "both", "--tta", "none"]
FLAGS = ["--structures", "all", "--overlays", *BASE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two drawn photographs whose names say an eye, one whose name says none, and no photograph."""
    folder = tmp_path_factory.mktemp("drawn")
    for number, name in enumerate(("1_OD.png", "2_OS.png", "3.png")):
        Image.fromarray(draw_fundus(number, 620, 620)[0]).save(folder / name)
    (folder / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture(scope="module")
def output(folder, tmp_path_factory, ray_cluster) -> Path:
    output = tmp_path_factory.mktemp("found")
    words = ["--input", folder, "--output", output, "--max-rejected", "0.3"]
    assert run("segment", *words, *FLAGS) == 0
    return output


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory, ray_cluster) -> Path:
    """The same photographs, vessels alone."""
    output = tmp_path_factory.mktemp("alone")
    words = ["--input", folder, "--output", output, "--max-rejected", "0.3"]
    assert run("segment", *words, *BASE) == 0
    return output


def names(columns: object) -> set[str]:
    return {column.name for column in columns}  # type: ignore[attr-defined]


def test_masks_and_measurements_of_all_vessels_are_those_without(output, alone):
    """And `settings`, the hash of what a mask depends on."""
    same = names(COLUMNS) - names(structure_columns(FIRST_COLUMNS))
    same -= {"mask_png", "finished", "laterality", "laterality_source", "overlay_path"}
    for both, one in zip(rows_of(output), rows_of(alone), strict=True):
        np.testing.assert_equal({n: both[n] for n in same}, {n: one[n] for n in same})
        if one["mask_path"]:
            files = (folder / one["mask_path"] for folder in (output, alone))
            assert len({file.read_bytes() for file in files}) == 1


def test_each_picture_has_its_masks_vessels(output):
    *done, _ = rows_of(output)
    for row in done:
        assert row["arteries_veins_path"] == f"arteries_veins/{row['path']}.png"
        file = output / row["arteries_veins_path"]
        assert file.read_bytes() == row["arteries_veins_png"]
        kinds = np.asarray(Image.open(file))
        mask = np.asarray(Image.open(output / row["mask_path"]))
        assert np.array_equal(np.isin(kinds, (1, 2, 3)), mask == 1)
        assert np.array_equal(kinds == 0, mask == 0)
        assert row["artery_density"] + row["vein_density"] >= 0.9 * row["vessel_density"]


def test_the_eye_is_that_of_the_name(output):
    eyes = [(row["laterality"], row["laterality_source"]) for row in rows_of(output)]
    assert eyes[:2] == [("R", "name"), ("L", "name")]
    assert eyes[2][1] in (None, "disc")
    assert eyes[3] == (None, None)


def test_a_rejected_input_and_a_run_without_have_none_of_its_columns(output, alone):
    rows = [rows_of(output)[-1], *rows_of(alone)]
    assert rows[0]["status"] == "rejected"
    for row in rows:
        assert {row[name] for name in names(structure_columns(FIRST_COLUMNS))} == {None}


def test_every_column_of_the_disc_is_there_or_says_why(output):
    for row in rows_of(output)[:-1]:
        assert row["disc"] in ("found", "none")
        told = [row[column.name] is None for column in OF_DISC if "disc_" in column.name]
        assert len(set(told)) == 1
        assert told[0] == (row["disc"] == "none")
        assert row["avr"] is not None or row["zone_note"]


def test_an_overlay_shows_the_field_with_each_kind_in_its_colour(output):
    row = rows_of(output)[0]
    assert row["overlay_path"] == "overlays/1_OD.png.jpg"
    with Image.open(output / row["overlay_path"]) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert max(pixels.shape) == 512  # px: the field, reduced to that
    kinds = np.asarray(Image.open(output / row["arteries_veins_path"]))
    rows, columns = (np.flatnonzero((kinds > 0).any(axis=axis)) for axis in (1, 0))
    field = kinds[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    margin = 3  # px of the photograph around the field, at the canvas's 6
    there = np.asarray(
        Image.fromarray(np.pad(field, margin)).resize(pixels.shape[1::-1], Image.Resampling.NEAREST)
    )
    red, blue = (pixels[..., one] - pixels[..., 2 - one] for one in (0, 2))
    of_kind = {kind: (there == kind, excess) for kind, excess in ((1, red), (2, blue))}
    for where, excess in of_kind.values():
        if where.sum() > 100:
            assert np.median(excess[where]) > np.median(excess[there == 4]) + 20


def test_what_is_deleted_is_made_again(output, folder):
    gone = [output / name for name in ("arteries_veins/1_OD.png.png", "overlays/3.png.jpg")]
    before = [file.read_bytes() for file in gone]
    for file in gone:
        file.unlink()
    words = ["--input", folder, "--output", output, "--max-rejected", "0.3"]
    assert run("segment", *words, *FLAGS, "--repair") == 0
    assert [file.read_bytes() for file in gone] == before


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--structures", "vessels"], "--structures vessels: "),
        (["--structures", "all", "--checkpoint", "resunet"], "working diameter of 5"),
        (["--structures", "arteries"], "--structures arteries: choose from vessels, all"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(output, folder, capfd, more, told):
    words = ["--input", folder, "--output", output, *FLAGS[2:]]
    assert run("segment", *words, *more) == 2
    assert told in capfd.readouterr().err


def test_another_releases_network_is_refused(output, folder, capfd):
    settings = output / "_segpipe" / "settings.json"
    before = settings.read_text()
    changed = json.loads(before)
    changed["structures checkpoint"] = "0" * 64
    settings.write_text(json.dumps(changed))
    try:
        assert run("segment", "--input", folder, "--output", output, *FLAGS) == 2
    finally:
        settings.write_text(before)
    assert "another release's network of arteries and veins" in capfd.readouterr().err


def test_apart_as_on_a_gpu_the_maps_go_with_the_rows(monkeypatch):
    """The stage that holds the networks hands half-precision maps on."""
    canvases = np.zeros((2, 64, 64, 3), np.uint8)
    rows = {"path": np.array(["a", "b"]), "canvas": canvases, "fov": canvases[..., 0]}
    rows["seconds"] = np.zeros((2, len(stages.STAGES)))
    scoring = stages.Scoring.__new__(stages.Scoring)
    scoring.keep_canvas, scoring.engine = False, stages.Engine("torch", "fp32")
    scoring.scorer = lambda batch: batch | {"score": np.zeros((2, 64, 64), np.float32)}
    of_artery, of_disc = np.full((64, 64), 0.25, np.float32), np.full((16, 16), 0.5, np.float32)
    scoring.maps = lambda canvas, fov: StructureMaps(of_artery, of_disc)
    scored = scoring(rows)
    for name, plane in (("artery", of_artery), ("disc", of_disc)):
        assert scored[name].dtype == np.float16
        np.testing.assert_array_equal(scored[name], [plane, plane])

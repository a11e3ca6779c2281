"""Each job end to end through a real Ray, on drawn photographs and against a real S3 server.

Run: pytest tests/test_jobs.py
"""

import csv
import io
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score
from verbs import ONE, assert_equal_weights, rows_of, run

from segpipe.data.canvas import canvas_side, fit_image, plan_fit, restore
from segpipe.data.codecs import decode_image
from segpipe.data.synthetic_sets import write_archive_image
from segpipe.measurement import vessels
from segpipe.measurement.quality import Quality
from segpipe.models import checkpoint
from segpipe.models.networks import load_network
from segpipe.models.predict import Predictor
from segpipe.storage import open_store

TRAIN = ["--recipe", "lecture", "--epochs", "2", "--crops-per-image", "10"]
TRAIN += ["--crop-size", "96", "--batch-size", "10"]
HISTORY = "epoch,train_loss,test_loss,test_accuracy,vessel_dice,seconds,crops_per_second"
WRITTEN = ["--format", "both", "--probabilities"]


@pytest.fixture(scope="module")
def trained(labelled: Path, tmp_path_factory, ray_cluster) -> Path:
    output = tmp_path_factory.mktemp("trained")
    assert run("train", "--data", labelled, "--output", output, *TRAIN) == 0
    return output


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """A folder of sizes from 500 to over 2,000 px in four formats, one file of them damaged."""
    folder = tmp_path_factory.mktemp("mixed")
    for index in range(6):
        write_archive_image(folder, index, seed=3)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (folder / "notes.txt").write_text("not a photograph")
    return folder


@pytest.fixture(scope="module")
def segmented(mixed: Path, trained: Path, tmp_path_factory, ray_cluster) -> Path:
    output = tmp_path_factory.mktemp("segmented")
    flags = ["--checkpoint", trained / "model.safetensors", "--max-rejected", "0.2"]
    assert run("segment", "--input", mixed, "--output", output, *WRITTEN, *flags) == 0
    return output


@pytest.fixture(scope="module")
def masks(labelled: Path, trained: Path, tmp_path_factory, ray_cluster) -> Path:
    """Of the set's test photographs."""
    output = tmp_path_factory.mktemp("masks")
    flags = ["--output", output, "--checkpoint", trained / "model.safetensors"]
    assert run("segment", "--input", labelled / "test/images", *flags) == 0
    return output


@pytest.fixture(scope="module")
def evaluated(labelled: Path, trained: Path, tmp_path_factory, ray_cluster) -> Path:
    output = tmp_path_factory.mktemp("evaluated")
    flags = ["--output", output, "--checkpoint", trained / "model.safetensors"]
    assert run("evaluate", *ONE, "--data", labelled, *flags) == 0
    return output


def test_training_writes_a_history_whose_loss_falls(trained):
    text = (trained / "history.csv").read_text()
    assert text.splitlines()[0] == HISTORY
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"]) < np.log(3) * 1.1


@pytest.mark.parametrize("name", ["curves.png", "predictions.png"])
def test_training_draws_its_figures(trained, name):
    with Image.open(trained / name) as picture:
        assert picture.width > 400


def test_a_trained_checkpoint_says_what_it_is(trained):
    card = checkpoint.load((trained / "model.safetensors").read_bytes(), "trained").card
    assert card.model == "segnet-lite"
    assert 0 < card.threshold < 1
    assert 530 < card.diameter < 550


def test_a_finished_training_is_not_trained_again(trained, labelled, capsys):
    before = (trained / "model.safetensors").read_bytes()
    assert run("train", "--data", labelled, "--output", trained, *TRAIN) == 0
    assert "2 epochs are finished" in capsys.readouterr().out
    assert (trained / "model.safetensors").read_bytes() == before


def test_a_changed_setting_is_refused_on_resume(trained, labelled, capfd):
    words = ["train", "--data", labelled, "--output", trained, *TRAIN, "--seed", 5]
    assert run(*words) == 2
    line = capfd.readouterr().err.strip()
    assert "--seed 5" in line
    assert "choose another --output" in line


def test_every_input_ends_as_a_mask_or_a_rejection(segmented, mixed):
    rows = {row["path"]: row for row in rows_of(segmented)}
    photographs = {str(path.relative_to(mixed)) for path in mixed.rglob("*") if path.is_file()} - {
        "notes.txt"
    }
    assert set(rows) == photographs
    assert [path for path, row in rows.items() if row["status"] == "rejected"] == ["broken.jpg"]
    assert "cannot be decoded" in rows["broken.jpg"]["error"]


def test_the_summary_reconciles(segmented):
    summary = json.loads((segmented / "summary.json").read_text())
    assert summary["inputs"] == summary["ok"] + summary["rejected"] == 7
    assert sum(summary["rejected_by_reason"].values()) == summary["rejected"] == 1
    assert summary["skipped"] == {".txt": 1}


def test_a_mask_has_its_inputs_name_and_size(segmented, mixed):
    for row in rows_of(segmented):
        if row["status"] == "ok":
            assert row["mask_path"] == f"masks/{row['path']}.png"
            image = decode_image((mixed / row["path"]).read_bytes())
            mask = np.asarray(Image.open(segmented / row["mask_path"]))
            assert mask.shape == image.shape[:2] == (row["height"], row["width"])
            assert set(np.unique(mask)) <= {0, 1, 2}
            field = mask != 0
            assert np.isclose(field.mean(), row["fov_fraction"], atol=1e-6)
            assert np.isclose((mask == 1).sum() / field.sum(), row["vessel_density"], atol=1e-6)


def test_the_parquet_mask_is_the_png_file(segmented):
    for row in rows_of(segmented):
        if row["status"] == "ok":
            assert row["mask_png"] == (segmented / row["mask_path"]).read_bytes()


def test_a_probability_has_its_masks_size_and_makes_the_same_mask(segmented, trained):
    """But for the rounding to 8 bits."""
    card = checkpoint.load((trained / "model.safetensors").read_bytes(), "trained").card
    for row in rows_of(segmented):
        if row["status"] != "ok":
            assert row["probability_path"] is None
            continue
        assert row["probability_path"] == f"probabilities/{row['path']}.png"
        file = segmented / row["probability_path"]
        assert row["probability_png"] == file.read_bytes()
        with Image.open(file) as picture:
            assert picture.mode == "L"
            levels = np.asarray(picture)
        mask = np.asarray(Image.open(segmented / row["mask_path"]))
        assert levels.shape == mask.shape
        assert not levels[mask == 0].any()
        clear = (mask != 0) & (np.abs(levels / 255 - card.threshold) > 0.5 / 255)
        np.testing.assert_array_equal((mask == 1)[clear], (levels / 255 > card.threshold)[clear])


def test_a_mask_does_not_depend_on_its_neighbours(segmented, mixed, trained, tmp_path, ray_cluster):
    """Alone, and in a batch of one, a photograph gets the mask it got among the others."""
    row = next(row for row in rows_of(segmented) if row["status"] == "ok")
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "x.jpg").write_bytes((mixed / row["path"]).read_bytes())
    flags = ["--checkpoint", trained / "model.safetensors", "--group-size", 1]
    assert run("segment", *ONE, "--input", alone, "--output", tmp_path / "out", *flags) == 0
    assert (tmp_path / "out/masks/x.jpg.png").read_bytes() == row["mask_png"]


def test_a_finished_archive_is_not_segmented_again(segmented, mixed, trained, capsys):
    before = {p: p.stat().st_mtime_ns for p in segmented.rglob("*") if p.is_file()}
    flags = ["--checkpoint", trained / "model.safetensors", "--max-rejected", "0.2"]
    assert run("segment", "--input", mixed, "--output", segmented, *WRITTEN, *flags) == 0
    assert "all 7 inputs are done" in capsys.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in segmented.rglob("*") if p.is_file()}
    assert before == after


def test_rows_are_measured_where_it_was_asked_for(segmented, mixed, trained, tmp_path, ray_cluster):
    """The same masks; in px of photographs from 500 to over 2,000 px wide, and null without."""
    flags = ["--checkpoint", trained / "model.safetensors", "--max-rejected", "0.2"]
    words = ["segment", *ONE, "--input", mixed, "--output", tmp_path, *flags, *WRITTEN]
    assert run(*words, "--measure", "full") == 0
    plain = {row["path"]: row for row in rows_of(segmented)}
    kinds = (vessels.Measurements, Quality)
    names = {field.name for kind in kinds for field in fields(kind)} - {"vessel_density"}
    for row in rows_of(tmp_path):
        before = plain[row["path"]]
        assert all(before[name] is None for name in names)
        kept = set(row) - names - {"finished"}
        assert {name: row[name] for name in kept} == {name: before[name] for name in kept}
        if row["status"] == "rejected":
            assert all(row[name] is None for name in names)
            continue
        assert all(row[name] is not None for name in names - {"measure_note"})
        mask = np.asarray(Image.open(tmp_path / row["mask_path"]))
        extent = max(np.ptp(np.nonzero(mask), axis=1)) + 1
        assert row["field_diameter_px"] == pytest.approx(extent, rel=0.02)
        assert row["calibre_mean_px"] / row["calibre_mean"] == pytest.approx(extent, rel=0.02)
        assert 0 < row["readable_fraction"] <= 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stages"]["measure"] > 0
    assert json.loads((segmented / "summary.json").read_text())["stages"]["measure"] == 0
    assert run(*words) == 2


def test_too_many_rejections_end_with_exit_code_1(segmented, mixed, trained):
    flags = ["--checkpoint", trained / "model.safetensors", *WRITTEN]
    words = ["segment", "--input", mixed, "--output", segmented, *flags]
    assert run(*words, "--max-rejected", "0.1") == 1


def test_another_checkpoint_is_refused_on_resume(segmented, mixed, capfd):
    assert run("segment", "--input", mixed, "--output", segmented, *WRITTEN) == 2
    assert "--checkpoint" in capfd.readouterr().err


def test_the_report_is_one_self_contained_page(segmented):
    page = (segmented / "report.html").read_text()
    assert "6 masks" in page
    assert "broken.jpg" in page
    assert page.count("data:image/jpeg;base64") == 12  # each photograph, and its vessels over it
    assert "http://" not in page
    assert "https://" not in page


def test_evaluation_agrees_with_the_masks_of_segment(evaluated, masks, labelled):
    """The threshold's figures are those of the PNGs, counted here with numpy alone."""
    images = labelled / "test/images"
    result = json.loads((evaluated / "metrics.json").read_text())
    assert len(result["images"]) == 2
    assert result["field_of_view"] == "given"
    hits = drawn = 0
    for path in sorted(images.iterdir()):
        number = path.name.split("_")[0]
        truth = (
            np.asarray(Image.open(labelled / f"test/1st_manual/{number}_manual1.gif").convert("L"))
            > 127
        )
        field = (
            np.asarray(Image.open(labelled / f"test/mask/{path.stem}_mask.gif").convert("L")) > 127
        )
        found = np.asarray(Image.open(masks / f"masks/{path.name}.png")) == 1
        hits += (found & truth & field).sum()
        drawn += (found & field).sum() + (truth & field).sum()
    assert result["pooled"]["dice"] == pytest.approx(2 * hits / drawn, abs=2e-3)
    assert 0 < result["second_observer"]["dice"] < 1
    assert (evaluated / "comparison.png").stat().st_size > 10_000
    summary = json.loads((masks / "summary.json").read_text())
    assert result["engine"] == summary["engine"]["name"]


def test_the_checkpoint_says_over_how_many_mirror_images_scores_are_averaged(
    trained, labelled, tmp_path, ray_cluster
):
    """Of segment and of evaluate; a flag says otherwise."""
    loaded = checkpoint.load((trained / "model.safetensors").read_bytes(), "trained")
    weights = tmp_path / "four.safetensors"
    weights.write_bytes(checkpoint.dump(loaded.state, replace(loaded.card, flips=4)))
    images, found = tmp_path / "in", {}
    images.mkdir()
    shutil.copy(labelled / "test/images/01_test.tif", images)
    for name, flags in (("four", []), ("one", ["--tta", "none"])):
        words = [*ONE, "--input", images, "--output", tmp_path / name, "--checkpoint", weights]
        assert run("segment", *words, *flags) == 0
        found[name] = [path.read_bytes() for path in sorted((tmp_path / name / "masks").iterdir())]
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["model"]["flips"] == {"four": 4, "one": 1}[name]
    assert not set(found["four"]) & set(found["one"])
    words = ["--data", labelled, "--output", tmp_path / "evaluation", "--checkpoint", weights]
    assert run("evaluate", *ONE, *words) == 0
    result = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert result["checkpoint"]["flips"] == 4


def test_evaluation_by_a_named_engine_says_so_and_gives_its_figures(
    trained, labelled, tmp_path, capfd, ray_cluster
):
    """The reference's are those of the plain network, counted here by scikit-learn."""
    weights = trained / "model.safetensors"
    words = ["evaluate", *ONE, "--data", labelled, "--checkpoint", weights]
    flags = ["--backend", "torch", "--precision", "fp32"]
    assert run(*words, "--output", tmp_path, *flags) == 0
    told = capfd.readouterr().out
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["engine"] == "torch fp32"
    assert "evaluate: the network was run by torch fp32" in told
    low, high = (result["intervals"][end]["dice"] for end in ("low", "high"))
    assert f"95 % intervals over photographs: auc {result['intervals']['low']['auc']:.4f}" in told
    assert f"dice {low:.4f} to {high:.4f}" in told
    loaded = checkpoint.load(weights.read_bytes(), "trained")
    predictor = Predictor(load_network(loaded))
    predicted, drawn = [], []
    for path in sorted((labelled / "test/images").iterdir()):
        number = path.name.split("_")[0]
        manual = labelled / f"test/1st_manual/{number}_manual1.gif"
        field = labelled / f"test/mask/{path.stem}_mask.gif"
        vessel, fov = (np.asarray(Image.open(of).convert("L")) > 127 for of in (manual, field))
        geometry = plan_fit(fov, loaded.card.diameter)
        canvas = fit_image(
            np.asarray(Image.open(path)), geometry, canvas_side(loaded.card.diameter)
        )
        score = restore(predictor.scores(canvas[None])[0], geometry)
        predicted.append(score[fov] >= np.float32(loaded.card.threshold))
        drawn.append(vessel[fov])
    dice = f1_score(np.concatenate(drawn), np.concatenate(predicted))
    assert result["pooled"]["dice"] == pytest.approx(dice, abs=1e-4)


def assert_measured_as_a_whole(output: Path) -> None:
    """All vessels of `plain` are counted once, but for those outside the fields that are found."""
    result = json.loads((output / "metrics.json").read_text())
    assert [row["name"] for row in result["images"]] == ["3", "4", "5", "6"]
    assert result["field_of_view"] == "found"
    assert "second_observer" not in result


@pytest.mark.nightly
@pytest.mark.parametrize("split", ["test", "training"])
def test_a_set_without_splits_and_masks_is_measured_as_a_whole_and_says_so(
    plain, trained, tmp_path, split, ray_cluster
):
    words = [*ONE, "--data", plain, "--output", tmp_path, "--split", split]
    assert run("evaluate", *words, "--checkpoint", trained / "model.safetensors") == 0
    assert_measured_as_a_whole(tmp_path)


def test_several_sets_are_measured_in_one_command(
    plain, labelled, trained, evaluated, tmp_path, capfd, ray_cluster
):
    """Each as it is by itself, in a folder of its own, and all in a table."""
    alone, both = evaluated, tmp_path / "both"
    words = ["evaluate", *ONE, "--checkpoint", trained / "model.safetensors"]
    capfd.readouterr()
    assert run(*words, "--data", labelled, plain, labelled, "--output", both) == 0
    told = capfd.readouterr().out
    folders = [labelled.name, plain.name, f"{labelled.name}-2"]
    files = {path.name for path in alone.iterdir()} - {"_segpipe"}
    assert files >= {"metrics.json", "comparison.png", "report.html"}
    for folder in folders:
        assert {path.name for path in (both / folder).iterdir()} == files
    for folder in (folders[0], folders[2]):
        for name in ("metrics.json", "comparison.png", "curves.png", "dice.png"):
            assert (both / folder / name).read_bytes() == (alone / name).read_bytes()
    table = json.loads((both / "table.json").read_text())
    assert table["checkpoint"]["model"] == "segnet-lite"
    rows = table["sets"]
    assert [(row["name"], row["images"], row["field_of_view"]) for row in rows] == [
        (folders[0], 2, "given"),
        (folders[1], 4, "found"),
        (folders[2], 2, "given"),
    ]
    for row in rows:
        result = json.loads((both / row["name"] / "metrics.json").read_text())
        assert result["pooled"].items() <= row.items()
        assert row["second_observer_dice"] == result.get("second_observer", {}).get("dice")
    assert rows[1]["second_observer_dice"] is None
    assert_measured_as_a_whole(both / folders[1])
    assert (both / "table.md").read_text() in told
    assert told.count(f"| {rows[0]['dice']:.4f} |") == 2


def test_evaluation_can_find_the_field_and_leave_photographs_out_of_its_page(
    labelled, trained, tmp_path, capfd, ray_cluster
):
    words = ["--data", labelled, "--output", tmp_path, "--fov", "found", "--report-images", "off"]
    assert run("evaluate", *ONE, *words, "--checkpoint", trained / "model.safetensors") == 0
    told = "evaluate: 2 images pooled, inside the found field of view: "
    assert told in capfd.readouterr().out
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["field_of_view"] == "found"
    assert 0.97 < result["field_iou"] < 1
    page = (tmp_path / "report.html").read_text()
    assert "01_test" not in page
    assert "image/jpeg" not in page


@pytest.fixture(scope="module")
def trained_on_s3(s3, labelled, ray_cluster) -> str:
    """One epoch, and then one more."""
    local = open_store(str(labelled))
    for entry in local.list():
        open_store(f"{s3.uri}/set").put(entry.key, local.get(entry.key))
    words = ["train", "--data", f"{s3.uri}/set", "--output", f"{s3.uri}/model", *TRAIN]
    assert run(*words, "--epochs", 1) == 0
    assert run(*words) == 0
    return f"{s3.uri}/model"


@pytest.mark.nightly  # what is killed in tests/test_kill.py is held against one on disk too
def test_a_training_in_two_pieces_on_s3_is_one_in_one_piece_on_disk(trained_on_s3, s3, trained):
    output = s3.folder / "model"
    rows = csv.DictReader((output / "history.csv").open())
    assert [row["epoch"] for row in rows] == ["1", "2"]
    files = output / "model.safetensors", trained / "model.safetensors"
    assert_equal_weights(*files)
    pieces, whole = (checkpoint.load(file.read_bytes(), file.name).card for file in files)
    assert pieces.threshold == whole.threshold


def test_segmenting_on_s3_gives_what_it_gives_on_disk(s3, labelled, trained, masks, ray_cluster):
    images, weights = f"{s3.uri}/photographs", f"{s3.uri}/weights/model.safetensors"
    for path in (labelled / "test/images").iterdir():
        open_store(images).put(path.name, path.read_bytes())
    open_store(s3.uri).put(
        "weights/model.safetensors", (trained / "model.safetensors").read_bytes()
    )
    words = ["--input", images, "--output", f"{s3.uri}/masks", "--checkpoint", weights]
    assert run("segment", *words) == 0
    for name in ("01_test.tif.png", "02_test.tif.png"):
        on_s3 = (s3.folder / "masks" / "masks" / name).read_bytes()
        assert on_s3 == (masks / "masks" / name).read_bytes()
    assert json.loads((s3.folder / "masks/summary.json").read_text())["ok"] == 2

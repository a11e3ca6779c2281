"""Bad input is answered by one line that names the file or flag, exit code 2, nothing written.

Run: pytest tests/test_cli.py
"""

import ast
import dataclasses
import inspect
import pickle
import platform
import re
import shutil
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from verbs import run

from segpipe import cli
from segpipe.train.config import TrainConfig
from segpipe.train.recipes import RECIPES


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def broken(labelled: Path, tmp_path: Path) -> Path:
    """A copy of the labelled set, to be damaged."""
    return shutil.copytree(labelled, tmp_path / "set")


@pytest.fixture
def refused(capfd, output):
    """Run a verb that must be refused -> its one line."""

    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        assert stop.value.code == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        left = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else []
        assert not left
        return lines[0]

    return run


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_folder_in_no_known_layout_is_told_all_that_are_known(refused, tmp_path, output, verb):
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(b"x")
    line = refused(verb, "--data", folder, "--output", output)
    assert f"{folder}: no labelled set in a known layout, found photo.jpg (wanted" in line
    for wanted in (
        "DRIVE, ",
        "STARE, ",
        "CHASE_DB1, ",
        "HRF, ",
        "images/ beside labels/",
    ):
        assert wanted in line


@pytest.mark.parametrize("missing", ["1st_manual/03_manual1.gif", "mask/03_training_mask.gif"])
def test_an_image_without_its_manual_or_mask_is_named(refused, broken, output, missing):
    (broken / "training" / missing).unlink()
    line = refused("train", "--data", broken, "--output", output)
    assert "03_training.tif" in line
    assert missing in line


def test_sizes_that_do_not_match_are_told(refused, broken, output, ray_cluster):
    mask = broken / "training/mask/03_training_mask.gif"
    Image.fromarray(np.full((100, 90), 255, np.uint8)).save(mask)
    line = refused("train", "--data", broken, "--output", output)
    assert "03_training_mask.gif" in line
    assert "90x100" in line
    assert "565x584" in line


def test_a_labelled_file_that_is_no_image_is_named(refused, broken, output, ray_cluster):
    (broken / "test/images/01_test.tif").write_bytes(b"not a tiff")
    line = refused("train", "--data", broken, "--output", output)
    assert "01_test.tif" in line


def test_a_crop_larger_than_the_image_is_refused(refused, labelled, output, ray_cluster):
    words = ["--data", labelled, "--output", output, "--recipe", "lecture"]
    line = refused("train", *words, "--crop-size", 600)
    assert "--crop-size 600" in line
    assert "565 px" in line


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--workers", "0"], "--workers 0"),
        (["--workers", "11"], "--workers 11"),
        (["--epochs", "0"], "--epochs 0"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--lr", "-1"], "--lr -1"),
        (["--crop-size", "0"], "--crop-size 0"),
        (["--model", "resnet"], "segnet-lite"),
        (["--workers", "3:2"], "--workers 3:2: wanted N, or MIN:MAX"),
        (["--workers", "1:11"], "--workers 1:11"),
        (["--workers", "two"], "--workers two"),
        (["--width", "0"], "--width 0"),
        (["--schedule", "linear"], "choose from constant, cosine"),
        (["--model", "unet", "--cycle-epochs", "2"], "needs --schedule cosine"),
        (["--patience", "2"], "needs --validation-images"),
        (["--validation-images", "4"], "4 training images, at least one must be left"),
        (["--precision", "fp16"], "choose from fp32, bf16"),
        (["--recipe", "resnet"], "--recipe resnet: choose from lecture, fineunet, resunet"),
        (["--recipe"], "--recipe"),
        (["--augmentation", "more"], "choose from none, wnet, wide, wider"),
        (["--crop-sampling", "here"], "choose from uniform, fov, whole"),
        (["--loss", "dice"], "choose from nll, nll+dice"),
        (["--ema-decay", "1"], "--ema-decay 1.0: must be 0 or more, and below 1"),
        (["--clip-norm", "-1"], "--clip-norm -1.0: must be 0 or more"),
        (["--weight-decay", "nan"], "--weight-decay nan: must be 0 or more"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(refused, labelled, output, flags, wanted):
    assert wanted in refused("train", "--data", labelled, "--output", output, *flags)


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("flag", ["--recipe {}", "--recipe={}"])
def test_flags_beside_a_recipe_replace_its_own_and_leave_the_others(name, flag):
    words = ["--data", "d", "--output", "o", *flag.format(name).split(), "--epochs", "7"]
    found = cli.parse("train", TrainConfig, words)
    found.check()
    assert found == TrainConfig(
        **{"data": "d", "output": "o"} | RECIPES[name] | {"recipe": name, "epochs": 7}
    )


def test_without_model_and_recipe_fineunet_is_trained_by_its_recipe():
    words = ["--data", "d", "--output", "o"]
    by_name = cli.parse("train", TrainConfig, [*words, "--recipe", "fineunet"])
    assert cli.parse("train", TrainConfig, words) == by_name
    assert (by_name.model, by_name.lr, by_name.diameter) == ("fineunet", 3e-3, 1024)


@pytest.mark.parametrize("model", ["--model {}", "--model={}"])
@pytest.mark.parametrize("name", ["unet", "resunet"])
def test_a_model_alone_is_trained_with_plain_defaults(model, name):
    words = ["--data", "d", "--output", "o", *model.format(name).split()]
    assert cli.parse("train", TrainConfig, words) == TrainConfig("d", "o", model=name)


def test_the_lecture_is_segnet_lite_with_plain_defaults():
    words = ["--data", "d", "--output", "o", "--recipe", "lecture"]
    lecture = cli.parse("train", TrainConfig, words)
    assert lecture == cli.parse("train", TrainConfig, [*words, "--model", "segnet-lite"])
    assert lecture == TrainConfig("d", "o", recipe="lecture", model="segnet-lite")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--fov", "mask"], "--fov mask: choose from given, found"),
        (["--tta", "2"], "--tta 2: choose from none, flip4"),
        (["--split", "validation"], "--split validation: choose from training, test"),
        (["--report-images", "no"], "--report-images no: choose from on, off"),
        (["--backend", "onnx"], "--backend onnx: choose from auto, native, torch"),
        (["--precision", "fp16"], "--precision fp16: choose from auto, fp32, bf16"),
    ],
)
def test_flags_of_evaluate_that_cannot_be_meant_are_refused(
    refused, labelled, output, flags, wanted
):
    assert wanted in refused("evaluate", "--data", labelled, "--output", output, *flags)


def test_evaluating_no_set_is_refused(refused, output):
    assert "--data" in refused("evaluate", "--data", "--output", output)


def test_each_of_several_sets_is_looked_at_before_any_is_measured(
    refused, labelled, output, tmp_path
):
    (tmp_path / "empty").mkdir()
    line = refused("evaluate", "--data", labelled, tmp_path / "empty", "--output", output)
    assert f"{tmp_path / 'empty'}: no labelled set" in line


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--data", "x"], "missing --output"),
        (["--data", "x", "--output", "y", "--workers", "abc"], "--workers"),
        (["--data", "x", "--output", "y", "--wrokers", "2"], "--wrokers"),
    ],
)
def test_flags_that_cannot_be_parsed_are_told_in_one_line(refused, flags, wanted):
    assert wanted in refused("train", *flags)


def test_an_empty_input_is_refused(refused, tmp_path, output):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no photograph")
    line = refused("segment", "--input", tmp_path / "empty", "--output", output)
    assert "no photographs" in line
    assert "1 other" in line


def test_an_input_that_is_not_there_is_refused(refused, tmp_path, output):
    assert "nowhere" in refused("segment", "--input", tmp_path / "nowhere", "--output", output)


def test_an_unknown_checkpoint_is_told_the_shipped_ones(refused, labelled, output):
    images = labelled / "test/images"
    line = refused("segment", "--input", images, "--output", output, "--checkpoint", "best")
    assert "best" in line
    assert "segnet-lite" in line


def test_a_pickle_is_refused_and_never_executed(refused, labelled, tmp_path, output):
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return (canary.write_text, ("executed",))

    file = tmp_path / "model.pt"
    file.write_bytes(pickle.dumps(Payload()))
    images = labelled / "test/images"
    line = refused("segment", "--input", images, "--output", output, "--checkpoint", file)
    assert "model.pt" in line
    assert not canary.exists()


@pytest.mark.parametrize("verb", ["train", "segment", "evaluate"])
def test_an_output_that_cannot_be_written_is_refused(refused, labelled, tmp_path, verb):
    (tmp_path / "file").write_text("in the way")
    source = ["--input", labelled / "test/images"] if verb == "segment" else ["--data", labelled]
    line = refused(verb, *source, "--output", tmp_path / "file" / "output")
    assert "cannot write" in line


def test_an_unknown_bucket_is_refused(refused, s3, labelled, output):
    line = refused("segment", "--input", "s3://no-such-bucket/x", "--output", output)
    assert "no-such-bucket" in line


def test_a_store_that_is_not_there_is_refused(refused, labelled, monkeypatch, output):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-word")
    line = refused("segment", "--input", "s3://bucket/x", "--output", output)
    assert "127.0.0.1:9" in line
    assert "secret-word" not in line


def test_an_unknown_verb_is_told_the_known_ones(refused):
    line = refused("fly")
    assert "fly" in line
    assert "segment" in line


UNITS = "seconds?|milliseconds|hours?|bytes|MB|Gbit|px|millions|GETs|PUTs|currency"
UNITS += "|share|part|rate|norm|decay|standard deviation|quality"  # without a unit


def docstrings(config: type) -> dict[str, str]:
    """The string below each field of a config, from its source."""
    body = ast.parse(inspect.getsource(config)).body[0].body
    return {
        field.target.id: below.value.value
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def told_of_flags(verb: str, capsys) -> dict[str, str]:
    """What `segpipe VERB --help` says of each flag, without white space."""
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    own, every_verb, _ = capsys.readouterr().out.partition(cli.OF_EVERY_VERB)
    assert every_verb
    lines = [line.strip("│╭╮╰╯") for line in own.splitlines()]  # tyro's box
    parts = re.split(r"^ {1,2}(--[a-z][\w-]+)", "\n".join(lines), flags=re.MULTILINE)
    return {
        flag: "".join(text.split()) for flag, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_flag_has_a_help_text_with_unit_and_default(verb, capsys):
    module, name, _ = cli.VERBS[verb]
    config = getattr(import_module(module), name)
    texts, told, fields = (
        docstrings(config),
        told_of_flags(verb, capsys),
        dataclasses.fields(config),
    )
    assert set(told) == {"--" + field.name.replace("_", "-") for field in fields}
    assert len(set(texts.values())) == len(fields)  # each has one of its own
    without = config.preset([]) if hasattr(config, "preset") else config  # any flag
    for field in fields:
        shown = told["--" + field.name.replace("_", "-")]
        default = getattr(without, field.name, dataclasses.MISSING)
        assert "".join(texts[field.name].split()) in shown
        if field.default is dataclasses.MISSING:
            assert shown.endswith("(required)")
        else:
            words = map(str, default) if isinstance(default, tuple) else [str(default)]
            assert shown.endswith(f"(default:{''.join(words)})")
        if "float" in str(field.type):
            assert re.search(rf"\b({UNITS})\b", texts[field.name], re.IGNORECASE), field.name


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64")])
def test_another_platform_is_refused_in_one_line(system, machine, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert run("status", "--output", tmp_path) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{system} {machine}" in line
    assert "Linux x86_64" in line

"""Every flag of every verb refuses what cannot be meant: exit 2, one line, nothing written, no Ray.

The table names a bad value for each flag, or says why any value can be meant. A flag that is added
without a row makes the test fail.

Run: pytest tests/test_flags.py
"""

import dataclasses
import os
import re
from importlib import import_module
from pathlib import Path

import pytest

from segpipe import cli
from segpipe.errors import UserError
from segpipe.flags import RENAMED
from segpipe.storage import open_store
from segpipe.train.config import TrainConfig

SWITCH = "a switch: it takes no value"
UNSIGNED = "a switch: test_s3_errors has it refused where nothing is on S3"
PLACES = ["", " ", "http://host/x", "s3://", "s3:/bucket/x"]
COUNT = ["0", "-1", "1.5", "abc", ""]
SIZE = ["0", "-1", "nan", "inf", "abc", ""]  # above 0
AMOUNT = ["-1", "nan", "inf", "abc", ""]  # 0 or more
CHOICE = ["other", ""]
SEED = ["-1", "1.5", "9223372036854775808", ""]
FLIPS = ["2", "0", "-4", "four"]
TTA = ["1", "flip", ""]
SETS = ["", " ", "..", "test/../training", "/", "/test", "test//", "nowhere"]
READ_BY: dict[str, list[str] | str] = {
    "images": ["images/*.png", "", " "],  # each needs others
    "labels": ["labels/*.png", ""],
    "masks": ["masks/*.png", ""],
    "av_colours": ["artery=red", "rite", "artery=FF0000,vein=FF0000", ""],
}
TABLE: dict[str, dict[str, list[str] | str]] = {
    "check": {
        "data": [*PLACES, "nowhere"],
        "output": PLACES,
        "sets": SETS,
        "anonymous": UNSIGNED,
        **READ_BY,
    },
    "train": {
        "data": [*PLACES, "nowhere"],
        "output": PLACES,
        "sets": SETS,
        "recipe": CHOICE,
        "model": CHOICE,
        "width": COUNT,
        "initial_weights": ["nowhere.safetensors", "unheard-of", "resunet", ""],
        "epochs": COUNT,
        "workers": ["0", "-1", "2:1", "0:1", "1:2:3", "1:", "1.5", "abc", "11", ""],
        "crops_per_image": COUNT,
        "crop_size": COUNT,
        "batch_size": COUNT,
        "crop_sampling": CHOICE,
        "augmentation": CHOICE,
        "soft_labels": SWITCH,
        "teachers": ["nowhere.safetensors", "unheard-of", ""],
        "teachers_share": ["-0.1", "1.1", "nan", "abc", ""],
        "loss": CHOICE,
        "lr": SIZE,
        "warmup_steps": ["-1", "1.5", "abc", ""],
        "weight_decay": AMOUNT,
        "clip_norm": AMOUNT,
        "ema_decay": ["1", *AMOUNT],
        "diameter": SIZE,
        "schedule": CHOICE,
        "cycle_epochs": ["2", *COUNT],  # 2: without a cosine
        "validation_images": ["4", "-1", "1.5", "abc"],  # the set has 4 for training
        "tta": ["4", *CHOICE],
        "patience": ["3", *COUNT],  # 3: without photographs to look at
        "seed": SEED,
        "precision": CHOICE,
        "backend": ["on", *CHOICE],
        "device": ["tpu", "gpu", ""],
        "anonymous": UNSIGNED,
        "resource_wait": AMOUNT,
        "if_locked": CHOICE,
        "accept_labels": SWITCH,
        **READ_BY,
    },
    "segment": {
        "input": [*PLACES, "nowhere", "nowhere.csv"],
        "output": PLACES,
        "checkpoint": [*PLACES, "nowhere.pth"],
        "workers": COUNT,
        "group_size": COUNT,
        "batch_size": COUNT,
        "format": CHOICE,
        "table": CHOICE,
        "measure": CHOICE,
        "structures": CHOICE,
        "overlays": SWITCH,
        "min_quality": ["1.01", *AMOUNT],
        "probabilities": SWITCH,
        "tta": TTA,
        "max_rejected": ["1.01", *AMOUNT],
        "max_megapixels": SIZE,
        "retry_rejected": SWITCH,
        "column": ["", " ", "{}", "image"],  # image: --input is no list
        "repair": SWITCH,
        "anonymous": UNSIGNED,
        "include": ["", " "],
        "exclude": ["", " "],
        "store_patience": AMOUNT,
        "limit": COUNT,
        "precision": CHOICE,
        "backend": CHOICE,
        "device": ["tpu", "gpu", ""],
        "if_locked": CHOICE,
        "report_images": ["yes", ""],
    },
    "measure": {
        "input": [*PLACES, "nowhere", "nowhere.csv"],
        "output": PLACES,
        "fov": [*PLACES, "nowhere", "list.csv"],
        "photographs": [*PLACES, "nowhere", "list.parquet"],
        "av_colours": READ_BY["av_colours"],
        "workers": COUNT,
        "group_size": COUNT,
        "table": CHOICE,
        "max_rejected": ["1.01", *AMOUNT],
        "max_megapixels": SIZE,
        "retry_rejected": SWITCH,
        "repair": SWITCH,
        "include": ["", " "],
        "exclude": ["", " "],
        "column": ["", " ", "{}", "image"],  # image: --input is no list
        "anonymous": UNSIGNED,
        "store_patience": AMOUNT,
        "limit": COUNT,
        "if_locked": CHOICE,
    },
    "evaluate": {
        "data": [*PLACES, "nowhere"],
        "output": PLACES,
        "checkpoint": [*PLACES, "nowhere.pth"],
        "split": CHOICE,
        "fov": CHOICE,
        "tta": TTA,
        "report_images": ["yes", ""],
        "structures": CHOICE,
        "discs": ["discs.csv", *PLACES],  # the first: without --structures all
        "workers": COUNT,
        "precision": CHOICE,
        "backend": CHOICE,
        "device": ["tpu", "gpu", ""],
        "anonymous": UNSIGNED,
        "accept_labels": SWITCH,
        **READ_BY,
    },
    "scale": {
        "job": CHOICE,
        "output": PLACES,
        "workers": ["0", "-1", "1.5", "abc", "100000"],
        "mode": CHOICE,
        "repeats": COUNT,
        "input": [*PLACES, "nowhere"],
        "data": [*PLACES, "of --job train alone"],
        "checkpoint": [*PLACES, "nowhere.pth"],
        "limit": COUNT,
        "model": ["other", "", "unet"],  # a flag of --job train
        "recipe": ["other", "", "resunet"],
        "epochs": ["2", *COUNT],
        "crops_per_image": ["2", *COUNT],
        "crop_size": ["64", *COUNT],
        "batch_size": ["2", *COUNT],
        "group_size": COUNT,
        "device": ["tpu", "gpu", ""],
        "ceiling_seconds": AMOUNT,
    },
    "plan": {
        "images": COUNT,
        "mean_bytes": SIZE,
        "megapixels": SIZE,
        "nodes": COUNT,
        "cores_per_node": COUNT,
        "gpus_per_node": ["-1", "1.5", "abc", ""],
        "gpu_ms": SIZE,
        "price": AMOUNT,
        "measured": [*PLACES, "nowhere.jsonl"],
        "checkpoint": [*PLACES, "unheard-of"],
        "tta": TTA,
        "group_size": COUNT,
        "store": CHOICE,
        "request_ms": SIZE,
        "connection_mb": SIZE,
        "gets": SIZE,
        "puts": SIZE,
        "node_gbit": SIZE,
        "put_price": AMOUNT,
        "get_price": AMOUNT,
        "node_hours": SIZE,
        "output": ["", " ", "nowhere/plan.json", "s3://bucket/plan.json"],
    },
    "models": {"json": SWITCH},
    "status": {"output": [*PLACES, "nowhere"], "json": SWITCH, "verify": SWITCH},
    "demo": {
        "output": PLACES,
        "photographs": COUNT,
        "epochs": COUNT,
        "workers": ["11", *COUNT],
        "seed": SEED,
    },
}


def needed(verb: str, labelled: Path, photographs: Path, output: Path) -> dict[str, str]:
    """Flags with which the verb would start its work."""
    return {
        "check": {"data": str(labelled), "output": str(output)},
        "train": {"data": str(labelled), "output": str(output), "recipe": "lecture"},
        "segment": {"input": str(photographs), "output": str(output)},
        "measure": {"input": str(photographs), "output": str(output)},
        "evaluate": {"data": str(labelled), "output": str(output)},
        "scale": {"job": "segment", "workers": "1", "input": str(photographs)}
        | {"output": str(output)},
        "plan": {"images": "1000", "output": str(output)},
        "models": {},
        "status": {"output": str(output)},
        "demo": {"output": str(output)},
    }[verb]


def config_of(verb: str) -> type:
    module, name, _ = cli.VERBS[verb]
    return getattr(import_module(module), name)


def name_of(field: str) -> str:
    return f"--{field.replace('_', '-')}"


@pytest.fixture
def refused(no_ray, capfd, tmp_path, monkeypatch):
    """Run a verb that must be refused -> its one line. The current folder must stay empty."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        lines = capfd.readouterr().err.splitlines()
        assert stop.value.code == 2, lines
        assert len(lines) == 1, lines
        assert not list(here.rglob("*"))
        return lines[0]

    return run


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_flag_has_a_row(verb):
    assert set(TABLE[verb]) == {field.name for field in dataclasses.fields(config_of(verb))}


CASES = [
    pytest.param(verb, field, bad, marks=() if bad == values[0] else pytest.mark.nightly)
    for verb, rows in TABLE.items()
    for field, values in rows.items()
    if not isinstance(values, str)
    for bad in values
]


@pytest.mark.parametrize(("verb", "field", "bad"), CASES)
def test_a_value_that_cannot_be_meant_is_refused(
    refused, labelled, photographs, tmp_path, verb, field, bad
):
    output = tmp_path / "output"
    flags = needed(verb, labelled, photographs, output) | {field: bad}
    line = refused(verb, *(f"{name_of(name)}={value}" for name, value in flags.items()))
    assert name_of(field) in line
    assert bad.strip() in line
    assert not output.exists()


PLACES_OF = {"data", "input", "output", "checkpoint", "measured"}
OF_ONE = [("measure", "fov"), ("measure", "photographs"), ("evaluate", "discs")]
"""Other verbs have such of no place, or none."""


@pytest.mark.parametrize(
    ("verb", "field"),
    [(verb, field) for verb, rows in TABLE.items() for field in rows if field in PLACES_OF]
    + OF_ONE,
)
def test_a_path_with_a_zero_byte_is_refused(labelled, photographs, tmp_path, verb, field):
    """No shell can pass one; a program that calls segpipe can."""
    flags = needed(verb, labelled, photographs, tmp_path / "output") | {field: "a\0b"}
    config = cli.parse(verb, config_of(verb), [f"{name_of(n)}={v}" for n, v in flags.items()])
    with pytest.raises(UserError, match=re.escape(f'{name_of(field)} "a\\0b"')):
        config.check()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--inptu", "x", "--output", "y"], "--inptu: unknown flag, did you mean --input?"),
        (["--input=x", "--outptu=y"], "--outptu: unknown flag, did you mean --output?"),
        (["--input", "x", "--output", "y", "--zzz", "1"], "--zzz: unknown flag"),
        (["--input", "x", "--output", "y", "--batch_sise", "1"], "did you mean --batch-size?"),
        (["--input", "x", "--output", "y", "--no-probabilities", "--limt=1"], "--limt: unknown"),
    ],
)
def test_a_mistyped_flag_is_named_with_the_nearest(refused, words, wanted):
    assert wanted in refused("segment", *words)


@pytest.mark.parametrize(
    ("verb", "old"), [(verb, old) for verb in RENAMED for old in RENAMED[verb]]
)
def test_a_flag_of_another_name_in_0_1_0_is_told_with_its_name_of_today(refused, verb, old):
    new = RENAMED[verb][old]
    assert f"{old}: is now {new}" in refused(verb, f"{old}=1")
    names = {name_of(field.name) for field in dataclasses.fields(config_of(verb))}
    assert new.split()[0] in names
    assert old not in names


MANY = [f"{number}.jpg" for number in range(1000)]  # as a shell makes of a glob


@pytest.mark.parametrize(
    ("verb", "words", "line"),
    [
        ("segment", ["--workers", "2.5"], "--workers 2.5: wanted a whole number"),
        ("segment", ["--workers", "2", "--workers=1e3"], "--workers 1e3: wanted a whole number"),
        ("segment", ["--workers="], '--workers "": wanted a whole number'),
        ("segment", ["--workers"], "--workers: wanted a whole number after it"),
        ("segment", ["--limit", "--workers", "2"], "--limit: wanted a whole number after it"),
        ("segment", ["--store_patience", "1s"], "--store-patience 1s: wanted a number"),
        ("segment", ["--column"], "--column: wanted a value after it"),
        ("segment", ["--tta", "3"], "--tta 3: choose from none, flip4"),
        ("segment", ["--repair", "yes"], "--repair yes: is a switch, leave the value out"),
        ("segment", ["--repair=no"], "--repair no: is a switch, leave the value out"),
        ("scale", ["--workers", "1", "b"], "--workers b: wanted a whole number"),
        (
            "segment",
            ["--input", *MANY],
            "--input 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 995 more: wanted one value, quote globs "
            "and paths with spaces",
        ),
        ("status", ["--workers", "2"], "--workers: unknown flag (segpipe status --help tells all)"),
    ],
)
def test_a_value_of_another_kind_is_told_with_what_was_wanted(
    refused, labelled, photographs, tmp_path, verb, words, line
):
    flags = needed(verb, labelled, photographs, tmp_path / "output")
    given = [f"{name_of(name)}={value}" for name, value in flags.items()]
    assert refused(verb, *given, *words) == f"segpipe {verb}: {line}"


def test_words_before_any_flag_and_flags_that_are_missing_are_told(refused):
    assert refused("segment", "a.jpg", "b.jpg", "--input=x", "--output=y") == (
        "segpipe segment: a.jpg, b.jpg: no flag before it, wanted --flag value"
    )
    told = refused("segment", "--limit=3")
    assert told.endswith(
        "segpipe segment: missing --input, --output (segpipe segment --help tells more)"
    )


@pytest.mark.parametrize("flag", ["--data=~/set", "--output=~/out"])
def test_a_tilde_that_no_shell_expanded_is_the_home(monkeypatch, tmp_path, flag):
    monkeypatch.setenv("HOME", str(tmp_path))
    name, value = flag.removeprefix("--").split("=")
    config = cli.parse("train", TrainConfig, ["--data=d", "--output=o", flag])
    assert open_store(getattr(config, name)).uri() == str(tmp_path / value.removeprefix("~/"))


@pytest.mark.parametrize("verb", ["segment", "plan", "status", "demo"])
def test_files_below_a_tilde_are_found(refused, monkeypatch, tmp_path, photographs, verb):
    """The line tells the expanded path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "list.csv").write_text("name\nx\n")
    words = {
        "segment": ["--input=~/list.csv", "--output=o"],
        "plan": ["--images=1", "--measured=~/none.jsonl"],
        "status": ["--output=~/none"],
        "demo": ["--output=~/file/x"],
    }[verb]
    assert str(tmp_path) in refused(verb, *words)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip of torch.save", b"\x80\x02}q\x00."])
def test_a_pickle_of_pytorch_is_told_as_one(refused, photographs, tmp_path, content):
    file = tmp_path / "model.pth"
    file.write_bytes(content)
    line = refused("segment", f"--input={photographs}", "--output=o", f"--checkpoint={file}")
    assert f"--checkpoint {file}" in line
    assert "PyTorch pickles are not read" in line
    assert ".safetensors" in line


@pytest.mark.parametrize(
    ("verb", "flags", "line"),
    [
        ("segment", ("--output={file}",), "--output {file}: is a file, wanted a folder"),
        ("segment", ("--output={file}/x",), "--output {file}/x: cannot write there"),
        ("segment", ("--input={pipe}",), "--input {pipe}: is neither a file nor a folder"),
        ("train", ("--data={file}",), "--data {file}: is a file, wanted a folder"),
        ("train", ("--output={file}",), "--output {file}: is a file, wanted a folder"),
        ("train", ("--output={file}/x",), "--output {file}/x: cannot write there"),
        ("train", ("--batch-size=121",), "--batch-size 121: more than the 120 crops of an epoch"),
        ("scale", ("--input={pipe}",), "--input {pipe}: is neither a file nor a folder"),
        ("status", ("--output={file}",), "--output {file}: is a file, wanted a folder"),
        ("check", ("--data={file}",), "--data {file}: is a file, wanted a folder"),
        *(
            (verb, ("--output={set}/test/images",), "--output {set}/test/images: lies inside {set}")
            for verb in ("train", "evaluate", "check")
        ),
    ],
)
def test_what_is_in_the_way_is_told_with_the_flag(
    refused, labelled, photographs, tmp_path, verb, flags, line
):
    names = {"file": str(tmp_path / "file"), "pipe": str(tmp_path / "pipe"), "set": str(labelled)}
    Path(names["file"]).write_text("in the way")
    os.mkfifo(names["pipe"])
    given = dict(flag.format(**names).removeprefix("--").split("=") for flag in flags)
    words = needed(verb, labelled, photographs, tmp_path / "output") | given
    told = refused(verb, *(f"--{name}={value}" for name, value in words.items()))
    assert line.format(**names) in told


@pytest.mark.parametrize(
    ("globs", "wanted"),
    [
        (["--include=*.jpg"], "2 photographs, none matches --include '*.jpg'"),
        (["--exclude=*"], "2 photographs, none is left by --exclude '*'"),
    ],
)
def test_globs_that_leave_nothing_are_told_with_the_number(
    refused, photographs, tmp_path, globs, wanted
):
    output = tmp_path / "output"
    line = refused("segment", f"--input={photographs}", f"--output={output}", *globs)
    assert wanted in line
    assert not list(output.rglob("*"))

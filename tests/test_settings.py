"""What a training was started with: the file of 0.1.0 is read and written, and no flag is lost.

Run: pytest tests/test_settings.py
"""

import dataclasses
import json

import pytest

from segpipe.errors import UserError
from segpipe.storage import open_store
from segpipe.storage.settings import SETTINGS, refuse_changed
from segpipe.train.config import TrainConfig
from segpipe.train.settings import Started

PLAIN = {  # as 0.1.0 wrote it, with one key each for the flags that came later
    "--data": "/sets/DRIVE",
    "--model": "segnet-lite",
    "--width": None,
    "--initial-weights": None,
    "--crops-per-image": 30,
    "--crop-size": 224,
    "--batch-size": 10,
    "--place": "photograph",
    "--augmentation": "none",
    "--diameter": None,
    "--soft-labels": False,
    "--teachers": None,
    "--teachers-share": 0.5,
    "--loss": "nll",
    "--lr": 0.001,
    "--warmup-steps": 0,
    "--weight-decay": 0.0,
    "--clip-norm": 0.0,
    "--average": 0.0,
    "--schedule": "constant",
    "--cycle-epochs": None,
    "--validation-images": 0,
    "--flips": 1,
    "--patience": None,
    "--seed": 0,
    "--precision": "fp32",
    "--compile": "auto",
    "--images": None,
    "--labels": None,
    "--masks": None,
    "--av-colours": None,
    "--sets": None,
}
RESUNET = PLAIN | {
    "--model": "resunet",
    "--width": 16,
    "--epochs": 64,
    "--crop-size": 256,
    "--batch-size": 4,
    "--place": "field",
    "--augmentation": "wider",
    "--diameter": 1080.0,
    "--lr": 0.003,
    "--schedule": "cosine",
    "--warmup-steps": 100,
    "--weight-decay": 0.0001,
    "--clip-norm": 0.3,
    "--average": 0.998,
    "--validation-images": 4,
    "--patience": 7,
    "--flips": 4,
    "--compile": "off",
    "--seed": 5,
    "--images": "a/*.png",
    "--labels": "b/*.png",
    "set": {"a/1.png": "10 v 0a"},
    "diameter": 540.5,
}
MORE = {"seed": 5, "width": 16, "validation_images": 4, "patience": 7, "backend": "torch"}
MORE |= {"diameter": 1080.0, "images": "a/*.png", "labels": "b/*.png"}
CONFIGS = {
    "lecture": (PLAIN, {}),
    "resunet": (RESUNET, MORE),
    "lecture, native": (PLAIN | {"--compile": "on"}, {"backend": "native"}),
    "lecture, whole": (PLAIN | {"--place": "whole"}, {"crop_sampling": "whole"}),
    "lecture, sets": (PLAIN | {"--sets": "'A B' HRF"}, {"sets": ("HRF/", "A B")}),
}
MAY_CHANGE = {"output", "recipe", "epochs", "workers", "device", "resource_wait"}
MAY_CHANGE |= {"anonymous", "accept_labels", "if_locked"}


def config_of(name: str) -> TrainConfig:
    recipe = name.partition(",")[0]
    return TrainConfig.by_recipe(recipe, "/sets/DRIVE", "/out", **CONFIGS[name][1])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_file_of_0_1_0_is_what_these_flags_give(name):
    told, config = CONFIGS[name][0], config_of(name)
    settings = config.settings(open_store(config.data))
    started = Started.from_json(json.loads(json.dumps(told)))
    assert started.settings == settings
    assert started == Started(settings, told.get("set"), told.get("diameter"))
    assert json.loads(json.dumps(started.to_json())) == told


def test_flags_that_0_1_0_did_not_have_are_as_it_was_without():
    newer = ("--images", "--labels", "--masks", "--av-colours", "--sets")
    newer += ("--soft-labels", "--teachers", "--teachers-share", "--initial-weights")
    told = {name: value for name, value in PLAIN.items() if name not in newer}
    assert Started.from_json(told) == Started.from_json(PLAIN)


def test_what_was_written_is_read(tmp_path):
    output = open_store(str(tmp_path))
    assert Started.read(output) is None
    started = Started.from_json(RESUNET)
    started.write(output)
    assert Started.read(output) == started
    assert json.loads((tmp_path / SETTINGS).read_text()) == RESUNET


def test_whether_numbers_split_the_set_is_written_where_they_do(tmp_path):
    """HRF's, since 0.2.0; files of before, and of all other sets, have no such key."""
    output, before = open_store(str(tmp_path)), Started.from_json(RESUNET)
    assert not before.numbered
    now = dataclasses.replace(before, numbered=True)
    now.write(output)
    assert Started.read(output) == now
    assert json.loads((tmp_path / SETTINGS).read_text()) == RESUNET | {"numbered": True}


OTHERS = {
    "data": "/sets/STARE",
    "model": "unet",
    "schedule": "cosine",
    "crop_sampling": "fov",
    "augmentation": "wnet",
    "loss": "nll+dice",
    "tta": "flip4",
    "precision": "bf16",
    "backend": "torch",
    "images": "a/*",
    "labels": "b/*",
    "masks": "c/*",
    "av_colours": "artery=FF0000",
    "sets": ("STARE", "DRIVE"),
    "soft_labels": True,
    "teachers": ("resunet", "segnet-lite"),
    "initial_weights": "segnet-lite",
    "teachers_share": 0.3,
}
TOLD = {
    "sets": "DRIVE STARE",
    "teachers": "resunet [0-9a-f]{16}, segnet-lite [0-9a-f]{16}",
    "initial_weights": "segnet-lite [0-9a-f]{16}",
}  # where that is not the value itself
NAMES = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in MAY_CHANGE]


@pytest.mark.parametrize("name", NAMES)
def test_a_flag_that_was_another_is_refused_by_its_name_of_today(name):
    config = config_of("lecture")
    other = OTHERS.get(name, 0.5 if isinstance(getattr(config, name), float) else 3)
    told = {name: other} | ({"images": "a/*", "labels": "b/*"} if name in ("masks",) else {})
    if name in ("images", "labels"):
        told = {"images": "a/*", "labels": "b/*"}
    changed = dataclasses.replace(config, **told)
    before = Started.from_json(PLAIN).settings.by_flag()
    flag = f"--{name.replace('_', '-')}"
    words = rf"{flag} {TOLD.get(name, other)}|--images a/\*"
    with pytest.raises(UserError, match=words.replace("+", r"\+")):
        refuse_changed("/out", before, changed.settings(open_store(changed.data)).by_flag())


def test_epochs_may_be_raised_unless_each_steps_rate_depends_on_them():
    for name, kept in (("lecture", False), ("resunet", True)):
        config = config_of(name)
        longer = dataclasses.replace(config, epochs=config.epochs + 1)
        store = open_store(config.data)
        assert (config.settings(store) != longer.settings(store)) is kept

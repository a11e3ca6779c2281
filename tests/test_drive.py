"""On the real DRIVE: the lecture's losses, masks of the right size, the second observer's figures.

Run: SEGPIPE_DATA=folder-that-holds-DRIVE pytest -m cluster tests/test_drive.py
"""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import ranks
from needs import real_set
from PIL import Image
from verbs import run

from segpipe.measurement.kind_agreement import FIGURES

pytestmark = pytest.mark.cluster
LECTURE = ["--recipe", "lecture", "--epochs", 2]


def test_the_lectures_losses_come_out(drive, tmp_path):
    """0.0586 and 0.0390 on its scale, a tenth of the mean loss per pixel."""
    output = ranks.train(drive, tmp_path, *LECTURE, world_size=2)
    losses = [float(row["train_loss"]) for row in ranks.history(output)]
    assert losses == pytest.approx([0.60, 0.39], abs=0.05)


@pytest.mark.nightly
def test_no_step_waits_longer_at_an_epochs_start(drive, tmp_path, ray_cluster):
    """The stream is ahead of the worker there as elsewhere."""
    assert run("train", "--data", drive, "--output", tmp_path, *LECTURE, "--workers", 2) == 0
    with (tmp_path / "_segpipe/steps/epoch-00002.csv").open() as file:
        rows = list(csv.DictReader(file))
    waits = np.array([float(row["wait_s"]) for row in rows])
    assert len(waits) == 60
    assert waits[0] <= waits[1:].max() + np.mean([float(row["step_s"]) for row in rows])


def test_twenty_masks_under_the_inputs_names(drive, tmp_path, ray_cluster):
    words = ["--input", drive / "test/images", "--output", tmp_path, "--tta", "none"]
    assert run("segment", *words) == 0
    names = {path.name for path in (tmp_path / "masks").iterdir()}
    assert names == {f"{number:02d}_test.tif.png" for number in range(1, 21)}
    for path in (tmp_path / "masks").iterdir():
        with Image.open(path) as mask:
            assert mask.size == (565, 584)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["inputs"], summary["ok"], summary["rejected"]) == (20, 20, 0)


def test_the_second_observer_is_measured_as_published(drive, tmp_path, ray_cluster):
    """Dice 0.789, MCC 0.759, sensitivity 0.775, specificity 0.972, accuracy 0.947."""
    words = ["--data", drive, "--output", tmp_path, "--checkpoint", "segnet-lite"]
    assert run("evaluate", *words) == 0
    observer = json.loads((tmp_path / "metrics.json").read_text())["second_observer"]
    published = {"dice": 0.7891, "mcc": 0.7591, "sensitivity": 0.7746, "specificity": 0.9725}
    published["accuracy"] = 0.9473
    assert {key: observer[key] for key in published} == pytest.approx(published, abs=5e-4)


def test_arteries_veins_and_discs_have_the_figures_of_the_results(drive, tmp_path, ray_cluster):
    """Of results/structures.md, counted there without Ray; other engines differ a little."""
    for name in ("DRIVE", "DRIVE_AV"):
        (tmp_path / "sets" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "sets" / name).symlink_to(real_set(name), target_is_directory=True)
    words = ["--data", tmp_path / "sets", "--output", tmp_path / "out", "--structures", "all"]
    assert run("evaluate", *words, "--discs", drive.parent / "discs.csv") == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    page = (Path(__file__).parents[1] / "results/structures.md").read_text()
    kinds = re.search(r"\| DRIVE test, labels of DRIVE_AV, told \| (.*) \|", page)
    discs = re.search(r"\| DRIVE, test \| (\d+) of (\d+) \|", page)
    told = found["arteries_veins"]
    assert told["num_labelled"] == 20
    wanted = list(map(float, kinds[1].split(" | ")))
    assert [told[name] for name in FIGURES] == pytest.approx(wanted, abs=2e-3)
    for name in FIGURES:
        assert told["intervals"]["low"][name] < told[name] < told["intervals"]["high"][name]
    assert [found["discs"][name] for name in ("num_near", "num_labelled")] == list(
        map(int, discs.groups())
    )

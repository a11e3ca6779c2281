"""The crop stream: every worker gets its own crops of every step, in order, nothing twice.

Run: pytest tests/test_stream.py
"""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from segpipe.data import crops
from segpipe.data.layouts import open_labelled
from segpipe.storage import open_store
from segpipe.train import states, stream
from segpipe.train.crop_plan import Cropper, CropPlan, ImageCache
from segpipe.train.settings import CropSettings
from segpipe.train.states import State
from segpipe.train.stream import StepBlocks

EPOCHS, CROPS_PER_IMAGE, SIZE, BATCH = 3, 5, 32, 6
CROPS = CropSettings(CROPS_PER_IMAGE, SIZE, BATCH, seed=7)


@pytest.fixture(scope="module")
def plan(labelled: Path) -> CropPlan:
    store = open_store(str(labelled))
    examples = open_labelled(store).training
    return CropPlan(store, examples, 540.0, EPOCHS, CROPS)


def rows_of(plan: CropPlan, world_size: int, first_step: int = 0) -> list[dict]:
    cropper = Cropper(plan, world_size)
    end_step = plan.epochs * plan.steps_per_epoch
    blocks = StepBlocks(first_step, end_step, world_size, block_steps=3).blocks
    rows = []
    for steps, rank in blocks:
        batch = cropper({"step": np.array(steps), "rank": np.full(len(steps), rank)})
        rows += [{k: v[n] for k, v in batch.items()} for n in range(len(steps))]
    return rows


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_each_step_has_the_same_crops_whatever_the_number_of_workers(plan, world_size):
    rows = rows_of(plan, world_size)
    for step in range(EPOCHS * plan.steps_per_epoch):
        shares = sorted((r["rank"], r["crop"].tolist()) for r in rows if r["step"] == step)
        crops_of_step = [crop for _, share in shares for crop in share]
        epoch, within = divmod(step, plan.steps_per_epoch)
        order = crops.epoch_order(7, epoch, len(plan.examples), CROPS_PER_IMAGE)
        assert crops_of_step == order[within * BATCH : (within + 1) * BATCH].tolist()


def test_a_stream_from_a_later_step_is_the_tail_of_the_whole_stream(plan):
    whole = {(r["step"], r["rank"]): r["image"] for r in rows_of(plan, 2)}
    tail = {(r["step"], r["rank"]): r["image"] for r in rows_of(plan, 2, first_step=4)}
    assert set(tail) == {key for key in whole if key[0] >= 4}
    assert all(np.array_equal(whole[key], image) for key, image in tail.items())


def test_a_crop_is_a_window_of_its_image_and_label(plan, labelled):
    row = rows_of(plan, 1)[0]
    index, _ = row["crop"][0]
    picture = Image.open(labelled / plan.examples[index].image)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(picture), (SIZE, SIZE, 3))[
        ..., 0, :, :, :
    ]
    candidates = np.argwhere(
        (windows[:, :, 0, 0] == row["image"][0, 0, 0]).all(-1)
        & (windows[:, :, -1, -1] == row["image"][0, -1, -1]).all(-1)
    )
    assert any(np.array_equal(windows[r, c], row["image"][0]) for r, c in candidates)


def test_augmented_crops_are_those_of_the_crop_function(plan):
    """And the steps have the same crops as without augmentation."""
    augmented = rows_of(replace(plan, crops=replace(CROPS, augmentation="wnet")), 1)
    for row, plain in zip(augmented, rows_of(plan, 1), strict=True):
        np.testing.assert_array_equal(row["crop"], plain["crop"])
        assert (row["image"] != plain["image"]).any()
    for step in (0, plan.steps_per_epoch):  # of the first and the second epoch
        row = augmented[step]
        for slot, (index, k) in enumerate(row["crop"]):
            whole = ImageCache(plan).get(index)
            epoch = step // plan.steps_per_epoch
            image, label = crops.crop(*whole, 7, epoch, index, k, SIZE, crops.Augmentation())
            np.testing.assert_array_equal(row["image"][slot], image)
            np.testing.assert_array_equal(row["label"][slot], label)


def test_workers_get_their_own_steps_in_order_through_ray(plan, tmp_path, ray_cluster):
    output = open_store(str(tmp_path))
    states.put(output, State({}, {"epoch": 1}))  # one epoch is done already
    data = stream.TrainingData(plan, output, "cpu")
    iterators = data.configure({"crops": ray.data.from_items([0])}, world_size=2)

    @ray.remote(num_cpus=0.1)
    def consume(iterator, rank):
        first = plan.steps_per_epoch
        rows = stream.shares(iterator, plan, rank, 2, first)
        return [row["crop"].tolist() for row in rows]

    got = ray.get([consume.remote(it["crops"], n) for n, it in enumerate(iterators)], timeout=120)
    for rank, shares in enumerate(got):
        wanted = [
            r["crop"].tolist() for r in rows_of(plan, 2, plan.steps_per_epoch) if r["rank"] == rank
        ]
        assert shares == wanted


ONE_STEP = -(-BATCH // 2) * 4 * SIZE**2  # bytes of a block that holds one step of one of two ranks


def streamed(plan: CropPlan, croppers: tuple[int, int]) -> list[list[dict]]:
    """What each of two ranks gets, when it takes all as quickly as it comes."""
    dataset = stream.crop_stream(plan, 0, 2, croppers)
    splits = dataset.streaming_split(2, equal=False)

    @ray.remote(num_cpus=0.1)
    def consume(iterator, rank):
        return list(stream.shares(iterator, plan, rank, 2, 0))

    return ray.get([consume.remote(one, rank) for rank, one in enumerate(splits)], timeout=240)


def assert_equal_streams(streams: list[list[dict]], plan: CropPlan) -> None:
    """Every array of every step of each rank, byte by byte, as one cropper without Ray cuts it."""
    for rank, rows in enumerate(streams):
        wanted = [row for row in rows_of(plan, 2) if row["rank"] == rank]
        assert len(rows) == len(wanted) == plan.epochs * plan.steps_per_epoch
        for row, other in zip(rows, wanted, strict=True):
            assert set(row) == set(other)
            for name in row:
                np.testing.assert_array_equal(row[name], other[name])


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("number", "killed"),
    [
        *(pytest.param(n, False, marks=pytest.mark.nightly) for n in (1, 3)),
        (3, True),
    ],
)
def test_any_number_of_croppers_makes_the_same_stream(
    plan, tmp_path, ray_cluster, monkeypatch, number, killed
):
    """Also where one is killed within a block: every process leaves its id, that one two."""
    log, death = tmp_path / "log", tmp_path / "death"

    class Logged(Cropper):
        def __call__(self, batch: dict) -> dict:
            with log.open("a") as file:
                print(os.getpid(), file=file)
            if killed and batch["step"][0] == 7 and not death.exists():
                death.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    monkeypatch.setattr(stream, "Cropper", Logged)
    monkeypatch.setattr(stream, "BLOCK_BYTES", ONE_STEP)
    long = replace(plan, epochs=12, crops=replace(CROPS, augmentation="wider"))
    assert_equal_streams(streamed(long, (number, number)), long)
    assert len(set(log.read_text().split())) == number + killed
    assert death.exists() == killed


@pytest.mark.cluster
def test_croppers_become_more_while_ranks_wait(plan, tmp_path, ray_cluster, monkeypatch):
    """The first one rests until there is a second: alone it would never end."""
    log = tmp_path / "log"

    class Slow(Cropper):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            with log.open("a") as file:
                print(os.getpid(), file=file)

        def __call__(self, batch: dict) -> dict:
            deadline = time.monotonic() + 120
            while len(log.read_text().split()) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(log.read_text().split()) >= 2, "no second cropper came"
            return super().__call__(batch)

    monkeypatch.setattr(stream, "Cropper", Slow)
    monkeypatch.setattr(stream, "BLOCK_BYTES", ONE_STEP)
    assert_equal_streams(streamed(plan, (1, 2)), plan)
    assert len(set(log.read_text().split())) == 2


@pytest.mark.parametrize(
    ("cores", "world_size", "device", "wanted"),
    [
        (1, 1, "cpu", 1),
        (2, 1, "cpu", 1),  # none beside the one there was
        (2, 2, "cpu", 1),
        (16, 16, "cpu", 8),
        (8, 1, "cuda", 4),
        (32, 8, "cuda", 24),
        (512, 16, "cuda", 64),
        (8, 8, "cuda", 1),
    ],
)
def test_croppers_take_cores_that_ranks_can_spare(cores, world_size, device, wanted):
    assert stream.most_croppers(cores, world_size, device) == wanted


class Blocks:
    """What Ray Data hands to a worker, here by hand."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    def iter_batches(self, batch_size: None):
        for row in self.rows:
            yield {name: np.asarray(value)[None] for name, value in row.items()}


@pytest.mark.parametrize("wrong", ["none", "step missing", "twice", "another's"])
def test_a_worker_notices_crops_that_are_not_its_own(plan, wrong):
    rows = [row for row in rows_of(plan, 2) if row["rank"] == 0]
    strange = {
        "none": rows,
        "step missing": rows[:1] + rows[2:],
        "twice": rows[:2] + rows[1:],
        "another's": [row for row in rows_of(plan, 2) if row["rank"] == 1],
    }
    shares = stream.shares(Blocks(strange[wrong]), plan, 0, 2, 0)
    if wrong == "none":
        assert len(list(shares)) == EPOCHS * plan.steps_per_epoch
    else:
        with pytest.raises(RuntimeError, match=r"crops of step, slots .* came, wanted"):
            list(shares)


def test_the_cache_holds_no_more_than_its_limit_and_forgets_the_oldest(plan):
    one = 565 * 584 * 4  # image and label of one example, bytes
    cache = ImageCache(plan, limit_bytes=2 * one)
    for index in (0, 1, 0, 2):
        cache.get(index)
        assert cache.bytes <= 2 * one
    assert set(cache.held) == {0, 2}

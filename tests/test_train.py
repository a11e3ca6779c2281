"""A training is the same whoever does it, and says what people expect of a trainer.

Run: pytest tests/test_train.py
"""

import csv
import json
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import ray
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from verbs import assert_equal_weights, run, weights

from segpipe import ddp, lease, states, stream
from segpipe import train as train_module
from segpipe.board import Board
from segpipe.data.classes import OUTSIDE, VESSEL
from segpipe.data.layouts import open_labelled
from segpipe.ddp import Average, Best, Session, TrainJob
from segpipe.errors import Unfinished
from segpipe.models import checkpoint, networks
from segpipe.models.predict import Predictor
from segpipe.states import State
from segpipe.storage import open_store
from segpipe.storage.local import LocalStore
from segpipe.stream import Cropper, CropPlan

SMALL = ["--crops-per-image", 10, "--crop-size", 32, "--batch-size", 10]
STEPS = 4  # an epoch of four images
UNET = ["--model", "unet", "--width", 4]


@pytest.fixture
def train(labelled: Path, tmp_path: Path, ray_cluster):
    """Train into a folder of this name; its exit code must be as wanted."""

    def start(name: str, *flags: object, code: int = 0) -> Path:
        output = tmp_path / name
        words = ["--data", labelled, "--output", output, *SMALL, *flags]
        assert run("train", *words) == code
        return output

    return start


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def steps(output: Path, column: str = "loss") -> list[float]:
    files = sorted((output / "_segpipe" / "steps").iterdir())
    return [float(row[column]) for path in files for row in rows(path)]


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    ("flags", "numbers"),
    [
        pytest.param([*UNET, "--augmentation", "wnet"], (1, 2, 3, 4), id="unet"),
        pytest.param(["--model", "segnet-lite"], (1, 4), id="segnet-lite"),
        pytest.param(["--model", "wnet", "--width", 2], (2, 3), id="wnet"),
    ],
)
@NIGHTLY
@pytest.mark.cluster
def test_any_number_of_workers_has_the_same_losses(train, flags, numbers):
    """Uneven shares too: 10 crops are 4, 3 and 3 of three workers. Batch norm is over all."""
    losses = [steps(train(str(n), *flags, "--epochs", 2, "--workers", n)) for n in numbers]
    assert len(losses[0]) == 2 * STEPS
    for others in losses[1:]:
        assert others == pytest.approx(losses[0], rel=2e-5)


@pytest.mark.cluster
@NIGHTLY
def test_segnets_statistics_are_those_of_all_workers_crops(train):
    """After one step, in the encoder.

    Its losses run apart: in the flat black frame all four values of a pooling window are equal but
    for their rounding, which so decides where each is put back.
    """
    one_step = ["--model", "segnet", "--width", 2, "--crops-per-image", 3, "--epochs", 1]
    outputs = [train(n, *one_step, "--workers", n) for n in ("1", "3")]
    found = [weights(output / "model.safetensors") for output in outputs]
    names = [name for name in found[0] if name.startswith("encoder") and "running" in name]
    assert len(names) == 2 * 13
    for name in names:
        one, three = (state[name] for state in found)
        np.testing.assert_allclose(three, one, rtol=1e-3, atol=1e-5, err_msg=name)


def plain_losses(data: Path, output: Path, num_steps: int) -> list[float]:
    """segnet-lite by torch's own layers in a plain loop, from equal weights and crops."""
    store = open_store(str(data))
    examples = open_labelled(store).training
    card = checkpoint.load((output / "model.safetensors").read_bytes(), "").card
    plan = CropPlan(store, examples, card.diameter, 0, 100, 10, 32, 10)
    cropper = Cropper(plan, world_size=1)
    torch.manual_seed(0)
    network = networks.build_model("segnet-lite", classes=3)
    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for step in range(num_steps):
        batch = cropper({"step": np.array([step]), "rank": np.array([0])})
        x = torch.from_numpy(batch["image"][0]).permute(0, 3, 1, 2).float() / 255
        kept = unpool(*pool(F.relu(network.encoder(x))))
        prob = F.log_softmax(network.decoder(kept), dim=1)
        loss = F.nll_loss(prob, torch.from_numpy(batch["label"][0]).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module", params=["auto", pytest.param("off", marks=NIGHTLY)])
def unsplit(plain, tmp_path_factory, ray_cluster, request) -> Path:
    """A training of two workers on a set without splits and without masks."""
    output = tmp_path_factory.mktemp("unsplit")
    words = ["--data", plain, "--output", output, *SMALL, "--compile", request.param]
    assert run("train", *words, "--epochs", 4, "--workers", 2) == 0
    return output


def test_the_losses_are_those_of_a_plain_loop(unsplit, plain):
    assert steps(unsplit) == pytest.approx(plain_losses(plain, unsplit, 4 * STEPS), rel=1e-4)


def test_training_on_a_set_without_splits_takes_all_of_it(unsplit):
    """No test images: a history without test figures, and a training photograph in the figure."""
    assert {row["test_loss"] for row in rows(unsplit / "history.csv")} == {""}
    card = checkpoint.load((unsplit / "model.safetensors").read_bytes(), "unsplit").card
    assert "4 images" in card.training_data
    assert (unsplit / "predictions.png").exists()


@pytest.mark.cluster
def test_a_run_has_the_same_losses_when_its_workers_become_more_or_fewer(train):
    """Uneven shares too: 10 crops are 4, 3 and 3 of three workers. Batch norm is over all."""
    flags = [*UNET, "--augmentation", "wnet"]
    whole = steps(train("whole", *flags, "--epochs", 2, "--workers", 1))
    train("resumed", *flags, "--epochs", 1, "--workers", 3)
    resumed = steps(train("resumed", *flags, "--epochs", 2, "--workers", 2))
    assert len(whole) == 2 * STEPS
    assert resumed == pytest.approx(whole, rel=2e-5)


@pytest.mark.cluster
@NIGHTLY
def test_more_epochs_go_on_where_the_run_stopped(train):
    """Two epochs and then one more give the weights of three in one go."""
    once = train("once", "--epochs", 3, "--workers", 2)
    train("twice", "--epochs", 2, "--workers", 2)
    twice = train("twice", "--epochs", 3, "--workers", 2)
    assert_equal_weights(twice / "model.safetensors", once / "model.safetensors")
    assert [row["epoch"] for row in rows(twice / "history.csv")] == ["1", "2", "3"]


@NIGHTLY
@pytest.mark.cluster
def test_a_recipe_goes_on_where_it_stopped(train):
    """Averaged weights, warm-up, field crops beyond the frame, held-back calibration and all."""
    recipe = ["--recipe", "resunet", "--width", 4, "--crop-size", 48, "--validation-images", 1]
    recipe += ["--cycle-epochs", 3]
    whole = train("whole", *recipe, "--epochs", 2)
    train("resumed", *recipe, "--epochs", 1)
    resumed = train("resumed", *recipe, "--epochs", 2)
    assert_equal_weights(resumed / "model.safetensors", whole / "model.safetensors")


@pytest.mark.cluster
@NIGHTLY
def test_a_damaged_state_costs_an_epoch_and_a_warning(train, capfd):
    whole = train("whole", "--epochs", 3)
    output = train("damaged", "--epochs", 2)
    newest = output / states.FOLDER / "00002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    capfd.readouterr()
    train("damaged", "--epochs", 3)
    assert f"train: warning: {newest} is damaged" in capfd.readouterr().err
    assert [row["epoch"] for row in rows(output / "history.csv")] == ["1", "2", "3"]
    assert_equal_weights(output / "model.safetensors", whole / "model.safetensors")


@pytest.mark.cluster
def test_a_loss_that_is_no_number_ends_the_run_and_names_step_crops_and_rate(train, capfd):
    output = train("diverged", "--epochs", 2, "--lr", 1e30, code=2)
    (line,) = [text for text in capfd.readouterr().err.splitlines() if "the loss is" in text]
    assert "in epoch 1, step 1, at learning rate 1e+30" in line or "step 2" in line
    assert sum(f"{n:02d}_training crop " in line for n in range(3, 7)) >= 2
    assert line.count(" crop ") == 10
    assert not (output / "model.safetensors").exists()


CHOOSING = ["--lr", 0.1, "--schedule", "cosine", "--cycle-epochs", 2, "--validation-images", 1]
CHOOSING += ["--flips", 4]
CYCLE = 2 * (3 * STEPS // 4)  # steps: one of four images is held back


@pytest.fixture(scope="module")
def chosen(labelled, tmp_path_factory, ray_cluster) -> Path:
    """A run that held-back images ended early."""
    output = tmp_path_factory.mktemp("chosen")
    words = ["--data", labelled, "--output", output, *SMALL, *CHOOSING, "--patience", 2]
    assert run("train", *words, "--epochs", 30) == 0
    return output


def test_the_cosine_restarts_as_torchs_does(chosen):
    rates = steps(chosen, "learning_rate")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=CYCLE)
    wanted = []
    for _ in rates:
        wanted.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert rates == pytest.approx(wanted, rel=1e-6)
    assert len(set(rates)) == CYCLE


def test_the_best_epoch_by_held_back_images_ships_and_patience_ends_the_run(chosen, labelled):
    """Torch finds its loss in the kept weights; those that ship differ by their calibration."""
    losses = [float(row["val_loss"]) for row in rows(chosen / "history.csv")]
    assert len(losses) == int(np.argmin(losses)) + 1 + 2 < 30
    output, store = open_store(str(chosen)), open_store(str(labelled))
    kept = states.newest(output).arrays
    best = {name.removeprefix("best."): kept[name] for name in kept if name.startswith("best.")}
    loaded = checkpoint.load((chosen / "model.safetensors").read_bytes(), "")
    held_back = stream.canvas(store, open_labelled(store).training[-1], loaded.card.diameter)
    image, label = (torch.from_numpy(held_back[name]) for name in ("image", "label"))
    network = networks.load_network(replace(loaded, state=best))
    with torch.inference_mode():
        logits = network(image.permute(2, 0, 1)[None].float() / 255)
    loss = F.cross_entropy(logits, label[None].long()).item()
    assert loss == pytest.approx(min(losses), rel=1e-5)
    changed = {name for name in best if (loaded.state[name] != best[name]).any()}
    assert changed == {"decoder.weight", "decoder.bias"}


@pytest.mark.cluster
@NIGHTLY
def test_what_ships_is_the_last_of_a_training_that_ends_at_the_best_epoch(chosen, train):
    losses = [float(row["val_loss"]) for row in rows(chosen / "history.csv")]
    until_best = train("best", "--epochs", int(np.argmin(losses)) + 1, *CHOOSING)
    assert_equal_weights(chosen / "model.safetensors", until_best / "last.safetensors")


def test_weights_are_calibrated_on_the_held_back_photographs(chosen, labelled):
    """Scikit-learn finds nothing left to correct there."""
    loaded = checkpoint.load((chosen / "model.safetensors").read_bytes(), "")
    store = open_store(str(labelled))
    held_back = stream.canvas(store, open_labelled(store).training[-1], loaded.card.diameter)
    score = Predictor(networks.load_network(loaded)).scores(held_back["image"][None])[0]
    inside = held_back["label"] != OUTSIDE
    z = np.log(score[inside]) - np.log1p(-score[inside])
    fit = LogisticRegression(C=np.inf, tol=1e-8).fit(
        z[:, None], held_back["label"][inside] == VESSEL
    )
    assert fit.coef_[0, 0] == pytest.approx(1, abs=0.02)
    assert fit.intercept_[0] == pytest.approx(0, abs=0.05)


def test_the_threshold_is_the_best_of_the_whole_training_split(chosen, labelled):
    """No other quantile of the vessels' scores gives a higher Dice, held back or not; scores are
    means over mirror images, as the checkpoint then asks for.
    """
    loaded = checkpoint.load((chosen / "model.safetensors").read_bytes(), "")
    assert loaded.card.flips == 4
    store, predictor = open_store(str(labelled)), Predictor(networks.load_network(loaded))
    scores, truths = [], []
    for example in open_labelled(store).training:
        fitted = stream.canvas(store, example, loaded.card.diameter)
        inside = fitted["label"] != OUTSIDE
        image = fitted["image"]
        mirrored = [image, image[::-1], image[:, ::-1], image[::-1, ::-1]]
        a, b, c, d = predictor.scores(np.stack(mirrored))
        scores.append(((a + b[::-1] + c[:, ::-1] + d[::-1, ::-1]) / 4)[inside])
        truths.append(fitted["label"][inside] == VESSEL)
    score, truth = np.concatenate(scores), np.concatenate(truths)
    others = np.quantile(score[truth], np.linspace(0, 1, 101))
    dice = [f1_score(truth, score >= np.float32(t)) for t in (loaded.card.threshold, *others)]
    assert dice[0] >= max(dice[1:]) - 1e-6


def test_ctrl_c_is_again_what_it_was_before_the_training(chosen):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_training_into_one_output_is_refused(train, tmp_path, capfd):
    output = open_store(str(tmp_path / "shared"))
    with lease.hold(output):
        train("shared", "--epochs", 1, code=2)
        assert [entry.key for entry in output.list()] == [lease.LEASE]
    assert "is writing there" in capfd.readouterr().err


class Silent:
    """A board that nobody reads."""

    def __getattr__(self, name: str) -> "Silent":
        return self

    def remote(self, *_: object) -> None:
        pass


def session(output, held: lease.Lease, monkeypatch) -> Session:
    """Rank 0 after its first epoch's steps, without a Ray."""
    made, network = object.__new__(Session), nn.Linear(1, 1)
    nothing = dict.fromkeys(field.name for field in fields(TrainJob))
    plan = CropPlan(open_store("nowhere"), (), 540.0, 0, 3, 10, 32, 10)
    made.job = TrainJob(**nothing | {"plan": plan, "output": output, "claim": held.claim()})
    made.board, made.rank, made.world_size, made.epoch, made.history = Silent(), 0, 1, 0, []
    made.network = made.told_network = network
    made.average, made.best, made.shown = None, Best(), None
    made.optimizer = torch.optim.AdamW(network.parameters())
    made.steps = [{"step": 0, "loss": 1.0, "learning_rate": 1.0}]
    monkeypatch.setattr(Session, "_checkpoint", lambda self, epoch: b"weights %d" % epoch)
    return made


def test_once_another_run_holds_the_output_rank_0_writes_nothing_more(tmp_path, monkeypatch):
    """Neither a state nor any of the final files, whichever of them comes next."""
    output = open_store(str(tmp_path))
    figures = dict.fromkeys(ddp.COLUMNS, 1.0)
    with lease.hold(output) as held:
        rank_0 = session(output, held, monkeypatch)
        rank_0.finish_epoch(figures)
        rank_0.write_results()
        assert states.newest(output).epoch == 1
        card = held.card | {"owner": "another", "beat": time.time(), "progress": {}}
        output.put(lease.LEASE, json.dumps(card).encode())
        before = {entry.key: entry.version for entry in output.list()}
        for write in (lambda: rank_0.finish_epoch(figures), rank_0.write_results):
            with pytest.raises(Unfinished, match="has taken over, this run stops"):
                write()
        assert {entry.key: entry.version for entry in output.list()} == before


@pytest.mark.parametrize("last", ["_segpipe/steps/", "history.csv", "curves.png", "last."])
def test_the_lock_is_looked_at_between_the_files_of_an_end(tmp_path, monkeypatch, last):
    """Lost while a file is written, it keeps the state, or the model, from being the next."""
    output, put = open_store(str(tmp_path)), LocalStore.put

    def lose(self, key: str, data: bytes, durable: bool = True) -> None:
        put(self, key, data, durable)
        if key.startswith(last):
            put(self, lease.LEASE, json.dumps(card).encode())

    with lease.hold(output) as held:
        rank_0 = session(output, held, monkeypatch)
        card = held.card | {"owner": "another", "beat": time.time(), "progress": {}}
        monkeypatch.setattr(LocalStore, "put", lose)
        with pytest.raises(Unfinished):  # noqa: PT012  one of both
            rank_0.finish_epoch(dict.fromkeys(ddp.COLUMNS, 1.0))
            rank_0.write_results()
    assert output.head("model.safetensors") is None
    assert bool(states.newest(output)) == (last in ("curves.png", "last."))


def test_an_extension_that_is_interrupted_leaves_the_old_model_and_is_not_finished(
    labelled, tmp_path, monkeypatch, capsys
):
    """Killed after its last state and before its model. The workers are left out."""
    output = open_store(str(tmp_path / "out"))
    progress = {"history": [], "best": {"epoch": 0, "loss": 0.0}}
    put = partial(states.put, output)
    words = ["--data", labelled, "--output", output.uri(), *SMALL, "--epochs"]
    put(State({"model.x": np.zeros(9)}, progress | {"epoch": 2}))
    output.put("model.safetensors", b"of two epochs")
    assert run("train", *words, 2) == 0  # as earlier releases left it
    assert "2 epochs are finished" in capsys.readouterr().out

    def killed(*_: object) -> None:
        put(State({"model.x": np.zeros(9)}, progress | {"epoch": 3}))
        raise Unfinished("killed")

    for name in ("ray_session", "choose_device", "await_resources"):
        monkeypatch.setattr(train_module.runtime, name, lambda *_: nullcontext())
    monkeypatch.setattr(train_module, "_resources", lambda *_: {})
    monkeypatch.setattr(train_module, "_plan", lambda *_: (None, []))
    monkeypatch.setattr(train_module, "_fit", killed)
    assert run("train", *words, 3) == 1
    assert output.get("model.safetensors") == b"of two epochs"
    write = lambda *_: output.put("model.safetensors", b"of three")  # noqa: E731
    monkeypatch.setattr(train_module, "_fit", write)
    assert run("train", *words, 3) == 0
    assert output.get("model.safetensors") == b"of three"
    capsys.readouterr()
    assert run("train", *words, 3) == 0
    assert "3 epochs are finished" in capsys.readouterr().out


def test_a_training_gives_its_output_free(chosen):
    assert not (chosen / lease.LEASE).exists()


def test_a_run_that_patience_ended_is_finished(chosen, labelled, capsys):
    words = ["--data", labelled, "--output", chosen, *SMALL, *CHOOSING, "--patience", 2]
    assert run("train", *words, "--epochs", 30) == 0
    assert "epochs are finished" in capsys.readouterr().out


def test_the_rate_rises_before_it_falls(labelled):
    """One over the warm-up's steps and one more each, of what the cosine says."""
    plan = CropPlan(open_store(str(labelled)), (), 540.0, 0, 1, 10, 32, 10)
    job = TrainJob(
        **dict.fromkeys(field.name for field in fields(TrainJob))
        | {"plan": replace(plan, examples=tuple(range(100))), "lr": 2.0, "warmup_steps": 4}
    )
    rates = [job.learning_rate(step) for step in range(6)]
    assert rates == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])


def test_the_average_is_pandas_exponential_mean():
    network = nn.Linear(1, 1)
    average, seen = Average(network, 0.5), []
    for step, value in enumerate([3.0, -1.0, 4.0, 2.0]):
        with torch.no_grad():
            network.weight.fill_(value)
        average.follow(step + 100)  # past its quicker beginning
        seen.append(average.network.weight.item())
    begin = seen[0] * 2 - 3.0  # the first weight, which the average began with
    wanted = pandas.Series([begin, 3.0, -1.0, 4.0, 2.0]).ewm(alpha=0.5, adjust=False).mean()
    assert seen == pytest.approx(wanted[1:].tolist())


def test_tensorboard_reads_the_history(chosen):
    events = EventAccumulator(str(chosen / "tensorboard"))
    events.Reload()
    history = rows(chosen / "history.csv")
    for name in ("train_loss", "val_loss", "test_loss", "vessel_dice"):
        told = {event.step: event.value for event in events.Scalars(f"epoch/{name}")}
        wanted = {int(row["epoch"]): float(row[name]) for row in history}
        assert told == pytest.approx(wanted, rel=1e-6)
    told = [event.value for event in events.Scalars("step/loss")]
    assert told == pytest.approx(steps(chosen), rel=1e-6)


def test_workers_that_find_no_room_are_told_within_the_wait(train, capfd):
    everything = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    ray.get(everything.ready(), timeout=60)
    try:
        train("full", "--workers", 2, "--resource-wait", 1, code=2)
    finally:
        ray.util.remove_placement_group(everything)
    line = capfd.readouterr().err.splitlines()[-1]
    assert "--workers 2: needs " in line
    assert "--resource-wait" in line


def test_a_loop_that_is_not_there_is_refused(train, capfd):
    train("compiled", *UNET, "--compile", "on", code=2)
    assert "--compile on: no compiled form of unet in fp32" in capfd.readouterr().err


@pytest.mark.cluster
@NIGHTLY
def test_bf16_trains_nearly_alike(train):
    flags = ["--model", "wnet", "--epochs", 2]
    losses = {p: steps(train(p, *flags, "--precision", p)) for p in ("fp32", "bf16")}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize(
    ("failures", "repeated"),
    [
        ([(0, "TypeError: a", 3), (0, "TypeError: a", 3)], True),
        ([(0, "OOM: 2.5 GiB, process 123", 3), (0, "OOM: 1.25 GiB, process 7", 3)], True),
        ([(0, "at 0x7f3a", 3), (0, "killed", 5), (0, "at 0x7f3b", 3)], False),
        ([(0, "TypeError: a", 3), (1, "TypeError: a", 3)], False),  # both ranks of one start
        ([(0, "TypeError: a", 3), (0, "TypeError: a", 4)], False),
        ([(0, "TypeError: a", 3), (0, "TypeError: b", 3)], False),
    ],
)
def test_a_failure_is_repeated_where_a_rank_meets_it_again_at_its_step(failures, repeated):
    board = Board()
    assert [board.repeated(*failure) for failure in failures][-1] is repeated


def test_what_a_rank_meets_when_another_is_gone_never_ends_the_run(monkeypatch):
    """The words are those of gloo and NCCL, as torch gives them on. Without Ray's processes."""
    context = SimpleNamespace(get_world_rank=lambda: 0)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    board = SimpleNamespace(repeated=SimpleNamespace(remote=Board().repeated))
    gone = [
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed"),
        RuntimeError("NCCL communicator was aborted on rank 1."),
        torch.distributed.DistNetworkError("Connection reset by peer"),
        ray.exceptions.ActorDiedError(),
    ]
    for error in gone:
        assert [ddp._repeated(error, None, board) for _ in range(3)] == [None] * 3
    bugs = [TypeError("a bug"), torch.OutOfMemoryError("CUDA out of memory. Tried 2.00 GiB")]
    for error in bugs:
        assert ddp._repeated(error, None, board) is None
        assert "twice before the first step" in str(ddp._repeated(error, None, board))


@pytest.mark.cluster
def test_the_same_failure_twice_at_one_step_ends_the_run_in_one_line(
    train, tmp_path, monkeypatch, capfd
):
    log = tmp_path / "log"

    def work(loop: dict) -> None:
        from segpipe import ddp

        usual = ddp.Session._step

        def step(self: ddp.Session, number: int, batch: object) -> torch.Tensor:
            if self.step == STEPS + 2:
                with log.open("a") as file:
                    print(os.getpid(), file=file)
                raise torch.OutOfMemoryError(f"CUDA out of memory. Process {os.getpid()} has it")
            return usual(self, number, batch)

        ddp.Session._step = step
        ddp.work(loop)

    monkeypatch.setattr(ddp, "work", work)
    output = train("x", *UNET, "--epochs", 3, code=1)
    assert len(set(log.read_text().split())) == 2  # starts that met it
    assert states.finished_epochs(open_store(str(output))) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "OutOfMemoryError" in line]
    assert len(lines) == 1
    assert lines[0].startswith("segpipe train: OutOfMemoryError: CUDA out of memory. Process ")
    assert f"twice at step {STEPS + 3} of the training; the same command resumes" in lines[0]

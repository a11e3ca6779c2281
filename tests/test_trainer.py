"""A training is the same whoever does it, in plain torch: ranks over gloo, without a Ray.

Run: pytest tests/test_trainer.py
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import ranks
import torch
import torch.nn.functional as F
from ranks import SMALL, STEPS, UNET, history, steps
from scipy.stats import hmean
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from verbs import assert_equal_weights, run, weights

from segpipe.data.classes import CLASSES, OUTSIDE, VESSEL
from segpipe.data.layouts import open_labelled
from segpipe.errors import Unfinished, UserError
from segpipe.models import checkpoint, networks
from segpipe.models.checkpoint import Card
from segpipe.models.predict import Predictor
from segpipe.storage import lock, open_store
from segpipe.storage.local import LocalStore
from segpipe.train import crop_plan, states, trainer
from segpipe.train.crop_plan import Cropper, CropPlan
from segpipe.train.ema import ExponentialMovingAverage
from segpipe.train.job import TrainJob
from segpipe.train.settings import CropSettings, NetworkSettings, OptimizerSettings
from segpipe.train.trainer import Rank, Trainer

CROPS = CropSettings(crops_per_image=10, crop_size=32, batch_size=10)


@pytest.fixture
def train(labelled: Path, tmp_path: Path):
    """Train into a folder of this name."""

    def start(name: str, *flags: object, world_size: int = 1) -> Path:
        return ranks.train(labelled, tmp_path / name, *SMALL, *flags, world_size=world_size)

    return start


@pytest.mark.parametrize(
    ("flags", "numbers"),
    [
        pytest.param([*UNET, "--augmentation", "wnet"], (1, 4), id="unet"),
        pytest.param(["--model", "segnet-lite"], (1, 4), id="segnet-lite"),
        pytest.param(["--model", "wnet", "--width", 2], (2, 3), id="wnet"),
        # At higher rates Adam makes as much of a small gradient's rounding as of a large gradient.
        pytest.param(
            ["--model", "fineunet", "--crop-size", 64, "--lr", "1e-4"], (1, 3), id="fineunet"
        ),
    ],
)
def test_any_number_of_ranks_has_the_same_losses(train, flags, numbers):
    """Uneven shares too: 10 crops are 4, 3 and 3 of three ranks. Batch norm is over all."""
    losses = [steps(train(str(n), *flags, "--epochs", 1, world_size=n)) for n in numbers]
    assert len(losses[0]) == STEPS
    for others in losses[1:]:
        assert others == pytest.approx(losses[0], rel=2e-5)


def test_segnets_statistics_are_those_of_all_ranks_crops(train):
    """After one step, in the encoder.

    Its losses run apart: in the flat black frame all four values of a pooling window are equal but
    for their rounding, which so decides where each is put back.
    """
    one_step = ["--model", "segnet", "--width", 2, "--crops-per-image", 3, "--epochs", 1]
    outputs = [train(str(n), *one_step, world_size=n) for n in (1, 3)]
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
    plan = CropPlan(store, examples, card.diameter, 100, CROPS)
    cropper = Cropper(plan, world_size=1)
    torch.manual_seed(0)
    network = networks.build_model("segnet-lite", classes=3)
    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for step in range(num_steps):
        batch = cropper.share(step, rank=0)
        x = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float() / 255
        kept = unpool(*pool(F.relu(network.encoder(x))))
        prob = F.log_softmax(network.decoder(kept), dim=1)
        loss = F.nll_loss(prob, torch.from_numpy(batch["label"]).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_the_losses_are_those_of_a_plain_loop(plain, tmp_path, backend):
    words = [*SMALL, "--backend", backend, "--epochs", 2]
    output = ranks.train(plain, tmp_path, *words, world_size=2)
    assert steps(output) == pytest.approx(plain_losses(plain, output, 2 * STEPS), rel=1e-4)


def test_a_run_has_the_same_losses_when_its_ranks_become_more_or_fewer(train):
    """Uneven shares too: 10 crops are 4, 3 and 3 of three ranks. Batch norm is over all."""
    flags = [*UNET, "--augmentation", "wnet"]
    whole = steps(train("whole", *flags, "--epochs", 2))
    train("resumed", *flags, "--epochs", 1, world_size=3)
    resumed = steps(train("resumed", *flags, "--epochs", 2, world_size=2))
    assert len(whole) == 2 * STEPS
    assert resumed == pytest.approx(whole, rel=2e-5)


@pytest.fixture(scope="module")
def three_epochs(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two ranks, in one go."""
    output = tmp_path_factory.mktemp("three")
    return ranks.train(labelled, output, *SMALL, "--epochs", 3, world_size=2)


@pytest.mark.parametrize("damaged", [False, True])
def test_more_epochs_resume_where_the_run_stopped(train, three_epochs, damaged):
    """Two epochs and then one more give the weights of three; a damaged state costs an epoch."""
    output = train("twice", "--epochs", 2, world_size=2)
    if damaged:
        newest = output / states.FOLDER / "00002.safetensors"
        newest.write_bytes(newest.read_bytes()[:-100])
    train("twice", "--epochs", 3, world_size=2)
    assert_equal_weights(output / "model.safetensors", three_epochs / "model.safetensors")
    assert [row["epoch"] for row in history(output)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "recipe", [["resunet", "--width", 4], ["fineunet"]], ids=["torch", "native"]
)
def test_a_recipe_resumes_where_it_stopped(train, recipe):
    """Moving average, warm-up, crops beyond the frame, held-back calibration and all."""
    recipe = ["--recipe", *recipe, "--diameter", 100, "--crop-size", 48]
    recipe += ["--validation-images", 1, "--cycle-epochs", 3]
    whole = train("whole", *recipe, "--epochs", 2)
    train("resumed", *recipe, "--epochs", 1)
    resumed = train("resumed", *recipe, "--epochs", 2)
    assert_equal_weights(resumed / "model.safetensors", whole / "model.safetensors")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Weights of UNET that no training has drawn."""
    torch.manual_seed(11)
    network = networks.build_model("unet", classes=3, width=4)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    path = tmp_path / "first.safetensors"
    path.write_bytes(checkpoint.dump(state, Card("unet", 200.0, 0.5, "drawn", CLASSES, "0", 4)))
    return path


def test_a_training_starts_from_the_weights_it_is_given(train, labelled, first):
    """Its first loss is theirs, on any number of ranks, and it resumes as any other."""
    flags = [*UNET, "--seed", 3, "--diameter", 200, "--initial-weights", first, "--lr", "1e-4"]
    whole = train("whole", *flags, "--epochs", 2)
    parted = train("parted", *flags, "--epochs", 1, world_size=2)
    train("parted", *flags, "--epochs", 2)
    assert steps(parted) == pytest.approx(steps(whole), rel=2e-5)

    loaded = checkpoint.load(first.read_bytes(), "")
    store = open_store(str(labelled))
    examples = tuple(open_labelled(store).training)
    crops = CropSettings(10, 32, 10, seed=3)
    batch = Cropper(CropPlan(store, examples, loaded.card.diameter, 1, crops), 1).share(0, 0)
    network = networks.load_network(loaded).train()
    x = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2) / 255
    loss = F.cross_entropy(network(x), torch.from_numpy(batch["label"]).long())
    assert steps(whole)[0] == pytest.approx(loss.item(), rel=1e-5)

    card = checkpoint.load((whole / "model.safetensors").read_bytes(), "").card
    assert card.training_data.endswith(f"from {loaded.sha256[:16]}")


@pytest.mark.parametrize("flags", [["--width", 2], ["--model", "wnet", "--width", 4]])
def test_weights_of_another_network_are_refused(train, flags, first):
    with pytest.raises(UserError, match=r"is unet of width 4, not .*give --model and --width, or"):
        train("other", *UNET, *flags, "--initial-weights", first)


def test_a_loss_that_is_no_number_ends_the_run_on_every_rank(train, tmp_path):
    with pytest.raises(UserError, match=r"in epoch 1, step [12], at learning rate 1e\+30, with"):
        train("diverged", "--epochs", 2, "--lr", 1e30, world_size=2)
    assert not (tmp_path / "diverged" / "model.safetensors").exists()


CHOOSING = ["--lr", 0.1, "--schedule", "cosine", "--cycle-epochs", 2, "--validation-images", 1]
CHOOSING += ["--tta", "flip4"]
CYCLE = 2 * (3 * STEPS // 4)  # steps: one of four images is held back


@pytest.fixture(scope="module")
def chosen(labelled, tmp_path_factory) -> Path:
    """A run that held-back images ended early."""
    words = [*SMALL, *CHOOSING, "--patience", 2, "--epochs", 30]
    return ranks.train(labelled, tmp_path_factory.mktemp("chosen"), *words, world_size=2)


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
    losses = [float(row["val_loss"]) for row in history(chosen)]
    assert len(losses) == int(np.argmin(losses)) + 1 + 2 < 30
    output, store = open_store(str(chosen)), open_store(str(labelled))
    kept = states.newest(output).arrays
    best = {name.removeprefix("best."): kept[name] for name in kept if name.startswith("best.")}
    loaded = checkpoint.load((chosen / "model.safetensors").read_bytes(), "")
    held_back = crop_plan.canvas(store, open_labelled(store).training[-1], loaded.card.diameter)
    image, label = (torch.from_numpy(held_back[name]) for name in ("image", "label"))
    network = networks.load_network(replace(loaded, state=best))
    with torch.inference_mode():
        logits = network(image.permute(2, 0, 1)[None].float() / 255)
    loss = F.cross_entropy(logits, label[None].long()).item()
    assert loss == pytest.approx(min(losses), rel=1e-5)
    changed = {name for name in best if (loaded.state[name] != best[name]).any()}
    assert changed == {"decoder.weight", "decoder.bias"}


def test_what_ships_is_the_last_of_a_training_that_ends_at_the_best_epoch(chosen, train):
    losses = [float(row["val_loss"]) for row in history(chosen)]
    epochs = int(np.argmin(losses)) + 1
    until_best = train("best", "--epochs", epochs, *CHOOSING, world_size=2)
    assert_equal_weights(chosen / "model.safetensors", until_best / "last.safetensors")


def test_weights_are_calibrated_on_the_held_back_photographs(chosen, labelled):
    """Scikit-learn finds nothing left to correct there."""
    loaded = checkpoint.load((chosen / "model.safetensors").read_bytes(), "")
    store = open_store(str(labelled))
    held_back = crop_plan.canvas(store, open_labelled(store).training[-1], loaded.card.diameter)
    score = Predictor(networks.load_network(loaded)).scores(held_back["image"][None])[0]
    inside = held_back["label"] != OUTSIDE
    z = np.log(score[inside]) - np.log1p(-score[inside])
    fit = LogisticRegression(C=np.inf, tol=1e-8).fit(
        z[:, None], held_back["label"][inside] == VESSEL
    )
    assert fit.coef_[0, 0] == pytest.approx(1, abs=0.02)
    assert fit.intercept_[0] == pytest.approx(0, abs=0.05)


def test_the_threshold_is_the_highest_that_costs_little_on_the_whole_training_split(
    chosen, labelled
):
    """No other quantile of the vessels' scores gives a Dice more than 0.002 higher, held back or
    not, and all that are clearly above cost more; scores are means over mirror images, as the
    checkpoint then asks for.
    """
    loaded = checkpoint.load((chosen / "model.safetensors").read_bytes(), "")
    assert loaded.card.flips == 4
    store, predictor = open_store(str(labelled)), Predictor(networks.load_network(loaded))
    scores, truths = [], []
    for example in open_labelled(store).training:
        fitted = crop_plan.canvas(store, example, loaded.card.diameter)
        inside = fitted["label"] != OUTSIDE
        image = fitted["image"]
        mirrored = [image, image[::-1], image[:, ::-1], image[::-1, ::-1]]
        a, b, c, d = predictor.scores(np.stack(mirrored))
        scores.append(((a + b[::-1] + c[:, ::-1] + d[::-1, ::-1]) / 4)[inside])
        truths.append(fitted["label"][inside] == VESSEL)
    score, truth = np.concatenate(scores), np.concatenate(truths)
    others = np.quantile(score[truth], np.linspace(0, 1, 101))
    threshold = loaded.card.threshold
    precision, recall, limits = precision_recall_curve(truth, score)
    dice = {}
    for t in (threshold, *others):
        at = np.searchsorted(limits, np.float32(t))  # its scores are those >= t
        dice[t] = hmean([precision[at], recall[at]])
    least = max(dice.values()) - 0.002
    assert dice[threshold] >= least - 1e-4
    assert all(dice[t] < least + 1e-4 for t in others if t > threshold)


def test_a_run_that_patience_ended_is_finished(chosen, labelled, capsys):
    words = ["--data", labelled, "--output", chosen, *SMALL, *CHOOSING, "--patience", 2]
    assert run("train", *words, "--epochs", 30) == 0
    assert "epochs are finished" in capsys.readouterr().out


def test_tensorboard_reads_the_history(chosen):
    events = EventAccumulator(str(chosen / "tensorboard"))
    events.Reload()
    told_epochs = history(chosen)
    for name in ("train_loss", "val_loss", "test_loss", "vessel_dice"):
        told = {event.step: event.value for event in events.Scalars(f"epoch/{name}")}
        wanted = {int(row["epoch"]): float(row[name]) for row in told_epochs}
        assert told == pytest.approx(wanted, rel=1e-6)
    told = [event.value for event in events.Scalars("step/loss")]
    assert told == pytest.approx(steps(chosen), rel=1e-6)


def test_the_rate_rises_before_it_falls(labelled):
    """One over the warm-up's steps and one more each, of the highest rate."""
    rising = OptimizerSettings(lr=2.0, warmup_steps=4)
    store = open_store(str(labelled))
    plan = CropPlan(store, open_labelled(store).training * 25, 540.0, 1, CROPS)
    job = TrainJob(plan, lock.Claim(store, ""), (), NetworkSettings("unet"), rising)
    rates = [job.learning_rate(step) for step in range(6)]
    assert rates == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])


def test_the_moving_average_is_pandas_exponential_mean():
    network = nn.Linear(1, 1)
    ema, seen = ExponentialMovingAverage(network, 0.5), []
    for step, value in enumerate([3.0, -1.0, 4.0, 2.0]):
        with torch.no_grad():
            network.weight.fill_(value)
        ema.update(step + 100)  # past its quicker beginning
        seen.append(ema.network.weight.item())
    begin = seen[0] * 2 - 3.0  # the first weight, which the average began with
    wanted = pandas.Series([begin, 3.0, -1.0, 4.0, 2.0]).ewm(alpha=0.5, adjust=False).mean()
    assert seen == pytest.approx(wanted[1:].tolist())


def test_bf16_trains_nearly_alike(train):
    flags = ["--model", "wnet", "--width", 2, "--epochs", 1]
    losses = {p: steps(train(p, *flags, "--precision", p)) for p in ("fp32", "bf16")}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


def rank_0(held: lock.Lock, monkeypatch) -> Trainer:
    """After its first epoch's steps."""
    output = held.claim().output
    plan = CropPlan(output, (), 540.0, 3, CROPS)
    made = Trainer(TrainJob(plan, held.claim(), (), NetworkSettings("segnet-lite")), Rank())
    made.steps = [{"step": 0, "loss": 1.0, "learning_rate": 1.0}]
    monkeypatch.setattr(Trainer, "_checkpoint", lambda self, epoch: b"weights %d" % epoch)
    return made


def test_once_another_run_holds_the_output_rank_0_writes_nothing_more(tmp_path, monkeypatch):
    """Neither a state nor any of the final files, whichever of them comes next."""
    output = open_store(str(tmp_path))
    figures = dict.fromkeys(trainer.COLUMNS, 1.0)
    with lock.hold(output) as held:
        ours = rank_0(held, monkeypatch)
        ours.finish_epoch(figures)
        ours.write_results()
        assert states.newest(output).epoch == 1
        card = held.card | {"owner": "another", "beat": time.time(), "progress": {}}
        output.put(lock.LOCK, json.dumps(card).encode())
        before = {entry.key: entry.version for entry in output.list()}
        for write in (lambda: ours.finish_epoch(figures), ours.write_results):
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
            put(self, lock.LOCK, json.dumps(card).encode())

    with lock.hold(output) as held:
        ours = rank_0(held, monkeypatch)
        card = held.card | {"owner": "another", "beat": time.time(), "progress": {}}
        monkeypatch.setattr(LocalStore, "put", lose)
        with pytest.raises(Unfinished):  # noqa: PT012  one of both
            ours.finish_epoch(dict.fromkeys(trainer.COLUMNS, 1.0))
            ours.write_results()
    assert output.head("model.safetensors") is None
    assert bool(states.newest(output)) == (last in ("curves.png", "last."))


def test_crops_are_taken_at_the_working_diameter_that_is_given(plain, tmp_path):
    output = ranks.train(plain, tmp_path, *SMALL, "--epochs", 1, "--diameter", 150)
    assert checkpoint.load((output / "model.safetensors").read_bytes(), "").card.diameter == 150
    assert steps(output) == pytest.approx(plain_losses(plain, output, STEPS), rel=1e-4)

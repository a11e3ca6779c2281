"""The verb train, and what Ray Train does with a trainer; test_trainer.py has the trainer alone.

Run: pytest tests/test_train.py
"""

import os
import signal
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ranks
import ray
import torch
from ranks import SMALL, STEPS, UNET, history, steps
from verbs import run

from segpipe.errors import Unfinished
from segpipe.models import bf16, checkpoint
from segpipe.storage import lock, open_store
from segpipe.train import run as train_module
from segpipe.train import states, worker
from segpipe.train.board import Board
from segpipe.train.states import State


@pytest.fixture
def train(labelled: Path, tmp_path: Path, ray_cluster):
    """Train into a folder of this name; its exit code must be as wanted."""

    def start(name: str, *flags: object, code: int = 0) -> Path:
        output = tmp_path / name
        words = ["--data", labelled, "--output", output, *SMALL, *flags]
        assert run("train", *words) == code
        return output

    return start


@pytest.fixture(scope="module")
def unsplit(plain, tmp_path_factory, ray_cluster) -> Path:
    """A training of two workers on a set without splits and without masks."""
    output = tmp_path_factory.mktemp("unsplit")
    words = ["--data", plain, "--output", output, *SMALL, "--epochs", 2, "--workers", 2]
    assert run("train", *words) == 0
    return output


def test_workers_of_ray_have_the_losses_of_ranks_without_it(unsplit, plain, tmp_path):
    """From Ray Data's stream as from a cropper in each rank, bit by bit."""
    alone = ranks.train(plain, tmp_path, *SMALL, "--epochs", 2, world_size=2)
    assert len(steps(unsplit)) == 2 * STEPS
    assert steps(unsplit) == steps(alone)


@pytest.mark.cluster
@pytest.mark.nightly  # test_trainer.py has ranks become more, tests/test_kill.py resumes by Ray
def test_three_workers_resume_where_one_process_stopped(train, labelled, tmp_path):
    """Uneven shares: 10 crops are 4, 3 and 3 of three workers. Batch norm is over all."""
    flags = [*UNET, "--augmentation", "wnet"]
    whole = ranks.train(labelled, tmp_path / "whole", *SMALL, *flags, "--epochs", 2)
    ranks.train(labelled, tmp_path / "resumed", *SMALL, *flags, "--epochs", 1)
    resumed = train("resumed", *flags, "--epochs", 2, "--workers", 3)
    assert len(steps(resumed)) == 2 * STEPS
    assert steps(resumed) == pytest.approx(steps(whole), rel=2e-5)


def test_training_on_a_set_without_splits_takes_all_of_it(unsplit):
    """No test images: a history without test figures, and a training photograph in the figure."""
    assert {row["test_loss"] for row in history(unsplit)} == {""}
    card = checkpoint.load((unsplit / "model.safetensors").read_bytes(), "unsplit").card
    assert "4 images" in card.training_data
    assert (unsplit / "predictions.png").exists()


@pytest.mark.cluster
def test_a_loss_that_is_no_number_ends_the_run_and_names_step_crops_and_rate(train, capfd):
    output = train("diverged", "--epochs", 2, "--lr", 1e30, code=2)
    (line,) = [text for text in capfd.readouterr().err.splitlines() if "the loss is" in text]
    assert "in epoch 1, step 1, at learning rate 1e+30" in line or "step 2" in line
    assert sum(f"{n:02d}_training crop " in line for n in range(3, 7)) >= 2
    assert line.count(" crop ") == 10
    assert not (output / "model.safetensors").exists()


def test_ctrl_c_is_again_what_it_was_before_the_training(unsplit):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_training_into_one_output_is_refused(train, tmp_path, capfd):
    output = open_store(str(tmp_path / "shared"))
    with lock.hold(output):
        train("shared", "--epochs", 1, code=2)
        assert [entry.key for entry in output.list()] == [lock.LOCK]
        assert ", wait for it or choose another --output" in capfd.readouterr().err
        train("shared", "--epochs", 1, "--if-locked", "skip", code=0)
        assert [entry.key for entry in output.list()] == [lock.LOCK]
    assert capfd.readouterr().out.startswith(
        f"segpipe train: skipped, {output.uri()}: locked by process "
    )


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
        monkeypatch.setattr(train_module, name, lambda *_: nullcontext())
    monkeypatch.setattr(train_module, "_resources", lambda *_: {})
    job = SimpleNamespace(plan=SimpleNamespace(diameter=540.0))
    monkeypatch.setattr(train_module, "job_of", lambda *_: job)
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


def test_a_training_gives_its_output_free(unsplit):
    assert not (unsplit / lock.LOCK).exists()


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
    train("native", *UNET, "--backend", "native", code=2)
    assert "--backend native: no " in capfd.readouterr().err


def test_bf16_is_refused_where_the_nodes_have_no_such_arithmetic(train, monkeypatch, capfd):
    """Of a cluster that runs already only its nodes can tell."""
    monkeypatch.setattr(bf16, "instruction_sets", lambda: frozenset(["avx2"]))
    output = train("half", "--precision", "bf16", code=2)
    assert "--precision bf16: this CPU has no bf16 arithmetic" in capfd.readouterr().err
    assert not [path for path in output.rglob("*") if path.is_file()]


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
        assert [worker._repeated(error, None, board) for _ in range(3)] == [None] * 3
    bugs = [TypeError("a bug"), torch.OutOfMemoryError("CUDA out of memory. Tried 2.00 GiB")]
    for error in bugs:
        assert worker._repeated(error, None, board) is None
        assert "twice before the first step" in str(worker._repeated(error, None, board))


@pytest.mark.cluster
def test_the_same_failure_twice_at_one_step_ends_the_run_in_one_line(
    train, tmp_path, monkeypatch, capfd
):
    log = tmp_path / "log"

    def work(loop: dict) -> None:
        from segpipe.train import worker
        from segpipe.train.trainer import Trainer

        usual = Trainer._step

        def step(self: Trainer, number: int, batch: object) -> torch.Tensor:
            if self.step == STEPS + 2:
                with log.open("a") as file:
                    print(os.getpid(), file=file)
                raise torch.OutOfMemoryError(f"CUDA out of memory. Process {os.getpid()} has it")
            return usual(self, number, batch)

        Trainer._step = step
        worker.work(loop)

    monkeypatch.setattr(worker, "work", work)
    output = train("x", *UNET, "--epochs", 3, code=1)
    assert len(set(log.read_text().split())) == 2  # starts that met it
    assert states.finished_epochs(open_store(str(output))) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "OutOfMemoryError" in line]
    assert len(lines) == 1
    assert lines[0].startswith("segpipe train: OutOfMemoryError: CUDA out of memory. Process ")
    assert f"twice at step {STEPS + 3} of the training; the same command resumes" in lines[0]

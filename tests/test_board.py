"""A training's board that cannot be reached.

Run: pytest tests/test_board.py
"""

import threading
from types import SimpleNamespace

from ray.exceptions import ActorUnavailableError

from segpipe.train import watch


def test_a_board_that_cannot_be_reached_is_told_once_and_asked_again(monkeypatch, capsys):
    """As on a busy node: the thread that shows progress outlives it."""
    line = {"crops": 10, "rate": 5.0, "epoch": 1, "workers": 1, "figures": {"train_loss": 0.5}}
    stop = threading.Event()
    answers = iter([ActorUnavailableError("busy", None)] * 8 + [[line]])

    def get(*_: object, **__: object) -> list[dict]:
        answer = next(answers, [])
        if isinstance(answer, Exception):
            raise answer
        stop.set()
        return answer

    monkeypatch.setattr(watch.ray, "get", get)
    monkeypatch.setattr(watch.states, "finished_epochs", lambda _: 0)
    crops = SimpleNamespace(batch_size=5)
    plan = SimpleNamespace(epochs=2, steps_per_epoch=2, crops=crops)
    network = SimpleNamespace(precision="fp32")
    job = SimpleNamespace(plan=plan, native=False, network=network, device="cpu", output=None)
    stop.wait = lambda timeout: stop.is_set()
    watch._watch(SimpleNamespace(take=SimpleNamespace(remote=object)), stop, job)
    told = capsys.readouterr().err
    assert told.count("progress is not known at the moment") == 1
    assert "epoch 1/2" in told

"""What a training tells of itself, besides its weights.

    history.csv                                a row an epoch
    _segpipe/steps/epoch-00003.csv             a row a step: loss, learning rate, seconds, end
    tensorboard/events.out.tfevents.00003      the same for `tensorboard --logdir OUTPUT`

Each is written whole, under a name that follows from the epoch, so an epoch that is trained again
after a kill replaces what it had told.
"""

from __future__ import annotations

import csv
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segpipe.storage import Store, naming_space

HISTORY, CURVES, PREDICTIONS = "history.csv", "curves.png", "predictions.png"
STEPS = "_segpipe/steps/epoch-{:05d}.csv"
EVENTS = "tensorboard/events.out.tfevents.{:05d}"
PER_EPOCH = ("train_loss", "val_loss", "test_loss", "test_accuracy", "vessel_dice")

Row = dict[str, Any]


def write_history(store: Store, history: Sequence[Row]) -> None:
    store.put(HISTORY, _csv(history))


def write_epoch(store: Store, row: Row, steps: Sequence[Row]) -> None:
    """One epoch's steps and TensorBoard events; `row` is its row of the history."""
    epoch = int(row["epoch"])
    store.put(STEPS.format(epoch), _csv(steps))
    store.put(EVENTS.format(epoch), _events(row, steps))


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _events(row: Row, steps: Sequence[Row]) -> bytes:
    from tensorboardX.event_file_writer import EventsWriter  # takes a second to import
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    now, epoch = time.time(), int(row["epoch"])
    with naming_space(tempfile.gettempdir()), tempfile.TemporaryDirectory() as folder:
        # SummaryWriter's own thread dies on a full disk, and its close() then waits for ever.
        writer = EventsWriter(f"{folder}/events")

        def add(name: str, value: float, number: int) -> None:
            writer.write_event(Event(wall_time=now, step=number, summary=scalar(name, value)))

        for step in steps:
            number = (epoch - 1) * len(steps) + step["step"]
            add("step/loss", float(step["loss"]), number)
            add("step/learning_rate", float(step["learning_rate"]), number)
        for name in (*PER_EPOCH, "crops_per_second"):
            if row.get(name) not in (None, ""):
                add(f"epoch/{name}", row[name], epoch)
        writer.close()
        return next(Path(folder).iterdir()).read_bytes()

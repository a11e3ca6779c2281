"""Demo: the whole of segpipe on photographs that it draws itself, nothing to download."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.data

from segpipe.cluster.session import ray_session
from segpipe.cluster.workers import data_stage
from segpipe.data.synthetic_sets import write_archive_image, write_labelled_example
from segpipe.errors import UserError
from segpipe.evaluate.config import EvaluateConfig
from segpipe.evaluate.run import evaluate
from segpipe.flags import check_at_least, check_seed
from segpipe.progress import Progress
from segpipe.segment.config import SegmentConfig
from segpipe.segment.run import segment
from segpipe.storage import check_places, local_path, open_store
from segpipe.train.config import TrainConfig
from segpipe.train.run import train

NUM_TRAINING = NUM_TEST = 20  # as many as DRIVE has


@dataclass(frozen=True)
class DemoConfig:
    """Draw a labelled set and an archive, train on the one, segment the other, show the result.

    Run it again to resume where it stopped.
    """

    output: str
    """Folder for all that the demo makes."""
    photographs: int = 60
    """Photographs in the archive."""
    epochs: int = 5
    """Passes over 600 crops."""
    workers: int = 2
    """DDP workers of the training, and processes that segment."""
    seed: int = 0
    """Seed of the drawings and of the training."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        if "://" in self.output:
            raise UserError(f"--output {self.output}: the demo draws into a local folder, name one")
        check_places(self, "output")
        check_at_least(self, 1, "photographs", "epochs", "workers")
        check_seed(self)


def demo(config: DemoConfig) -> int:
    """Run the steps that are not done, and say where everything is and how long it took."""
    config.check()
    root = Path(local_path(config.output))
    labelled, archive, model = root / "labelled", root / "archive", root / "model"
    evaluation, segmented = root / "evaluation", root / "segmented"
    weights = str(model / "model.safetensors")
    training = TrainConfig.by_recipe(
        "lecture",
        str(labelled),
        str(model),
        epochs=config.epochs,
        workers=str(config.workers),
        seed=config.seed,
    )
    measuring = EvaluateConfig(
        (str(labelled),), str(evaluation), checkpoint=weights, workers=config.workers
    )
    segmenting = SegmentConfig(
        str(archive), str(segmented), checkpoint=weights, workers=config.workers
    )
    steps: list[tuple[str, Path, Callable[[], Any]]] = [
        ("draw", archive, lambda: draw(labelled, archive, config)),
        ("train", model, lambda: train(training)),
        ("evaluate", evaluation, lambda: _once(evaluation, lambda: evaluate(measuring))),
        ("segment", segmented, lambda: segment(segmenting)),
    ]
    training.check()
    open_store(str(root)).check_writable()
    seconds, code = {}, 0
    with ray_session():
        for name, _, step in steps:
            start = time.monotonic()
            code = step() or 0
            seconds[name] = time.monotonic() - start
    print("\nstep      seconds  where")
    for name, place, _ in steps:
        print(f"{name:<9} {seconds[name]:7.1f}  {place}")
    print(f"\nopen {segmented / 'report.html'} and {evaluation / 'report.html'}")
    return code


def _once(folder: Path, step: Callable[[], None]) -> None:
    if (folder / "report.html").exists():
        print(f"evaluate: {folder} is up to date")
    else:
        step()


def draw(labelled: Path, archive: Path, config: DemoConfig) -> None:
    """Draw what is not drawn yet, on all cores."""
    splits = [("test", n) for n in range(1, NUM_TEST + 1)]
    splits += [("training", NUM_TEST + n) for n in range(1, NUM_TRAINING + 1)]
    work = [{"kind": split, "number": number} for split, number in splits]
    work += [{"kind": "archive", "number": number} for number in range(config.photographs)]

    def draw_one(row: dict[str, Any]) -> dict[str, Any]:
        if row["kind"] == "archive":
            write_archive_image(archive, row["number"], config.seed)
        else:
            write_labelled_example(labelled, row["kind"], row["number"], config.seed)
        return row

    progress = Progress("draw")
    drawn = ray.data.from_items(work, override_num_blocks=len(work) // 4 + 1).map(
        draw_one, **data_stage()
    )
    for done, _ in enumerate(drawn.iter_rows(), start=1):
        progress.show(f"{done}/{len(work)} photographs")
    progress.show(f"{len(work)} photographs", always=True)

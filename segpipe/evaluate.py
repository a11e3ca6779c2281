"""Evaluate: a checkpoint on a labelled set, at native size, inside the field of view."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import ray.data

from segpipe import metrics, plots, runtime
from segpipe.data.classes import VESSEL
from segpipe.data.datasets import load_example
from segpipe.data.layouts import SPLITS, Example, open_labelled
from segpipe.errors import UserError
from segpipe.metrics import Confusion
from segpipe.models import checkpoint, engine
from segpipe.models.checkpoint import Card
from segpipe.models.predict import Scorer
from segpipe.runtime import Progress
from segpipe.stages import count, load_labelled
from segpipe.storage import Store, open_store, preflight

SHOWN = 3  # photographs in comparison.png: highest, median and lowest Dice


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a checkpoint against a labelled set."""

    data: str
    """Labelled set: a folder or s3://bucket/prefix in a layout that the README names."""
    output: str
    """Folder or s3://bucket/prefix for metrics.json and comparison.png."""
    checkpoint: str | None = None
    """Checkpoint file, or the name of a shipped one; the shipped default without."""
    split: str = "test"
    """Part of the set to measure on: test or training; of a set without parts all."""
    workers: int | None = None
    """Processes that run the network; one a core or GPU without."""
    device: str = "auto"
    """Where the network runs: auto, cpu or gpu."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        if self.split not in SPLITS:
            raise UserError(f"--split {self.split}: choose from {', '.join(SPLITS)}")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be 1 or more")


def evaluate(config: EvaluateConfig) -> None:
    """Write metrics.json and comparison.png."""
    config.check()
    data, output = open_store(config.data), open_store(config.output)
    preflight(data, output)
    weights = checkpoint.read(config.checkpoint)
    loaded = checkpoint.load(weights, config.checkpoint or checkpoint.DEFAULT)
    engine.check_fits(loaded)
    card = loaded.card
    examples = open_labelled(data, [config.split]).examples(config.split)
    with runtime.ray_session():
        rows = _measured(config, data, examples, weights, card)
    result = summarise(rows, card.threshold)
    result["field_of_view"] = "found" if examples[0].mask is None else "given"
    result["checkpoint"] = asdict(card)
    output.put("metrics.json", json.dumps(result, indent=1).encode())
    output.put("comparison.png", _comparison(data, examples, rows, card.threshold))
    figures = ", ".join(f"{k} {v:.4f}" for k, v in result["pooled"].items())
    inside = f"{result['field_of_view']} field of view"
    print(f"evaluate: {len(rows)} images pooled, inside the {inside}: {figures}")
    print(f"evaluate: wrote {output.uri('metrics.json')} and comparison.png")


def summarise(rows: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Rows of `name, counts, second` -> figures pooled over all pixels and of each image."""
    pooled = np.sum([row["counts"] for row in rows], axis=0)
    observers = [Confusion(*row["second"]) for row in rows if sum(row["second"])]
    result: dict[str, Any] = {
        "pooled": metrics.summary(pooled, threshold),
        "images": [
            {"name": row["name"], **metrics.summary(row["counts"], threshold)} for row in rows
        ],
    }
    if observers:
        total = Confusion(*np.sum([list(asdict(o).values()) for o in observers], axis=0).tolist())
        result["second_observer"] = total.summary()
    return result


def _measured(
    config: EvaluateConfig, data: Store, examples: Sequence[Example], weights: bytes, card: Card
) -> list[dict[str, Any]]:
    """Rows `name, counts [2, BINS], second, mask [H, W] bool` in order of the examples."""
    device = runtime.choose_device(config.device)
    workers = min(len(examples), runtime.model_workers(device, config.workers))
    listed = ray.data.from_items(
        [example.as_row() for example in examples], override_num_blocks=len(examples)
    )
    stage = runtime.data_stage(len(examples))
    measure = partial(count, data=data, diameter=card.diameter, threshold=card.threshold)
    loaded = listed.map(partial(load_labelled, data=data, diameter=card.diameter), **stage)
    scores = runtime.network_stage(loaded, Scorer, (weights,), device, workers)
    counted = scores.map(measure, **stage)
    progress, rows = Progress("evaluate"), {}
    for row in counted.iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        rows[row["name"]] = row
        progress.show(f"{len(rows)}/{len(examples)} images")
    return [rows[example.name] for example in examples]


def _comparison(
    data: Store, examples: Sequence[Example], rows: list[dict[str, Any]], threshold: float
) -> bytes:
    """The photographs with the highest, the median and the lowest Dice, against their truth."""
    dice = [metrics.confusion(row["counts"], threshold).dice for row in rows]
    order = np.argsort(dice)[::-1]
    chosen = sorted({0, len(order) // 2, len(order) - 1})
    shown = []
    for place in chosen[:SHOWN]:
        index = int(order[place])
        labelled = load_example(data, examples[index])
        predicted = rows[index]["mask"]
        title = f"{examples[index].name}: Dice {dice[index]:.3f}"
        shown.append((title, labelled.image, labelled.label == VESSEL, predicted))
    return plots.comparison(shown)

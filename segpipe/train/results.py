"""What a training writes at its end: two checkpoints and two figures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import PurePath

import torch

from segpipe import __version__, metrics, plots
from segpipe.data.classes import CLASSES
from segpipe.data.layouts import Example
from segpipe.models import checkpoint
from segpipe.models.checkpoint import Card
from segpipe.models.network import Network
from segpipe.models.predict import to_input
from segpipe.models.tta import num_scores
from segpipe.train import history
from segpipe.train.crop_plan import Batch
from segpipe.train.history import Row
from segpipe.train.job import TrainJob

MODEL, LAST = "model.safetensors", "last.safetensors"
SPARE = 0.002  # of Dice on the training photographs, for cameras that nobody trained on

CountScores = Callable[[Network, Sequence[Example], str], metrics.Counts]
"""(network, photographs, test-time augmentation) -> counts over all ranks."""


def calibrated(job: TrainJob, network: Network, epoch: int, count: CountScores) -> bytes:
    """The checkpoint of this network, with its threshold.

    Calibrated where photographs are held back: overfitted scores are too high. The threshold is
    chosen on the whole training split: a few photographs are too few for it. It is the highest that
    costs no more than SPARE there: on other cameras scores are too high. Every rank calls it.
    """
    plan, network, tta = job.plan, copy.deepcopy(network), job.selection.tta
    if job.held_back:
        network.calibrate(*metrics.fit_calibration(count(network, job.held_back, "none")))
    threshold = metrics.best_threshold(count(network, job.training_split, tta), SPARE)
    # the set's name and not its place: a checkpoint travels
    data = " + ".join(job.sets) or PurePath(plan.store.uri()).name
    first = job.network.initial_weights
    begun = f", from {first.rpartition(' ')[2]}" if first else ""  # the digest: a name is a place
    num_crops = plan.steps_per_epoch * plan.crops.batch_size
    card = Card(
        model=job.network.model,
        width=job.network.width,
        diameter=plan.diameter,
        threshold=threshold,
        training_data=f"{data}, {len(plan.examples)} images, {epoch} epochs of {num_crops} crops"
        + begun,
        classes=CLASSES,
        version=__version__,
        flips=num_scores(tta),
    )
    state = {k: v.detach().cpu().numpy() for k, v in network.state_dict().items()}
    return checkpoint.dump(state, card)


def figures(
    rows: list[Row], network: Network, device: torch.device, example: Batch | None
) -> dict[str, bytes]:
    """PNG of the losses, and of the classes in `example`: image [1, H, W, 3], label [1, H, W]."""
    files = {history.CURVES: plots.loss_curves(rows)}
    if example is not None:
        image, label = example["image"], example["label"]
        with torch.inference_mode():
            logits = network.eval()(to_input(image, device))
        prob = logits.softmax(dim=1)[0].cpu().numpy()
        files[history.PREDICTIONS] = plots.class_probabilities(image[0], prob, label[0])
    return files

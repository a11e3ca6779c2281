"""The flags of `segpipe train`, and the parts that they form."""

from __future__ import annotations

import argparse
import hashlib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import tyro

from segpipe.data.crops import AUGMENTATIONS, SAMPLINGS
from segpipe.data.globs import Reading
from segpipe.data.several import set_names
from segpipe.errors import UserError
from segpipe.flags import (
    DEVICES,
    check_above_0,
    check_anonymous,
    check_at_least,
    check_choices,
    check_seed,
)
from segpipe.models import checkpoint, engine
from segpipe.models.checkpoint import Checkpoint
from segpipe.models.loss import LOSSES
from segpipe.models.network import PRECISIONS
from segpipe.models.networks import MODELS, load_network
from segpipe.models.tta import TTA
from segpipe.storage import Store, check_places, lock
from segpipe.train.recipes import DEFAULT, RECIPES
from segpipe.train.settings import (
    CropSettings,
    DataSettings,
    NetworkSettings,
    OptimizerSettings,
    SelectionSettings,
    TrainingSettings,
    part_of,
)

CHOICES: dict[str, Iterable[object]] = {
    "model": tuple(MODELS),
    "crop_sampling": SAMPLINGS,
    "augmentation": tuple(AUGMENTATIONS),
    "loss": LOSSES,
    "tta": tuple(TTA),
    "schedule": ("constant", "cosine"),
    "precision": tuple(PRECISIONS),
    "backend": engine.BACKENDS,
    "device": DEVICES,
    "if_locked": lock.IF_LOCKED,
}


@dataclass(frozen=True)
class TrainConfig:
    """Train a network on a labelled set and write a checkpoint.

    Without --model and --recipe, fineunet is trained by the recipe fineunet. Run it again with the
    same --output to resume.
    """

    data: str
    """Labelled set: a folder or s3://bucket/prefix in a layout that docs/training-data.md names."""
    output: str
    """Folder or s3://bucket/prefix for checkpoints, history.csv and the figures."""
    sets: tuple[str, ...] | None = None
    """Folders below --data that are a labelled set each, to train on all of them together."""
    recipe: str | None = None
    """Flags by name that were found good together: fineunet, resunet, or lecture (segnet-lite as in
    the lecture); flags given beside it replace its own. With --model alone there is none: all other
    flags have plain defaults, those of the lecture."""
    model: str = "fineunet"
    """Network to train: segnet-lite, segnet, unet, wnet, resunet or fineunet."""
    width: int | None = None
    """Channels of the network's first layer; by default 64, of wnet, resunet and fineunet 8."""
    initial_weights: str | None = None
    """Checkpoint that training starts from, by a shipped one's name or its place, to fine-tune it:
    of the network and width that are trained. Without --diameter, theirs is the working diameter.
    Without initial weights, the first ones are random."""
    epochs: int = 100
    """Passes over the crops. A finished run resumes when this is raised."""
    workers: str = "1"
    """DDP workers: N, or MIN:MAX to take what the cluster has. May change when resumed."""
    crops_per_image: int = 30
    """Random crops from each training image in every epoch."""
    crop_size: int = 224
    """Side of a crop in px."""
    batch_size: int = 10
    """Crops a step, all workers together."""
    crop_sampling: str = "uniform"
    """Where crops lie: uniform over the photograph, fov (around a pixel of the field of view), or
    whole (the whole field of view)."""
    augmentation: str = "none"
    """Random changes of crops: none, wnet (as for the W-Net), wide (for other cameras), or
    wider (for those with fewer pixels too)."""
    diameter: float | None = None
    """Working diameter in px, to which every field of view is scaled; without, the median of the
    training photographs'."""
    soft_labels: bool = False
    """Labels that say what share of each pixel is vessel, where photographs are reduced to the
    working diameter, in place of one class a pixel."""
    teachers: tuple[str, ...] | None = None
    """Checkpoints whose mean score, over mirror images too, is mixed into soft labels: what they
    know is distilled into this network."""
    teachers_share: float = 0.5
    """Part of a label that teachers have, 0 to 1; what was drawn has the rest."""
    loss: str = "nll"
    """nll (negative log-likelihood), or nll+dice (and 1 - soft Dice of the vessels)."""
    lr: float = 1e-3
    """Learning rate of AdamW; under a cosine schedule the highest."""
    warmup_steps: int = 0
    """Steps of linear warm-up of the learning rate; 0: none."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    clip_norm: float = 0.0
    """Clip gradients to this global L2 norm; 0 disables."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, 0 to 1, which is evaluated and
    shipped; 0 disables."""
    schedule: str = "constant"
    """Learning rate over the run: constant, or cosine for a fall to 0."""
    cycle_epochs: int | None = None
    """Epochs after which the cosine restarts; the whole run without."""
    validation_images: int = 0
    """Training images, the last by name, that are held back to choose the best epoch by; with
    --sets the last of each set, in proportion."""
    tta: str = "none"
    """Test-time augmentation with which the threshold is chosen, and which segment and evaluate
    use with this checkpoint by default: none, or flip4 (mean over 4 mirror images)."""
    patience: int | None = None
    """Stop after this many epochs without a lower loss on the held-back images."""
    seed: int = 0
    """Seed of the weights and of every crop."""
    precision: str = "fp32"
    """fp32, or bf16 for convolutions whose sums stay in fp32: on a GPU, or a CPU that has bf16
    arithmetic."""
    backend: str = "auto"
    """What computes a step: torch, native (the network's own loop in C++), or auto: native where
    there is one."""
    device: str = "auto"
    """Where the network runs: auto, cpu or gpu."""
    anonymous: bool = False
    """Read --data without S3 credentials: a public bucket. May change when resumed."""
    resource_wait: float = 45.0
    """Seconds to wait for the workers' cores or GPUs before giving up."""
    if_locked: str = "fail"
    """Where another run holds --output: fail (exit code 2), or skip: write nothing, exit code 0."""
    accept_labels: bool = False
    """Train on labels that cannot be right, as `segpipe check` tells, with a warning."""
    images: str | None = None
    """Glob of the photographs below --data, of a set in no known layout; with --labels."""
    labels: str | None = None
    """Glob of the labels below --data; a star stands for the same in both."""
    masks: str | None = None
    """Glob of the masks of the field of view below --data; without, fields are found."""
    av_colours: str | None = None
    """What the colours of labels mean: RITE, LES-AV, DRIVE_AV or HRF, or MEANING=RRGGBB,... of
    artery, vein, crossing, uncertain and vessel; without, as the layout says. All are vessels."""

    @classmethod
    def by_recipe(cls, name: str, data: str, output: str, **flags: Any) -> TrainConfig:
        """A recipe's flags, and these in their place."""
        return replace(cls(data, output, recipe=name, **RECIPES[name]), **flags)

    @classmethod
    def preset(cls, flags: Sequence[str]) -> TrainConfig | None:
        """What the recipe that these flags name, or leave to be chosen, sets; None without one."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        parser.add_argument("--recipe", nargs="?")
        parser.add_argument("--model", nargs="?")
        given = parser.parse_known_args(flags)[0]
        if "--recipe" not in [word.partition("=")[0] for word in flags]:
            given.recipe = DEFAULT if given.model is None else None
        if given.recipe is None:
            return None
        if given.recipe == "segnet-lite":
            raise UserError("--recipe segnet-lite: is now lecture, give that")
        if given.recipe not in RECIPES:
            raise UserError(f"--recipe {given.recipe}: choose from {', '.join(RECIPES)}")
        return cls.by_recipe(given.recipe, tyro.MISSING, tyro.MISSING)

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        check_places(self, "data", "output", "initial_weights", "teachers")
        check_seed(self)
        counts = ("width", "epochs", "crops_per_image", "crop_size", "batch_size")
        check_at_least(self, 1, *counts, "cycle_epochs", "patience")
        check_at_least(self, 0, "validation_images", "resource_wait", "warmup_steps")
        check_at_least(self, 0, "weight_decay", "clip_norm")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema-decay {self.ema_decay}: must be 0 or more, and below 1")
        check_above_0(self, "lr", "diameter")
        check_choices(self, CHOICES)
        check_anonymous(self.anonymous, "--data", [self.data])
        Reading.of(self)
        set_names(self)
        if self.cycle_epochs is not None and self.schedule != "cosine":
            raise UserError(f"--cycle-epochs {self.cycle_epochs}: needs --schedule cosine")
        if self.patience is not None and not self.validation_images:
            raise UserError(f"--patience {self.patience}: needs --validation-images")
        if self.teachers == ():
            raise UserError("--teachers: no checkpoint named, name one or more")
        if not 0 <= self.teachers_share <= 1:
            raise UserError(f"--teachers-share {self.teachers_share}: must be 0 to 1")
        if self.most_workers > self.batch_size:
            raise UserError(
                f"--workers {self.workers}: more than the {self.batch_size} crops of a batch, "
                "lower it or raise --batch-size"
            )

    def check_against(self, data: Store, num_training: int) -> None:
        """Raise UserError for flags that a set with so many training images cannot satisfy."""
        if self.validation_images >= num_training:
            raise UserError(
                f"--validation-images {self.validation_images}: {data.uri()} has "
                f"{num_training} training images, at least one must be left"
            )
        num_crops = (num_training - self.validation_images) * self.crops_per_image
        if self.batch_size > num_crops:
            raise UserError(
                f"--batch-size {self.batch_size}: more than the {num_crops} crops of an epoch, "
                "lower it"
            )

    def _num_workers(self) -> list[int]:
        words = self.workers.split(":")
        if len(words) <= 2 and all(word.isdecimal() and len(word) < 10 for word in words):
            numbers = [int(word) for word in words]
            if 1 <= numbers[0] <= numbers[-1]:
                return numbers
        raise UserError(f"--workers {self.workers}: wanted N, or MIN:MAX, each 1 or more")

    @cached_property
    def teacher_weights(self) -> dict[str, bytes]:
        """The files of --teachers, by name. Raises UserError for one that is no checkpoint."""
        return {name: _weights("--teachers", name)[0] for name in self.teachers or ()}

    @cached_property
    def first_weights(self) -> bytes | None:
        """The file of --initial-weights, if any.

        Raises UserError for one that is no checkpoint, or another network's.
        """
        if self.initial_weights is None:
            return None
        data, loaded = _weights("--initial-weights", self.initial_weights)
        load_network(loaded)  # raises where weights do not fit together
        card = loaded.card
        if (card.model, card.width) != (self.model, self.width):
            raise UserError(
                f"--initial-weights {self.initial_weights}: is {_shape(card.model, card.width)}, "
                f"not {_shape(self.model, self.width)}; give --model and --width, or --recipe, as "
                "it has them"
            )
        return data

    @property
    def fewest_workers(self) -> int:
        return self._num_workers()[0]

    @property
    def most_workers(self) -> int:
        return self._num_workers()[-1]

    @property
    def elastic(self) -> bool:
        return ":" in self.workers

    def settings(self, data: Store) -> TrainingSettings:
        """What may not change when the run resumes, in parts."""
        colours = Reading.of(self).colours or None
        sets = shlex.join(set_names(self)) or None
        optimizer = part_of(self, OptimizerSettings)
        taught = [_digested(*one) for one in self.teacher_weights.items()]
        network = part_of(self, NetworkSettings)
        if self.first_weights is not None:
            first = _digested(str(self.initial_weights), self.first_weights)
            network = replace(network, initial_weights=first)
        crops = replace(part_of(self, CropSettings), teachers=", ".join(taught) or None)
        whole_run = optimizer.schedule == "cosine" and optimizer.cycle_epochs is None
        return TrainingSettings(
            DataSettings(data.uri(), self.images, self.labels, self.masks, colours, sets),
            network,
            optimizer,
            crops,
            part_of(self, SelectionSettings),
            epochs=self.epochs if whole_run else None,  # each step's rate depends on it
        )


def _weights(flag: str, name: str) -> tuple[bytes, Checkpoint]:
    """The file of a checkpoint. Raises UserError, which names the flag, for one that is none."""
    try:
        data = checkpoint.read(name)
        return data, checkpoint.load(data, f"{flag} {name}")
    except UserError as error:
        told = str(error).removeprefix("--checkpoint ").removeprefix(f"{flag} ")
        raise UserError(f"{flag} {told}") from error


def _digested(name: str, weights: bytes) -> str:
    return f"{name} {hashlib.sha256(weights).hexdigest()[:16]}"


def _shape(model: str, width: int | None) -> str:
    return f"{model} of {'its own width' if width is None else f'width {width}'}"

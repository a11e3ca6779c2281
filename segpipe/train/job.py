"""What each rank of a training needs to know."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from segpipe.data.layouts import Example, LabelledSet
from segpipe.data.survey import Look
from segpipe.errors import UserError
from segpipe.models import checkpoint, forms
from segpipe.storage import Store
from segpipe.storage.lock import Claim
from segpipe.train.crop_plan import CropPlan, scaled_size
from segpipe.train.settings import (
    CropSettings,
    NetworkSettings,
    OptimizerSettings,
    SelectionSettings,
    TrainingSettings,
)

TEST, HELD_BACK = "test", "held back"  # data sets beside the crops


@dataclass(frozen=True)
class TrainJob:
    """What a rank needs to know."""

    plan: CropPlan
    claim: Claim
    """The driver's lock on the output."""
    training_split: tuple[Example, ...]
    """The examples of the crops, then the held-back ones: the threshold is chosen on all."""
    network: NetworkSettings
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    test: tuple[Example, ...] = ()
    """Evaluated after every epoch, as the lecture does; empty where the set has none."""
    device: str = "cpu"
    """cpu or cuda"""
    sets: tuple[str, ...] = ()
    """Folders of the store that are a labelled set each; empty: it is one itself."""
    first_weights: bytes | None = None
    """The checkpoint that the first epoch starts from; None: random weights."""

    @property
    def output(self) -> Store:
        return self.claim.output

    @property
    def held_back(self) -> tuple[Example, ...]:
        """The training photographs that no crop is of; empty where none is held back."""
        return self.training_split[len(self.plan.examples) :]

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Which of TEST and HELD_BACK are evaluated after every epoch."""
        held_back = (HELD_BACK,) if self.held_back else ()
        return (*held_back, TEST) if self.test else held_back

    def learning_rate(self, step: int) -> float:
        """Of one step, counted from the run's first (Loshchilov and Hutter, arXiv:1608.03983)."""
        optimizer = self.optimizer
        rising = min(1.0, (step + 1) / (optimizer.warmup_steps + 1))
        if optimizer.schedule == "constant":
            return optimizer.lr * rising
        cycle = (optimizer.cycle_epochs or self.plan.epochs) * self.plan.steps_per_epoch
        return optimizer.lr * rising * (1 + math.cos(math.pi * (step % cycle) / cycle)) / 2

    @property
    def native_problem(self) -> str:
        """Why the network's native backend cannot be used here, or ''."""
        return native_problem(self.network, self.plan.crops, self.device)

    @property
    def native(self) -> bool:
        """Whether the network's native backend is used here."""
        return self.network.backend != "torch" and not self.native_problem


def native_problem(network: NetworkSettings, crops: CropSettings, device: str) -> str:
    """Why a network's native backend cannot be used on a "cpu" or "cuda" here, or ''."""
    shape = network.model, network.width, network.precision, device
    return forms.training_problem(*shape, crops.crop_size, network.loss, crops.soft)


def job_of(
    settings: TrainingSettings,
    epochs: int,
    data: Store,
    labelled: LabelledSet,
    looks: Sequence[Look],
    claim: Claim,
    device: str,
    diameter: float | None = None,
    teachers: Iterable[bytes] = (),
    first_weights: bytes | None = None,
) -> TrainJob:
    """`looks` begin with those of the training photographs, and tell the working diameter of a
    run without --diameter; a run that resumes has that of its start, `diameter` (px). `teachers`
    are the checkpoints' bytes, and `first_weights` those of the one to start from.

    Raises UserError for crops that are larger than a photograph.
    """
    training = tuple(labelled.training)
    looks = looks[: len(training)]
    crops = settings.crops
    seen = statistics.median(one.diameter for one in looks)
    if first_weights is not None:
        seen = checkpoint.load(first_weights, "--initial-weights").card.diameter
    diameter = float(diameter or crops.diameter or seen)
    for example, one in zip(training, looks, strict=True):
        smallest = min(scaled_size(one.height, one.width, one.diameter, diameter))
        if crops.crop_sampling == "uniform" and crops.crop_size > smallest:
            raise UserError(
                f"--crop-size {crops.crop_size}: larger than {data.uri(example.image)}, "
                f"{smallest} px on its shorter side; --crop-sampling fov allows it"
            )
    examples = training[: len(training) - settings.selection.validation_images]
    return TrainJob(
        CropPlan(data, examples, diameter, epochs, crops, tuple(teachers)),
        claim,
        training,
        settings.network,
        settings.optimizer,
        settings.selection,
        tuple(labelled.test),
        device,
        tuple(shlex.split(settings.data.sets or "")),
        first_weights,
    )

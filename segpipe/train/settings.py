"""What a training depends on, in parts, and what its output was started with.

_segpipe/settings.json    one flag a key, spelled and valued as release 0.1.0 did
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from segpipe.flags import flag
from segpipe.models.engine import IN_SETTINGS
from segpipe.models.tta import TTA, num_scores
from segpipe.storage import Store
from segpipe.storage.files import write_json
from segpipe.storage.settings import SETTINGS, read_settings

SET = "set"  # key of the files that a run was started with
NUMBERED = "numbered"  # key of whether numbers tell the splits, written where they do
DIAMETER = "diameter"  # key of the working diameter, px: how fields are found may change
KEYS = {
    "crop_sampling": "--place",
    "ema_decay": "--average",
    "tta": "--flips",
    "backend": "--compile",
}
"""Keys of the file that are not the flag of today."""
VALUES: dict[str, dict[str, Any]] = {
    "crop_sampling": {"uniform": "photograph", "fov": "field"},
    "tta": {name: num_scores(name) for name in TTA},
    "backend": IN_SETTINGS,
}
"""Values in the file that are not those of today."""


@dataclass(frozen=True)
class DataSettings:
    """The labelled set, and how it is read."""

    data: str
    """Its URI."""
    images: str | None = None
    """Globs of photographs, labels and masks; None: as its layout says."""
    labels: str | None = None
    masks: str | None = None
    av_colours: str | None = None
    """What the labels' colours mean, as colours.Scheme.parse takes it."""
    sets: str | None = None
    """Folders below it that hold a set each, as shlex.join has them; None: it is one set."""


@dataclass(frozen=True)
class NetworkSettings:
    """What is trained, and how its step is computed."""

    model: str
    """A key of MODELS."""
    width: int | None = None
    """Channels of the first layer; None: as the model has them."""
    initial_weights: str | None = None
    """The checkpoint it starts from: its name and digest; None: from random weights."""
    loss: str = "nll"
    """One of LOSSES."""
    precision: str = "fp32"
    """A key of PRECISIONS."""
    backend: str = "auto"
    """auto, native or torch."""


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate."""

    lr: float = 1e-3
    """Learning rate, the highest of its schedule."""
    warmup_steps: int = 0
    """Steps in which the rate rises from 0."""
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    """Longest global L2 norm of the gradients; 0: none is clipped."""
    ema_decay: float = 0.0
    """Decay of the weights' exponential moving average; 0: there is none."""
    schedule: str = "constant"
    """constant or cosine."""
    cycle_epochs: int | None = None
    """Epochs of a cosine's fall to 0; None: the whole run."""


@dataclass(frozen=True)
class CropSettings:
    """Which random crops are taken."""

    crops_per_image: int = 30
    """In an epoch."""
    crop_size: int = 224
    """Side, px."""
    batch_size: int = 10
    """Crops a step, all ranks together."""
    crop_sampling: str = "uniform"
    """Where crops lie, one of crops.SAMPLINGS."""
    augmentation: str = "none"
    """How crops are changed, a key of AUGMENTATIONS."""
    diameter: float | None = None
    """Working diameter, px; None: the median of the training photographs' fields."""
    soft_labels: bool = False
    """Whether labels are the share of each pixel that is vessel."""
    teachers: str | None = None
    """The checkpoints that soft labels are mixed with: names and digests; None: there is none."""
    teachers_share: float = 0.5
    """What part of a label they have."""
    seed: int = 0
    """Of the crops, and of the network's first weights."""

    @property
    def soft(self) -> bool:
        """Whether labels are soft: data/soft.py says what that is."""
        return self.soft_labels or self.teachers is not None


@dataclass(frozen=True)
class SelectionSettings:
    """How the epoch that ships and its threshold are chosen."""

    validation_images: int = 0
    """Training images, the last by name, of which no crop is taken."""
    patience: int | None = None
    """Epochs without a lower validation loss after which training stops."""
    tta: str = "none"
    """Test-time augmentation of the scores that the threshold is chosen on, a key of TTA."""


@dataclass(frozen=True)
class TrainingSettings:
    """All that may not change when a training resumes."""

    data: DataSettings
    network: NetworkSettings
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    crops: CropSettings = field(default_factory=CropSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    epochs: int | None = None
    """Of a cosine over the whole run; None: they may be raised."""

    def by_name(self) -> dict[str, Any]:
        """Every value, by the name of its flag's field."""
        values = {name: getattr(self, name) for name in PARTS}
        flat = {name: value for part in values.values() for name, value in asdict(part).items()}
        return flat | ({} if self.epochs is None else {"epochs": self.epochs})

    def by_flag(self) -> dict[str, Any]:
        return {flag(name): value for name, value in self.by_name().items()}


PARTS: dict[str, type] = {
    "data": DataSettings,
    "network": NetworkSettings,
    "optimizer": OptimizerSettings,
    "crops": CropSettings,
    "selection": SelectionSettings,
}


@dataclass(frozen=True)
class Started:
    """What an output was started with."""

    settings: TrainingSettings
    files: Mapping[str, str] | None = None
    """What the set's files were, of survey.listing; None: started by a release without it."""
    diameter: float | None = None
    """Working diameter, px; None likewise."""
    numbered: bool = False
    """Whether photographs' numbers told training and test; never before 0.2.0."""

    def to_json(self) -> dict[str, Any]:
        flat = self.settings.by_name()
        flags = {_key(name): _value(name, value) for name, value in flat.items()}
        more = {SET: self.files, DIAMETER: self.diameter, NUMBERED: self.numbered or None}
        return flags | {name: value for name, value in more.items() if value is not None}

    @classmethod
    def from_json(cls, flags: Mapping[str, Any]) -> Started:
        """`flags` has --data and --model; what else it lacks is as it was before that flag."""
        parts = {
            name: part(
                **{
                    one.name: _parsed(one.name, flags[_key(one.name)])
                    for one in fields(part)
                    if _key(one.name) in flags
                }
            )
            for name, part in PARTS.items()
        }
        settings = TrainingSettings(**parts, epochs=flags.get("--epochs"))
        numbered = bool(flags.get(NUMBERED))
        return cls(settings, flags.get(SET), flags.get(DIAMETER), numbered)

    @classmethod
    def read(cls, output: Store) -> Started | None:
        """None where nothing was started. Raises Damaged for what no training has written."""
        flags = read_settings(output, "--data", "--model")
        return cls.from_json(flags) if flags else None

    def write(self, output: Store) -> None:
        write_json(output, SETTINGS, self.to_json())


def part_of(config: Any, part: Any) -> Any:
    """A part, its fields from the config's of the same names, where it has them."""
    names = [one.name for one in fields(part) if hasattr(config, one.name)]
    return part(**{name: getattr(config, name) for name in names})


def _key(name: str) -> str:
    return KEYS.get(name, flag(name))


def _value(name: str, value: Any) -> Any:
    """As the file has it."""
    return VALUES.get(name, {}).get(value, value)


def _parsed(name: str, in_file: Any) -> Any:
    """As it is today; what no release wrote stays as it is, and equals nothing."""
    known = VALUES.get(name, {}).items()
    return next((value for value, as_filed in known if as_filed == in_file), in_file)

"""Models: the checkpoints that the package ships, how good they are and where they come from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from segpipe.models import checkpoint, structures

ACCURACY = {
    "auc": "AUC",
    "dice": "Dice",
    "artery_dice": "artery Dice",
    "vein_dice": "vein Dice",
}


@dataclass(frozen=True)
class ModelsConfig:
    """List the shipped checkpoints: parameters, accuracy, speed, training data, terms."""

    json: bool = False
    """Print one JSON object instead of lines for people."""


def models(config: ModelsConfig) -> None:
    """Print them, the default first; the network of structures is no checkpoint for others."""
    found = {name: describe(name) for name in checkpoint.shipped()}
    found[structures.NAME] = {"default": False, "bytes": len(structures.read())}
    found[structures.NAME] |= structures.about()
    names = sorted(found, key=lambda name: (name != checkpoint.DEFAULT, name))
    if config.json:
        print(json.dumps({name: found[name] for name in names}, indent=1))
    else:
        print("\n\n".join(_told(name, found[name]) for name in names))


def describe(name: str) -> dict[str, Any]:
    """What a shipped checkpoint says of itself, and what was measured of it.

    Raises UserError where its weights are damaged.
    """
    data = checkpoint.read(name)
    card = asdict(checkpoint.load(data, name).card)
    return (
        {"default": name == checkpoint.DEFAULT, "bytes": len(data)} | card | checkpoint.about(name)
    )


def _told(name: str, facts: dict[str, Any]) -> str:
    accuracy = "; ".join(
        f"{data} "
        + " ".join(f"{word} {figures[key]:.4f}" for key, word in ACCURACY.items() if key in figures)
        for data, figures in facts["accuracy"].items()
    )
    default = " (default)" if facts["default"] else ""
    lines = {
        "network": f"{facts['model']}, {facts['parameters']:,} parameters",
        "accuracy": accuracy,
        "speed": facts["speed"],
        "trained on": facts["training_data"],
        "threshold": f"{facts['threshold']:.4f}" if "threshold" in facts else "",
        "terms": facts["terms"],
        "sha256": facts["sha256"],
    }
    told = (f"  {key:<10} {text}" for key, text in lines.items() if text)
    return "\n".join([f"{name}{default}", *told])

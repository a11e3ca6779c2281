"""Trainings by name: `segpipe train --recipe NAME` sets these flags, and others given replace them.

How each did, and what every choice is worth: results/networks.md and results/ablations.md.
"""

from __future__ import annotations

from typing import Any

VESSELS: dict[str, Any] = {
    "place": "field",
    "augmentation": "wide",
    "schedule": "cosine",
    "batch_size": 4,
    "crop_size": 256,
    "crops_per_image": 30,
    "weight_decay": 1e-4,
    "warmup_steps": 100,
    "average": 0.998,
    "lr": 2e-3,
    "clip_norm": 0.3,
}

RECIPES: dict[str, dict[str, Any]] = {
    "segnet-lite": {"model": "segnet-lite"},  # the lecture's, which are the defaults
    "resunet": {"model": "resunet", "epochs": 70} | VESSELS,
}

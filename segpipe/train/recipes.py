"""Trainings by name: `segpipe train --recipe NAME` sets these flags, and others given replace them.

How each did: results/networks.md. What was tried on the way: results/LOG.md.
"""

from __future__ import annotations

from typing import Any

DEFAULT = "fineunet"  # where neither --recipe nor --model is given
COMMON = {  # what both networks were found to want
    "crops_per_image": 30,
    "batch_size": 4,
    "crop_sampling": "fov",
    "augmentation": "wider",
    "lr": 3e-3,
    "schedule": "cosine",
    "warmup_steps": 100,
    "weight_decay": 1e-4,
    "clip_norm": 0.3,
    "ema_decay": 0.998,
}
RECIPES: dict[str, dict[str, Any]] = {
    "lecture": {"model": "segnet-lite"},  # all else are the plain defaults
    # 9,432 steps on DRIVE and HRF together: what the shipped default was fine-tuned from
    "fineunet": COMMON | {"model": "fineunet", "diameter": 1024.0, "epochs": 36, "crop_size": 512},
    # 9,600 steps on DRIVE, an hour of one core: it made the shipped resunet
    "resunet": COMMON | {"model": "resunet", "epochs": 64, "crop_size": 256, "tta": "flip4"},
}

"""What each choice of the recipe is worth, and other networks under it: 1,000 steps, one seed.

    python benchmarks/ablations.py [NAME ...]

Needs DRIVE below SEGPIPE_DATA; some five minutes of one core with AMX a row, and it goes on where
it stopped. Each row is `segpipe train --recipe resunet` with what its line says, judged on four
photographs held back. Writes results/ablations.md of the rows that are done.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from common import ROOT, drive, facts, history_of, minutes_of, run, write

from segpipe import metrics
from segpipe.data.classes import OUTSIDE, VESSEL
from segpipe.data.layouts import open_labelled
from segpipe.models import checkpoint
from segpipe.models.fused import fused
from segpipe.models.networks import load_network
from segpipe.models.predict import Predictor
from segpipe.storage import open_store
from segpipe.train.crop_plan import canvas

HELD_BACK = 4
FLAGS = f"--recipe resunet --precision bf16 --validation-images {HELD_BACK}"
SHORT = "--epochs 8"  # of 120 steps
ROWS = {
    "the recipe": SHORT,
    "no augmentation": f"{SHORT} --augmentation none",
    "wnet": f"{SHORT} --model wnet --width 8 --lr 1e-2",
    "no softer crops": f"{SHORT} --augmentation wide",
    "augmentation of the W-Net": f"{SHORT} --augmentation wnet",
    "whole fields": "--epochs 2 --crop-sampling whole --crop-size 512 --batch-size 1",
    "segnet": f"{SHORT} --model segnet --width 8",
    "unet": f"{SHORT} --model unet --width 8",
    "crops inside the photograph": f"{SHORT} --crop-sampling uniform",
    "constant rate": f"{SHORT} --schedule constant",
    "loss with Dice": f"{SHORT} --loss nll+dice",
    "no averaging": f"{SHORT} --ema-decay 0",
    "no clipping": f"{SHORT} --clip-norm 0",
    "rate 1e-3": f"{SHORT} --lr 1e-3",
    "twice the width": f"{SHORT} --width 16",
}


def folder(name: str) -> Path:
    return ROOT / "runs" / "ablations" / name.replace(" ", "-")


def judged(weights: bytes) -> dict[str, float]:
    """Figures of the held-back photographs at working scale; the threshold is the best on them."""
    loaded = checkpoint.load(weights, "model.safetensors")
    predictor = Predictor(fused(load_network(loaded), "cpu", "fp32"))
    store = open_store(str(drive()))
    counts = np.zeros((2, metrics.BINS), np.int64)
    for example in open_labelled(store).training[-HELD_BACK:]:
        fitted = canvas(store, example, loaded.card.diameter)
        score, label = predictor.scores(fitted["image"][None])[0], fitted["label"]
        counts += metrics.count_scores(score, label == VESSEL, label != OUTSIDE)
    return metrics.summary(counts, metrics.best_threshold(counts))


def main() -> None:
    unknown = set(sys.argv[1:]) - set(ROWS)
    if unknown:
        raise SystemExit(f"{', '.join(sorted(unknown))}: choose from {', '.join(ROWS)}")
    for name in sys.argv[1:] or ROWS:
        words = f"{FLAGS} {ROWS[name]}".split()
        run(["-m", "jobs.train", *words, "--data", drive(), "--output", folder(name)])
    lines = [
        *facts("python benchmarks/ablations.py"),
        "Four photographs of DRIVE's training split, held back: loss a pixel, AUC, AP and Dice of",
        "the vessels inside the field at working scale, at the threshold that is best on them.",
        "",
        f"| `segpipe train {FLAGS}` and | val_loss | AUC | AP | Dice | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, changed in ROWS.items():
        output = folder(name)
        if not (output / "model.safetensors").exists():
            continue
        history = history_of(output)
        loss = min(float(row["val_loss"]) for row in history)
        found = judged((output / "model.safetensors").read_bytes())
        lines.append(
            f"| {name}: `{changed}` | {loss:.4f} | {found['auc']:.4f} | "
            f"{found['average_precision']:.4f} | {found['dice']:.4f} | {minutes_of(history):.1f} |"
        )
    write("ablations.md", lines)


if __name__ == "__main__":
    main()

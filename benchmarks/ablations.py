"""What each choice of the default's recipe is worth beside another seed: 1,000 steps.

    python benchmarks/ablations.py [NAME ...]

Needs DRIVE and HRF below SEGPIPE_DATA; some five minutes of one core a row, and it goes on where it
stopped. Each row is the recipe with what its line says, by plain_training.py, judged on photographs
of both sets held back. Writes results/ablations.md of the rows that are done.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import ROOT, data_folder, facts, history_of, minutes_of, run, write

from segpipe import metrics
from segpipe.data.classes import OUTSIDE, VESSEL
from segpipe.data.globs import Reading
from segpipe.data.several import open_sets
from segpipe.models import checkpoint
from segpipe.models.fused import fused
from segpipe.models.networks import load_network
from segpipe.models.predict import Predictor
from segpipe.storage import open_store
from segpipe.train.config import TrainConfig
from segpipe.train.crop_plan import canvas

SETS, HELD_BACK = ("DRIVE", "HRF"), 7  # photographs: 4 of DRIVE, 3 of HRF
FLAGS = f"--sets {' '.join(SETS)} --recipe fineunet --validation-images {HELD_BACK}"
SHORT = "--epochs 5"  # of 210 steps
ROWS = {
    "the recipe": SHORT,
    "another seed": f"{SHORT} --seed 1",
    "a third seed": f"{SHORT} --seed 2",
    "soft labels": f"{SHORT} --soft-labels",
    "twice the width": f"{SHORT} --width 16",
    "no augmentation": f"{SHORT} --augmentation none",
    "no softer crops": f"{SHORT} --augmentation wide",
    "crops inside the photograph": f"{SHORT} --crop-sampling uniform",
    "half the diameter": f"{SHORT} --diameter 540 --crop-size 256",
    "pixels alone (resunet)": f"{SHORT} --model resunet --diameter 540 --crop-size 256",
    "loss with Dice": f"{SHORT} --loss nll+dice",
    "no averaging": f"{SHORT} --ema-decay 0",
    "no clipping": f"{SHORT} --clip-norm 0",
    "rate 1e-3": f"{SHORT} --lr 1e-3",
}


def folder(name: str) -> Path:
    return ROOT / "runs" / "ablations" / name.replace(" ", "-")


def judged(weights: bytes) -> dict[str, dict[str, float]]:
    """Figures of each set's held-back photographs at working scale, by one threshold: the best on
    all of them together."""
    loaded = checkpoint.load(weights, "model.safetensors")
    predictor = Predictor(fused(load_network(loaded), "cpu", "fp32"))
    store = open_store(str(data_folder()))
    reading = Reading.of(TrainConfig.by_recipe("fineunet", store.uri(), "none"))
    counts: dict[str, npt.NDArray[np.int64]] = {}
    for example in open_sets(store, SETS, reading).training[-HELD_BACK:]:
        fitted = canvas(store, example, loaded.card.diameter)
        score, label = predictor.scores(fitted["image"][None])[0], fitted["label"]
        found = metrics.count_scores(score, label == VESSEL, label != OUTSIDE)
        name = example.image.partition("/")[0]
        counts[name] = counts.get(name, 0) + found
    threshold = metrics.best_threshold(sum(counts.values(), np.zeros((2, metrics.BINS), np.int64)))
    return {name: metrics.summary(counts[name], threshold) for name in SETS}


def main() -> None:
    unknown = set(sys.argv[1:]) - set(ROWS)
    if unknown:
        raise SystemExit(f"{', '.join(sorted(unknown))}: choose from {', '.join(ROWS)}")
    for name in sys.argv[1:] or ROWS:
        words = f"{FLAGS} {ROWS[name]}".split()
        places = "--data", data_folder(), "--output", folder(name)
        run([ROOT / "benchmarks" / "plain_training.py", *words, *places])
    lines = [
        *facts("python benchmarks/ablations.py"),
        "Photographs of the training split, held back, four of DRIVE and three of HRF: loss a",
        "pixel, AUC and Dice of the vessels inside the field at working scale, at one threshold,",
        "which is best on both sets together.",
        "",
        f"| `{FLAGS}` and | val_loss | DRIVE: AUC | Dice | HRF: AUC | Dice | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, changed in ROWS.items():
        output = folder(name)
        if not (output / "model.safetensors").exists():
            continue
        history = history_of(output)
        loss = min(float(row["val_loss"]) for row in history)
        of_sets = judged((output / "model.safetensors").read_bytes()).values()
        figures = " | ".join(f"{one['auc']:.4f} | {one['dice']:.4f}" for one in of_sets)
        lines.append(
            f"| {name}: `{changed}` | {loss:.4f} | {figures} | {minutes_of(history):.1f} |"
        )
    write("ablations.md", lines)


if __name__ == "__main__":
    main()

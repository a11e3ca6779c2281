"""The table of networks: a trained checkpoint measured on three sets, and put beside others.

    python benchmarks/networks.py NAME OUTPUT_OF_TRAIN "COMMAND OF ITS TRAINING"    measures one
    python benchmarks/networks.py --again NAME                  measures a shipped one once more
    python benchmarks/networks.py --ship NAME                   ships a measured one's weights
    python benchmarks/networks.py                               writes the table

Needs DRIVE, STARE and HRF below SEGPIPE_DATA. Each network is a folder of results/networks/: what
`segpipe evaluate` wrote of each set, the training's history and facts.json. Writes
results/networks.md; networks of which no weights are at hand keep the sets they were measured on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from common import ROOT, drive, facts, history_of, minutes_of, run, write
from readme import FIGURES, cells

from segpipe.models import checkpoint, engine
from segpipe.models.tta import num_scores, tta_of

FOLDER = ROOT / "results" / "networks"
WEIGHTS = ROOT / "segpipe" / "models" / "weights"
SETS = {"DRIVE": "DRIVE test", "STARE": "STARE", "HRF": "HRF 06 to 15"}
TTA = {"none": "", "flip4": "-flips-4"}  # and how the file's name ends
TERMS = "Apache-2.0, as segpipe. They hold no photograph of a data set."


def add(name: str, trained: Path, command: str) -> None:
    """Evaluate the checkpoint of a training, and keep what tells of it."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    weights = trained / "model.safetensors"
    evaluate(name, weights)
    shutil.copy(trained / "history.csv", folder / "history.csv")
    minutes = round(minutes_of(history_of(trained)), 1)
    tell(name, weights, {"command": command, "training_minutes": minutes})


def again(name: str) -> None:
    """Measure a shipped checkpoint once more; how it was trained stays as it was told."""
    told = json.loads((FOLDER / name / "facts.json").read_text())
    evaluate(name, WEIGHTS / f"{name}.safetensors")
    tell(name, WEIGHTS / f"{name}.safetensors", told)


def evaluate(name: str, weights: Path) -> None:
    """On every set, with and without test-time augmentation."""
    for data_set in SETS:
        output = ROOT / "runs" / "networks" / name / data_set
        found = [] if data_set == "DRIVE" else ["--fov", "found"]  # no masks on other cameras
        for tta, kept in TTA.items():
            words = ["-m", "jobs.evaluate", "--data", drive().parent / data_set, *found]
            words += ["--output", output / tta, "--tta", tta, "--checkpoint", weights]
            words += ["--backend", "torch", "--precision", "fp32"]  # the same on every machine
            run(words)
            found_there = output / tta / "metrics.json"
            shutil.copy(found_there, FOLDER / name / f"{data_set}{kept}.json")


def tell(name: str, weights: Path, training: dict[str, Any]) -> None:
    """Write facts.json: what is known of the training, and this machine's engines."""
    data = weights.read_bytes()
    loaded = checkpoint.load(data, name)
    state = loaded.state.items()
    learned = [array for key, array in state if "running" not in key and "num_batches" not in key]
    trials = engine.find_trials(data, "cpu")
    chosen = engine.select(trials, "auto", "auto")
    told = training | {
        "weights": str(weights.resolve().relative_to(ROOT)),
        "parameters": sum(array.size for array in learned),
        "flips": loaded.card.flips,
        "engine": chosen.engine.name,
        "ms_per_canvas": chosen.ms,
        "eager_ms_per_canvas": trials[0].ms,
        "sha256": loaded.sha256,
        "facts": facts(f"python benchmarks/networks.py {name} ...")[:-2],
    }
    (FOLDER / name / "facts.json").write_text(json.dumps(told, indent=1) + "\n")


def ship(name: str) -> None:
    """Weights and what was measured of them, into the package."""
    told = json.loads((FOLDER / name / "facts.json").read_text())
    data = (ROOT / told["weights"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == told["sha256"]
    (WEIGHTS / f"{name}.safetensors").write_bytes(data)
    tta = tta_of(told["flips"])
    about = {
        "sha256": told["sha256"],
        "parameters": told["parameters"],
        "accuracy": {
            title: {key: round(_pooled(name, data_set, TTA[tta])[key], 4) for key in FIGURES}
            for data_set, title in SETS.items()
        },
        "speed": f"{num_scores(tta) * told['ms_per_canvas']:.0f} ms a photograph on one core ("
        f"{told['engine']}; "
        + ", ".join(line.partition(": ")[2] for line in told["facts"] if "machine" in line)
        + ")",
        "terms": TERMS,
    }
    (WEIGHTS / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")


def _pooled(name: str, data: str, kept: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name / f"{data}{kept}.json").read_text())["pooled"]
    return found


def table() -> None:
    names = sorted(folder.name for folder in FOLDER.iterdir())
    rows = {name: json.loads((FOLDER / name / "facts.json").read_text()) for name in names}
    lines: list[str] = []
    for data, title in SETS.items():
        measured = [name for name in names if (FOLDER / name / f"{data}.json").exists()]
        lines += [
            f"{title}, native size, inside the {'given' if data == 'DRIVE' else 'found'} field of "
            "view, pooled; threshold from training photographs, and Dice at the one that would be "
            "best on these:",
            "",
            "| | parameters | " + " | ".join(FIGURES.values()) + " | Dice at best |",
            "|---|---|" + "---|" * (len(FIGURES) + 1),
        ]
        for name in measured:
            usual = tta_of(rows[name]["flips"])
            for tta in sorted(TTA, key=lambda tta: tta != usual):
                pooled = _pooled(name, data, TTA[tta])
                figures = " | ".join(cells(pooled))
                best = f"{pooled['best_dice']:.4f}" if "best_dice" in pooled else "–"
                told = name if tta == usual else f"{name}, `--tta {tta}`"
                lines.append(f"| {told} | {rows[name]['parameters']:,} | {figures} | {best} |")
        first = json.loads((FOLDER / measured[0] / f"{data}.json").read_text())
        if second := first.get("second_observer"):
            lines.append(f"| second human observer | – | {' | '.join(cells(second))} | – |")
        lines.append("")
    lines += [
        "| | training, minutes | ms a canvas, one core | torch fp32, ms | command |",
        "|---|---|---|---|---|",
    ]
    for name, told in rows.items():
        speed = (
            f"{told['ms_per_canvas']:.1f} ({told['engine']}) | {told['eager_ms_per_canvas']:.1f}"
        )
        lines.append(f"| {name} | {told['training_minutes']} | {speed} | `{told['command']}` |")
    write("networks.md", [*facts("python benchmarks/networks.py"), *lines])


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            table()
        case ["--ship", name]:
            ship(name)
        case ["--again", name]:
            again(name)
        case [name, trained, command]:
            add(name, Path(trained), command)
        case _:
            raise SystemExit(__doc__)

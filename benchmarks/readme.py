"""Write results/lecture/summary.md; fill the blocks of README.md and of pages in docs/.

    python benchmarks/readme.py

A block names a file of results/, or one of TABLES here. Files of results stay as they were
measured; the pages show them with today's names of flags and engines.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segpipe.models import checkpoint

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
LECTURE = RESULTS / "lecture"
PAGES = tuple(ROOT / page for page in ("README.md", "docs/measurements.md", "docs/planning.md"))
BLOCK = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
RENAMED = (  # with 0.2.0: what a file of results may say, and what it is called now
    (r"\bcompiled (fp32|bf16)", r"native \1"),
    (r"\beager (fp32|bf16)", r"torch \1"),
    (r"The compiled form finds", "The native loop finds"),
    (r"--flips 1\b", "--tta none"),
    (r"--flips 4\b", "--tta flip4"),
    (r"once for each of --flips", "once for each image of --tta"),
    (r"(W-Net), 1 flip,", r"\1, no test-time augmentation,"),
    (r"(W-Net), 4 flips,", r"\1, flip4,"),
    (r"`--batch-size 512`", "`--group-size 512`"),
    (r"--place field\b", "--crop-sampling fov"),
    (r"--place photograph\b", "--crop-sampling uniform"),
    (r"--place whole\b", "--crop-sampling whole"),
    (r"--average\b", "--ema-decay"),
    (r"\bno averaging\b", "no exponential moving average"),
    (r"(segpipe train)(?= --epochs)", r"\1 --recipe lecture"),  # the default until then
    (r"(segpipe scale --job train)(?!.*--(?:model|recipe))", r"\1 --recipe lecture"),
    (r"\bTruth, pooled", "Masks, pooled"),
    (r"\bthe looks at the test images and the end\b", "the tests after epochs and the end"),
    (r"\bbegun again\b", "started again"),
    (r"\b(\d+) courses\b", r"\1 simulated runs"),
)
FIGURES = {
    "auc": "AUC",
    "average_precision": "AP",
    "dice": "Dice",
    "mcc": "MCC",
    "sensitivity": "Sens",
    "specificity": "Spec",
    "accuracy": "Acc",
}


def renamed(text: str) -> str:
    """What was measured under older names, under today's."""
    for old, new in RENAMED:
        text = re.sub(old, new, text)
    return text


def cells(result: dict[str, Any], names: Iterable[str] = FIGURES) -> list[str]:
    """These figures of a result, as a table shows them; text as it is."""
    found = [result.get(name, "–") for name in names]
    return [one if isinstance(one, str) else f"{one:.4f}" for one in found]


def lecture_summary() -> str:
    """The recorded training and its evaluation as two tables."""
    with (LECTURE / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    result = json.loads((LECTURE / "metrics.json").read_text())
    lines = ["| epoch | train loss | test loss | test accuracy |", "|---|---|---|---|"]
    for epoch in (1, 2, 10, 50, 100):
        row = history[epoch - 1]
        values = [f"{float(row[k]):.3f}" for k in ("train_loss", "test_loss", "test_accuracy")]
        lines.append(f"| {epoch} | {' | '.join(values)} |")
    lines += ["", "DRIVE test, native size, inside the field of view, pooled:", ""]
    lines += [f"| | {' | '.join(FIGURES.values())} |", "|---|" + "---|" * len(FIGURES)]
    for title, row in (
        ("segnet-lite, 3,523 parameters", result["pooled"]),
        ("second human observer", result["second_observer"]),
    ):
        lines.append(f"| {title} | {' | '.join(cells(row))} |")
    return "\n".join(lines) + "\n"


def how_good() -> str:
    """The default beside the W-Net and the second observer: accuracy, and speed in one run."""
    speed = (RESULTS / "default-model.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in speed.splitlines() if line.startswith("| ")]
    (ours,) = [row for row in rows if row[0].startswith(f"**segpipe, {checkpoint.DEFAULT},")]
    wnet = [row for row in rows if row[0].startswith("plain W-Net")][-1]  # the last one is flip4
    told = dict(line[2:].split(": ", 1) for line in speed.splitlines() if line.startswith("- "))
    folder = RESULTS / "networks" / checkpoint.DEFAULT
    facts = json.loads((folder / "facts.json").read_text())
    flips = "" if facts["flips"] == 1 else f"-flips-{facts['flips']}"
    files = [folder / f"{name}{flips}.json" for name in ("DRIVE", "STARE", "HRF")]
    sets = [json.loads(path.read_text()) for path in files]
    authors = json.loads((RESULTS / "wnet-authors.json").read_text())
    lines = [
        "| | parameters | DRIVE test: AUC | Dice | STARE: AUC | Dice | HRF 06 to 15: AUC | Dice | "
        "images/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, parameters, results, rate in (
        (
            f"**segpipe's default**, `{checkpoint.DEFAULT}`",
            f"{facts['parameters']:,}",
            [one["pooled"] for one in sets],
            f"**{ours[1]}**",
        ),
        (
            f"[W-Net]({authors['source']}), its authors' weights; plain loop",
            f"{authors['parameters']:,}",
            [authors["DRIVE"], authors["STARE"], authors["HRF"]],
            wnet[1],
        ),
        ("second human observer", "–", [one.get("second_observer", {}) for one in sets], "–"),
    ):
        figures = [cell for one in results for cell in cells(one, ("auc", "dice"))]
        lines.append(f"| {title} | {parameters} | {' | '.join(figures)} | {rate} |")
    engine = ours[0].strip("*").split("**")[0].split(", ")[-1]
    lines += [
        "",
        f"Images/s: whole photographs of DRIVE's size on {told['machine']}, {told['date']}, commit "
        f"{told['commit']}; segpipe's engine there is `{engine}`.",
    ]
    return "\n".join(lines) + "\n"


TABLES = {"how-good-how-fast": how_good}


def filled(text: str) -> str:
    """The text with every block replaced by what its marker names."""

    def block(name: str) -> str:
        return TABLES[name]() if name in TABLES else (ROOT / name).read_text()

    return BLOCK.sub(lambda m: f"{m[1]}{renamed(block(m[2]))}{m[3]}", text)


if __name__ == "__main__":
    (LECTURE / "summary.md").write_text(lecture_summary())
    for page in PAGES:
        page.write_text(filled(page.read_text()))

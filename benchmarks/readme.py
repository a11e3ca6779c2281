"""Write results/lecture/summary.md; fill the blocks of README.md and of pages in docs/.

python benchmarks/readme.py
"""

import csv
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LECTURE = ROOT / "results" / "lecture"
PAGES = tuple(ROOT / page for page in ("README.md", "docs/models.md", "docs/planning.md"))
BLOCK = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def lecture_summary() -> str:
    """The recorded training and its evaluation as two tables."""
    with (LECTURE / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    result = json.loads((LECTURE / "metrics.json").read_text())
    names = ("auc", "average_precision", "dice", "mcc", "sensitivity", "specificity", "accuracy")
    lines = ["| epoch | train loss | test loss | test accuracy |", "|---|---|---|---|"]
    for epoch in (1, 2, 10, 50, 100):
        row = history[epoch - 1]
        values = [f"{float(row[k]):.3f}" for k in ("train_loss", "test_loss", "test_accuracy")]
        lines.append(f"| {epoch} | {' | '.join(values)} |")
    lines += ["", "DRIVE test, native size, inside the field of view, pooled:", ""]
    lines += [
        "| | AUC | AP | Dice | MCC | Sens | Spec | Acc |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, row in (
        ("segnet-lite, 3,523 parameters", result["pooled"]),
        ("second human observer", result["second_observer"]),
    ):
        values = [f"{row[name]:.4f}" if name in row else "–" for name in names]
        lines.append(f"| {title} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """The text with every block replaced by the file that its marker names."""
    return BLOCK.sub(lambda m: f"{m[1]}{(ROOT / m[2]).read_text()}{m[3]}", text)


if __name__ == "__main__":
    (LECTURE / "summary.md").write_text(lecture_summary())
    for page in PAGES:
        page.write_text(filled(page.read_text()))

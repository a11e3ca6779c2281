"""What the benchmarks share: the loops beside which speed is measured, and the facts of a run."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """Where the real sets are, if they are."""
    return _folder("SEGPIPE_DATA", "../shared/data")


def drive() -> Path:
    """The real DRIVE. Raises SystemExit where it is not."""
    return _needed("SEGPIPE_DATA", "../shared/data") / "DRIVE"


def loops() -> Path:
    """The plain loops (lecture_train.py, plain_segment.py, ray_docs_segment.py)."""
    return _needed("SEGPIPE_BASELINES", "../shared/baselines")


def _needed(variable: str, default: str) -> Path:
    folder = _folder(variable, default)
    if not folder.is_dir():
        raise SystemExit(f"{folder} is missing, set {variable}")
    return folder


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or ROOT / default).resolve()


def tree_at(commit: str, folder: Path, *paths: str) -> Path:
    """The folder with the repository, or these paths of it, as it was at a commit."""
    archive = subprocess.run(
        ["git", "archive", commit, *paths], capture_output=True, cwd=ROOT, check=True
    ).stdout
    folder.mkdir(exist_ok=True)
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder


def run(
    words: list[object], env: dict[str, str] | None = None, cwd: Path = ROOT
) -> tuple[float, str]:
    """`python WORDS` -> its wall seconds and what it printed. Raises SystemExit where it fails."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | (env or {}),
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed:\n{done.stderr[-2000:]}")
    return time.monotonic() - start, done.stdout


def last_json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        [line for line in text.splitlines() if line.startswith("{")][-1]
    )
    return found


def many_images(folder: Path, count: int) -> Path:
    """`count` DRIVE photographs, each under several names, in one flat folder."""
    return repeated(folder, count, sorted(drive().glob("*/images/*.tif")))


def repeated(folder: Path, count: int, originals: list[Path]) -> Path:
    """`count` links to these files, each under several names, in one flat folder."""
    folder.mkdir()
    for number in range(count):
        original = originals[number % len(originals)]
        (folder / f"{number:05d}_{original.name}").symlink_to(original)
    return folder


def facts(command: str) -> list[str]:
    """The lines with which a file of results begins."""
    with open("/proc/cpuinfo") as file:
        model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "pillow", "numpy"))
    return [
        f"- date: {datetime.now(UTC).date().isoformat()}",
        f"- machine: {os.cpu_count()} cores, {model}",
        f"- versions: Python {platform.python_version()}, {packages}",
        f"- commit: {commit}",
        f"- command: {command}",
        "",
    ]


def history_of(trained: Path) -> list[dict[str, str]]:
    """The rows of a training's history.csv."""
    with (trained / "history.csv").open() as file:
        return list(csv.DictReader(file))


def minutes_of(history: list[dict[str, str]]) -> float:
    """What its epochs took, measuring apart."""
    return sum(float(row["seconds"]) for row in history) / 60


def write(name: str, lines: list[str]) -> None:
    """results/NAME, and the same to read at once."""
    text = "\n".join(lines) + "\n"
    (ROOT / "results" / name).write_text(text)
    print(text)

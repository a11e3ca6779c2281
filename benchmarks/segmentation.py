"""Segmentation beside the loops that people write without segpipe, all in one run.

    python benchmarks/segmentation.py [--images 1000]        (a part of `make bench`)

The plain loop as a user runs it and under the allocator of segpipe's eager engines, the pipeline of
Ray Data's documentation, and segpipe: first over as many images (in parentheses below), last over
four times as many, as it takes seconds where they take minutes. Then the machine's ceiling: cores
divided by the seconds per image of fetch, decode, model and write, each alone (ceilings.py),
on one core and on all at once; and the truth of the masks. Needs DRIVE below SEGPIPE_DATA and the
loops in SEGPIPE_BASELINES. A quarter of an hour on 2 cores. Writes results/segmentation.md. Rates
are steady ones; seconds are of whole processes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import ROOT, drive, facts, last_json, loops, many_images, run, write

from segpipe import metrics
from segpipe.cluster.workers import model_env
from segpipe.data.canvas import fit_field, native_mask
from segpipe.data.classes import VESSEL
from segpipe.data.datasets import load_example
from segpipe.data.layouts import open_labelled
from segpipe.models import checkpoint, engine
from segpipe.scaling import pinned
from segpipe.scaling.findings import PARTS as PARTS_OF
from segpipe.storage import open_store

MODEL = "segnet-lite"  # what the plain loops run
MORE = 4  # times as many images for segpipe's steady rate
ALONE_S = 20  # seconds for which each part is repeated
PARTS = PARTS_OF["segment"]


class Speed(NamedTuple):
    rate: float
    """Images a second, steady."""
    process_s: float


def by_segpipe(
    images: Path,
    output: Path,
    flags: tuple[object, ...] = ("--checkpoint", MODEL),
    env: dict[str, str] | None = None,
    tree: Path = ROOT,
) -> tuple[Speed, dict[str, Any]]:
    words = ["-m", "jobs.segment", "--input", images, "--output", output, *flags]
    seconds, _ = run(words, env, tree)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["ok"] == len(list(images.iterdir())), summary
    return Speed(summary["images_per_second"], seconds), summary


def by_plain_loop(images: Path, output: Path, env: dict[str, str]) -> Speed:
    seconds, printed = run([loops() / "plain_segment.py", images, output], env)
    return Speed(last_json(printed)["images_per_second"], seconds)


def by_ray_documentation(images: Path, output: Path) -> Speed:
    seconds, printed = run([loops() / "ray_docs_segment.py", images, output])
    return Speed(last_json(printed)["steady_images_per_second"], seconds)


def parts_alone(images: Path, output: Path, cores: list[int]) -> dict[str, float]:
    """Milliseconds of a core per image of each part, by a process on each of these at once."""
    chosen = engine.select(engine.find_trials(checkpoint.read(MODEL), "cpu"), "auto", "auto")
    words = ["--input", images, "--output", output, "--checkpoint", MODEL, "--seconds", ALONE_S]
    words += ["--engine", chosen.backend, chosen.precision, "--cores", *cores]
    rates = {
        part: last_json(run(["-m", "segpipe.scaling.ceilings", part, *words])[1])["rate"]
        for part in PARTS
    }
    return {part: 1000 * len(cores) / rate for part, rate in rates.items()}


def truth(model: str, native: engine.Engine) -> tuple[float, list[float]]:
    """Vessel Dice of an engine against eager fp32, and both against DRIVE test's first observer."""
    weights = checkpoint.read(model)
    card = checkpoint.load(weights, model).card
    engines = (engine.REFERENCE, native)
    scores = [engine.open_score(weights, one, 2, card.tta) for one in engines]
    masks: list[list[np.ndarray]] = [[], []]
    drawn, store = [], open_store(str(drive()))
    for example in open_labelled(store).test:
        labelled = load_example(store, example)
        canvas, fov, geometry = fit_field(labelled.image, labelled.fov, card.working)
        drawn.append((labelled.label == VESSEL)[labelled.fov])
        for found, score in zip(masks, scores, strict=True):
            mask = native_mask(score(canvas, fov), fov, geometry, card.threshold)
            found.append((mask == VESSEL)[labelled.fov])
    agreement = engine.vessel_dice(*masks)
    assert agreement is not None
    observer = np.concatenate(drawn)
    return agreement, [
        metrics.confusion_of(np.concatenate(found), observer).dice for found in masks
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    count = parser.parse_args().images
    cores = pinned.own_cores()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images = many_images(work / "images", count)
        many = many_images(work / "many", MORE * count)
        short, _ = by_segpipe(images, work / "short")
        loop = by_plain_loop(images, work / "plain", {})
        same = by_plain_loop(images, work / "same", model_env()["env_vars"])
        documentation = by_ray_documentation(images, work / "documentation")
        ours, summary = by_segpipe(many, work / "ours")
        alone = {
            name: parts_alone(images, work / "alone", taken)
            for name, taken in (("one core", cores[:1]), ("all cores at once", cores))
        }
    rows = {
        "plain loop, as a user runs it (glibc)": loop,
        "plain loop, jemalloc with huge pages that keeps its pages": same,
        "Ray's documentation": documentation,
    }
    lines = [
        *facts(f"python benchmarks/segmentation.py --images {count}"),
        "| segnet-lite over DRIVE-size images | images | images/s, steady | whole process, s | "
        "segpipe's steady rate is | its whole process is |",
        "|---|---|---|---|---|---|",
    ]
    for name, speed in rows.items():
        steady = f"{ours.rate / speed.rate:.1f} ({short.rate / speed.rate:.1f}) times as high"
        whole = f"{speed.process_s / short.process_s:.1f} times as short"
        facts_of = f"{count} | {speed.rate:.1f} | {speed.process_s:.0f}"
        lines.append(f"| {name} | {facts_of} | {steady} | {whole} |")
    for number, speed in ((count, short), (MORE * count, ours)):
        rate, seconds = f"{speed.rate:.1f}", f"{speed.process_s:.0f}"
        name = f"segpipe, {summary['engine']['name']}"
        lines.append(f"| {name} | {number} | {rate} | {seconds} | | |")
    stages = {name: s for name, s in summary["stages"].items() if s >= 0.01}
    told = ", ".join(f"{name} {1000 * s / (MORE * count):.2f}" for name, s in stages.items())
    lines += [
        "",
        f"Stages of the last run, ms on the clock of a worker per image: {told}. Bottleneck: "
        f"{summary['bottleneck']}.",
        "",
        "| ms of a core per image, each part alone | "
        + " | ".join(PARTS)
        + " | sum | ceiling, images/s "
        "| segpipe's share |",
        "|---|" + "---|" * (len(PARTS) + 3),
    ]
    for name, parts in alone.items():
        total = sum(parts.values())
        ceiling = len(cores) * 1000 / total
        figures = " | ".join(f"{parts[part]:.2f}" for part in PARTS)
        lines.append(
            f"| {name} | {figures} | {total:.2f} | {ceiling:.0f} | {ours.rate / ceiling:.2f} |"
        )
    chosen = engine.select(engine.find_trials(checkpoint.read(MODEL), "cpu"), "auto", "auto")
    agreement, dice = truth(MODEL, chosen.engine)
    lines += [
        "",
        f"Truth, pooled over DRIVE test: vessel Dice of {chosen.engine.name} against eager fp32 "
        f"{agreement:.5f}; Dice against the first observer {dice[1]:.5f}, of eager fp32 "
        f"{dice[0]:.5f}.",
    ]
    write("segmentation.md", lines)


if __name__ == "__main__":
    main()

"""Fits the quality of a mask, and tells how far it can be trusted: STARE degraded, and no retinas.

    python benchmarks/quality.py [--samples FILE] [--only-test]

Fits on DRIVE's training photographs and HRF's 01 to 05, degraded as quality_pictures.py has it,
and on pictures of no retina; writes segpipe/measurement/trust.json. Then STARE, by which nothing
was chosen, and other pictures. FILE keeps the figures that the fit was made of, so that it can be
made again without the network. Half an hour of a core; 5 minutes with --only-test. Writes
results/quality.md.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from common import ROOT, facts, write
from quality_pictures import DEGRADATIONS, DRAWN, LEVELS, Labelled
from quality_sets import (
    MIXED,
    bundled,
    degraded,
    in_a_circle,
    no_retinas,
    of_stare,
    of_training,
    rgb,
    seed,
)
from scipy.optimize import minimize
from scipy.stats import spearmanr

from segpipe.data.arrays import Image8
from segpipe.data.canvas import native_mask
from segpipe.data.classes import VESSEL
from segpipe.data.fitting import fit_array
from segpipe.data.synthetic import draw_fundus
from segpipe.errors import RejectedImage
from segpipe.measurement import trust
from segpipe.measurement.quality import hints_of, reduce_canvas
from segpipe.models import checkpoint, engine
from segpipe.segment.stages import keep_pages

JSON = ROOT / "segpipe/measurement/trust.json"
FOLDS = 7  # by photograph
DRAWINGS = 12  # of each kind of picture that shows no retina
SHARPER = 1e-4  # weight of the squared coefficients: of figures scaled to unit variance
NO_RETINA = 3.0  # weight of such a picture beside a photograph's: there are fewer
READABLE = 0.25  # Dice from which a photograph must be taken for one
UNTRUSTED = 0.03  # of expected Dice: below that the second model has nothing to do
REPEATS = 5
TERMS: dict[str, list[tuple[str, float, float, int]]] = {
    # figure, the range it is clipped to, the sign of its weight
    "dice": [
        ("expected_dice", 0.0, 1.0, 1),
        ("spread", 0.0, 0.8, 1),
        ("spread", 0.75, 1.0, -1),  # blocks of a JPEG are everywhere
        ("connected", 0.0, 1.0, 1),
        ("field_px", 5.0, 9.0, 1),
        ("focus", 0.0, 0.7, 1),
        ("focus", 0.6, 3.0, -1),
        ("grain", -7.0, -3.0, -1),
        ("readable", 0.85, 1.0, 1),
        ("dark_share", 0.45, 0.7, 1),
        ("explained", 0.92, 1.0, -1),
        ("hues", 0.05, 0.15, -1),
    ],
    "retina": [
        ("order", 0.3, 0.95, 1),
        ("dark_share", 0.3, 0.65, 1),
        ("exposure", 0.6, 0.9, -1),  # of green: paper is as bright as this, no retina is
        ("edges", -4.5, -1.5, -1),
        ("hues", 0.05, 0.3, -1),
        ("other_lines", -3.5, -1.5, -1),
        ("connected", 0.0, 1.0, 1),
        ("spread", 0.0, 1.0, 1),
    ],
}
REAL = (  # of scikit-image and scikit-learn, whose packages have them
    *("brick.png", "grass.png", "gravel.png", "coins.png", "coffee.png", "chelsea.png"),
    *("moon.png", "camera.png", "ihc.png", "motorcycle_left.png", "cell.png", "logo.png"),
    *("clock_motion.png", "color.png", "china.jpg"),
)
OTHERS = ("astronaut.png", "page.png", "text.png", "rocket.jpg", "flower.jpg", "phantom.png")

Floats = npt.NDArray[np.float64]
Rows = list[dict[str, Any]]


# ---- samples


class Samples:
    """Pictures segmented by the default: `photo, kind, level, rejected`, true `dice`, `quality`,
    and to fit it, its `figures`."""

    def __init__(self) -> None:
        keep_pages()
        weights = checkpoint.read(None)
        self.card = checkpoint.load(weights, checkpoint.DEFAULT).card
        self.engine = engine.select(engine.find_trials(weights, "cpu"), "auto", "auto").engine
        self.score = engine.open_score(weights, self.engine, 1, self.card.tta)
        self.rows, self.ms = list[dict[str, Any]](), list[tuple[float, float]]()

    def add(self, photo: str, kind: str, level: int, image: Image8, label: Labelled | None) -> None:
        row: dict[str, Any] = {"photo": photo, "kind": kind, "level": level, "rejected": ""}
        row |= {"dice": 0.0, "quality": 0.0}
        self.rows.append(row)
        try:
            fitted = fit_array(np.ascontiguousarray(image), self.card.working)
        except RejectedImage as error:
            row["rejected"] = error.fault.value
            return
        canvas, fov, geometry = fitted.canvas, fitted.fov, fitted.geometry
        score, threshold = self.score(canvas, fov), self.card.threshold
        zoom = geometry.box_height / geometry.scaled_height
        start = time.process_time()
        reduced = reduce_canvas(canvas, fov)
        hints = hints_of(reduced)
        middle = time.process_time()
        found = trust.figures_of(hints, canvas, fov, score, threshold, zoom, reduced)
        row |= {"figures": found, "quality": trust.quality_of(found, trust.coefficients())}
        self.ms.append((1000 * (middle - start), 1000 * (time.process_time() - middle)))
        if label is not None:
            mask = native_mask(score, fov, geometry, threshold)
            row["dice"] = dice(mask, label)


def dice(mask: Image8, label: Labelled) -> float:
    """Of vessels inside the label's field, at its size."""
    size = label.fov.shape[::-1]
    found = cv2.resize((mask == VESSEL).view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    found &= label.fov
    vessel = label.vessel & label.fov
    return float(2 * (found & vessel).sum() / max(1, found.sum() + vessel.sum()))


def collect() -> Rows:
    samples = Samples()
    for name, one in of_training():
        for kind, level, photograph in degraded(name, one):
            samples.add(name, kind, level, photograph.image, photograph)
        for kind, image in no_retinas(one.image, one.fov):
            samples.add(name, kind, 0, image, None)
        single = np.repeat(one.image[..., 1:2], 3, axis=2)
        samples.add(name, "grey", -1, single, one)
        print(name, len(samples.rows), flush=True)
    for number in range(DRAWINGS):
        for kind, draw in DRAWN.items():
            samples.add(f"{kind}{number}", kind, number, draw(seed(kind, number)), None)
    for number in range(MIXED):
        image, _, fov = draw_fundus(100 + number)
        for kind, picture in no_retinas(image, fov):
            samples.add(f"drawn{number}", kind, 0, picture, None)
    for name in REAL:
        image = rgb(bundled(name))
        samples.add(name, "others", 0, image, None)
        samples.add(name, "others", 1, in_a_circle(image), None)
    return samples.rows


# ---- the fit


def design(terms: list[tuple[str, float, float, int]], found: list[dict[str, float]]) -> Floats:
    columns = [[min(max(one[name], low), high) for one in found] for name, low, high, _ in terms]
    return np.array(columns, np.float64).T


def logistic(x: Floats, y: Floats, weight: Floats, signs: list[int]) -> tuple[float, Floats]:
    """Weighted logistic regression toward y in [0, 1] with weights of these signs -> bias,
    weights."""
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-9
    z, share = (x - mean) / std, weight / weight.sum()

    def loss(p: Floats) -> tuple[float, Floats]:
        total = z @ p[1:] + p[0]
        value = share @ (np.logaddexp(0, total) - y * total) + SHARPER * p[1:] @ p[1:]
        slope = share * (1 / (1 + np.exp(-total)) - y)
        return float(value), np.append(slope.sum(), z.T @ slope + 2 * SHARPER * p[1:])

    bounds = [(None, None)] + [(0, None) if sign > 0 else (None, 0) for sign in signs]
    found = minimize(loss, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds)
    weights = found.x[1:] / std
    return float(found.x[0] - weights @ mean), weights


def model_of(name: str, found: list[dict[str, float]], y: Floats, weight: Floats) -> dict[str, Any]:
    terms = TERMS[name]
    bias, weights = logistic(design(terms, found), y, weight, [one[3] for one in terms])
    rows = [
        [term[0], term[1], term[2], round(float(w), 4)]
        for term, w in zip(terms, weights, strict=True)
    ]
    return {"bias": round(bias, 4), "terms": rows}


def fit(rows: Rows) -> dict[str, Any]:
    """Rows with `figures`, `dice`, and whether they show a `retina` -> both models."""
    seen = [row for row in rows if row["retina"]]
    models = {
        "dice": model_of(
            "dice",
            [row["figures"] for row in seen],
            np.array([row["dice"] for row in seen]),
            np.ones(len(seen)),
        )
    }
    used = [
        row
        for row in rows
        if (
            row["dice"] > READABLE
            if row["retina"]
            else trust.quality_of(row["figures"], models) > UNTRUSTED
        )
    ]
    is_retina = np.array([float(row["retina"]) for row in used])
    weight = np.where(is_retina > 0, 1.0, NO_RETINA)
    models["retina"] = model_of("retina", [row["figures"] for row in used], is_retina, weight)
    return models


def validated(rows: Rows) -> list[str]:
    """Quality of photographs and pictures that the fit did not see, in turns."""
    names = sorted({row["photo"] for row in rows})
    order = np.random.default_rng(0).permutation(len(names))
    fold = {names[place]: n % FOLDS for n, place in enumerate(order)}
    for number in range(FOLDS):
        models = fit([row for row in rows if fold[row["photo"]] != number])
        for row in rows:
            if fold[row["photo"]] == number:
                row["quality"] = trust.quality_of(row["figures"], models)
    seen, others = [r for r in rows if r["retina"]], [r for r in rows if not r["retina"]]
    told, true = (np.array([row[name] for row in seen]) for name in ("quality", "dice"))
    taken = [row for row in others if row["quality"] >= 0.1]
    return [
        f"Left out in turns ({FOLDS} folds by photograph), {len(seen)} degraded photographs of "
        f"DRIVE and HRF: Spearman with the true Dice {spearmanr(told, true)[0]:.3f}, mean error "
        f"{np.abs(told - true).mean():.3f}. Of {len(others)} pictures of no retina "
        f"{len(others) - len(taken)} have a quality below 0.1.",
        "",
    ]


# ---- the test


def tested(samples: Samples) -> list[str]:
    for name, one in of_stare():
        for kind, level, photograph in degraded(name, one):
            samples.add(name, kind, level, photograph.image, photograph)
        print(name, len(samples.rows), flush=True)
    rows = [row for row in samples.rows if not row["rejected"]]
    told, true = (np.array([row[name] for row in rows]) for name in ("quality", "dice"))
    bad = np.array([row["kind"] != "none" for row in rows])
    lines = [
        f"STARE, {len(rows)} degraded photographs of 20 ({len(samples.rows) - len(rows)} more "
        f"were rejected, as without a field of view), first observer: **Spearman of quality with "
        f"the true vessel Dice {spearmanr(told, true)[0]:.3f}** "
        f"({spearmanr(told[bad], true[bad])[0]:.3f} without the {int((~bad).sum())} as "
        f"they were), mean error {np.abs(told - true).mean():.3f}, "
        f"bias {(told - true).mean():+.3f}.",
        "",
        "Means over the photographs, quality / true Dice, by strength; a rejected one is 0 / 0:",
        "",
        f"| | as it is | {' | '.join(map(str, range(1, LEVELS + 1)))} | Spearman |",
        "|---|---|" + "---|" * (LEVELS + 1),
    ]
    for kind in DEGRADATIONS:
        cells, some = [], [row for row in samples.rows if row["kind"] == kind]
        for level in range(-1, LEVELS):
            wanted = ("none", -1) if level < 0 else (kind, level)
            here = [row for row in samples.rows if (row["kind"], row["level"]) == wanted]
            q, d = (np.mean([row[name] for row in here]) for name in ("quality", "dice"))
            cells.append(f"{q:.2f} / {d:.2f}")
        rho = spearmanr([r["quality"] for r in some], [r["dice"] for r in some])[0]
        lines.append(f"| {kind} | {' | '.join(cells)} | {rho:.2f} |")
    lines += ["", "What a cut keeps of these:", ""]
    lines += [
        "| `--min-quality` | kept | their mean Dice | of the ungradable | kept, Dice below 0.5 |",
        "|---|---|---|---|---|",
    ]
    for least in (0.3, 0.5, 0.6, 0.7):
        kept, left = true[told >= least], true[told < least]
        lines.append(
            f"| {least} | {len(kept) / len(true):.0%} | {kept.mean():.3f} | {left.mean():.3f} | "
            f"{(kept < 0.5).mean():.1%} |"
        )
    return [*lines, ""]


def others(samples: Samples) -> list[str]:
    """Pictures of no retina that the fit did not see."""
    first = len(samples.rows)
    for name, one in of_stare():
        for kind, image in no_retinas(one.image, one.fov):
            samples.add(name, f"STARE, {kind}", 0, image, None)
    for number in range(2 * MIXED):
        image, _, fov = draw_fundus(900 + number)
        for kind, picture in no_retinas(image, fov):
            samples.add(f"drawn{number}", f"drawn fundi, {kind}", 0, picture, None)
    for kind, draw in DRAWN.items():
        for number in range(2 * DRAWINGS):
            samples.add(kind, f"drawn, {kind}", 0, draw(seed("test", kind, number)), None)
    for name in OTHERS:
        picture = rgb(bundled(name))
        samples.add(name, f"{name}, whole and in a circle", 0, picture, None)
        samples.add(name, f"{name}, whole and in a circle", 1, in_a_circle(picture), None)
    by_kind: dict[str, Rows] = defaultdict(list)
    for row in samples.rows[first:]:
        by_kind[row["kind"]].append(row)
    lines = [
        "Pictures of no retina, none of them seen by the fit:",
        "",
        "| | pictures | rejected | quality below 0.1 | largest |",
        "|---|---|---|---|---|",
    ]
    for kind, some in by_kind.items():
        told = [row["quality"] for row in some if not row["rejected"]]
        below = sum(one < 0.1 for one in told)
        lines.append(
            f"| {kind} | {len(some)} | {len(some) - len(told)} | {below} "
            f"| {max(told, default=0):.2f} |"
        )
    missed = [row for row in samples.rows[first:] if not row["rejected"] and row["quality"] >= 0.1]
    total = len(samples.rows) - first
    lines += ["", f"{total - len(missed)} of {total} are rejected or below 0.1.", ""]
    samples.add("retina.jpg", "retina", 0, rgb(bundled("retina.jpg")), None)
    lines.append(
        "A photograph of a retina from a camera of none of the sets (scikit-image's `retina`): "
        f"quality {samples.rows.pop()['quality']:.2f}."
    )
    drawn = []
    for number in range(MIXED):
        samples.add("drawn", "drawn", 0, draw_fundus(900 + number)[0], None)
        drawn.append(samples.rows.pop()["quality"])
    lines += [f"Drawn fundi: {min(drawn):.2f} to {max(drawn):.2f}.", ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=Path, default=ROOT / "runs/quality.pkl")
    parser.add_argument("--only-test", action="store_true")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    samples, lines = Samples(), list[str]()
    if not given.only_test:
        if not given.samples.exists():
            given.samples.parent.mkdir(parents=True, exist_ok=True)
            with given.samples.open("wb") as file:
                pickle.dump(collect(), file)
        with given.samples.open("rb") as file:
            rows = [row for row in pickle.load(file) if not row["rejected"]]
        for row in rows:
            row["retina"] = row["kind"] in {"none", "grey", "mixed", *DEGRADATIONS}
        lines = validated(rows)
        print("\n".join(lines), flush=True)
        JSON.write_text(json.dumps(fit(rows), indent=1) + "\n")
        trust.coefficients.cache_clear()
    lines += tested(samples)
    lines += others(samples)
    hints, own = np.median(np.array(samples.ms), axis=0)
    lines.append(
        f"CPU time of a photograph whose field is {samples.card.diameter:g} px wide, one thread, "
        f"median: {own:.1f} ms beside the {hints:.1f} ms of the hints."
    )
    command = "python benchmarks/quality.py" + (" --only-test" if given.only_test else "")
    head = f"Checkpoint {samples.card.model} by {samples.engine.name}."
    write("quality.md", [*facts(command), head, "", *lines])


if __name__ == "__main__":
    main()

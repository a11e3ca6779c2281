"""`segpipe plan` held against reality: fitted at one worker, asked about what was not fitted.

    python benchmarks/plan.py [--rounds 2] [--rows results/plan.jsonl] [--reference]

`segpipe scale` measures DRIVE's photographs as JPEGs (quality 90, seeded noise) in four sizes, on
one pinned core and on two. Costs are fitted from three sizes at one core; two cores, the fourth
size, an archive five times as large and a tiny one are predicted, rate and whole seconds, and stand
beside what their runs gave. A round is a run of each, 25 minutes on 2 cores: where a machine's
speed drifts, rounds of several hours tell more than runs one after the other, and each has an
order of its own. --rows counts those of earlier rounds too, and with --rounds 0 they are only
fitted anew. --reference writes the costs, and what benchmarks/driver.py measures, to
segpipe/planning/reference.json. Writes results/plan.md and results/plan.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, facts, last_json, run, write
from large import enlarged

from segpipe.models import checkpoint
from segpipe.planning import costs
from segpipe.planning.costs import Costs, Measured
from segpipe.planning.forecast import Setting, forecast

QUICK, USUAL = "segnet-lite", "resunet"  # the first shows the framework, the second is the default
SIZES = {"0.3 MP": (565, 584), "4.2 MP": (2048, 2048), "12 MP": (4288, 2848), "6 MP": (3008, 2000)}
DRIVER = ("key_s", "page_s", "driver_group_s", "part_s", "row_s", "row_bytes", "request_s")


@dataclass(frozen=True)
class Case:
    """One archive on some numbers of cores."""

    size: str
    images: int
    workers: tuple[int, ...]
    fitted: bool
    """Whether its runs at one core are fitted."""
    network: str = QUICK
    ceiling_s: float = 0.0


CASES = (
    Case("0.3 MP", 1200, (1, 2), True, ceiling_s=5.0),
    Case("0.3 MP", 240, (1, 2), True),
    Case("4.2 MP", 300, (1, 2), True),
    Case("12 MP", 300, (1, 2), True),
    Case("6 MP", 300, (1, 2), False),
    Case("0.3 MP", 6000, (2,), False),
    Case("0.3 MP", 60, (2,), False),
    Case("0.3 MP", 240, (1, 2), True, USUAL, ceiling_s=5.0),
    Case("0.3 MP", 1200, (2,), False, USUAL),
    Case("6 MP", 300, (2,), False, USUAL),
)


def measured_rows(number_of_round: int) -> list[dict[str, Any]]:
    """What `segpipe scale` says of all cases; each row with its case's number, and its round's as
    its repeat.
    """
    rows = []
    order = random.Random(number_of_round).sample(list(enumerate(CASES)), len(CASES))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for number, case in order:
            words = ["-m", "segpipe", "scale", "--job", "segment", "--repeats", 1]
            words += ["--workers", *case.workers, "--limit", case.images]
            words += ["--input", photographs(case.size)]
            words += ["--output", work / f"case{number}", "--checkpoint", case.network]
            run([*words, "--ceiling-seconds", case.ceiling_s])
            text = (work / f"case{number}" / "results.jsonl").read_text()
            told = {"case": number, "repeat": number_of_round}
            rows += [json.loads(line) | told for line in text.splitlines()]
    return rows


def photographs(size: str) -> Path:
    """As many as the largest case wants; they are drawn once and kept."""
    count = max(case.images for case in CASES if case.size == size)
    folder = ROOT / "runs" / "plan" / f"{size.replace(' ', '')}-{count}"
    return enlarged(folder, count, *SIZES[size])


def fitted(rows: Sequence[dict[str, Any]], start: Measured, network: str) -> Measured:
    some = [row for row in rows if CASES[row["case"]].fitted and row["workers"] == 1]
    return costs.fit(some, start, _diameter(network), network)


def _diameter(network: str) -> float:
    return checkpoint.load(checkpoint.read(network), network).card.diameter


def table(rows: Sequence[dict[str, Any]], known: dict[str, Measured]) -> list[str]:
    lines = [
        "| network | photographs | images | cores | fitted | images/s predicted | real | error | "
        "seconds predicted | real | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number, case in enumerate(CASES):
        for workers in case.workers:
            real = [
                row
                for row in rows
                if (row["case"], row["workers"], row["part"]) == (number, workers, "job")
            ]
            lines.append(_line(case, workers, real, known[case.network]))
    return lines


def _line(case: Case, workers: int, real: list[dict[str, Any]], known: Measured) -> str:
    size = real[0]["image_bytes"], real[0]["image_megapixels"]
    setting = Setting(
        case.images,
        *size,
        1,
        workers,
        known.costs,
        _diameter(case.network),
        s3=False,
        flips=costs.flips_of(real[0]),
    )
    found = forecast(setting)
    rate, seconds = min(found.limits.values()), found.seconds
    rates, whole = [row["rate"] for row in real], [row["seconds"] for row in real]
    cells = [
        case.network,
        case.size,
        f"{case.images:,}",
        str(workers),
        "yes" if case.fitted and workers == 1 else "",
        f"{rate:.1f}",
        _spread(rates, 1),
        _error(rate, statistics.median(rates)),
        f"{seconds:.0f}",
        _spread(whole, 0),
        _error(seconds, statistics.median(whole)),
    ]
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float], digits: int) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _error(predicted: float, real: float) -> str:
    return f"{100 * (predicted / real - 1):+.0f} %"


def write_reference(rows: Sequence[dict[str, Any]], driver: dict[str, float], day: str) -> None:
    """The costs that the package ships, made from these rows and the driver's."""
    machine = f"{rows[0]['machine']['cores']} cores, {rows[0]['machine']['cpu']}"
    told = f"measured: benchmarks/driver.py, {machine}, {day}"
    start = costs.reference().changed(told, **{name: driver[name] for name in DRIVER})
    found = {name: _whole(rows, start, name) for name in (QUICK, USUAL)}
    models = {name: found[name].costs.model_s for name in (USUAL, QUICK)}
    shipped = ROOT / "segpipe" / "planning" / costs.REFERENCE
    shipped.write_text(costs.as_json(found[QUICK], models))


def _whole(rows: Sequence[dict[str, Any]], start: Measured, network: str) -> Measured:
    """Fitted from all rows of one core, and memory from those of two as well."""
    some = [row for row in rows if CASES[row["case"]].network == network]
    found = costs.fit(some, start, _diameter(network), network)
    # the slope of the driver's CPU on a core that it shares is not as good as the driver alone
    kept = start.sources["driver_group_s"]
    return found.changed(kept, driver_group_s=start.costs.driver_group_s)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--reference", action="store_true")
    asked = parser.parse_args()
    kept = ROOT / "results" / "plan.jsonl"
    rows = [json.loads(line) for line in asked.rows.read_text().splitlines()] if asked.rows else []
    for _ in range(asked.rounds):
        rows += measured_rows(max((row["repeat"] for row in rows), default=0) + 1)
        kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = costs.reference(QUICK)  # as it was before: it holds nothing of these rows
    if asked.reference:
        driver = last_json(run([ROOT / "benchmarks" / "driver.py"])[1])
        write_reference(rows, driver, rows[-1]["time"][:10])
    quick = fitted(rows, start, QUICK)
    usual = fitted(rows, quick, USUAL)  # which had one size: only what its network takes is taken
    known = {
        QUICK: quick,
        USUAL: quick.changed(usual.sources["model_s"], model_s=usual.costs.model_s),
    }
    told = [
        *facts(f"python benchmarks/plan.py --rounds {max(row['repeat'] for row in rows)}"),
        "Fitted at one core; everything else is predicted. Real figures: median (least to most) of "
        "the rounds.",
        "",
        *table(rows, known),
        "",
        *_costs(known[QUICK].costs, known[USUAL].costs),
    ]
    write("plan.md", told)


def _costs(quick: Costs, usual: Costs) -> list[str]:
    lines = ["| cost | for each | ms |", "|---|---|---|"]
    for name, per, what in costs.described():
        if name in costs.OF_STAGES:
            value = 1000 * getattr(quick, name)
            lines.append(f"| {what} ({QUICK}) | {per} | {value:.3g} |")
    return [*lines, f"| worker: the network ({USUAL}) | canvas | {1000 * usual.model_s:.3g} |"]


if __name__ == "__main__":
    main()

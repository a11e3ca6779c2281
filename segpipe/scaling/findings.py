"""What a scaling experiment found: lines of results.jsonl -> points, efficiencies, a table.

A line is one measurement (docs/scaling.md names its fields); a point is a number of workers with
its repeats. Nothing here measures.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

JOB = "job"
PARTS = {"segment": ("fetch", "decode", "model", "write"), "train": ("bare",)}
"""What is measured alone beside each job: its ceilings."""
ITEM = {"segment": "image", "train": "crop"}
WARM_SHARE = 0.1  # of a training's steps, the first ones, in which caches fill and clocks rise
DASH = "–"

Row = dict[str, Any]


class Spread(NamedTuple):
    """Of the repeats of one figure."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def told(self) -> str:
        if self.least == self.most:
            return figures(self.median)
        return f"{figures(self.median)} ({figures(self.least)}{DASH}{figures(self.most)})"


@dataclass(frozen=True)
class Point:
    """A number of workers, and all that was measured with it."""

    workers: int
    rate: Spread
    """Of the job, in items a second."""
    ceilings: dict[str, float]
    """Medians of the parts alone, in items a second."""
    stall: float | None
    bottleneck: str | None
    startup_s: float
    end_s: float
    in_a_row: float | None
    """Items a second if each core did one part after the other and nothing else. None where a GPU
    does one beside the cores', or where parts are missing.
    """


def points(rows: Sequence[Row]) -> list[Point]:
    """The points that have a job, fewest workers first."""
    found = []
    for workers in sorted({row["workers"] for row in rows}):
        here = [row for row in rows if row["workers"] == workers]
        jobs = [row for row in here if row["part"] == JOB]
        if not jobs:
            continue
        parts = {row["part"]: None for row in here if row["part"] != JOB}
        ceilings = {
            part: statistics.median(row["rate"] for row in here if row["part"] == part)
            for part in parts
        }
        job = jobs[0]
        whole = len(PARTS[job["job"]]) > 1 and job["device"] != "cuda"
        whole = whole and set(ceilings) == set(PARTS[job["job"]])
        stalls = [row["stall"] for row in jobs if row["stall"] is not None]
        found.append(
            Point(
                workers,
                Spread.of([row["rate"] for row in jobs]),
                ceilings,
                statistics.median(stalls) if stalls else None,
                statistics.mode(row["bottleneck"] for row in jobs),
                statistics.median(row["startup_s"] for row in jobs),
                statistics.median(row["end_s"] for row in jobs),
                _in_a_row(ceilings) if whole else None,
            )
        )
    return found


def _in_a_row(rates: dict[str, float]) -> float:
    return 1 / sum(1 / rate for rate in rates.values())


def efficiency(point: Point, first: Point) -> float:
    """Rate a worker as a share of that at the first point.

    With as many images and n workers (strong) as with n times as many (weak): rates are of items.
    """
    return point.rate.median / first.rate.median * first.workers / point.workers


def steady_rate(finished: npt.NDArray[np.float64], at_once: int) -> float | None:
    """Items a second after the first `at_once` were finished; None where there are no more.

    `finished` holds each item's time in seconds, in any order. Those that are worked on at once are
    left out: counted from the first item on, the others that were nearly done by then would come
    as a gift that grows with the workers.
    """
    times = np.sort(finished)
    if len(times) <= at_once or times[-1] <= times[at_once - 1]:
        return None
    return float((len(times) - at_once) / (times[-1] - times[at_once - 1]))


def steady(steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The steps of a training [steps, ...] without the first ones."""
    return steps[int(len(steps) * WARM_SHARE) :]


def figures(value: float) -> str:
    """With three significant digits and no exponent."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


def table(rows: Sequence[Row], facts: Sequence[str]) -> str:
    """Markdown: the facts, a line a point, and how to read it."""
    found, (first, *_) = points(rows), rows
    job, mode = first["job"], first["mode"]
    parts = [part for part in PARTS[job] if any(part in point.ceilings for point in found)]
    in_a_row = any(point.in_a_row for point in found)
    heads = ["workers", f"{ITEM[job]}s/s", "efficiency"]
    heads += [f"{part} alone" for part in parts] + ["parts in a row"] * in_a_row
    heads += ["stall", "bottleneck", "start-up, s", "end, s"]
    lines = [*facts, "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for point in found:
        cells = [str(point.workers), point.rate.told()]
        cells.append(f"{efficiency(point, found[0]):.2f}")
        ceilings: list[float | None] = [point.ceilings.get(part) for part in parts]
        for ceiling in ceilings + [point.in_a_row] * in_a_row:
            cells.append(_beside(point.rate.median, ceiling))
        cells.append(DASH if point.stall is None else f"{point.stall:.1%}")
        cells += [point.bottleneck or DASH, f"{point.startup_s:.1f}", f"{point.end_s:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_reading(job, mode, found, bool(parts), in_a_row)]) + "\n"


def _beside(rate: float, ceiling: float | None) -> str:
    """A ceiling, and the job's share of it."""
    return DASH if ceiling is None else f"{figures(ceiling)} ({rate / ceiling:.0%})"


def _reading(
    job: str, mode: str, found: Sequence[Point], with_parts: bool, in_a_row: bool
) -> list[str]:
    item, base = ITEM[job], found[0].workers if found else 1
    work = f"the same {item}s at every point" if mode == "strong" else f"n times the {item}s"
    lines = [
        f"Rates are medians of the repeats (least{DASH}most), steady, start-up and end apart; "
        f"{mode} scaling: {work}. Efficiency: the rate of a worker, as a share of that with "
        f"{base}. Stall: the share of the workers' time in which they waited for work.",
    ]
    if with_parts:
        alone = "each part alone" if job == "segment" else "the same step under bare torchrun"
        lines += ["", f"In parentheses the job's share of what {alone} does on the same cores."]
    if in_a_row:
        lines[-1] += " In a row: each core does one part after the other, and nothing else."
    return lines

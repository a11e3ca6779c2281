"""The figure of a scaling experiment, as PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from segpipe.plots import OURS, QUIET, to_png
from segpipe.scaling import findings
from segpipe.scaling.findings import Point


def curve(points: Sequence[Point], title: str, item: str, worker: str) -> bytes:
    """The rate of each point, with its repeats as error bars, and what its ceilings allow.

    Both axes are logarithmic: what scales ideally is a straight line.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    workers = [point.workers for point in points]
    first = points[0].rate.median / points[0].workers
    ideal = [first * number for number in workers]
    axes.plot(workers, ideal, color=QUIET, linestyle="--", label="ideal: as the first point")
    names = dict.fromkeys(name for point in points for name in point.ceilings)
    thin: dict[str, Any] = {"linewidth": 0.9, "marker": "."}
    for name in names:
        some = [(p.workers, p.ceilings[name]) for p in points if name in p.ceilings]
        axes.plot(*zip(*some, strict=True), label=f"{name} alone", **thin)
    if row := [(p.workers, p.in_a_row) for p in points if p.in_a_row]:
        label = "parts in a row on each core"
        axes.plot(*zip(*row, strict=True), label=label, color="black", **thin)
    median = np.asarray([point.rate.median for point in points])
    below = median - [point.rate.least for point in points]
    above = [point.rate.most for point in points] - median
    label = "whole job: median, least and most of the repeats"
    style: dict[str, Any] = {
        "color": OURS,
        "marker": "o",
        "linewidth": 2,
        "capsize": 4,
        "zorder": 3,
    }
    axes.errorbar(workers, median, yerr=[below, above], label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(workers, [str(number) for number in workers])
    axes.minorticks_off()
    ticks = _ticks(axes.get_ylim())
    axes.set_yticks(ticks, [findings.figures(tick) for tick in ticks])
    axes.set(title=title, xlabel=worker, ylabel=f"{item}s/s")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return to_png(figure)


def _ticks(limits: tuple[float, float]) -> list[float]:
    """1, 2 and 5 of each decade between the limits."""
    decades = range(math.floor(math.log10(limits[0])), math.ceil(math.log10(limits[1])) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return [tick for tick in ticks if limits[0] <= tick <= limits[1]]

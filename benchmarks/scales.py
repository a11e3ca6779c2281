"""What breaks first at ten million, a hundred million and a billion photographs on S3.

    python benchmarks/scales.py

Everything is computed from the costs that the package ships (segpipe/planning/reference.json) and
from what is assumed of the store (the defaults of `segpipe plan`); nothing is measured here.
Writes results/scales.md and docs/planning.png, which docs/planning.md shows.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from common import ROOT, facts, write
from matplotlib.figure import Figure

from segpipe.models import checkpoint
from segpipe.planning import costs
from segpipe.planning.forecast import LIST_KEYS, REPLACE_S, Setting, forecast, index_s, with_deaths
from segpipe.planning.run import PlanConfig, gib, prices, setting_of
from segpipe.progress import duration
from segpipe.segment.lists import ASKED_AT_ONCE

SCALES = {"10 million": 10**7, "100 million": 10**8, "1 billion": 10**9}
NODES, CORES = (8, 64, 256), 16
USUAL = 64
NODE_HOURS = 2000.0  # until a node dies: with 64 of them one dies every 31 hours


def setting(images: int, nodes: int) -> Setting:
    config = PlanConfig(images, nodes=nodes, cores_per_node=CORES)
    card = checkpoint.load(checkpoint.read(None), "").card
    return setting_of(config, costs.reference(), card)


def sizes() -> list[str]:
    """What grows with the archive."""
    rows = {name: setting(images, USUAL) for name, images in SCALES.items()}
    found = {name: forecast(one) for name, one in rows.items()}
    price = {name: prices(PlanConfig(rows[name].images), one) for name, one in found.items()}
    lines = [
        f"| {USUAL} nodes of {CORES} cores | {' | '.join(rows)} |",
        "|---|" + "---|" * len(rows),
    ]
    cells = {
        "LIST requests, one after the other": [
            f"{-(-one.images // LIST_KEYS):,}" for one in rows.values()
        ],
        "pages of the manifest, read tasks of Ray Data": [
            f"{one.pages:,}" for one in rows.values()
        ],
        "groups, and so parts": [f"{one.groups:,}" for one in rows.values()],
        "files in masks/": [f"{one.images:,}" for one in rows.values()],
        "listing and manifest": [duration(one.phases["list"]) for one in found.values()],
        "start, pages handed over": [duration(one.phases["start"]) for one in found.values()],
        "work": [duration(one.phases["work"]) for one in found.values()],
        "end: parts read twice, compaction, report": [
            duration(one.phases["end"]) for one in found.values()
        ],
        "of that, workers have work": [
            f"{one.phases['work'] / one.seconds:.0%}" for one in found.values()
        ],
        "done half: listing and index before work goes on": [
            duration(found[name].phases["list"] + index_s(one, one.images // 2))
            for name, one in rows.items()
        ],
        "memory of the driver": [gib(one.driver_bytes) for one in found.values()],
        "Ray's object store on its node": [gib(one.object_store_bytes) for one in found.values()],
        "memory of a node's workers": [gib(one.node_bytes) for one in found.values()],
        "a list in place of a prefix: HEADs alone": [
            duration(one.images * one.answer_s() / ASKED_AT_ONCE) for one in rows.values()
        ],
        "price of requests, dollars": [f"{one['requests']:,.0f}" for one in price.values()],
    }
    return lines + [f"| {name} | {' | '.join(values)} |" for name, values in cells.items()]


def rates() -> list[str]:
    """What sets the rate, by nodes; it does not depend on the archive's size."""
    lines = [
        "| nodes | images/s | bottleneck | the next one | images/s | PUTs/s | GETs/s | groups/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for nodes in NODES:
        one = setting(10**7, nodes)
        found = forecast(one)
        (first, _), (second, rate) = list(found.limits.items())[:2]
        work_s = found.phases["work"]
        cells = [
            f"{nodes}",
            f"{found.rate:,.0f}",
            first,
            second,
            f"{rate:,.0f}",
            f"{one.puts / work_s:,.0f}",
            f"{one.gets / work_s:,.0f}",
            f"{one.groups / work_s:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def deaths() -> list[str]:
    """Nodes that die, the driver's among them, on average."""
    lines = [
        f"| {USUAL} nodes | without deaths | with them, on average | nodes that die | "
        "with the driver | photographs segmented again |",
        "|---|---|---|---|---|---|",
    ]
    for name, images in SCALES.items():
        one = setting(images, USUAL)
        found = with_deaths(one, NODE_HOURS)
        cells = [name, duration(forecast(one).seconds), duration(found.seconds)]
        cells += [f"{found.deaths:.2g}", f"{found.restarts:.2g}", f"{found.repeated:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def remedies() -> list[str]:
    """What would change if something was changed: a flag, the store, or this code."""
    one = setting(10**9, USUAL)
    quick = replace(one, request_s=0.02)
    large = replace(one, group_size=512)
    lines = [
        f"| 1 billion, {USUAL} nodes | list | work | end | all |",
        "|---|---|---|---|---|",
    ]
    cases = {
        "as it is": (one, 1.0, 1.0),
        "`--group-size 512`": (large, 1.0, 1.0),
        "a store that answers in 20 ms": (quick, 1.0, 1.0),
        "PUTs spread over 4 partitions of the store": (
            replace(one, puts_s=4 * one.puts_s),
            1.0,
            1.0,
        ),
        "listing by 16 prefixes at once (not in this code)": (one, 1 / 16, 1.0),
        "parts read and compacted by 64 tasks (not in this code)": (one, 1.0, 1 / 64),
        "all of these": (replace(quick, group_size=512, puts_s=4 * one.puts_s), 1 / 16, 1 / 64),
    }
    for name, (changed, listing, end) in cases.items():
        phases = forecast(changed).phases
        phases |= {"list": listing * phases["list"], "end": end * phases["end"]}
        told = [duration(phases[phase]) for phase in ("list", "work", "end")]
        lines.append(f"| {name} | {' | '.join(told)} | {duration(sum(phases.values()))} |")
    return lines


def draw(path: Path) -> None:
    """Left: what each part could do. Right: where the hours go."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    many = [round(2 ** (power / 4)) for power in range(4, 37)]
    found = [forecast(setting(10**8, nodes)) for nodes in many]
    for name in found[0].limits:
        left.loglog(many, [one.limits.get(name, math.nan) for one in found], "--", label=name)
    left.set(xlabel=f"nodes of {CORES} cores", ylabel="images/s", title="what sets the rate")
    phases = {phase: [one.phases[phase] / 3600 for one in found] for phase in found[0].phases}
    right.stackplot(many, list(phases.values()), labels=list(phases))
    right.set(xscale="log", xlabel=f"nodes of {CORES} cores", ylabel="hours", ylim=(0, 60))
    right.set(title="100 million photographs: where the hours go", xlim=(many[0], many[-1]))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    config = PlanConfig(1)
    assumed = (
        f"Photographs of {config.mean_bytes / 1e6:g} MB and 4 megapixels, the default network, "
        f"groups of {config.group_size}. Assumed of the store: first byte after "
        f"{config.request_ms:g} ms, {config.connection_mb:g} MB/s a connection, {config.gets:,g} "
        f"GETs and {config.puts:,g} PUTs a second, {config.node_gbit:g} Gbit/s into a node. Where "
        f"nodes die, one lives {NODE_HOURS:,g} h on average and is replaced in "
        f"{REPLACE_S / 60:g} minutes."
    )
    sources = sorted(set(costs.reference().sources.values()))
    assumed += f" Costs: {'; '.join(sources)}."
    blocks = [[assumed], sizes(), rates(), deaths(), remedies()]
    lines = facts("python benchmarks/scales.py")
    for block in blocks:
        lines += [*block, ""]
    write("scales.md", lines[:-1])
    draw(ROOT / "docs" / "planning.png")


if __name__ == "__main__":
    main()

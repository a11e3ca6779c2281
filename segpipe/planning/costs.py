"""What a bulk run costs: a few measured seconds and bytes, and how they are fitted.

`segpipe scale` measures runs, one JSON object a line; `fit` turns its rows at one worker into
`Costs`. What those rows do not tell apart (how much of decoding goes with bytes and how much with
pixels, when all photographs had one size) is shared out as on the reference machine, whose costs
ship in reference.json. Where each figure comes from goes with it.

Nothing here knows Ray or torch.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from segpipe.data.fitting import SHARP
from segpipe.data.pictures import jpeg_reduction
from segpipe.errors import UserError
from segpipe.models.engine import today
from segpipe.segment.stopwatch import IDLE
from segpipe.segment.todo import group_rows

REFERENCE = "reference.json"
LANDSCAPE = 3 / 4  # shorter over longer side of a fundus camera's frame, where only pixels are told
BATCH_SIZE = 64  # of `segpipe segment`, where a row does not tell it
PULL = 0.01  # weight of the reference beside one row, relative errors: it decides only what is open
Row = Mapping[str, Any]
Numbers = npt.NDArray[np.float64]


def _cost(per: str, what: str) -> Any:
    return field(metadata={"per": per, "what": what})


@dataclass(frozen=True)
class Costs:
    """Seconds of one core, MiB and bytes; all of them on the machine where they were measured."""

    photograph_s: float = _cost("photograph", "worker: field of view, hand-over, mask's row")
    megabyte_s: float = _cost("MB of file", "worker: entropy decoding, hand-over")
    decoded_s: float = _cost("decoded MP", "worker: pixels that JPEG's own reduction leaves")
    megapixel_s: float = _cost("megapixel", "worker: JPEG's blocks, the mask and its PNG")
    model_s: float = _cost("canvas", "worker: the network, once for each score of --tta")
    group_s: float = _cost("group", "worker: writes its part, waits for the next group")
    request_s: float = _cost("request", "worker: CPU of a GET or PUT, S3 less a local file")
    contention: float = _cost("", "worker: times as slow when all cores work")
    start_s: float = _cost("run", "driver: until the first photograph")
    key_s: float = _cost("input", "driver: a listed key, its row of the manifest")
    page_s: float = _cost("page", "driver: 4,096 inputs handed to Ray Data")
    driver_group_s: float = _cost("group", "driver: schedules it and counts it")
    part_s: float = _cost("part", "driver: reads a part once")
    row_s: float = _cost("row", "driver: compaction and report")
    end_s: float = _cost("run", "driver: report, summary, Ray's end")
    driver_mib: float = _cost("run", "memory: driver and Ray's own processes")
    row_bytes: float = _cost("row", "memory: of the driver, index of what is done")
    worker_mib: float = _cost("worker", "memory: with its decoder")


@dataclass(frozen=True)
class Measured:
    """Costs, and for each by its name where it comes from."""

    costs: Costs
    sources: dict[str, str]
    flips: int | None = None
    """Canvases of a photograph that the network scored in the measured runs; None: not known."""

    def changed(self, source: str, **values: float) -> Measured:
        sources = self.sources | dict.fromkeys(values, source)
        return replace(self, costs=replace(self.costs, **values), sources=sources)


def reference(checkpoint: str | None = None) -> Measured:
    """The costs that the package ships, with this shipped checkpoint's network."""
    data = json.loads((resources.files("segpipe.planning") / REFERENCE).read_text())
    models = data["model_s"]
    name = checkpoint or next(iter(models))
    if name not in models:
        raise UserError(
            f"--checkpoint {name}: no measurement of it, choose from {', '.join(models)}, or give "
            "--measured results.jsonl of `segpipe scale --checkpoint` with it"
        )
    return Measured(Costs(**data["costs"], model_s=models[name]), data["sources"])


# ---- rows


NEEDED = ("job", "part", "workers", "items", "rate")


def read_rows(text: str, name: str) -> list[dict[str, Any]]:
    """The rows of a results.jsonl. Raises UserError for what is none."""
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = [key for key in NEEDED if key not in row]
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{name}: line {number} is no JSON object, give results.jsonl of `segpipe scale`"
            ) from error
        if missing or not isinstance(row, dict):
            raise UserError(f"{name}: line {number} lacks {', '.join(missing)}, measure anew")
        rows.append(row | {"engine": today(row.get("engine"))})
    return rows


def decoded_megapixels(megapixels: float, diameter_px: float) -> float:
    """Of a JPEG whose frame is 4:3, as large as it is decoded for this working diameter."""
    shorter_px = math.sqrt(megapixels * 1e6 * LANDSCAPE)
    return float(megapixels / jpeg_reduction(shorter_px, SHARP * diameter_px) ** 2)


# ---- the fit

MACHINE = {"cores": " cores", "cpu": "", "gpu": ""}  # of a row's machine, with units
STAGE_COSTS = {  # what the seconds of a stage go with
    "fetch": ("photograph_s", "megabyte_s"),
    "decode": ("photograph_s", "megabyte_s", "decoded_s", "megapixel_s"),
    "field": ("photograph_s", "decoded_s"),
    "resize": ("photograph_s", "decoded_s"),
    "handover": ("photograph_s", "megabyte_s"),
    "model": ("model_s",),
    "mask": ("photograph_s", "megapixel_s"),
    "encode": ("photograph_s", "megapixel_s"),
    "measure": ("photograph_s",),
    "write": ("photograph_s",),
    "commit": ("group_s",),
    IDLE: ("group_s",),
}
OF_STAGES = tuple(dict.fromkeys(name for names in STAGE_COSTS.values() for name in names))


def fit(
    rows: Iterable[Row], start: Measured, diameter_px: float, checkpoint: str | None = None
) -> Measured:
    """The costs that these rows of segmentation at one worker tell; `start`'s for the others.

    Raises UserError where no row will do, or the rows are of several networks.
    """
    rows = [row for row in rows if row["job"] == "segment" and row.get("device") != "cuda"]
    rows = [row for row in rows if checkpoint is None or row.get("checkpoint") == checkpoint]
    jobs = [row for row in rows if row["part"] == "job" and row.get("stages") and row["items"]]
    single = [row for row in jobs if row["workers"] == 1]
    if not single:
        wanted = f" with --checkpoint {checkpoint}" if checkpoint else ""
        raise UserError(f"--measured: no run of segment on 1 core{wanted} among its rows")
    ways = set(map(_way, single))
    if len(ways) > 1:
        words = ", ".join(sorted(f"{one} ({engine})" for one, engine in ways))
        raise UserError(f"--measured: rows of {words}, choose one by --checkpoint")
    source = _source_of(single)
    found = start.changed(source, **_of_stages(single, start.costs, diameter_px))
    found = replace(found, flips=flips_of(single[-1]))
    ends = [row for row in single if row.get("end_s") is not None]
    starts = [row["startup_s"] - row["items"] * found.costs.key_s for row in single if _has(row)]
    if starts:
        found = found.changed(source, start_s=max(0.0, statistics.median(starts)))
    if ends:
        left = [row["end_s"] - _of_rows(row, found.costs) for row in ends]
        found = found.changed(source, end_s=max(0.0, statistics.median(left)))
    found = _of_driver(single, found, source)
    found = _of_memory(jobs, found)
    return _of_contention([row for row in jobs if _way(row) in ways], found)


def _way(row: Row) -> tuple[str | None, str | None]:
    """The network of a measurement, and how it ran."""
    return row.get("checkpoint"), row.get("engine")


def flips_of(row: Row) -> int:
    """Canvases that the network scored for each photograph."""
    return row.get("flips") or 1


def _has(row: Row) -> bool:
    return row.get("startup_s") is not None


def _source_of(rows: Sequence[Row]) -> str:
    """Where these rows come from, in a few words."""
    machine: Mapping[str, Any] = next((row["machine"] for row in rows if row.get("machine")), {})
    name = ", ".join(f"{machine[key]}{unit}" for key, unit in MACHINE.items() if machine.get(key))
    day = max((str(row["time"])[:10] for row in rows if row.get("time")), default="")
    runs = f"{len(rows)} run{'s' if len(rows) > 1 else ''} at 1 worker"
    return "measured: " + ", ".join(filter(None, (runs, name, day)))


def _groups(row: Row) -> int:
    items: int = row["items"]
    return -(-items // group_rows(items, row["workers"], row.get("batch_size") or BATCH_SIZE))


def _of_rows(row: Row, costs: Costs) -> float:
    """Seconds of a measurement's end that go with its rows."""
    return float(row["items"] * costs.row_s + 2 * _groups(row) * costs.part_s)


def _of_stages(rows: list[Row], costs: Costs, diameter_px: float) -> dict[str, float]:
    """A worker's seconds by what they go with.

    The stages tell the shares, the steady rate the sum: the first group, whose caches are cold,
    is in the stages and not in the rate.
    """
    amounts = [_amounts(row, diameter_px) for row in rows]
    whole = [
        sum(seconds for stage, seconds in row["stages"].items() if stage in STAGE_COSTS)
        for row in rows
    ]
    steady = [
        row["items"] / row["rate"] / sum_s if row["rate"] and sum_s else 1.0
        for row, sum_s in zip(rows, whole, strict=True)
    ]
    found = dict.fromkeys(OF_STAGES, 0.0)
    for stage, names in STAGE_COSTS.items():
        seconds = [
            scale * row["stages"].get(stage, 0.0) for row, scale in zip(rows, steady, strict=True)
        ]
        matrix = np.array([[one[name] for name in names] for one in amounts])
        usual = np.array([getattr(costs, name) for name in names])
        for name, value in zip(names, _shared(matrix, np.array(seconds), usual), strict=True):
            found[name] += float(value)
    return found


def _amounts(row: Row, diameter_px: float) -> dict[str, float]:
    """How many photographs, MB, megapixels and groups a measurement had, by what costs them."""
    missing = [name for name in ("image_bytes", "image_megapixels") if not row.get(name)]
    if missing:
        raise UserError(f"--measured: a row of segment lacks {' and '.join(missing)}, measure anew")
    items, pixels = row["items"], row["image_megapixels"]
    return {
        "photograph_s": items,
        "megabyte_s": items * row["image_bytes"] / 1e6,
        "decoded_s": items * decoded_megapixels(pixels, diameter_px),
        "megapixel_s": items * pixels,
        "model_s": items * flips_of(row),
        "group_s": _groups(row),
    }


def _shared(matrix: Numbers, seconds: Numbers, usual: Numbers) -> Numbers:
    """Costs >= 0 with matrix @ costs = seconds, each row's relative error squared and summed.

    A weak pull towards `usual`, scaled to these seconds, decides what the rows leave open.
    """
    some = seconds > 0
    if not some.any():
        return np.zeros(len(usual))
    matrix, seconds = matrix[some], seconds[some]
    usual = np.maximum(usual, 1e-9)
    usual = usual * np.median(seconds / (matrix @ usual))
    shares = matrix * usual / seconds[:, None]  # unknowns in units of the usual
    pull = PULL * np.eye(len(usual))
    found, _ = nnls(np.vstack([shares, pull]), np.append(np.ones(len(seconds)), np.diag(pull)))
    return np.asarray(found * usual)


def _of_driver(rows: list[Row], found: Measured, source: str) -> Measured:
    """The driver's seconds a group: how its CPU grows from small runs to large ones."""
    measured = [row for row in rows if row.get("driver_cpu_s") is not None]
    groups = np.array([_groups(row) for row in measured], float)
    if len(set(groups)) < 2:
        return found
    others = [row["items"] * found.costs.key_s + _of_rows(row, found.costs) for row in measured]
    spent = np.array([row["driver_cpu_s"] for row in measured]) - np.array(others)
    slope = float(np.polyfit(groups, spent, 1)[0])
    return found.changed(source, driver_group_s=slope) if slope > 0 else found


def _of_memory(jobs: list[Row], found: Measured) -> Measured:
    """What a worker adds to the peak, and the rest; a worker's as before where all had as many."""
    measured = [row for row in jobs if row.get("peak_mib")]
    if not measured:
        return found
    workers = np.array([row["workers"] for row in measured], float)
    peaks = np.array([row["peak_mib"] for row in measured], float)
    if len(set(workers)) > 1:
        each, rest = map(float, np.polyfit(workers, peaks, 1))
        source = f"measured: {len(measured)} runs at {len(set(workers))} numbers of workers"
        return found.changed(source, worker_mib=max(1.0, each), driver_mib=max(1.0, rest))
    rest = float(np.median(peaks - workers * found.costs.worker_mib))
    return found.changed(_source_of(measured), driver_mib=max(1.0, rest))


def _of_contention(jobs: list[Row], found: Measured) -> Measured:
    """How much longer a canvas takes when all cores work.

    From whole jobs: the network alone slows more, since on a single core the job shares that core
    with Ray and the driver (results/LOG.md).
    """
    seconds: dict[int, list[float]] = {}
    for row in jobs:
        if row["stages"].get("model"):
            canvas_s = row["stages"]["model"] / row["items"] / flips_of(row)
            seconds.setdefault(row["workers"], []).append(canvas_s)
    if len(seconds) < 2 or 1 not in seconds:
        return found
    most = max(seconds)
    slower = statistics.median(seconds[most]) / statistics.median(seconds[1])
    return found.changed(f"measured: jobs on 1 and {most} cores", contention=max(1.0, slower))


def as_json(measured: Measured, models: Mapping[str, float]) -> str:
    """reference.json: `model_s` by checkpoint, the default first."""
    costs = {name: value for name, value in asdict(measured.costs).items() if name != "model_s"}
    data = {"costs": costs, "model_s": dict(models), "sources": measured.sources}
    return json.dumps(data, indent=1) + "\n"


def described() -> list[tuple[str, str, str]]:
    """(name, per, what) of each cost, in order."""
    return [(one.name, one.metadata["per"], one.metadata["what"]) for one in fields(Costs)]

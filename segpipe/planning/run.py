"""Plan: how long an archive takes on a cluster, what it costs, and what stops it first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segpipe.errors import UserError
from segpipe.flags import check_above_0, check_at_least, check_choices
from segpipe.models import checkpoint
from segpipe.models.checkpoint import Card
from segpipe.models.tta import TTA, num_scores
from segpipe.planning import costs
from segpipe.planning.costs import Measured
from segpipe.planning.forecast import (
    REPLACE_S,
    Forecast,
    Setting,
    WithDeaths,
    forecast,
    with_deaths,
)
from segpipe.progress import duration
from segpipe.storage import check_places, local_path, read_uri

STORES = ("s3", "local")
JPEG_BYTES = 100_000  # of a megapixel: a fundus photograph of quality 90, half of it dark
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html: "at least 3,500
# PUT/COPY/POST/DELETE or 5,500 GET/HEAD requests per second per partitioned prefix", "small object
# latencies (and first-byte-out latencies for larger objects) of roughly 100-200 milliseconds"
GETS_S, PUTS_S, REQUEST_MS = 5500.0, 3500.0, 100.0
# .../optimizing-performance-design-patterns.html: a request for each 85-90 MB/s that are wanted
CONNECTION_MB_S = 85.0
# https://aws.amazon.com/s3/pricing/, S3 Standard in us-east-1, for 1,000 requests
PUT_PRICE, GET_PRICE = 0.005, 0.0004


@dataclass(frozen=True)
class PlanConfig:
    """Tell how many hours an archive takes on a cluster, at what rate, memory and price.

    Costs are those of the machine on which segpipe was measured, or of your own with --measured.
    """

    images: int
    """Photographs in the archive."""
    mean_bytes: float = 400_000
    """Mean size of their files, in bytes."""
    megapixels: float | None = None
    """Mean size of the photographs, in millions of pixels; without, 1 for each 100,000 bytes."""
    nodes: int = 1
    """Nodes that work; the driver runs on one of them."""
    cores_per_node: int = 16
    """Cores of a node, a worker on each."""
    gpus_per_node: int = 0
    """GPUs of a node. With any, networks run there, and cores read and write."""
    gpu_ms: float = 5.0
    """Milliseconds of a GPU for a photograph."""
    price: float | None = None
    """Of a node for an hour, in the currency of --put-price."""
    measured: tuple[str, ...] = ()
    """results.jsonl of `segpipe scale --job segment`, from the machine that is to be used."""
    checkpoint: str | None = None
    """Which network: a name as `segpipe models` lists it, or as the measured runs had it."""
    tta: str | None = None
    """Test-time augmentation, as --tta of `segpipe segment`; without, as in the
    measured runs, or as the checkpoint was made for."""
    group_size: int = 64
    """Photographs in a group, as --group-size of `segpipe segment`."""
    store: str = "s3"
    """Where input and output lie: s3, or local for disks that answer at once."""
    request_ms: float = REQUEST_MS
    """Milliseconds until the store answers a request with its first byte."""
    connection_mb: float = CONNECTION_MB_S
    """MB a second over one connection to the store."""
    gets: float = GETS_S
    """GETs that the store answers a second."""
    puts: float = PUTS_S
    """PUTs that the store answers a second."""
    node_gbit: float = 10.0
    """Gbit a second from the store into a node."""
    put_price: float = PUT_PRICE
    """Of 1,000 PUTs or LISTs."""
    get_price: float = GET_PRICE
    """Of 1,000 GETs."""
    node_hours: float | None = None
    """Mean hours until a node dies. With it, the mean cost of such deaths is told as well."""
    output: str | None = None
    """File for all figures as JSON, beside the table."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        check_at_least(self, 1, "images", "nodes", "cores_per_node", "group_size")
        check_at_least(self, 0, "gpus_per_node", "price", "put_price", "get_price")
        check_places(self, "measured", "checkpoint", "output")
        check_above_0(self, *POSITIVE)
        check_choices(self, {"store": STORES, "tta": TTA})


POSITIVE = (
    "mean_bytes",
    "megapixels",
    "gpu_ms",
    "request_ms",
    "connection_mb",
    "gets",
    "puts",
    "node_gbit",
    "node_hours",
)


def plan(config: PlanConfig) -> None:
    """Print costs and forecast. Raises UserError for what the user must change."""
    config.check()
    card = _card(config.checkpoint)
    measured = _measured(config, card.diameter)
    setting = setting_of(config, measured, card)
    found = forecast(setting)
    deaths = with_deaths(setting, config.node_hours) if config.node_hours else None
    if config.output is not None:
        text = json.dumps(as_dict(config, measured, found, deaths), indent=1)
        try:
            Path(local_path(config.output)).write_text(text + "\n")
        except OSError as error:
            raise UserError(f"--output {config.output}: {error.strerror}, wanted a file") from error
    lines = report_lines(config, measured, setting, found)
    if deaths:
        lines += ["", *_table([("where nodes die", "on average"), *_deaths(deaths)])]
    print("\n".join(lines))


def _card(name: str | None) -> Card:
    """Of a shipped checkpoint; the default's for others, whose photographs are scaled alike."""
    known = name if name in checkpoint.shipped() else checkpoint.DEFAULT
    return checkpoint.load(checkpoint.read(known), str(known)).card


def _read_measured(name: str) -> list[dict[str, Any]]:
    try:
        return costs.read_rows(read_uri(name).decode(errors="replace"), name)
    except UserError as error:
        raise UserError(f"--measured {error}") from error


def _measured(config: PlanConfig, diameter_px: float) -> Measured:
    if not config.measured:
        return costs.reference(config.checkpoint)
    start = costs.reference()
    rows = [row for name in config.measured for row in _read_measured(name)]
    return costs.fit(rows, start, diameter_px, config.checkpoint)


def setting_of(config: PlanConfig, measured: Measured, card: Card) -> Setting:
    return Setting(
        config.images,
        config.mean_bytes,
        config.megapixels or config.mean_bytes / JPEG_BYTES,
        config.nodes,
        config.cores_per_node,
        measured.costs,
        card.diameter,
        config.group_size,
        config.gpus_per_node,
        config.gpu_ms / 1000,
        config.store == "s3",
        config.request_ms / 1000,
        config.connection_mb * 1e6,
        config.gets,
        config.puts,
        config.node_gbit * 1e9 / 8,
        (config.tta and num_scores(config.tta)) or measured.flips or card.flips,
    )


# ---- for people


def report_lines(
    config: PlanConfig, measured: Measured, setting: Setting, found: Forecast
) -> list[str]:
    lines = [
        f"{config.images:,} photographs of {config.mean_bytes / 1e6:.3g} MB and "
        f"{setting.megapixels:.3g} megapixels on {config.nodes} nodes of {config.cores_per_node} "
        f"cores, {setting.group} in a group",
        "",
        *_table([("cost", "", "for each", "from"), *_costs(measured)]),
        "",
        *_table([("assumed", "", "flag"), *_assumed(config, setting)]),
        "",
        *_table([("forecast", ""), *_forecast(config, setting, found)]),
    ]
    return lines


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _costs(measured: Measured) -> list[tuple[str, str, str, str]]:
    values = asdict(measured.costs)
    return [
        (what, _amount(name, values[name]), per, measured.sources[name])
        for name, per, what in costs.described()
    ]


def _amount(name: str, value: float) -> str:
    if name.endswith("_s"):
        return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
    unit = {"mib": " MiB", "bytes": " bytes"}.get(name.rpartition("_")[2], "")
    return f"{value:.4g}{unit}"


def _assumed(config: PlanConfig, setting: Setting) -> list[tuple[str, str, str]]:
    """What nobody measured for this plan: a flag's default or what the user gave."""
    rows = []
    if config.megapixels is None:
        rows.append(("size of a photograph", f"{setting.megapixels:.3g} MP", "--megapixels"))
    if not config.gpus_per_node:
        rows.append(("canvases of a photograph", f"{setting.flips}", "--tta"))
    if config.gpus_per_node:
        rows.append(("a GPU's time for a photograph", f"{config.gpu_ms:g} ms", "--gpu-ms"))
    if config.node_hours:
        rows.append(("a dead node is replaced after", duration(REPLACE_S), ""))
    if config.store == "s3":
        rows += [
            ("until the store's first byte", f"{config.request_ms:g} ms", "--request-ms"),
            ("over one connection", f"{config.connection_mb:g} MB/s", "--connection-mb"),
            ("GETs at the store", f"{config.gets:,g} /s", "--gets"),
            ("PUTs at the store", f"{config.puts:,g} /s", "--puts"),
            ("network of a node", f"{config.node_gbit:g} Gbit/s", "--node-gbit"),
            ("1,000 PUTs or LISTs", f"{config.put_price:g}", "--put-price"),
            ("1,000 GETs", f"{config.get_price:g}", "--get-price"),
        ]
    return rows or [("nothing", "", "")]


def _forecast(config: PlanConfig, setting: Setting, found: Forecast) -> list[tuple[str, str]]:
    (first, rate), *others = found.limits.items()
    rows = [
        ("images/s", f"{found.rate:,.1f}"),
        ("all of it", duration(found.seconds)),
        *((f"  {name}", duration(seconds)) for name, seconds in found.phases.items()),
        ("bottleneck", f"{first}, {rate:,.0f} images/s"),
    ]
    if others:
        name, next_rate = others[0]
        rows.append(("the next one", f"{name}, {next_rate:,.0f} images/s"))
    rows += [
        ("workers wait for the store", f"{found.waiting:.0%} of their time"),
        ("memory of the driver", gib(found.driver_bytes)),
        ("  and Ray's object store there", gib(found.object_store_bytes)),
        ("memory of a node's workers", gib(found.node_bytes)),
    ]
    work_s = found.phases["work"]
    if setting.s3:
        rows += [
            ("GETs a second of work", f"{setting.gets / work_s:,.0f}"),
            ("PUTs a second of work", f"{setting.puts / work_s:,.0f}"),
        ]
    rows += [(f"price of {name}", f"{value:,.2f}") for name, value in prices(config, found).items()]
    return rows


def _deaths(found: WithDeaths) -> list[tuple[str, str]]:
    return [
        ("all of it", duration(found.seconds)),
        ("nodes that die", f"{found.deaths:.3g}"),
        ("  and take the driver along", f"{found.restarts:.3g}"),
        ("photographs segmented again", f"{found.repeated:,.0f}"),
    ]


def prices(config: PlanConfig, found: Forecast) -> dict[str, float]:
    """Of nodes, where their price is given, and of the store's requests."""
    requests = found.gets * config.get_price / 1000 + found.puts * config.put_price / 1000
    of_store = {"requests": requests} if config.store == "s3" else {}
    if config.price is None:
        return of_store
    return {"nodes": config.nodes * found.seconds / 3600 * config.price} | of_store


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"


def as_dict(
    config: PlanConfig, measured: Measured, found: Forecast, deaths: WithDeaths | None
) -> Mapping[str, Any]:
    """All figures, SI units, for machines."""
    return {
        "flags": asdict(config),
        "costs": asdict(measured.costs),
        "sources": measured.sources,
        "forecast": asdict(found) | {"seconds": found.seconds},
        "prices": prices(config, found),
        "with_deaths": asdict(deaths) if deaths else None,
    }

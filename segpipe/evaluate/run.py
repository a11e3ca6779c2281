"""Evaluate: a checkpoint on labelled sets, at native size, inside the field of view."""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import ray.data

from segpipe import labels, metrics
from segpipe.cluster.nodes import check_device, choose_device, model_workers
from segpipe.cluster.session import ray_session
from segpipe.cluster.workers import data_stage, network_stage, on_network_node
from segpipe.data import survey
from segpipe.data.classes import VESSEL
from segpipe.data.codecs import MASK_PALETTE, decode_image
from segpipe.data.globs import Reading
from segpipe.data.layouts import Example, LabelledSet, open_labelled
from segpipe.errors import UserError
from segpipe.evaluate import bootstrap, discs, report
from segpipe.evaluate.bootstrap import LEVEL
from segpipe.evaluate.config import EvaluateConfig
from segpipe.evaluate.discs import DiscRow
from segpipe.evaluate.report import Pictures, draw, spread, table
from segpipe.evaluate.stages import EvaluateJob, Scoring, count, load_labelled
from segpipe.measurement import agreement
from segpipe.measurement.disc import Disc
from segpipe.measurement.kind_agreement import KindCounts
from segpipe.metrics import BINS, Confusion
from segpipe.models import checkpoint, engine, structures
from segpipe.models.checkpoint import Card
from segpipe.models.tta import num_scores
from segpipe.progress import Progress
from segpipe.storage import Store, check_there, open_store, preflight
from segpipe.storage.places import refuse_inside

NO_KINDS = "no labels in the colours of arteries and veins"
COMPARED = 3  # photographs in comparison.png: highest, median and lowest Dice


@dataclass(frozen=True)
class LabelledData:
    """A set that is measured."""

    name: str
    """Its folder's, in the output; no other set of the run has it."""
    store: Store
    examples: tuple[Example, ...]
    field_of_view: str
    """given or found."""
    layout: str = ""
    """As layouts names it."""
    notes: tuple[str, ...] = ()
    """What is to be told of it."""
    discs: Mapping[str, DiscRow] = field(default_factory=dict)
    """By the photograph's name, of --discs."""


def evaluate(config: EvaluateConfig) -> None:
    """Write each set's figures, and the table of several sets."""
    config.check()
    check_device(config.device, config.precision)
    stores = [open_store(uri, anonymous=config.anonymous) for uri in config.data]
    output = open_store(config.output)
    for store in stores:
        preflight(store, output)
        check_there(store, "--data")
        refuse_inside(store, output)
    weights = checkpoint.read(config.checkpoint)
    loaded = checkpoint.load(weights, f"--checkpoint {config.checkpoint or checkpoint.DEFAULT}")
    engine.check_fits(loaded)
    more = structures.wanted(loaded) if config.structures == "all" else None
    card = replace(loaded.card, flips=num_scores(config.tta or loaded.card.tta))
    sets = _with_discs(_open_sets(stores, config), config)
    job = EvaluateJob(tuple(stores), card.working, card.threshold, config.fov == "found")
    with ray_session():
        for data in sets:
            _survey(config, data, prefix=f"{data.name}: " if len(sets) > 1 else "")
        tallies = _measured(config, sets, job, (weights, card.tta, more))
    results = [summarise(data, tally, card) for data, tally in zip(sets, tallies, strict=True)]
    engines = sorted(set().union(*(tally.engines for tally in tallies)))
    print(f"evaluate: the network was run by {', '.join(engines)}")
    for index, (data, tally, result) in enumerate(zip(sets, tallies, results, strict=True)):
        files = files_of_set(job, index, data, tally, result, config.report_images == "on")
        folder = data.name if len(sets) > 1 else ""
        for name, content in files.items():
            output.put(posixpath.join(folder, name), content)
    if len(sets) == 1:
        [data], [result] = sets, results
        figures = ", ".join(f"{k} {v:.4f}" for k, v in result["pooled"].items())
        inside = f"{data.field_of_view} field of view"
        num_images = len(data.examples)
        print(f"evaluate: {num_images} images pooled, inside the {inside}: {figures}")
        if ends := result.get("intervals"):
            pairs = ((name, low, ends["high"][name]) for name, low in ends["low"].items())
            told = ", ".join(f"{name} {low:.4f} to {high:.4f}" for name, low, high in pairs)
            print(f"evaluate: {LEVEL} % intervals over photographs: {told}")
        for line in report.structure_lines(result):
            print(f"evaluate: {line}")
        print(f"evaluate: wrote {output.uri('metrics.json')}, report.html and comparison.png")
        return
    rows = [table_row(data, result) for data, result in zip(sets, results, strict=True)]
    output.put("table.json", as_json({"checkpoint": asdict(card), "sets": rows}))
    output.put("table.md", f"{table(rows)}\n".encode())
    print(table(rows))
    print(f"evaluate: wrote {output.uri('table.md')}, table.json and a folder for each set")


def _open_sets(stores: Sequence[Store], config: EvaluateConfig) -> list[LabelledData]:
    """The sets with names that differ. Raises UserError where one has nothing to measure."""
    sets: list[LabelledData] = []
    for store in stores:
        labelled = open_labelled(store, [config.split], Reading.of(config))
        _check_split(labelled, config.split)
        examples = labelled.examples(config.split)
        given = config.fov == "given" and examples[0].mask is not None
        fov = "given" if given else "found"
        name = unique_name(store.uri(), [data.name for data in sets])
        sets.append(LabelledData(name, store, examples, fov, labelled.layout, labelled.notes))
    return sets


def _with_discs(sets: Sequence[LabelledData], config: EvaluateConfig) -> list[LabelledData]:
    """With the rows of --discs, and notes of what a set has no labels of. Raises UserError where
    the file names no photograph of theirs, and where there is nothing that --structures all could
    be measured by."""
    names = ", ".join(data.name for data in sets)
    if config.structures != "all":
        return list(sets)
    if config.discs is None:
        if not any(example.kinds for data in sets for example in data.examples):
            raise UserError(
                f"--structures all: {NO_KINDS} in {names} (docs/training-data.md), leave it out or "
                "give --discs"
            )
        return [_with_notes(data, None) for data in sets]
    rows = discs.read_discs(config.discs, config.anonymous and config.discs.startswith("s3://"))
    found = [
        replace(
            data,
            discs=discs.discs_of(
                rows, config.discs, data.store, data.examples, data.name, data.layout
            ),
        )
        for data in sets
    ]
    if not any(data.discs for data in found):
        raise UserError(
            f"--discs {config.discs}: names no photograph of {names}, wanted files as "
            f"{sets[0].examples[0].image} in its column file; check it and --data"
        )
    return [_with_notes(data, config.discs) for data in found]


def _with_notes(data: LabelledData, uri: str | None) -> LabelledData:
    """With notes of what it has no labels of; `uri`: of the discs, where they are given."""
    notes = list(data.notes)
    if not any(example.kinds for example in data.examples):
        notes.append(
            f"{NO_KINDS} in {data.name} (docs/training-data.md), they are not measured there"
        )
    if uri and all(row.ok == discs.WRONG for row in data.discs.values()):
        notes.append(f"--discs {uri}: no right row of {data.name}, discs are not measured there")
    return replace(data, notes=tuple(notes))


def _check_split(labelled: LabelledSet, split: str) -> None:
    """Raise UserError where another split has labels, and this one none."""
    other = next((name for name, num in labelled.num_labels.items() if num), None)
    if labelled.split and other and not labelled.num_labels[split]:
        problem = labelled.unlabelled.get(split, f"no images in {labelled.folders[split]}")
        raise UserError(
            f"--split {split}: {labelled.uri}: {problem}; give --split {other}, which has "
            f"{labelled.num_labels[other]} labels"
        )


def _survey(config: EvaluateConfig, data: LabelledData, prefix: str) -> None:
    """Look at every label before any is measured by; `prefix` is put before what is printed."""
    looks = labels.look_at_all(data.store, list(data.examples), config.fov == "found", True)
    discs.check_places(data.discs, str(config.discs), looks)
    text = prefix + survey.overview(data.layout, looks)
    accept = config.accept_labels
    labels.settle("evaluate", data.store.uri, looks, accept, text, data.notes)


def unique_name(uri: str, taken: Sequence[str]) -> str:
    """The last folder of a URI; with -2, -3, ... where a set before it is called so."""
    last = posixpath.basename(uri.rstrip("/"))
    last = "set" if last in ("", ".", "..") else last
    names = [last, *(f"{last}-{number}" for number in range(2, len(taken) + 2))]
    return next(name for name in names if name not in taken)


# ---- counting


class Tally:
    """What is kept of a set: the counts of all pixels, and little of each photograph."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, BINS), np.int64)
        self.hits = np.zeros((len(agreement.SHARES), 2), np.int64)
        self.second = np.zeros(4, np.int64)
        self.second_hits = np.zeros_like(self.hits)
        self.images: dict[str, dict[str, Any]] = {}
        self.engines: set[str] = set()
        self.resampled: dict[str, bootstrap.Kept] = {}
        self.kinds: dict[str, KindCounts] = {}
        """Of each photograph with a label of arteries and veins."""
        self.discs: dict[str, Disc | None] = {}
        """That were found, in px of the photograph; none without --structures all."""
        self.masks: dict[str, bytes] = {}
        """The predictions as PNG files: some 15 KB of a photograph of DRIVE."""

    def add(self, row: Mapping[str, Any], threshold: float) -> None:
        """A row of stages.count."""
        figures: dict[str, Any] = metrics.summary(row["counts"], threshold)
        figures |= agreement.summary(row["hits"])
        if sum(row["second"]):
            at = Confusion(*map(int, row["second"]))
            figures["second_observer"] = at.summary() | agreement.summary(row["second_hits"])
        if not math.isnan(row["field_iou"]):
            figures["field_iou"] = row["field_iou"]
        self.counts += row["counts"]
        self.hits += row["hits"]
        self.second += row["second"]
        self.second_hits += row["second_hits"]
        self.images[row["name"]] = figures
        self.engines.add(row["engine"])
        self.resampled[row["name"]] = bootstrap.keep(row["counts"], threshold, row["hits"])
        self.masks[row["name"]] = row["mask_png"]
        if any(row.get("kinds", ())):
            self.kinds[row["name"]] = KindCounts(*map(int, row["kinds"]))
        if "disc" in row:
            place = tuple(map(float, row["disc"]))
            self.discs[row["name"]] = None if math.isnan(place[0]) else Disc(*place)

    @property
    def second_observer(self) -> Confusion | None:
        """Over all photographs with a second drawing; None without any."""
        return Confusion(*self.second.tolist()) if self.second.any() else None


def _measured(
    config: EvaluateConfig,
    sets: Sequence[LabelledData],
    job: EvaluateJob,
    network: tuple[bytes, str, bytes | None],
) -> list[Tally]:
    """One tally a set; all photographs go through the same `network`: its weights, its tta, and
    the checkpoint that finds arteries, veins and the disc, where one does.

    Raises UserError where no engine that the flags allow runs here.
    """
    rows = [
        {"set": index} | example.as_row()
        for index, data in enumerate(sets)
        for example in data.examples
    ]
    device = choose_device(config.device)
    workers = min(len(rows), model_workers(device, config.workers))
    known = on_network_node(engine.find_trials, network[0], device)
    chosen = engine.select(known, config.backend, config.precision)
    listed = ray.data.from_items(rows, override_num_blocks=len(rows))
    stage = data_stage(len(rows))
    loaded = listed.map(partial(load_labelled, job=job), **stage)
    arguments = *network, chosen.engine, chosen.matches
    light = chosen.backend == "native"
    scores = network_stage(loaded, Scoring, arguments, device, workers, light)
    counted = scores.map(partial(count, job=job), **stage)
    progress, tallies = Progress("evaluate"), [Tally() for _ in sets]
    for done, row in enumerate(counted.iter_rows(), start=1):
        if row["error"]:
            raise UserError(row["error"])
        tallies[row["set"]].add(row, job.threshold)
        progress.show(f"{done}/{len(rows)} images")
    return tallies


# ---- what is told of it


def summarise(data: LabelledData, tally: Tally, card: Card) -> dict[str, Any]:
    """What metrics.json holds; docs/evaluation.md tells each key."""
    images = [
        {"name": name, **tally.images[name], **_structures(data, tally, name)}
        for name in (example.name for example in data.examples)
    ]
    result: dict[str, Any] = {
        "pooled": metrics.summary(tally.counts, card.threshold) | agreement.summary(tally.hits),
        "images": images,
    }
    result |= bootstrap.key_of_intervals([tally.resampled[one.name] for one in data.examples])
    if tally.second_observer is not None:
        beyond = agreement.summary(tally.second_hits)
        result["second_observer"] = tally.second_observer.summary() | beyond
    if tally.kinds:
        pooled = sum(tally.kinds.values(), KindCounts())
        kept = [np.array(astuple(counts)) for counts in tally.kinds.values()]
        ends = bootstrap.key_of_intervals(kept, lambda row: KindCounts(*row.tolist()).summary())
        result["arteries_veins"] = {"num_labelled": len(kept), **pooled.summary(), **ends}
    if of_discs := [image["disc"] for image in images if "disc" in image]:
        kept = discs.near(of_discs)
        result["discs"] = discs.summary(of_discs)
        result["discs"] |= bootstrap.key_of_intervals(kept, discs.share_near)
    result["calibration"] = metrics.reliability(tally.counts).summary()
    result["field_of_view"] = data.field_of_view
    if overlaps := [image["field_iou"] for image in images if "field_iou" in image]:
        result["field_iou"] = float(np.mean(overlaps))
    result["engine"] = ", ".join(sorted(tally.engines))
    result["checkpoint"] = asdict(card)
    return result


def _structures(data: LabelledData, tally: Tally, name: str) -> dict[str, Any]:
    """What is told of a photograph's arteries, veins and disc, where it has labels of them."""
    told: dict[str, Any] = {}
    if name in tally.kinds:
        told["arteries_veins"] = tally.kinds[name].summary()
    row = data.discs.get(name)
    if row is not None and row.ok != discs.WRONG and name in tally.discs:
        told["disc"] = discs.of_photograph(row.label, tally.discs[name])
    return told


def as_json(value: object) -> bytes:
    """JSON with null for what is no number, which JSON cannot hold."""

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: finite(item) for key, item in part.items()}
        if isinstance(part, list | tuple):
            return [finite(item) for item in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), indent=1, allow_nan=False).encode()


def table_row(data: LabelledData, result: Mapping[str, Any]) -> dict[str, Any]:
    """A set's row of table.json."""
    calibration_error = result["calibration"]["expected_calibration_error"]
    return {
        "name": data.name,
        "data": data.store.uri(),
        "images": len(data.examples),
        "field_of_view": data.field_of_view,
        **result["pooled"],
        **{f"dice_{end}": row["dice"] for end, row in result.get("intervals", {}).items()},
        "expected_calibration_error": calibration_error,
        "second_observer_dice": result.get("second_observer", {}).get("dice"),
        "field_iou": result.get("field_iou"),
        "engine": result["engine"],
        **{key: result[key] for key in ("arteries_veins", "discs") if key in result},
    }


def files_of_set(
    job: EvaluateJob,
    index: int,
    data: LabelledData,
    tally: Tally,
    result: dict[str, Any],
    with_images: bool,
) -> dict[str, bytes]:
    """A set's files by name, the report last."""

    def drawn(most: int) -> list[tuple[dict[str, Any], Pictures]]:
        shown = []
        for place in spread([image["dice"] for image in result["images"]], most):
            example = data.examples[place]
            labelled = job.load({"set": index} | example.as_row())
            mask = decode_image(tally.masks[example.name])[..., 0]
            pictures = draw(labelled, mask == MASK_PALETTE[3 * VESSEL])
            shown.append((result["images"][place], pictures))
        return shown

    figures = partial(report.figures, result, tally.counts, tally.second_observer)
    named = figures(named=True)
    files = {"metrics.json": as_json(result), **named}
    files["comparison.png"] = report.comparison(drawn(COMPARED))
    inside = named if with_images else figures(named=False)
    shown = drawn(report.SHOWN if with_images else 0)
    files["report.html"] = report.page(data.name, result, inside, shown)
    return files

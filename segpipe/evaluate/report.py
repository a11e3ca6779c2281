"""What evaluation tells people: figures, a page of photographs beside their errors, a table."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from segpipe import plots
from segpipe.data.classes import VESSEL
from segpipe.data.datasets import Labelled
from segpipe.data.fov import fov_box
from segpipe.evaluate.bootstrap import LEVEL
from segpipe.evaluate.discs import NEAR
from segpipe.html import embedded, jpeg, template
from segpipe.metrics import Confusion, Counts

SHOWN = 24  # photographs at most
PICTURE_PX = 600  # longest side of a picture; what is smaller keeps its size
TITLES = {
    "curves.png": "ROC curve, and precision against recall",
    "reliability.png": "Share of vessels among the pixels of each score",
    "dice.png": "Dice of each photograph",
}
COLUMNS = {  # of table.md: keys of table.json
    "set": "name",
    "images": "images",
    "field of view": "field_of_view",
    "AUC": "auc",
    "AP": "average_precision",
    "Dice": "dice",
    "MCC": "mcc",
    "Sens": "sensitivity",
    "Spec": "specificity",
    "Acc": "accuracy",
    "second observer's Dice": "second_observer_dice",
    "fields' IoU": "field_iou",
    "clDice": "cldice",
    "best threshold": "best_threshold",
    "Dice there": "best_dice",
}

KIND_TITLES = {  # of metrics.json's arteries_veins
    "artery_dice": "artery Dice",
    "vein_dice": "vein Dice",
    "artery_vein_accuracy": "artery/vein accuracy",
    "artery_vein_found": "artery/vein pixels found",
}


def figures(
    result: Mapping[str, Any], counts: Counts, second: Confusion | None, named: bool
) -> dict[str, bytes]:
    """PNG files by name: the keys of TITLES. Photographs are `named` where there is room."""
    images, pooled = result["images"], result["pooled"]
    return {
        "curves.png": plots.roc_and_precision_recall(counts, pooled["threshold"], second),
        "reliability.png": plots.reliability(counts, pooled["threshold"]),
        "dice.png": plots.dice_of_images(
            [image["dice"] for image in images],
            [image.get("second_observer", {}).get("dice", math.nan) for image in images],
            pooled["dice"],
            [image["name"] for image in images] if named else [],
        ),
    }


class Pictures(NamedTuple):
    """One photograph, cut to its field of view and small enough for a page."""

    image: Image.Image
    label: Image.Image
    predicted: Image.Image
    errors: Image.Image


def draw(labelled: Labelled, predicted: npt.NDArray[np.bool_]) -> Pictures:
    """A labelled photograph and its predicted vessels [H, W] bool -> what the page shows of it."""
    top, left, bottom, right = fov_box(labelled.fov)
    box = np.s_[top:bottom, left:right]
    label = labelled.label[box] == VESSEL
    found = predicted[box]
    pictures = (labelled.image[box], label, found, plots.errors(label, found))
    return Pictures(*(_small(picture) for picture in pictures))


def _small(pixels: npt.NDArray[Any]) -> Image.Image:
    picture = Image.fromarray(pixels * np.uint8(255) if pixels.dtype == bool else pixels)
    picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX)
    return picture


def spread(dice: Sequence[float], most: int) -> list[int]:
    """Places of at most `most` figures, from the highest to the lowest, evenly over their ranks.

    Both extremes are among them; NaN is below all.
    """
    order = np.argsort(-np.asarray(dice, float), kind="stable")
    ranks = np.rint(np.linspace(0, len(order) - 1, min(most, len(order))))
    return [int(place) for place in order[ranks.astype(int)]]


def comparison(shown: Sequence[tuple[Mapping[str, Any], Pictures]]) -> bytes:
    """A PNG file of rows of metrics.json's images and their pictures."""
    return plots.comparison(
        [
            (f"{row['name']}: Dice {row['dice']:.3f}", of.image, of.label, of.errors)
            for row, of in shown
        ]
    )


def page(
    name: str,
    result: Mapping[str, Any],
    drawn: Mapping[str, bytes],
    shown: Sequence[tuple[Mapping[str, Any], Pictures]],
) -> bytes:
    """One self-contained HTML page about a set.

    `result` is what metrics.json holds, `drawn` its figures, `shown` rows of its images with their
    pictures. Without any it names no photograph.
    """
    sheet = [
        dict(row)
        | {"image": jpeg(pictures.image)}
        | {what: embedded(_png(getattr(pictures, what)), "png") for what in Pictures._fields[1:]}
        for row, pictures in shown
    ]
    found = template("evaluate/report.html").render(
        name=name,
        result=result,
        figures={TITLES[file]: embedded(png, "png") for file, png in drawn.items()},
        sheet=sheet,
        structures=_structures(result),
        note=_note(result),
        false_alarm=f"rgb{plots.FALSE_ALARM}",
        missed=f"rgb{plots.MISSED}",
    )
    return found.encode()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def kind_titles(kinds: Mapping[str, Any]) -> dict[str, str]:
    """Of metrics.json's arteries_veins: each figure by its title."""
    told = {title: (kinds[key], _interval(kinds, key, ".4f")) for key, title in KIND_TITLES.items()}
    return {
        title: "–" if value != value else f"{value:.4f}{ends}"
        for title, (value, ends) in told.items()
    }


def _interval(told: Mapping[str, Any], key: str, form: str) -> str:
    """Of one of the figures, behind it in parentheses; "" of a single photograph."""
    if "intervals" not in told:
        return ""
    low, high = (told["intervals"][end][key] for end in ("low", "high"))
    return f" ({low:{form}} to {high:{form}})"


def _structures(row: Mapping[str, Any]) -> dict[str, str]:
    """What metrics.json or a row of table.json tells of arteries, veins and discs, by title."""
    kinds = kind_titles(row["arteries_veins"]) if "arteries_veins" in row else {}
    return kinds | (disc_titles(row["discs"]) if "discs" in row else {})


def disc_titles(discs: Mapping[str, Any]) -> dict[str, str]:
    """Of metrics.json's discs: what is told of them in a row, by its title."""
    near = f"{discs['num_near']} of {discs['num_labelled']}{_interval(discs, 'share_near', '.1%')}"
    error = discs["median_diameter_error"]
    none = f"{discs['num_said_none']} of {discs['num_without']}"
    titles = {f"disc centres within {NEAR} diameters": near}
    titles["disc diameter, median error"] = "–" if math.isnan(error) else f"{error:.1%}"
    return titles | {"without a disc, said to have none": none}


def structure_lines(result: Mapping[str, Any]) -> list[str]:
    """What metrics.json tells of arteries, veins and discs, as lines to print."""
    lines = []
    if told := result.get("arteries_veins"):
        values = ", ".join(f"{title} {value}" for title, value in kind_titles(told).items())
        lines.append(f"{told['num_labelled']} images with arteries and veins pooled: {values}")
    if told := result.get("discs"):
        lines.append(", ".join(f"{title}: {value}" for title, value in disc_titles(told).items()))
    return [*lines, *filter(None, [_note(result)])]


def _note(result: Mapping[str, Any]) -> str:
    """What `_interval` writes, where it writes any."""
    some = any("intervals" in result.get(key, {}) for key in ("arteries_veins", "discs"))
    return f"in parentheses: {LEVEL} % intervals over photographs" if some else ""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of table.json -> the same in Markdown; with arteries, veins and discs where any row has
    them."""

    def cell(value: Any) -> str:
        if value is None or value != value:
            return "–"
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    cells = [{title: row[key] for title, key in COLUMNS.items()} | _structures(row) for row in rows]
    titles = list(dict.fromkeys(title for one in cells for title in one))
    lines = [titles, ["---"] * len(titles)]
    lines += [[cell(one.get(title)) for title in titles] for one in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""Figures, as PNG bytes, and the HTML report."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from PIL import Image

from segpipe import archive
from segpipe.data.codecs import decode_image
from segpipe.data.datasets import CLASSES, VESSEL
from segpipe.errors import RejectedImage
from segpipe.storage import Source, Store


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def loss_curves(history: list[dict[str, float]]) -> bytes:
    """Train and test loss over the epochs."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(history) < 20 else None
    for name, label in (("train_loss", "train crops"), ("test_loss", "test images")):
        axes.plot(epochs, [row[name] for row in history], label=label, marker=marker)
    axes.set(xlabel="epoch", ylabel="mean negative log-likelihood per pixel", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def class_probabilities(
    image: npt.NDArray[np.uint8], prob: npt.NDArray[np.float32], label: npt.NDArray[np.uint8]
) -> bytes:
    """image [H, W, 3] uint8; per class its probability (prob [C, H, W]) beside its truth."""
    figure = Figure(figsize=(9, 3 * len(CLASSES)), layout="constrained")
    grid = figure.subplots(len(CLASSES), 3, squeeze=False)
    left = {"image": image, "likeliest class": prob.argmax(axis=0), "truth": label}
    for index, (name, (title, picture)) in enumerate(zip(CLASSES, left.items(), strict=True)):
        row = {title: picture, f"p({name})": prob[index], f"truth: {name}": label == index}
        for axes, (heading, values) in zip(grid[index], row.items(), strict=True):
            highest = len(CLASSES) - 1 if heading in left else 1
            axes.imshow(values, cmap="gray", vmin=0, vmax=highest)
            axes.set_title(heading)
            axes.set_axis_off()
    return _png(figure)


def comparison(
    shown: list[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]],
) -> bytes:
    """Rows of (title, image [H, W, 3], true vessel [H, W], predicted vessel [H, W])."""
    figure = Figure(figsize=(11, 3.9 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 3, squeeze=False)
    for row, (title, image, truth, predicted) in zip(grid, shown, strict=True):
        drawn = np.zeros((*truth.shape, 3), np.uint8)
        drawn[truth & predicted] = 255
        drawn[predicted & ~truth] = FALSE_ALARM
        drawn[truth & ~predicted] = MISSED
        pictures = {title: image, "truth": truth, "found; false alarm red, missed blue": drawn}
        for axes, (name, picture) in zip(row, pictures.items(), strict=True):
            axes.imshow(picture, cmap="gray")
            axes.set_title(name)
            axes.set_axis_off()
    return _png(figure)


FALSE_ALARM, MISSED = (230, 60, 40), (60, 120, 255)
OVERLAYS = 24  # photographs shown in the report
THUMBNAIL_PX = 320  # longest side of an overlay
VESSEL_COLOUR = (0, 255, 170)  # green-blue: the one hue a retina does not have
EXAMPLES = 5  # rejected inputs named for each reason


def archive_report(source: Source, output: Store, summary: dict[str, Any], overlays: int) -> bytes:
    """One self-contained HTML page about a finished run, with up to `overlays` photographs.

    Without any it names no key either: both may identify patients.
    """
    columns = ["path", "mask_path", "status", "error", "height", "width", "vessel_density"]
    rows = archive.result_rows(output, columns)
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    rejected = rows.filter(pc.equal(rows["status"], "rejected"))
    megapixels = np.multiply(ok["height"].to_numpy(), ok["width"].to_numpy()) / 1e6
    histograms = {
        "image size, megapixels": megapixels,
        "vessel share of the field of view": ok["vessel_density"].to_numpy(),
    }
    page = Environment(loader=PackageLoader("segpipe", "."), autoescape=True).get_template(
        "report.html"
    )
    return page.render(
        summary=summary,
        reasons=_by_reason(rejected),
        examples=EXAMPLES if overlays else 0,
        histograms=_embedded(_histograms(histograms)) if len(ok) else None,
        overlays=_contact_sheet(source, output, ok, overlays) if overlays else [],
    ).encode()


def _by_reason(rejected: pa.Table) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for path, error in zip(
        rejected["path"].to_pylist(), rejected["error"].to_pylist(), strict=True
    ):
        reasons.setdefault(error, []).append(path)
    return dict(sorted(reasons.items(), key=lambda item: -len(item[1])))


def _histograms(values: dict[str, npt.NDArray[Any]]) -> bytes:
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    grid = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (name, numbers) in zip(grid, values.items(), strict=True):
        axes.hist(numbers, bins=30, color="#3b7a78")
        axes.set(xlabel=name, ylabel="images")
    return _png(figure)


def _contact_sheet(source: Source, output: Store, ok: pa.Table, most: int) -> list[dict[str, Any]]:
    """Photographs spread evenly over the archive, each beside its mask drawn over it."""
    chosen = np.unique(np.linspace(0, len(ok) - 1, min(most, len(ok))).astype(int))
    sheet = []
    for row in ok.take(chosen).to_pylist():
        try:
            image = decode_image(source.get(row["path"]))
            mask = _mask(output, row)
        except (OSError, RejectedImage):
            continue  # it was there when it was segmented; the report can do without it
        pictures = [_embedded(picture, "jpeg") for picture in overlay(image, mask)]
        sheet.append(row | {"image": pictures[0], "overlay": pictures[1]})
    return sheet


def _mask(output: Store, row: dict[str, Any]) -> npt.NDArray[np.uint8]:
    if row["mask_path"] is None:
        raise FileNotFoundError(row["path"])
    return np.asarray(Image.open(io.BytesIO(output.get(row["mask_path"]))))


def overlay(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """image [H, W, 3] uint8, mask [H, W] uint8 -> JPEG thumbnails: the image, and with vessels."""
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    share = Image.fromarray((mask == VESSEL).astype(np.uint8) * 255).resize(picture.size)
    drawn = picture.copy()
    drawn.paste(VESSEL_COLOUR, (0, 0), share)
    return _jpeg(picture), _jpeg(drawn)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _embedded(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

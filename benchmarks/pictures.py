"""The pictures that the repository shows, all of drawn photographs: no data set is passed on.

    make demo
    .venv/bin/segpipe segment --input runs/demo/archive --output runs/pictures --measure full
    .venv/bin/python benchmarks/pictures.py

Writes docs/overlays.jpg, from the demo's archive and the default network's masks; docs/report.jpg,
the report of that run in Chromium (apt-get install chromium); and results/lecture/predictions.png,
the shipped weights on a drawn photograph squashed as the lecture squashes its test images.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from segpipe import plots
from segpipe.data import synthetic
from segpipe.data.canvas import resize_classes, resize_image
from segpipe.data.classes import VESSEL, classes_of
from segpipe.data.fitting import fit
from segpipe.models import checkpoint, networks
from segpipe.models.predict import to_input
from segpipe.segment import report
from segpipe.segment.overlay import VESSEL_COLOUR

ROOT = Path(__file__).resolve().parent.parent
SHOWN, TILE_PX, CROP_PX = 4, 240, 224
PAGE_PX, SHOT_PX = (1100, 1960), (880, 1568)  # of the report's window; as it is saved


def overlays(archive: Path, output: Path) -> Image.Image:
    """Round photographs of the archive above, their vessels drawn over them below."""
    sheet = Image.new("RGB", (SHOWN * TILE_PX, 2 * TILE_PX))
    column = 0
    rows = pq.read_table(output / "results", columns=["path", "mask_path"]).to_pylist()
    for row in (row for row in rows if row["mask_path"] and column < SHOWN):
        fitted = fit((archive / row["path"]).read_bytes(), TILE_PX, max_megapixels=200)
        sides = fitted.geometry.scaled_height, fitted.geometry.scaled_width
        if max(sides) / min(sides) < 1.1:
            mask = np.asarray(Image.open(output / row["mask_path"]))
            for place, picture in enumerate(
                report.overlay(fitted, [(VESSEL_COLOUR, mask == VESSEL)])
            ):
                at = column * TILE_PX, place * TILE_PX
                sheet.paste(picture.resize((TILE_PX, TILE_PX)), at)
            column += 1
    return sheet


def screenshot(page: Path) -> Image.Image:
    """The upper part of a page, as a browser shows it."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += [f"--window-size={PAGE_PX[0]},{PAGE_PX[1]}", f"--screenshot={shot}", page.as_uri()]
        subprocess.run(words, check=True, capture_output=True)
        return Image.open(shot).convert("RGB").resize(SHOT_PX, Image.Resampling.LANCZOS)


def predictions() -> bytes:
    image, vessel, fov = synthetic.draw_fundus(seed=1)
    squashed = resize_image(image, CROP_PX, CROP_PX)
    label = resize_classes(classes_of(vessel, fov), CROP_PX, CROP_PX)
    network = networks.load_network(checkpoint.load(checkpoint.read("segnet-lite"), ""))
    with torch.inference_mode():
        prob = network(to_input(squashed[None], torch.device("cpu"))).softmax(dim=1)[0].numpy()
    return plots.class_probabilities(squashed, prob, label)


if __name__ == "__main__":
    output = ROOT / "runs" / "pictures"
    sheet = overlays(ROOT / "runs" / "demo" / "archive", output)
    sheet.save(ROOT / "docs" / "overlays.jpg", quality=85)
    shot = screenshot((output / "report.html").resolve())
    shot.save(ROOT / "docs" / "report.jpg", quality=80)
    (ROOT / "results" / "lecture" / "predictions.png").write_bytes(predictions())

"""The pictures that the repository shows, all of drawn photographs: no data set is passed on.

    make demo && python benchmarks/pictures.py

Writes docs/overlays.jpg, from the demo's archive and masks, and results/lecture/predictions.png,
the shipped weights on a drawn photograph squashed as the lecture squashes its test images.
"""

from pathlib import Path

import numpy as np
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

ROOT = Path(__file__).resolve().parent.parent
SHOWN, TILE_PX, CROP_PX = 4, 240, 224


def overlays(demo: Path) -> Image.Image:
    """Round photographs of the demo's archive above, their vessels drawn over them below."""
    tiles = []
    for path in sorted((demo / "archive").glob("*.*")):
        fitted = fit(path.read_bytes(), TILE_PX, max_megapixels=200)
        mask = np.asarray(Image.open(demo / "segmented" / "masks" / f"{path.name}.png"))
        sides = fitted.geometry.scaled_height, fitted.geometry.scaled_width
        if max(sides) / min(sides) < 1.1:
            pictures = report.overlay(fitted, mask == VESSEL)
            tiles.append([picture.resize((TILE_PX, TILE_PX)) for picture in pictures])
    sheet = Image.new("RGB", (SHOWN * TILE_PX, 2 * TILE_PX))
    for column, pair in enumerate(tiles[:SHOWN]):
        for row, picture in enumerate(pair):
            sheet.paste(picture, (column * TILE_PX, row * TILE_PX))
    return sheet


def predictions() -> bytes:
    image, vessel, fov = synthetic.draw_fundus(seed=1)
    squashed = resize_image(image, CROP_PX, CROP_PX)
    label = resize_classes(classes_of(vessel, fov), CROP_PX, CROP_PX)
    network = networks.load_network(checkpoint.load(checkpoint.read("segnet-lite"), ""))
    with torch.inference_mode():
        prob = network(to_input(squashed[None], torch.device("cpu"))).softmax(dim=1)[0].numpy()
    return plots.class_probabilities(squashed, prob, label)


if __name__ == "__main__":
    overlays(ROOT / "runs" / "demo").save(ROOT / "docs" / "overlays.jpg", quality=85)
    (ROOT / "results" / "lecture" / "predictions.png").write_bytes(predictions())

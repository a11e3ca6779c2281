"""The loop that a user of the W-Net writes: one photograph after the other, eager, fp32.

    python benchmarks/wnet_loop.py IMAGES OUTPUT [--flips 1|4]

The published network with one class, 68,482 parameters, at 512x512 px; its weights are random,
which costs the same time. Prints one line of JSON.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segpipe.models.wnet import WNet

SIDE = 512  # px
FLIPS = ((), (2,), (3,), (2, 3))  # axes of [N, C, H, W]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--flips", type=int, default=1)
    words = parser.parse_args()
    words.output.mkdir()
    network, model_s, start = WNet(num_classes=1).eval(), 0.0, time.perf_counter()
    paths = sorted(words.images.iterdir())
    for path in paths:
        photograph = Image.open(path).convert("RGB")
        x = np.asarray(photograph.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        planes = torch.from_numpy(x.transpose(2, 0, 1).astype(np.float32) / 255)[None]
        before = time.perf_counter()
        scores = [network(planes.flip(axes)).flip(axes) for axes in FLIPS[: words.flips]]
        score = torch.stack(scores).mean(dim=0).sigmoid()[0, 0]
        model_s += time.perf_counter() - before
        mask = Image.fromarray((score > 0.5).numpy().astype(np.uint8) * 255)
        mask.resize(photograph.size, Image.Resampling.NEAREST).save(
            words.output / f"{path.stem}.png"
        )
    seconds = time.perf_counter() - start
    told = {"images_per_second": len(paths) / seconds, "model_s": model_s / len(paths)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()

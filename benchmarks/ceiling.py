"""CPU milliseconds of each part of segmenting a DRIVE photograph, each alone, as one JSON line.

    python benchmarks/ceiling.py [--rounds 3]

A process with one thread, also of OpenCV's, whose others spin while they wait, does each part for
all 40 photographs before it begins the next: decode (bytes to canvas, field of view and geometry),
model (the engine that is chosen by itself), encode (mask at native size and its PNG) and write
(into a temporary folder).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import cv2
from common import drive

from segpipe import decoder, stages
from segpipe.data import codecs, fundus
from segpipe.models import checkpoint, engine
from segpipe.storage import open_store

MAX_MEGAPIXELS = 200.0
Item, Result = TypeVar("Item"), TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    weights = checkpoint.read("segnet-lite")
    card = checkpoint.load(weights, "segnet-lite").card
    chosen = engine.select(engine.find_trials(weights, "cpu"), "auto", "auto")
    score = engine.open_score(weights, chosen.engine, num_threads=1)
    stages.keep_pages()
    cv2.setNumThreads(1)  # as in the decoder's process
    spent: dict[str, float] = {}

    def part(name: str, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        items = list(items)
        results = [work(item) for item in items]  # once before the clock runs
        start = time.process_time()
        for _ in range(rounds):
            results = [work(item) for item in items]
        spent[name] = 1000 * (time.process_time() - start) / (rounds * len(items))
        return results

    files = [path.read_bytes() for path in sorted(drive().glob("*/images/*.tif"))]
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        fitted = part(
            "decode", lambda data: decoder.fit(data, card.diameter, MAX_MEGAPIXELS), files
        )
        scores = part("model", lambda one: score(one.canvas, one.fov), fitted)
        masks = part(
            "encode",
            lambda pair: codecs.encode_mask(
                fundus.native_mask(pair[1], pair[0].fov, pair[0].geometry, card.threshold)
            ),
            zip(fitted, scores, strict=True),
        )
        part("write", lambda pair: store.put(f"{pair[0]}.png", pair[1]), enumerate(masks))
    print(json.dumps(spent | {"engine": chosen.engine.name}))


if __name__ == "__main__":
    main()

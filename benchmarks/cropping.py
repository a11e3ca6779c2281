"""How quickly crops are cut for ranks that take no time: by one cropper and more, and without Ray.

    python benchmarks/cropping.py [--croppers 1 2] [--crops 6000]        (a part of `make bench`)

The crops are those of the recipe resunet, augmentation included, on DRIVE below SEGPIPE_DATA. A
rank takes each batch and drops it. The ideal beside: as many plain processes, each of which cuts
its part of the same steps and drops them. Each is measured in turns, the best of them counts; rates
are from the first batch on. Five minutes on two cores that do nothing else. Writes
results/cropping.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any

import numpy as np
from common import drive, facts, write

from segpipe.cluster.session import ray_session
from segpipe.data import survey
from segpipe.data.layouts import open_labelled
from segpipe.storage import open_store
from segpipe.train import stream
from segpipe.train.config import TrainConfig
from segpipe.train.crop_plan import Cropper, CropPlan

REPEATS = 3
WARM_SHARE = 0.2  # of the batches; first every image is decoded by every cropper


def plan_of(num_crops: int) -> CropPlan:
    store = open_store(str(drive()))
    examples = tuple(open_labelled(store).training)
    crops = TrainConfig.by_recipe("resunet", store.uri(), "none").settings(store).crops
    diameter = float(np.median([survey.look(store, one)[0].diameter for one in examples]))
    epochs = -(-num_crops // (len(examples) * crops.crops_per_image))
    return CropPlan(store, examples, diameter, epochs, crops)


def steady_rate(plan: CropPlan, ended: list[float]) -> float:
    """Crops/s, where each batch came at these seconds."""
    warm = int(len(ended) * WARM_SHARE)
    return (len(ended) - 1 - warm) * plan.crops.batch_size / (ended[-1] - ended[warm])


def through_ray(plan: CropPlan, croppers: int) -> float:
    dataset = stream.crop_stream(plan, 0, 1, (croppers, croppers))
    [split] = dataset.streaming_split(1, equal=False)
    came = [time.perf_counter() for _ in stream.shares(split, plan, 0, 1, 0)]
    return steady_rate(plan, came)


def cut(plan: CropPlan, steps: range, ended: Any) -> None:
    cropper = Cropper(plan, world_size=1)
    for step in steps:
        cropper.share(step, rank=0)
        ended.put(time.perf_counter())


def plain(plan: CropPlan, croppers: int) -> float:
    context = get_context("spawn")
    ended, total = context.Queue(), plan.epochs * plan.steps_per_epoch
    parts = [(plan, range(n, total, croppers), ended) for n in range(croppers)]
    processes = [context.Process(target=cut, args=part) for part in parts]
    for process in processes:
        process.start()
    came = sorted(ended.get() for _ in range(total))
    for process in processes:
        process.join()
    return steady_rate(plan, came)


def rates(plan: CropPlan, croppers: list[int]) -> Iterator[tuple[str, int, float]]:
    with ray_session():
        for _ in range(REPEATS):
            for number in croppers:
                yield "ray", number, through_ray(plan, number)
    for _ in range(REPEATS):
        for number in croppers:
            yield "plain", number, plain(plan, number)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--croppers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--crops", type=int, default=6000)
    options = parser.parse_args()
    plan, best = plan_of(options.crops), dict[tuple[str, int], float]()
    for kind, number, rate in rates(plan, options.croppers):
        print(f"{kind}, {number}: {rate:.1f} crops/s", flush=True)
        best[kind, number] = max(rate, best.get((kind, number), 0.0))
    first = options.croppers[0]
    lines = [
        *facts(f"python benchmarks/cropping.py --crops {options.crops}"),
        "Crops of the recipe resunet (256 px, augmentation wider), for a rank that takes no time:",
        "",
        "| croppers | crops/s | times one | plain processes without Ray, crops/s | times one | "
        "share of them |",
        "|---|---|---|---|---|---|",
    ]
    for number in options.croppers:
        ours, ideal = best["ray", number], best["plain", number]
        lines.append(
            f"| {number} | {ours:.1f} | {ours / best['ray', first]:.2f} | {ideal:.1f} | "
            f"{ideal / best['plain', first]:.2f} | {ours / ideal:.2f} |"
        )
    write("cropping.md", lines)


if __name__ == "__main__":
    main()

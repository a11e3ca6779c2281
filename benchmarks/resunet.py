"""CPU milliseconds of a canvas through resunet on one thread, compiled and eager, beside W-Net.

    python benchmarks/resunet.py [--runs 12] [--rounds 2]

Each line is a process of its own, `rounds` times by turns; the best of `runs` in it by
time.process_time, so that others on the same cores cost caches and clock rate but are not counted.
A drawn photograph on DRIVE's canvas of 576 px. Eager resunet as `segment` runs it: channels last,
under jemalloc. W-Net as published: one class, 1x3x512x512, its authors' plain layers under glibc's
malloc. Weights are drawn: they cost what trained ones cost. Writes results/resunet-engine.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from common import facts, last_json, run, write

from segpipe import runtime
from segpipe.data import fundus, synthetic
from segpipe.data.classes import CLASSES
from segpipe.models import checkpoint, engine, networks
from segpipe.models.checkpoint import Card
from segpipe.models.engine import REFERENCE, Engine
from segpipe.models.wnet import WNet

DIAMETER = 540.0  # px, DRIVE's field of view
WIDTHS = (24, 32)
WNET_PX = 512
LINES = {
    f"{chosen.name}, width {width}": (chosen, width)
    for width in WIDTHS
    for chosen in (Engine("on", "fp32"), REFERENCE)
} | {f"W-Net, plain, {WNET_PX} px": None}


def resunet(chosen: Engine, width: int) -> Callable[[], object]:
    torch.manual_seed(0)
    network = networks.build_model("resunet", len(CLASSES), width)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    card = Card("resunet", DIAMETER, 0.5, "none", CLASSES, "0", width)
    score = engine.open_score(checkpoint.dump(state, card), chosen, 1)
    side = round(DIAMETER / synthetic.FIELD_SHARE)
    image, _, fov = synthetic.draw_fundus(0, side, side)
    geometry, canvas_side = fundus.plan_fit(fov, DIAMETER), fundus.canvas_side(DIAMETER)
    canvas = fundus.fit_image(image, geometry, canvas_side)
    soft = fundus.fit_fov(fov, geometry, canvas_side)
    return lambda: score(canvas, soft)


def wnet() -> Callable[[], object]:
    network, pixels = WNet(num_classes=1).eval(), torch.rand(1, 3, WNET_PX, WNET_PX)
    return torch.inference_mode()(lambda: network(pixels))


def best_ms(call: Callable[[], object], runs: int) -> float:
    best = float("inf")
    for _ in range(runs + 1):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return 1000 * best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--line", help="one line alone, in this process")
    args = parser.parse_args()
    if args.line:
        torch.set_num_threads(1)
        what = LINES[args.line]
        print(f'{{"ms": {best_ms(resunet(*what) if what else wnet(), args.runs):.2f}}}')
        return
    found: dict[str, list[float]] = {name: [] for name in LINES}
    jemalloc = runtime.model_env().get("env_vars", {})
    for _ in range(args.rounds):
        for name, what in LINES.items():
            words = [__file__, "--line", name, "--runs", args.runs]
            env = {"OMP_NUM_THREADS": "1"} | (jemalloc if what else {})
            found[name].append(last_json(run(words, env)[1])["ms"])
    rows = [f"| {name} | {min(ms):.0f} | {max(ms):.0f} |" for name, ms in found.items()]
    write(
        "resunet-engine.md",
        [
            "# A canvas through resunet on one thread",
            "",
            *facts(f"python benchmarks/resunet.py --runs {args.runs} --rounds {args.rounds}"),
            f"{(__doc__ or '').split(chr(10) * 2)[2].strip()}",
            "",
            "| | ms of CPU, best round | worst round |",
            "|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()

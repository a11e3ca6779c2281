"""A checkpoint in segpipe's engines and in other people's on one core in one run.

    python benchmarks/engines.py [--checkpoint NAME_OR_FILE ...] [--rounds 20] [--venv FOLDER]

The others are no dependencies of segpipe: PEERS go into an environment of their own (--venv, by
default runs/peers), which sees the packages of this one behind its own, so that torch is the same.
OpenVINO and ONNX Runtime take what torch.onnx.export makes of the eager network, torch.compile the
network itself, as it comes and with the weights frozen (TORCHINDUCTOR_FREEZING). All give the score
of one drawn canvas, scaled to the checkpoint's working diameter: from floats that lie ready in the
order that suits them, segpipe's engines from the photograph's bytes. Before it is timed each score
in fp32 has to agree with that of eager torch to TOLERANCE, wherever the engine gives one, and the
vessels of each in bf16, where the CPU has its arithmetic, to a Dice of LEAST_DICE.

One process on one core, one thread, glibc's allocator with huge pages that are kept. In a round
each engine has its turn, every round from another one on: a canvas that is not counted, then one in
CPU time. Three minutes a checkpoint, most of it torch's compiler, which needs one for C++.
Writes results/engines.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from common import ROOT, facts, write
from torch import Tensor, nn
from torch._inductor import config

from segpipe.data import synthetic
from segpipe.data.canvas import fit_field
from segpipe.kernels import native
from segpipe.kernels.build import COMPILERS
from segpipe.models import checkpoint, engine
from segpipe.models.bf16 import bf16_problem
from segpipe.models.checkpoint import Checkpoint
from segpipe.models.engine import Engine
from segpipe.models.network import to_planes
from segpipe.models.networks import load_network
from segpipe.models.predict import channels_last, vessel_score
from segpipe.models.tta import num_scores

PEERS = ("openvino==2026.4.1", "onnxruntime==1.32.0", "onnx==1.23.2")
OPSET = 17
TOLERANCE = 1e-4
# What jemalloc does for torch in a worker of `segpipe segment` (model_env): huge pages, which are
# not given back. OpenVINO ends at once under jemalloc ("munmap_chunk(): invalid pointer").
TUNABLES = ("hugetlb=1", f"mmap_threshold={32 << 20}", f"trim_threshold={128 << 20}")
ALLOCATOR = {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{one}" for one in TUNABLES)}
SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")

Planes = npt.NDArray[np.float32]  # [1, 3, S, S] in [0, 1]
Score = Callable[[], npt.NDArray[np.float32]]  # -> [S, S]


class Row(NamedTuple):
    name: str
    score: Score | None
    """None where it does not run here."""
    ready_s: float
    """Of the clock, until its first score is there."""
    off: float
    """The most that its score is off eager torch's."""
    dice: float = 1.0
    """Of its vessels with eager torch's."""
    problem: str = ""


class Canvas(NamedTuple):
    image: npt.NDArray[np.uint8]
    """[S, S, 3]"""
    fov: npt.NDArray[np.uint8]
    """[S, S]"""
    planes: Tensor
    """[1, 3, S, S] float32 in [0, 1], channels last in memory."""


class Scoring(nn.Module):
    """The network up to the score, as others are given it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """x [1, 3, S, S] float32 in [0, 1] -> scores [1, S, S]."""
        return vessel_score(self.network(x))


def eager(loaded: Checkpoint) -> Scoring:
    return channels_last(Scoring(load_network(loaded)).eval())


# ---- engines: each function makes one ready


def of_segpipe(weights: bytes, one: Engine, image: Any, fov: Any) -> Score:
    return partial(engine.open_score(weights, one, 1, "none"), image, fov)


def of_torch(network: Callable[[Tensor], Tensor], planes: Tensor) -> Score:
    @torch.inference_mode()
    def score() -> npt.NDArray[np.float32]:
        return network(planes)[0].numpy()

    return score


def of_compiler(loaded: Checkpoint, planes: Tensor, freezing: bool) -> Score:
    # the option keeps the two apart in the compiler's cache, but does not reach all of the compiler
    score = of_torch(torch.compile(eager(loaded), options={"freezing": freezing}), planes)
    with config.patch(freezing=freezing):
        score()
    return score


def of_openvino(model: Path, planes: Planes, precision: str) -> Score:
    """`precision` f32 or bf16."""
    import openvino

    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,  # else bf16 where the CPU has it
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
        },
    )
    request = compiled.create_infer_request()

    def score() -> npt.NDArray[np.float32]:
        request.infer([planes], share_inputs=True)
        found: npt.NDArray[np.float32] = request.get_output_tensor().data[0]
        return found

    return score


def of_onnxruntime(model: Path, planes: Planes) -> Score:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, ["CPUExecutionProvider"])

    def score() -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = session.run(None, {"x": planes})[0][0]
        return found

    return score


def exported(loaded: Checkpoint, planes: Tensor, folder: Path) -> Path:
    path = folder / "network.onnx"
    network = Scoring(load_network(loaded)).eval()
    # dynamo=True needs onnxscript
    words: dict[str, Any] = {"opset_version": OPSET, "dynamo": False, "input_names": ["x"]}
    with warnings.catch_warnings():  # of that it is the old one, and that a canvas's side is fixed
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (planes.contiguous(),), str(path), **words)
    return path


def makers(
    weights: bytes, loaded: Checkpoint, canvas: Canvas, model: Path
) -> Iterator[tuple[str, Callable[[], Score]]]:
    image, fov, planes = canvas
    numbers = np.ascontiguousarray(planes.numpy())
    openvino = f"OpenVINO {version('openvino')}"
    everywhere = np.full_like(fov, 255)
    for precision, hint in (("fp32", "f32"), ("bf16", "bf16")):
        if bf16_problem(precision, "cpu"):
            continue
        of_native = partial(of_segpipe, weights, Engine("native", precision), image)
        yield f"segpipe, native {precision}", partial(of_native, fov)
        yield (
            f"segpipe, native {precision}, a field that fills the canvas",
            partial(of_native, everywhere),
        )
        yield (
            f"segpipe, torch {precision} (ReLU and sums in the convolutions)",
            partial(of_segpipe, weights, Engine("torch", precision), image, fov),
        )
        yield f"{openvino}, {precision}", partial(of_openvino, model, numbers, hint)
    yield f"ONNX Runtime {version('onnxruntime')}", partial(of_onnxruntime, model, numbers)
    for name, freezing in (("freezing", True), ("as it comes", False)):
        yield f"torch.compile, {name}", partial(of_compiler, loaded, planes, freezing)
    yield "eager torch, channels last", partial(of_torch, eager(loaded), planes)


# ---- measuring


def drawn(diameter: float) -> Canvas:
    side = round(diameter / synthetic.FIELD_SHARE)
    image, _, fov = synthetic.draw_fundus(0, side, side)
    fitted, fov_canvas, _ = fit_field(image, fov, diameter)
    return Canvas(fitted, fov_canvas, to_planes(torch.from_numpy(fitted.copy())[None]))


def made(
    name: str,
    make: Callable[[], Score],
    wanted: npt.NDArray[np.float32],
    fov: npt.NDArray[np.uint8],
    threshold: float,
) -> Row:
    """The engine, ready. Raises SystemExit where its score is another."""
    if "torch.compile" in name and not any(map(shutil.which, COMPILERS)):
        return Row(name, None, 0, 0, problem="no C++ compiler here")
    start = time.perf_counter()
    try:
        score = make()
        found = score()
    except OSError as error:  # this CPU, or this network, has no native form
        return Row(name, None, 0, 0, problem=str(error))
    seconds = time.perf_counter() - start
    off, inside = np.abs(found - wanted), fov > 0
    most = float(off[inside].max() if name.startswith("segpipe, native") else off.max())
    vessels = [[(score >= np.float32(threshold)) & inside] for score in (found, wanted)]
    dice = engine.vessel_dice(*vessels) or 0.0
    if most > TOLERANCE if "bf16" not in name else dice < engine.LEAST_DICE:
        raise SystemExit(f"{name}: {most:.2g} off eager torch's score, vessel Dice {dice:.4f}")
    return Row(name, score, seconds, most, dice)


def timed(scores: list[Score], rounds: int) -> list[list[float]]:
    """CPU ms of each, round by round."""
    spent: list[list[float]] = [[] for _ in scores]
    for number in range(rounds):
        for place in range(len(scores)):
            at = (number + place) % len(scores)
            scores[at]()  # its weights are in the caches again
            start = time.process_time()
            scores[at]()
            spent[at].append(1000 * (time.process_time() - start))
    return spent


def table(name: str, rounds: int, folder: Path) -> list[str]:
    weights = checkpoint.read(name)
    loaded = checkpoint.load(weights, name)
    card = loaded.card
    canvas = drawn(card.diameter)
    wanted = of_torch(eager(loaded), canvas.planes)().copy()
    model = exported(loaded, canvas.planes, folder)
    rows = []
    for one, make in makers(weights, loaded, canvas, model):
        print(f"{card.model}: {one}", file=sys.stderr, flush=True)
        rows.append(made(one, make, wanted, canvas.fov, card.threshold))
    spent = iter(timed([row.score for row in rows if row.score], rounds))
    side, share = len(canvas.fov), (canvas.fov > 0).mean()
    lines = [
        f"{card.model} (`{Path(name).name}`, sha256 {loaded.sha256[:12]}): a canvas of {side} px, "
        f"{share:.0%} of it field. A photograph takes {num_scores(card.tta)} of these times (the "
        f"checkpoint's `--tta {card.tta}`).",
        "",
        "| engine | ms a canvas, min | median | times native fp32's min | most off eager torch "
        "| vessel Dice | ready after, s |",
        "|---|---|---|---|---|---|---|",
    ]
    own = 0.0
    for row in rows:
        if row.score is None:
            lines.append(f"| {row.name} | – | – | – | – | – | {row.problem} |")
            continue
        ms = next(spent)
        own = own or min(ms)
        lines.append(
            f"| {row.name} | {min(ms):.1f} | {statistics.median(ms):.1f} | {min(ms) / own:.2f} | "
            f"{row.off:.0e} | {row.dice:.5f} | {row.ready_s:.1f} |"
        )
    return [*lines, ""]


def inside(names: list[str], rounds: int) -> None:
    """In the environment of PEERS, on one core."""
    torch.set_num_threads(1)
    command = f"python benchmarks/engines.py --checkpoint {' '.join(names)} --rounds {rounds}"
    have = native.instruction_sets()
    lines = [
        *facts(command)[:-1],
        f"- instruction sets: {', '.join(one for one in SETS if one in have)}",
        f"- peers: {', '.join(PEERS)}; ONNX opset {OPSET}; one thread of core "
        f"{min(os.sched_getaffinity(0))}",
        "",
    ]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            lines += table(name, rounds, Path(folder))
    lines += [
        f"CPU time of the process, {rounds} interleaved rounds; load of the machine at the end "
        f"{os.getloadavg()[0]:.1f}. Native engines score the field, the others all of a canvas."
    ]
    write("engines.md", lines)


def environment(folder: Path) -> Path:
    """Its Python, with PEERS; made and filled where they are missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    own = sysconfig.get_path("purelib")
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    (packages / "own.pth").write_text(f"{own}\n")
    install: list[Any] = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        ROOT / "constraints.txt",
        *PEERS,
    ]
    subprocess.run([python, *install], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", nargs="+", default=[checkpoint.DEFAULT])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--venv", type=Path, default=ROOT / "runs" / "peers")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.inside:
        inside(flags.checkpoint, flags.rounds)
        return
    from segpipe.scaling.pinned import own_cores

    words: list[Any] = [
        environment(flags.venv),
        __file__,
        "--inside",
        "--rounds",
        str(flags.rounds),
    ]
    os.sched_setaffinity(0, own_cores()[:1])  # before any thread of it starts
    with tempfile.TemporaryDirectory() as cache:  # or torch's compiler has nothing to do
        env = os.environ | {"PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": cache} | ALLOCATOR
        subprocess.run([*words, "--checkpoint", *flags.checkpoint], env=env, check=True)


if __name__ == "__main__":
    main()

"""How a checkpoint's network is run: the quickest of several engines that keeps its masks true.

    eager fp32      layer after layer in torch, what follows a convolution done with it: works
                    everywhere
    eager bf16      the same with convolutions in bfloat16
    compiled fp32   the network's own loop in C++ (segpipe.kernels), where there is one

An engine is never the default unless its vessel Dice against the plain network in fp32, nothing
folded, is LEAST_DICE or more for the checkpoint at hand: rounding that leaves 99.7 % of the pixels
alone can ruin the vessels. What was found is kept on disk for each checkpoint, package, torch and
CPU, so it is tried once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from segpipe import kernels
from segpipe.data.canvas import canvas_side, fit_fov, fit_image, plan_fit
from segpipe.data.classes import BACKGROUND, VESSEL
from segpipe.errors import UserError
from segpipe.kernels import resunet, segnet_lite
from segpipe.kernels.resunet import State
from segpipe.models import checkpoint
from segpipe.models.checkpoint import Checkpoint
from segpipe.models.flips import over_flips

LEAST_DICE = 0.995
NUM_DRAWN = 3  # photographs drawn for a trial
PROBE_PX = 96  # side of an empty canvas that tells whether an engine runs; all networks take it
RUNS, RUNS_S = 3, 1.0  # runs of each, the quickest counts; seconds after which one is enough

Score = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""canvas [S, S, 3] uint8 RGB, fov [S, S] uint8 -> score [S, S] float32, right where fov is not 0"""


@dataclass(frozen=True)
class Engine:
    compile: str
    """on: the network's own compiled loop; off: layer after layer."""
    precision: str
    """fp32 or bf16."""

    @property
    def name(self) -> str:
        return f"{'compiled' if self.compile == 'on' else 'eager'} {self.precision}"


TRAINED_COMPILED = "segnet-lite"  # has a compiled loop that finds gradients
REFERENCE = Engine("off", "fp32")
ENGINES = (REFERENCE, Engine("off", "bf16"), Engine("on", "fp32"), Engine("on", "bf16"))
COMPILE = ("auto", "on", "off")
PRECISION = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Trial:
    """What became of one engine with one checkpoint on one kind of machine."""

    compile: str
    precision: str
    ms: float | None
    """Milliseconds a canvas, one thread; None where it does not run."""
    vessel_dice: float | None
    """Against the plain network, pooled over what is drawn; None also without any vessel."""
    problem: str
    """Why it does not run, or ''."""

    @property
    def engine(self) -> Engine:
        return Engine(self.compile, self.precision)

    @property
    def true(self) -> bool:
        """Whether its masks are the plain network's."""
        known = self.vessel_dice is not None and self.vessel_dice >= LEAST_DICE
        return known or self.engine == REFERENCE

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.engine.name, **asdict(self)}


def select(trials: list[Trial], compile: str, precision: str) -> Trial:
    """The quickest true engine that these flags allow; an untrue one only where they name it.

    Raises UserError where none that they allow runs here.
    """
    allowed = [
        trial
        for trial in trials
        if compile in ("auto", trial.compile) and precision in ("auto", trial.precision)
    ]
    running = [trial for trial in allowed if not trial.problem]
    if not running:
        raise UserError(
            f"--compile {compile} --precision {precision}: {allowed[0].problem}; "
            "use auto for what this machine has"
        )
    true = [trial for trial in running if trial.true]
    return min(true or running, key=lambda trial: trial.ms or 0.0)


def trial_of(trials: list[Trial], engine: Engine) -> Trial:
    for trial in trials:
        if trial.engine == engine:
            return trial
    return Trial(engine.compile, engine.precision, None, None, f"{engine.name} is unknown here")


def resume(
    trials: list[Trial], begun: Engine, matched: bool, compile: str, precision: str
) -> Trial:
    """The engine for an output that was begun with another, or the same one.

    The same where the flags allow and it runs here, else the reference, or what the flags name.
    `matched`: whether the engine that it was begun with matches the reference; only such a one is
    replaced, and only by its like. Raises UserError for all else.
    """
    same = trial_of(trials, begun)
    named = compile not in ("auto", begun.compile) or precision not in ("auto", begun.precision)
    if not named and not same.problem:
        return same
    if named:
        found = select(
            trials,
            begun.compile if compile == "auto" else compile,
            begun.precision if precision == "auto" else precision,
        )
    else:
        found = trial_of(trials, REFERENCE)
    if matched and (same.true or same.problem) and found.true:
        return found
    why = f"{same.problem}, and " if same.problem else ""
    raise UserError(
        f"--compile {compile} --precision {precision}: {why}masks of {found.engine.name} are not "
        f"those of {begun.name}, with which the output was begun; give --compile {begun.compile} "
        f"--precision {begun.precision}, or another --output"
    )


# ---- running


def open_score(weights: bytes, engine: Engine, num_threads: int, flips: int) -> Score:
    """A checkpoint's network on the CPU, one canvas at a time, averaged over `flips` of FLIPS.

    Raises UserError for weights that do not fit, OSError where the engine does not run here.
    """
    loaded = checkpoint.load(weights, "--checkpoint")
    if engine.compile == "on":
        if problem := _compiled_problem(loaded, engine.precision, "cpu"):
            raise OSError(f"{engine.name}: {problem}")
        return over_flips(_compiled(loaded), flips)
    return over_flips(_eager(loaded, engine.precision, "cpu", num_threads), flips)


def open_or_reference(
    weights: bytes, engine: Engine, num_threads: int, flips: int
) -> tuple[Score, Engine]:
    """As open_score, with the reference where that engine does not run here -> and which it is."""
    try:
        score = open_score(weights, engine, num_threads, flips)
        if engine.compile == "off" and engine != REFERENCE:  # torch refuses when it is run
            score(np.zeros((PROBE_PX, PROBE_PX, 3), np.uint8), np.zeros((PROBE_PX,) * 2, np.uint8))
    except (OSError, RuntimeError):
        if engine == REFERENCE:
            raise
        return open_score(weights, REFERENCE, num_threads, flips), REFERENCE
    return score, engine


def _eager(
    loaded: Checkpoint, precision: str, device: str, num_threads: int, plain: bool = False
) -> Score:
    """`plain`: with nothing folded, as it was trained."""
    import torch

    from segpipe.models.fused import fused
    from segpipe.models.networks import load_network
    from segpipe.models.predict import Predictor

    torch.set_num_threads(num_threads)
    network = load_network(loaded)
    predictor = Predictor(
        network if plain else fused(network, device, precision), device, precision
    )
    return lambda canvas, fov: predictor.scores(canvas[None])[0]


class CompiledForm(NamedTuple):
    """A network's own loop in C++."""

    fits: Callable[[int], bool]
    """Whether it knows a network of this width."""
    open: Callable[[State], Score]
    """From the network's state dict. Raises KeyError, ValueError ... for another network's."""


def _segnet_lite(state: State) -> Score:
    return kernels.SegNetLiteScores(
        state["encoder.weight"],
        state["encoder.bias"],
        state["decoder.weight"][VESSEL] - state["decoder.weight"][BACKGROUND],
        float(state["decoder.bias"][VESSEL] - state["decoder.bias"][BACKGROUND]),
    )


def _resunet(state: State) -> Score:
    return kernels.ResUNetScores(state, VESSEL, BACKGROUND)


COMPILED_FORMS = {
    "segnet-lite": CompiledForm(segnet_lite.fits, _segnet_lite),
    "resunet": CompiledForm(resunet.fits, _resunet),
}


def _compiled(loaded: Checkpoint) -> Score:
    try:
        return COMPILED_FORMS[loaded.card.model].open(loaded.state)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise loaded.misfit() from error


def compiled_problem(model: str, width: int | None, precision: str, device: str) -> str:
    """Why there is no compiled form of this network here, or ''."""
    if device != "cpu":
        return "compiled forms are for CPUs"
    if model not in COMPILED_FORMS or precision != "fp32":
        return f"no compiled form of {model} in {precision}"
    if width is not None and not COMPILED_FORMS[model].fits(width):
        return f"no compiled form of {model} with {width} channels"
    return kernels.missing()


def training_problem(
    model: str, width: int | None, precision: str, device: str, crop_size: int, loss: str
) -> str:
    """Why a training cannot use the network's compiled loop here, or ''."""
    if crop_size % 2:
        return "the compiled loop wants crops of an even side"
    if loss != "nll":
        return "the compiled loop has no other loss than nll"
    problem = compiled_problem(model, width, precision, device)
    if not problem and model != TRAINED_COMPILED:
        return f"the compiled form of {model} does not train"
    return problem


def _compiled_problem(loaded: Checkpoint, precision: str, device: str) -> str:
    return compiled_problem(loaded.card.model, loaded.card.width, precision, device)


# ---- trying


def find_trials(weights: bytes, device: str) -> list[Trial]:
    """What is known of each engine for this checkpoint here, tried now where nothing is."""
    loaded = checkpoint.load(weights, "--checkpoint")
    path = _record(loaded, device)
    if known := _read(path):
        return known
    trials = _try_all(loaded, device)
    _write(path, trials)
    return trials


def check_fits(loaded: Checkpoint) -> None:
    """Raise UserError for weights that are not their network's. Quick where they were tried."""
    if not _read(_record(loaded, "cpu")):
        from segpipe.models.networks import load_network

        load_network(loaded)


def _record(loaded: Checkpoint, device: str) -> Path:
    built = "plain" if kernels.missing() else "compiled"  # a compiler may come, or go
    names = (loaded.sha256[:16], kernels.fingerprint(), built, version("segpipe"), version("torch"))
    return kernels.cache_folder() / f"engines-{device}-{'-'.join(names)}.json"


def _read(path: Path) -> list[Trial]:
    try:
        return [Trial(**fields) for fields in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return []


def _write(path: Path, trials: list[Trial]) -> None:
    whole = path.with_suffix(f".{time.time_ns()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(json.dumps([asdict(trial) for trial in trials], indent=1))
        whole.replace(path)
    except OSError:  # then it is tried again next time
        whole.unlink(missing_ok=True)


def _try_all(loaded: Checkpoint, device: str) -> list[Trial]:
    drawn = [_drawn_canvas(seed, loaded.card.diameter) for seed in range(NUM_DRAWN)]
    trials: list[Trial] = []
    reference = _eager(loaded, "fp32", device, 1, plain=True)
    _, wanted = _run(reference, drawn, loaded.card.threshold, runs=1)
    for engine in ENGINES:
        words, compiled = (engine.compile, engine.precision), engine.compile == "on"
        problem = _compiled_problem(loaded, engine.precision, device) if compiled else ""
        if problem:
            trials.append(Trial(*words, None, None, problem))
            continue
        try:
            score = _compiled(loaded) if compiled else _eager(loaded, engine.precision, device, 1)
            seconds, vessels = _run(score, drawn, loaded.card.threshold)
        except RuntimeError as error:  # torch's, for what it cannot do on this CPU
            if engine == REFERENCE:
                raise
            trials.append(Trial(*words, None, None, str(error).partition("\n")[0]))
            continue
        trials.append(Trial(*words, round(1000 * seconds, 2), vessel_dice(vessels, wanted), ""))
    return trials


def _drawn_canvas(
    seed: int, diameter: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    from segpipe.data import synthetic  # takes 0.2 s to import, once for each checkpoint

    side = round(diameter / synthetic.FIELD_SHARE)
    image, _, fov = synthetic.draw_fundus(seed, side, side)
    geometry, side = plan_fit(fov, diameter), canvas_side(diameter)
    canvas = fit_image(image, geometry, side)
    return canvas, fit_fov(fov, geometry, side)


def _run(
    score: Score,
    drawn: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]],
    threshold: float,
    runs: int = RUNS,
) -> tuple[float, list[npt.NDArray[np.bool_]]]:
    """Seconds a canvas, at best, and the vessels of each."""
    seconds, vessels = [], []
    for canvas, fov in drawn:
        for _ in range(runs):
            start = time.perf_counter()
            found = score(canvas, fov)
            seconds.append(time.perf_counter() - start)
            if seconds[-1] > RUNS_S:
                break
        vessels.append((found >= np.float32(threshold)) & (fov > 127))
    return min(seconds), vessels


def vessel_dice(
    found: list[npt.NDArray[np.bool_]], wanted: list[npt.NDArray[np.bool_]]
) -> float | None:
    """Dice of two lists of masks, pooled; None where neither has a pixel."""
    both = sum(int((a & b).sum()) for a, b in zip(found, wanted, strict=True))
    total = sum(int(mask.sum()) for mask in [*found, *wanted])
    return 2 * both / total if total else None

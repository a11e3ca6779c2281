"""How a checkpoint's network is run: the quickest of several engines that matches the reference.

    torch fp32     layer after layer in torch, what follows a convolution done with it: works
                   everywhere
    torch bf16     the same with convolutions in bfloat16, where the CPU has such arithmetic
    native fp32    the network's own loop in C++ (segpipe.kernels), where there is one
    native bf16    the same with products in bfloat16, for some networks, where the CPU has AMX

An engine is never the default unless its vessel Dice against the plain network in fp32, nothing
folded, is LEAST_DICE or more for the checkpoint at hand: rounding that leaves 99.7 % of the pixels
alone can ruin the vessels. What was found is kept on disk for each checkpoint, package, torch and
CPU, so it is tried once.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe import kernels
from segpipe.data.canvas import fit_field
from segpipe.errors import UserError
from segpipe.models import checkpoint
from segpipe.models.bf16 import bf16_problem
from segpipe.models.checkpoint import Checkpoint
from segpipe.models.forms import Score, native_problem, open_native
from segpipe.models.tta import averaged
from segpipe.storage import folders

LEAST_DICE = 0.995
PROBE_PX = 96  # side of an empty canvas that tells whether an engine runs; all networks take it
# Runs of an engine in a trial, the quickest counts; seconds after which there are no more of them;
# and times as long as the best that its first may take, while caches are cold, to have others
RUNS, RUNS_S, HOPELESS = 3, 0.3, 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    backend: str
    """native: the network's own loop in C++; torch: layer after layer."""
    precision: str
    """fp32 or bf16."""

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"


REFERENCE = Engine("torch", "fp32")
ENGINES = (REFERENCE, Engine("torch", "bf16"), Engine("native", "fp32"), Engine("native", "bf16"))
BACKENDS = ("auto", "native", "torch")
IN_SETTINGS = {"native": "on", "torch": "off"}  # backends, as settings.json calls --compile
OLD_NAMES = {"compiled": "native", "eager": "torch"}  # until 0.1.0
PRECISION = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Trial:
    """What became of one engine with one checkpoint on one kind of machine."""

    backend: str
    precision: str
    ms: float | None
    """Milliseconds a canvas: of one thread's CPU, or on the clock for a GPU; None where it does not
    run. Of an engine that takes twice as long as another it is the first run's."""
    vessel_dice: float | None
    """Against the plain network, on a drawn photograph; None also without any vessel."""
    problem: str
    """Why it does not run, or ''."""

    @property
    def engine(self) -> Engine:
        return Engine(self.backend, self.precision)

    @property
    def matches(self) -> bool:
        """Whether its masks match those of the reference."""
        known = self.vessel_dice is not None and self.vessel_dice >= LEAST_DICE
        return known or self.engine == REFERENCE

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.engine.name, **asdict(self)}


def today(name: str | None) -> str | None:
    """The name of an engine in a row that any release wrote."""
    backend, _, precision = (name or "").partition(" ")
    return f"{OLD_NAMES[backend]} {precision}" if backend in OLD_NAMES else name


def select(trials: list[Trial], backend: str, precision: str) -> Trial:
    """The quickest engine that these flags allow and that matches the reference; another only where
    they name it.

    Raises UserError where none that they allow runs here.
    """
    allowed = [
        trial
        for trial in trials
        if backend in ("auto", trial.backend) and precision in ("auto", trial.precision)
    ]
    running = [trial for trial in allowed if not trial.problem]
    if not running:
        raise UserError(
            f"--backend {backend} --precision {precision}: {allowed[0].problem}; "
            "use auto for what this machine has"
        )
    matching = [trial for trial in running if trial.matches]
    return min(matching or running, key=lambda trial: trial.ms or 0.0)


def trial_of(trials: list[Trial], engine: Engine) -> Trial:
    for trial in trials:
        if trial.engine == engine:
            return trial
    return Trial(engine.backend, engine.precision, None, None, f"{engine.name} is unknown here")


def stand_ins(missing: Engine) -> tuple[Engine, ...]:
    """What may take an engine's place, the first that runs: its backend in fp32, the reference."""
    return Engine(missing.backend, "fp32"), REFERENCE


def resume(
    trials: list[Trial], started: Engine, matched: bool, backend: str, precision: str
) -> Trial:
    """The engine for an output that was started with another, or the same one.

    The same where the flags allow and it runs here, else its stand-in, or what the flags name.
    `matched`: whether the engine that it was started with matches the reference; only such a one is
    replaced, and only by its like. Raises UserError for all else.
    """
    same = trial_of(trials, started)
    named = backend not in ("auto", started.backend) or precision not in ("auto", started.precision)
    if not named and not same.problem:
        return same
    if named:
        found = select(
            trials,
            started.backend if backend == "auto" else backend,
            started.precision if precision == "auto" else precision,
        )
    else:
        known = [trial_of(trials, engine) for engine in stand_ins(started)]
        running = (trial for trial in known if trial.matches and not trial.problem)
        found = next(running, known[-1])
    if matched and (same.matches or same.problem) and found.matches:
        return found
    why = f"{same.problem}, and " if same.problem else ""
    raise UserError(
        f"--backend {backend} --precision {precision}: {why}masks of {found.engine.name} are not "
        f"those of {started.name}, with which the output was started; give --backend "
        f"{started.backend} --precision {started.precision}, or another --output"
    )


# ---- running


def open_score(
    weights: bytes, engine: Engine, num_threads: int, tta: str, device: str = "cpu"
) -> Score:
    """A checkpoint's network, one canvas at a time, averaged as `tta` says.

    Raises UserError for weights that do not fit, OSError where the engine does not run here.
    """
    loaded = checkpoint.load(weights, "--checkpoint")
    if problem := _problem(loaded, engine, device):
        raise OSError(f"{engine.name}: {problem}")
    if engine.backend == "native":
        return averaged(open_native(loaded, engine.precision), tta)
    return averaged(_torch(loaded, engine.precision, device, num_threads), tta)


def open_or_stand_in(
    weights: bytes, engine: Engine, num_threads: int, tta: str, device: str = "cpu"
) -> tuple[Score, Engine]:
    """As open_score, with a stand-in where that engine does not run here -> and which it is."""
    for one in dict.fromkeys((engine, *stand_ins(engine))):
        try:
            score = open_score(weights, one, num_threads, tta, device)
            if one.backend == "torch" and one != REFERENCE:  # torch refuses when it is run
                empty = np.zeros((PROBE_PX, PROBE_PX), np.uint8)
                score(np.dstack([empty] * 3), empty)
        except (OSError, RuntimeError):
            if one == REFERENCE:
                raise
        else:
            return score, one
    raise AssertionError("the reference runs, or raises")


def _torch(
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


def _problem(loaded: Checkpoint, engine: Engine, device: str) -> str:
    """Why there is no such engine for this checkpoint here, or ''."""
    if engine.backend == "torch":
        return bf16_problem(engine.precision, device)
    return native_problem(loaded.card.model, loaded.card.width, engine.precision, device)


# ---- trying


def find_trials(weights: bytes, device: str) -> list[Trial]:
    """What is known of each engine for this checkpoint here, tried now where nothing is."""
    loaded = checkpoint.load(weights, "--checkpoint")
    path = _record(loaded, device)
    if known := _read(path):
        return known
    trials = _try_all(loaded, device)
    _write(path, trials)
    for trial in trials:
        found = trial.problem or f"{trial.ms} ms a canvas, vessel Dice {trial.vessel_dice}"
        logger.debug("engine: %s: %s", trial.engine.name, found)
    return trials


def check_fits(loaded: Checkpoint) -> None:
    """Raise UserError for weights that are not their network's. Quick where they were tried."""
    if not _read(_record(loaded, "cpu")):
        from segpipe.models.networks import load_network

        load_network(loaded)


def _record(loaded: Checkpoint, device: str) -> Path:
    built = "plain" if kernels.missing() else "native"  # it may come, or go
    names = (loaded.sha256[:16], kernels.fingerprint(), built, version("segpipe"), version("torch"))
    return folders.cache_folder() / f"engines-{device}-{'-'.join(names)}.json"


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
    """On one drawn photograph: it has 25,000 vessel px, and the Dice of an engine's with the
    reference's hardly changes from drawing to drawing (results/LOG.md)."""
    canvas, fov = _drawn_canvas(loaded.card.diameter)
    threshold = loaded.card.threshold
    wanted = _vessels(_torch(loaded, "fp32", device, 1, plain=True)(canvas, fov), fov, threshold)
    trials: dict[Engine, Trial] = {}
    best_s = math.inf  # of those that match
    for engine in reversed(ENGINES):  # the native ones first, which are the quickest as a rule
        words, native = (engine.backend, engine.precision), engine.backend == "native"
        if problem := _problem(loaded, engine, device):
            trials[engine] = Trial(*words, None, None, problem)
            continue
        try:
            score = (
                open_native(loaded, engine.precision)
                if native
                else _torch(loaded, engine.precision, device, 1)
            )
            seconds, found = _run(partial(score, canvas, fov), best_s, device)
        except RuntimeError as error:  # torch's, for what it cannot do on this CPU
            if engine == REFERENCE:
                raise
            trials[engine] = Trial(*words, None, None, str(error).partition("\n")[0])
            continue
        dice = vessel_dice(_vessels(found, fov, threshold), wanted)
        trials[engine] = Trial(*words, round(1000 * seconds, 2), dice, "")
        best_s = min(best_s, seconds if trials[engine].matches else best_s)
    return [trials[engine] for engine in ENGINES]


def _drawn_canvas(diameter: float) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    from segpipe.data import synthetic  # takes 0.2 s to import, once for each checkpoint

    side = round(diameter / synthetic.FIELD_SHARE)
    image, _, fov = synthetic.draw_fundus(0, side, side)
    return fit_field(image, fov, diameter)[:2]


def _run(
    once: Callable[[], npt.NDArray[np.float32]], best_s: float, device: str
) -> tuple[float, npt.NDArray[np.float32]]:
    """Seconds of the quickest of some runs, and the score; one run where `best_s` is far away."""
    # on a CPU its own time: on the clock a busy machine doubles that of one engine or the other
    clock = time.thread_time if device == "cpu" else time.perf_counter
    seconds: list[float] = []
    while True:
        start = clock()
        score = once()
        seconds.append(clock() - start)
        enough = len(seconds) == RUNS or sum(seconds) > RUNS_S
        if enough or min(seconds) > HOPELESS * best_s:
            return min(seconds), score


def _vessels(
    score: npt.NDArray[np.float32], fov: npt.NDArray[np.uint8], threshold: float
) -> list[npt.NDArray[np.bool_]]:
    return [(score >= np.float32(threshold)) & (fov > 127)]


def vessel_dice(
    found: list[npt.NDArray[np.bool_]], wanted: list[npt.NDArray[np.bool_]]
) -> float | None:
    """Dice of two lists of masks, pooled; None where neither has a pixel."""
    both = sum(int((a & b).sum()) for a, b in zip(found, wanted, strict=True))
    total = sum(int(mask.sum()) for mask in [*found, *wanted])
    return 2 * both / total if total else None

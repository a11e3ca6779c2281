"""Native forms of networks: their own loops in C++, on CPUs, and what each can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from segpipe import kernels
from segpipe.data.classes import BACKGROUND, VESSEL
from segpipe.kernels import resunet, segnet_lite
from segpipe.kernels.resunet import State
from segpipe.models.checkpoint import Checkpoint

Score = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""canvas [S, S, 3] uint8 RGB, fov [S, S] uint8 -> score [S, S] float32, right where fov is not 0"""


class NativeForm(NamedTuple):
    """A network's own loop in C++."""

    fits: Callable[[int], bool]
    """Whether it knows a network of this width."""
    open: Callable[[State, str], Score]
    """From the network's state dict, in fp32 or bf16. Raises KeyError, ValueError ... for another
    network's."""
    bf16_problem: Callable[[], str] | None = None
    """Why there is none in bf16 here, or ''; None: nowhere."""
    crops_even: bool = False
    """Whether it trains on crops of an even side alone."""
    soft_labels: bool = True
    """Whether it trains on soft labels."""


def _segnet_lite(state: State, _: str) -> Score:
    return kernels.SegNetLiteScores(
        state["encoder.weight"],
        state["encoder.bias"],
        state["decoder.weight"][VESSEL] - state["decoder.weight"][BACKGROUND],
        float(state["decoder.bias"][VESSEL] - state["decoder.bias"][BACKGROUND]),
    )


def _resunet(state: State, precision: str) -> Score:
    return kernels.ResUNetScores(state, VESSEL, BACKGROUND, precision)


NATIVE_FORMS = {
    "segnet-lite": NativeForm(segnet_lite.fits, _segnet_lite, crops_even=True, soft_labels=False),
    "resunet": NativeForm(resunet.fits, _resunet, resunet.bf16_problem),
    "fineunet": NativeForm(resunet.fits, _resunet, resunet.bf16_problem),
}


def open_native(loaded: Checkpoint, precision: str) -> Score:
    """A checkpoint's native form. Raises UserError for weights that are not its network's."""
    try:
        return NATIVE_FORMS[loaded.card.model].open(loaded.state, precision)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise loaded.misfit() from error


def native_problem(model: str, width: int | None, precision: str, device: str) -> str:
    """Why there is no native form of this network here, or ''."""
    if device != "cpu":
        return "the native backend is for CPUs"
    form = NATIVE_FORMS.get(model)
    if form is None or (precision == "bf16" and form.bf16_problem is None):
        return f"no native form of {model} in {precision}"
    if width is not None and not form.fits(width):
        return f"no native form of {model} with {width} channels"
    if precision == "bf16" and form.bf16_problem is not None:
        return form.bf16_problem()
    return kernels.missing()


def training_problem(
    model: str,
    width: int | None,
    precision: str,
    device: str,
    crop_size: int,
    loss: str,
    soft: bool = False,
) -> str:
    """Why a training cannot use the native backend here, or ''."""
    if precision != "fp32":
        return f"the native backend trains in fp32, not in {precision}"
    if problem := native_problem(model, width, precision, device):
        return problem
    if loss != "nll":
        return "the native backend has no other loss than nll"
    if soft and not NATIVE_FORMS[model].soft_labels:
        return f"the native backend of {model} has no soft labels"
    if NATIVE_FORMS[model].crops_even and crop_size % 2:
        return f"the native backend of {model} wants crops of an even side"
    return ""

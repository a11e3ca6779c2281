"""Canvas -> score: the one path that training's threshold, evaluate and segment share.

The score of a pixel is p(vessel) / (p(vessel) + p(background)); what the network says about class 0
is not used. `segpipe.data.canvas.native_mask` makes the mask of it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segpipe.data.classes import BACKGROUND, VESSEL
from segpipe.models import checkpoint
from segpipe.models.fused import fused
from segpipe.models.network import autocast, to_planes
from segpipe.models.networks import load_network
from segpipe.models.tta import averaged

GPU_BATCH = 16  # canvases at once, where nothing else is said


class Predictor:
    """A network on its device, ready to score canvases, layer after layer."""

    def __init__(
        self,
        network: nn.Module,
        device: str = "cpu",
        precision: str = "fp32",
        batch_size: int | None = None,
    ) -> None:
        """`precision` fp32, or bf16 for convolutions and products whose sums stay in fp32.

        `batch_size`: canvases that a GPU takes at once.
        """
        self.device = torch.device(device)
        self.network = channels_last(network.eval().to(self.device))
        self.precision = precision
        # One canvas at a time keeps activations in a CPU's cache; a GPU wants them together.
        self.batch_size = 1 if self.device.type == "cpu" else batch_size or GPU_BATCH

    @torch.inference_mode()
    def scores(self, canvases: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """canvases [N, S, S, 3] uint8 RGB -> scores [N, S, S] float32 in [0, 1]."""
        out = np.empty(canvases.shape[:3], np.float32)
        for start in range(0, len(canvases), self.batch_size):
            batch = canvases[start : start + self.batch_size]
            with autocast(self.device, self.precision):
                logits = self.network(to_input(batch, self.device))
            out[start : start + len(batch)] = vessel_score(logits.float()).cpu().numpy()
        return out


Module = TypeVar("Module", bound=nn.Module)


def channels_last(network: Module) -> Module:
    """The network with its weights in the order in which convolutions run fastest."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class Scorer:
    """A checkpoint's network in a process of its own, on batches of rows."""

    def __init__(
        self,
        weights: bytes,
        tta: str,
        device: str,
        num_threads: int,
        precision: str = "fp32",
        batch_size: int | None = None,
    ) -> None:
        torch.set_num_threads(num_threads)
        network = load_network(checkpoint.load(weights, "--checkpoint"))
        predictor = Predictor(fused(network, device, precision), device, precision, batch_size)
        self.scores = averaged(predictor.scores, tta, rows=1)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """canvas [N, S, S, 3] uint8 becomes score [N, S, S] float32, 0 where error is not empty."""
        canvases = batch.pop("canvas")
        score = np.zeros(canvases.shape[:3], np.float32)
        readable = batch["error"] == ""
        score[readable] = self.scores(canvases[readable])
        return batch | {"score": score}


def to_input(images: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """images [N, H, W, 3] uint8 -> [N, 3, H, W] float32 in [0, 1], channels last in memory."""
    # a copy: Ray's arrays are read-only
    return to_planes(torch.from_numpy(np.array(images)).to(device))


def vessel_score(logits: Tensor) -> Tensor:
    """logits [N, classes, H, W] -> [N, H, W]: p(vessel) / (p(vessel) + p(background))."""
    return torch.sigmoid(logits[:, VESSEL] - logits[:, BACKGROUND])

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

GPU_BATCH = 16  # canvases at once where nothing else is said, fewer where they would not fit
GPU_SHARE = 0.5  # of a GPU's free memory; the rest is for cuDNN's workspaces, and for others


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

        `batch_size`: canvases that a GPU takes at once; without, as many as `gpu_batch` allows.
        """
        self.device = torch.device(device)
        self.network = channels_last(network.eval().to(self.device))
        self.precision = precision
        # One canvas at a time keeps activations in a CPU's cache; a GPU wants them together.
        self.batch_size = 1 if self.device.type == "cpu" else batch_size

    @torch.inference_mode()
    def scores(self, canvases: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """canvases [N, S, S, 3] uint8 RGB -> scores [N, S, S] float32 in [0, 1]."""
        out = np.empty(canvases.shape[:3], np.float32)
        if self.batch_size is None and len(canvases):
            self.batch_size = self._batch_of(canvases[:1])
        size = self.batch_size or 1
        for start in range(0, len(canvases), size):
            batch = canvases[start : start + size]
            out[start : start + len(batch)] = self._scores(batch)
        return out

    def _scores(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with autocast(self.device, self.precision):
            logits = self.network(to_input(batch, self.device))
        scores: npt.NDArray[np.float32] = vessel_score(logits.float()).cpu().numpy()
        return scores

    def _batch_of(self, canvas: npt.NDArray[np.uint8]) -> int:
        """How many like this one, [1, S, S, 3], the GPU takes at once, by what one takes."""
        self._scores(canvas)  # what libraries allocate once
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self._scores(canvas)
        taken = torch.cuda.max_memory_allocated(self.device) - before
        torch.cuda.empty_cache()  # else what torch keeps for itself does not count as free
        return gpu_batch(torch.cuda.mem_get_info(self.device)[0], taken)


def gpu_batch(free_bytes: int, canvas_bytes: int) -> int:
    """Canvases at once for a GPU with so much free memory, of which each takes so much."""
    fitting = int(GPU_SHARE * free_bytes) // max(1, canvas_bytes)
    return min(max(1, fitting), GPU_BATCH)


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

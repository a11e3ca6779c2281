"""Every private or undocumented API of torch that segpipe uses; ray_compat.py has those of Ray.

Each entry says what breaks without it, and has a test in tests/test_ray_compat.py. Read with torch
2.13.0.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def fuses(dtype: torch.dtype) -> bool:
    """Whether this CPU's oneDNN has `convolution_relu`. Without it there is nothing to ask."""
    operations = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(operations, "_convolution_pointwise")
        and (dtype == torch.float32 or operations._is_mkldnn_bf16_supported())
    )


def convolution_relu(
    x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor | None, shape: tuple[Any, ...]
) -> Tensor:
    """relu(conv(x) + other) in one step; `shape` is padding, stride, dilation, groups.

    x [N, C, H, W]; `other` is as large as the result. Without it each step is a pass over memory
    of its own: a canvas takes 1.4 times as long on a CPU in fp32 (results/LOG.md).
    """
    run = torch.ops.mkldnn._convolution_pointwise
    done: Tensor = (
        run(x, weight, bias, *shape, "relu", [], None)
        if other is None
        else run.binary(x, other, weight, bias, *shape, "add", 1.0, "relu", [], None)
    )
    return done


def data_parallel(module: nn.Module) -> nn.Module:
    """The module on each rank, its gradients the mean of all.

    Without `forward_sync_buffers` (new in torch 2.13) every step sends batch norm's statistics,
    which are all ranks' already.
    """
    return DistributedDataParallel(module, forward_sync_buffers=False, gradient_as_bucket_view=True)


def leave_group() -> None:
    """Leave torch's default process group, when nothing here needs its data_parallel any more.

    That is a cycle, which the garbage collector frees. Freed after this it would free the group,
    and wait with the GIL for a thread of gloo's that may wait for the GIL (torch 2.13.0).
    """
    gc.collect()
    dist.destroy_process_group()

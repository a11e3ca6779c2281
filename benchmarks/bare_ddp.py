"""segpipe's training step under bare torchrun: DDP over crops that lie in memory, nothing else.

    torchrun --nproc-per-node 2 benchmarks/bare_ddp.py DRIVE [--steps 600] [--compile off] ...

The peer in benchmarks/training.py: what remains of its rate in a whole training is what Ray Train,
Ray Data and the decoding of photographs cost. Rank 0 prints one JSON line: crops_per_second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from segpipe.data.classes import CLASSES
from segpipe.data.layouts import open_labelled
from segpipe.models import networks, norm
from segpipe.models.loss import CompiledLoss, Loss
from segpipe.models.predict import channels_last
from segpipe.storage import open_store
from segpipe.stream import Cropper, CropPlan

IN_MEMORY = 60  # steps, over and over


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--model", default="segnet-lite")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--compile", default="on")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--steps", type=int, default=600)
    flags = parser.parse_args()
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    store = open_store(flags.data)
    examples = tuple(open_labelled(store).training)
    plan = CropPlan(store, examples, 540.0, 0, 100, 30, 224, flags.batch_size)
    cropper = Cropper(plan, world_size)
    batches = [
        cropper({"step": np.array([step]), "rank": np.array([rank])})
        for step in range(min(IN_MEMORY, flags.steps))
    ]
    torch.manual_seed(0)
    network = networks.build_model(flags.model, len(CLASSES))
    norm.synchronise(network, torch.device("cpu"))
    network = channels_last(network)
    loss = CompiledLoss(network, 1) if flags.compile == "on" else Loss(network, flags.precision)
    model = DistributedDataParallel(loss, forward_sync_buffers=False, gradient_as_bucket_view=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    seconds = []
    dist.barrier()
    for step in range(flags.steps):
        start = time.perf_counter()
        batch = batches[step % len(batches)]
        images, labels = (torch.from_numpy(batch[name][0]) for name in ("image", "label"))
        part = model(images, labels) * (len(images) / flags.batch_size)
        optimizer.zero_grad()
        (part * world_size).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        steady = seconds[len(seconds) // 10 :]
        rate = flags.batch_size / statistics.mean(steady)
        print(json.dumps({"crops_per_second": rate}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

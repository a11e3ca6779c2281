"""What nodes have, what a worker books of it, and its threads on a node."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from segpipe import ray_compat
from segpipe.errors import UserError
from segpipe.models.bf16 import bf16_problem

DATA_CPUS = 0.1  # of a core, booked by a task or actor without a network; a core runs two of them


def choose_device(choice: str) -> str:
    """auto, cpu or gpu -> "cpu" or "cuda": what the cluster has. Raises UserError without a GPU."""
    if choice not in ("auto", "cpu", "gpu"):
        raise UserError(f"--device {choice}: choose auto, cpu or gpu")
    gpus = cluster_total("GPU")
    if choice == "gpu" and not gpus:
        raise UserError("--device gpu: the cluster has no GPU, use --device cpu or auto")
    return "cuda" if gpus and choice != "cpu" else "cpu"


def check_device(choice: str, precision: str = "fp32") -> None:
    """Raise UserError, before Ray is started, for what only a cluster could have.

    That is a GPU, or a CPU with arithmetic in bf16 where that is the precision.
    """
    joins = ray.is_initialized() or os.environ.get("RAY_ADDRESS", "local") != "local"
    problem = bf16_problem(precision, "cpu")
    if joins or not (choice == "gpu" or problem):
        return
    import torch  # takes a second

    gpus = 0 if choice == "cpu" else torch.cuda.device_count()
    if choice == "gpu" and not gpus:
        raise UserError("--device gpu: this machine has no GPU, use --device cpu or auto")
    if not gpus:
        refuse_precision(precision, problem)


def refuse_precision(precision: str, problem: str) -> None:
    """Raise UserError where there is a problem."""
    if problem:
        raise UserError(
            f"--precision {precision}: {problem} and would be many times slower than with fp32, "
            "use --precision fp32"
        )


def cluster_total(resource: str) -> float:
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return have.get(resource, 0.0)


def node_resources() -> dict[str, dict[str, float]]:
    """What each node has, by its id."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}


def cpus_per_worker(num_workers: int, device: str) -> float:
    """Share of a core to book for each model worker, so that two data stages fit beside them.

    A worker is on one node, and with a GPU on a node that has one: where so many would not find
    room it is less, unless nothing helps but more nodes.
    """
    nodes = node_resources().values()
    free = sum(node.get("CPU", 0) for node in nodes) * (1 - 2 * DATA_CPUS)
    most = max(1, min(100, int(100 * free / num_workers)))  # hundredths of a core

    def room(share: int) -> int:
        return sum(_room(node, share, num_workers, device) for node in nodes)

    found = next((share for share in range(most, 0, -1) if room(share) >= num_workers), most)
    return found / 100


def _room(node: Mapping[str, float], share: int, num_workers: int, device: str) -> int:
    """How many of the workers the node holds, where each books so many hundredths of a core."""
    most = node.get("GPU", 0) if device == "cuda" else num_workers
    return int(min(100 * node.get("CPU", 0) // share, most))


def elastic_cpus() -> float:
    """Share of a core to book for each worker where Ray Train counts how many a node holds.

    It divides a node's cores by this and rounds down: a worker a core, and of every node of n cores
    n/(n + 1) of one is left for data stages.
    """
    largest = max(node.get("CPU", 0) for node in node_resources().values())
    return int(100 * largest / (largest + 1) + 1) / 100


def await_resources(bundle: dict[str, float], count: int, patience_s: float) -> None:
    """Wait until `count` such bundles could be had at once. Raises UserError where they cannot."""
    group = ray.util.placement_group([bundle] * count)
    try:
        if group.wait(patience_s):
            return
    finally:
        ray.util.remove_placement_group(group)
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    text = ", ".join(
        f"{count * share:g} {kind}s (of {cluster_total(kind):g}, {free.get(kind, 0):g} are free)"
        for kind, share in bundle.items()
    )
    raise UserError(
        f"--workers {count}: needs {text}, not to be had within {patience_s:g} s; "
        "lower it, add nodes or raise --resource-wait"
    )


def model_workers(device: str, wanted: int | None) -> int:
    """How many processes run the network: as wanted, or one a core or GPU."""
    have = cluster_total("GPU" if device == "cuda" else "CPU")
    return wanted or max(1, int(have))


@dataclass(frozen=True)
class Share:
    """What the workers of a stage find on a node."""

    num_workers: int
    """That are on the node."""
    cores: int
    """That Ray counts there."""

    def threads(self, own_cores: int) -> int:
        """Of each worker, where its process may use so many cores."""
        return max(1, min(self.cores, own_cores) // max(1, self.num_workers))


def plan_workers(num_workers: int, cpus: float, device: str) -> dict[str, Share]:
    """By a node's id: how many workers, each of which books so many cores, come to be there.

    Ray Data starts them in turns on all nodes that have room (its strategy SPREAD).
    """
    nodes = node_resources()
    room = {
        node: _room(have, round(100 * cpus), num_workers, device) for node, have in nodes.items()
    }
    counts = dict.fromkeys(nodes, 0)
    for _ in range(num_workers):
        free = [node for node in nodes if counts[node] < room[node]]
        if not free:  # they wait for more nodes
            break
        counts[min(free, key=counts.__getitem__)] += 1
    return {node: Share(counts[node], int(have.get("CPU", 0))) for node, have in nodes.items()}


def worker_threads(num_workers: int) -> int:
    """Threads for each of `num_workers` model workers on this node."""
    return max(1, num_own_cores() // num_workers)


def num_own_cores() -> int:
    """Cores that this process may use.

    Fewer than the machine's where taskset, Slurm or a container's quota says so.
    """
    quota = ray_compat.container_cores()  # knows no affinity
    return max(1, min(len(os.sched_getaffinity(0)), quota))

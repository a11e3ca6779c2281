"""Stages of Ray Data on workers, and the environment of a worker that runs a network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segpipe import ray_compat
from segpipe.cluster.join import cluster_address
from segpipe.cluster.nodes import (
    DATA_CPUS,
    Share,
    cluster_total,
    cpus_per_worker,
    node_resources,
    num_own_cores,
    plan_workers,
)
from segpipe.progress import log_settings
from segpipe.ray_compat import ACTORS_START_S, jemalloc

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
ANSWER_S = 60.0  # seconds for a node to tell where it has a library
TASK_RETRIES = 20  # deaths of processes or nodes that a group of work survives; Ray's own: endless


def model_env(libraries: Iterable[str] = ()) -> dict[str, Any]:
    """The runtime environment of a process that runs a network, on this node.

    Large activations cost page faults: with jemalloc (Ray's wheel ships it), huge pages and no
    return of pages, segnet-lite runs 3.2 times faster on a CPU than under glibc (results/LOG.md).
    `libraries`: where other nodes have it; what a node lacks is passed over there.
    """
    found = [path for path in dict.fromkeys([jemalloc(), *libraries]) if path]
    if not found:
        return {}
    decay = "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"
    return {"env_vars": {"LD_PRELOAD": ":".join(found), "MALLOC_CONF": decay}}


def cluster_model_env() -> dict[str, Any]:
    """model_env for processes on any node: each is asked where it has jemalloc.

    One line on stderr names the nodes without an answer.
    """
    found = node_resources()
    if len(found) < 2:
        return model_env()
    nodes = [node for node, have in found.items() if have.get("CPU")]  # a head may have none
    ask = ray.remote(jemalloc)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        options = ask.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked[options.remote()] = node
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    libraries = {}
    for one in answered:
        with suppress(RayError):  # the node died, or has no segpipe
            libraries[asked[one]] = ray.get(one)
    if without := [node for node in nodes if not libraries.get(node)]:
        text = ", ".join(node[:8] for node in without[:3])
        logger.warning(
            "segpipe: %d of %d nodes told of no jemalloc, torch is slower there: %s",
            len(without),
            len(nodes),
            text,
        )
    return model_env(libraries.values())


def data_stage(num_blocks: int | None = None) -> dict[str, Any]:
    """How a stage of tasks without a network is run: at most a process a core, lightly booked.

    Ray Data warns of more processes than the `num_blocks` that there are.
    """
    cores = int(cluster_total("CPU"))
    return {
        "compute": TaskPoolStrategy(size=max(1, min(cores, num_blocks or cores))),
        "num_cpus": DATA_CPUS,
    }


def one_row_blocks(dataset: Dataset) -> Dataset:
    """The same rows, each in a block of its own."""
    single = dataset.repartition(target_num_rows_per_block=1)
    ray_compat.book_cpus(single, DATA_CPUS)
    return single


def on_network_node(function: Callable[..., Result], argument: object, device: str) -> Result:
    """function(argument, device), where the networks run: here, or on a node of the cluster."""
    if cluster_address() is None and device == "cpu":
        return function(argument, device)
    task = ray.remote(function).options(num_cpus=DATA_CPUS, num_gpus=int(device == "cuda"))
    found: Result = ray.get(task.remote(argument, device), timeout=ACTORS_START_S)
    return found


def network_stage(
    dataset: Dataset,
    stage: type,
    arguments: tuple[Any, ...],
    device: str,
    num_workers: int,
    light: bool = False,
) -> Dataset:
    """Blocks of rows through `stage(*arguments, device, num_threads)`, one in each worker.

    A `light` stage runs no torch: it takes a process that Ray has started already.
    """
    options: dict[str, Any] = {} if light else {"runtime_env": cluster_model_env()}
    cpus = cpus_per_worker(num_workers, device)
    return ray_compat.map_blocks(
        dataset,
        _on_its_node(stage, plan_workers(num_workers, cpus, device)),
        fn_constructor_args=(*arguments, device),
        compute=ActorPoolStrategy(size=num_workers),
        num_cpus=cpus,
        num_gpus=1 if device == "cuda" else 0,
        max_task_retries=TASK_RETRIES,
        **options,
    )


def _on_its_node(stage: type, shares: Mapping[str, Share]) -> type:
    """The stage, with the threads that the worker's own node has for it as last argument.

    It logs as this process does.
    """
    log = log_settings()

    class OnItsNode(stage):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            if log:
                log.apply()
            node = ray.get_runtime_context().get_node_id()
            fullest = max(shares.values(), key=lambda share: share.num_workers)
            share = shares.get(node, fullest)  # the node may have come later
            super().__init__(*arguments, share.threads(num_own_cores()))

    OnItsNode.__name__ = stage.__name__  # by which Ray lists its actors
    return OnItsNode

"""Starting or joining Ray, what every worker must be told, and progress for people."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from weakref import WeakSet

import ray
from ray._private.utils import get_num_cpus
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segpipe.cluster import startup
from segpipe.errors import Unfinished, UserError, os_error_text

Result = TypeVar("Result")

# By default Ray ends a process that rests for a second while more run than there are cores, and
# starts another when a task comes: with several light stages a core, that took half of the cores.
OWN_CLUSTER = {
    "num_workers_soft_limit": 64,
    "idle_worker_killing_time_threshold_ms": 600_000,
    "worker_maximum_startup_concurrency": 4,  # and no warning until 16 processes have started
}
ACTORS_START_S = 300  # seconds after which model processes that do not start are an error
ANSWER_S = 60.0  # seconds for a node to tell where it has a library
TASK_RETRIES = (
    20  # deaths of processes or nodes that one group of work survives; Ray's own: endless
)
NICE = 10  # of what is made ahead
DATA_CPUS = 0.1  # of a core, booked by a task or actor without a network; a core runs two of them


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the time of one verb: the running one, the cluster at RAY_ADDRESS, or a local one."""
    configure_ray_data()
    if ray.is_initialized():
        yield
        return
    # A cluster of our own dies with us and needs no dashboard; another's is only joined.
    own: dict[str, Any] = {
        "include_dashboard": False,
        "num_cpus": num_own_cores(),
        "_system_config": OWN_CLUSTER,
    }
    with startup.running_ray(own):
        try:
            yield
        finally:
            for executor in set(Pace.running):  # a loop that asks on without Ray aborts the process
                executor.shutdown(force=False)
            ray.shutdown()


class Pace(ExecutionCallback):
    """Lets Ray Data's scheduling loop rest between its steps.

    While outputs wait for a slower consumer the loop runs unpaused and takes half a core: on 2
    cores training ran at 35 crops/s without this pause and at 51 with it (results/LOG.md).
    """

    seconds = 0.02  # a block takes some 0.3 s to produce, so nothing waits for the scheduler
    running: ClassVar[WeakSet[Any]] = WeakSet()  # executors of this process

    def before_execution_starts(self, executor: Any) -> None:
        self.running.add(executor)

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(self.seconds)


class SlowPace(Pace):
    """For a stream that is made ahead of its readers: half the work, in time that others leave."""

    seconds = 0.1

    def before_execution_starts(self, executor: Any) -> None:
        super().before_execution_starts(executor)
        self.modest = False

    def on_execution_step(self, executor: Any) -> None:
        if not self.modest:
            os.nice(NICE)  # of the loop's thread alone
            self.modest = True
        super().on_execution_step(executor)


def configure_ray_data() -> None:
    """Our own progress speaks for Ray Data's, and its scheduler rests."""
    context = DataContext.get_current()
    if Pace not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Pace)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # nobody reads it, and it takes a thread a task
    context.raise_original_map_exception = True  # for own_error
    # Actors first: tasks that hold all cores can keep an actor from starting for ten seconds.
    context.wait_for_min_actors_s = ACTORS_START_S
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors reach us as exceptions


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


def jemalloc() -> str:
    """Where this node's Ray has it, or ''."""
    library = Path(ray.__file__).parent / "core" / "libjemalloc.so"
    return str(library) if library.exists() else ""


def cluster_model_env() -> dict[str, Any]:
    """model_env for processes on any node: each is asked where it has jemalloc.

    One line on stderr names the nodes without an answer.
    """
    found = _nodes()
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
        told = ", ".join(node[:8] for node in without[:3])
        print(
            f"segpipe: {len(without)} of {len(nodes)} nodes told of no jemalloc, torch is "
            f"slower there: {told}",
            file=sys.stderr,
        )
    return model_env(libraries.values())


def choose_device(choice: str) -> str:
    """auto, cpu or gpu -> "cpu" or "cuda": what the cluster has. Raises UserError without a GPU."""
    if choice not in ("auto", "cpu", "gpu"):
        raise UserError(f"--device {choice}: choose auto, cpu or gpu")
    gpus = _cluster("GPU")
    if choice == "gpu" and not gpus:
        raise UserError("--device gpu: the cluster has no GPU, use --device cpu or auto")
    return "cuda" if gpus and choice != "cpu" else "cpu"


def check_device(choice: str) -> None:
    """Raise UserError, before Ray is started, for a GPU that only a cluster could have."""
    joins = ray.is_initialized() or os.environ.get("RAY_ADDRESS", "local") != "local"
    if choice != "gpu" or joins:
        return
    import torch  # takes a second

    if not torch.cuda.device_count():
        raise UserError("--device gpu: this machine has no GPU, use --device cpu or auto")


def _cluster(resource: str) -> float:
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return have.get(resource, 0.0)


def _nodes() -> dict[str, dict[str, float]]:
    """What each node has, by its id."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}


def cpus_per_worker(num_workers: int, device: str) -> float:
    """Share of a core to book for each model worker, so that two data stages fit beside them.

    A worker is on one node, and with a GPU on a node that has one: where so many would not find
    room it is less, unless nothing helps but more nodes.
    """
    nodes = _nodes().values()
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
    largest = max(node.get("CPU", 0) for node in _nodes().values())
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
    told = ", ".join(
        f"{count * share:g} {kind}s (of {_cluster(kind):g}, {free.get(kind, 0):g} are free)"
        for kind, share in bundle.items()
    )
    raise UserError(
        f"--workers {count}: needs {told}, not to be had within {patience_s:g} s; "
        "lower it, add nodes or raise --resource-wait"
    )


def data_stage(num_blocks: int | None = None) -> dict[str, Any]:
    """How a stage of tasks without a network is run: at most a process a core, lightly booked.

    Ray Data warns of more processes than the `num_blocks` that there are.
    """
    cores = int(_cluster("CPU"))
    return {
        "compute": TaskPoolStrategy(size=max(1, min(cores, num_blocks or cores))),
        "num_cpus": DATA_CPUS,
    }


def one_row_blocks(dataset: Dataset) -> Dataset:
    """The same rows, each in a block of its own.

    Ray Data books a whole core for that by default, which never comes free beside the networks,
    and its public method takes no other number.
    """
    single = dataset.repartition(target_num_rows_per_block=1)
    single._logical_plan.dag.ray_remote_args["num_cpus"] = DATA_CPUS  # type: ignore[attr-defined]
    return single


def on_network_node(function: Callable[..., Result], weights: bytes, device: str) -> Result:
    """function(weights, device), where the networks run: here, or on a node of the cluster."""
    if startup.cluster_address() is None and device == "cpu":
        return function(weights, device)
    task = ray.remote(function).options(num_cpus=DATA_CPUS, num_gpus=int(device == "cuda"))
    found: Result = ray.get(task.remote(weights, device), timeout=ACTORS_START_S)
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
    # Ray Data's way for whole blocks on GPUs: map_batches wants a number of rows with those, and
    # would cut and join groups by it. Nor has that another way yet to bound retries.
    return dataset.map_batches_internal(
        _on_its_node(stage, plan_workers(num_workers, cpus, device)),
        fn_constructor_args=(*arguments, device),
        batch_size=None,
        compute=ActorPoolStrategy(size=num_workers),
        num_cpus=cpus,
        num_gpus=1 if device == "cuda" else 0,
        max_task_retries=TASK_RETRIES,
        **options,
    )


def model_workers(device: str, wanted: int | None) -> int:
    """How many processes run the network: as wanted, or one a core or GPU."""
    have = _cluster("GPU" if device == "cuda" else "CPU")
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
    nodes = _nodes()
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


def _on_its_node(stage: type, shares: Mapping[str, Share]) -> type:
    """The stage, with the threads that the worker's own node has for it as last argument."""

    class OnItsNode(stage):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            node = ray.get_runtime_context().get_node_id()
            fullest = max(shares.values(), key=lambda share: share.num_workers)
            share = shares.get(node, fullest)  # the node may have come later
            super().__init__(*arguments, share.threads(num_own_cores()))

    OnItsNode.__name__ = stage.__name__  # by which Ray lists its actors
    return OnItsNode


def worker_threads(num_workers: int) -> int:
    """Threads for each of `num_workers` model workers on this node."""
    return max(1, num_own_cores() // num_workers)


def num_own_cores() -> int:
    """Cores that this process may use.

    Fewer than the machine's where taskset, Slurm or a container's quota says so.
    """
    quota = int(get_num_cpus(override_docker_cpu_warning=True))  # Ray knows no affinity
    return max(1, min(len(os.sched_getaffinity(0)), quota))


def own_error(error: BaseException | None) -> Exception | None:
    """The error of ours, or of a file system, for which Ray or a library gave up; None if none.

    Its message is one line: Ray Data appends advice about settings of its own.
    """
    while error is not None:
        if isinstance(error, OURS) and not isinstance(error, RayError):
            if isinstance(error, OSError):
                return _own_os_error(error)
            return next(kind for kind in OURS if isinstance(error, kind))(first_line(error))
        error = getattr(error, "cause", None) or error.__cause__
    return None


OURS = (UserError, Unfinished, OSError)


def _own_os_error(error: OSError) -> OSError:
    """The same kind of error with one line that names the file and says what is wrong."""
    kinds = (PermissionError, IsADirectoryError, NotADirectoryError, OSError)
    own = next(kind for kind in kinds if isinstance(error, kind))(os_error_text(error))
    own.errno = error.errno
    return own


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

"""Every private, internal, developer's or undocumented API of Ray that segpipe uses.

Nothing else in segpipe touches one. Each entry says what breaks without it, and has a test in
tests/test_ray_compat.py that fails when Ray moves it or changes what it means (read: Ray 2.60.0).
Those of torch are in models/torch_compat.py: models never import ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services, utils, worker
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.grpc_utils import init_grpc_channel
from ray._private.utils import check_version_info, get_num_cpus
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2 import (  # type: ignore[attr-defined]
    InternalKVGetRequest,
)
from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub
from ray.data import DataContext, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback as ExecutionCallback

# A public base class, for what it is asked: without `configure`, whose arguments Ray may change, a
# training's workers get crops of Ray's own split, and none resumes at its step.
from ray.train import DataConfig as DataConfig

# ---- how Ray's processes run

ENVIRONMENT = {  # switches that Ray does not document, before it starts or is joined
    # Without it Ray's core writes lines of its own to stderr; errors reach us as exceptions.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Without it an error that nobody asks for is told twice.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
# Without it each training spends 2 s of CPU more: nobody takes away the one node of a Ray of ours.
OWN_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}

# By default Ray ends a process that rests for a second while more run than there are cores, and
# starts another when a task comes: with several light stages a core, that took half of the cores.
SYSTEM_CONFIG = {
    "num_workers_soft_limit": 64,
    "idle_worker_killing_time_threshold_ms": 600_000,
    "worker_maximum_startup_concurrency": 4,  # and no warning until 16 processes have started
}

# The longest of the paths that Ray makes below its temporary folder, with the pid in the middle.
# Without it a deep TMPDIR ends Ray with a traceback about sockets.
SOCKET = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"


def own_options(folder: str | None) -> dict[str, Any]:
    """Arguments of ray.init for a Ray of our own, with its files below `folder` where one is given.

    Without `_temp_dir` a deep TMPDIR cannot be avoided; without `_system_config`, see above.
    """
    options: dict[str, Any] = {"_system_config": SYSTEM_CONFIG}
    return options | ({"_temp_dir": folder} if folder else {})


def container_cores() -> int:
    """Cores that a container's quota leaves. Without it workers in a pod start too many threads."""
    return int(get_num_cpus(override_docker_cpu_warning=True))


def jemalloc() -> str:
    """Where this node's Ray has it, or "". Without it networks run 3 times slower on CPUs."""
    library = Path(ray.__file__).parent / "core" / "libjemalloc.so"
    return str(library) if library.exists() else ""


# ---- what a head answers before it is joined


def find_head(address: str) -> str | None:
    """HOST:PORT that Ray takes for an address, of this machine's latest cluster for "auto".

    Without it "auto" cannot be checked before Ray waits a minute for it.
    """
    with suppress(ConnectionError, ValueError):
        if found := services.canonicalize_bootstrap_address(address):
            return str(found)
    return None


def has_node_here() -> bool:
    """Whether a cluster's node runs on this machine. Without it Ray looks for one for a minute."""
    return bool(services.find_node_ids())  # type: ignore[no-untyped-call]


def head_metadata(head: str, timeout_s: float) -> dict[str, Any]:
    """Versions of the cluster at HOST:PORT; {} where it keeps none.

    Raises AuthenticationError without a token to send, grpc.RpcError for what the head answers.
    Without it each wrong address is a wait, or a page of text.
    """
    with init_grpc_channel(head, ray_constants.GLOBAL_GRPC_OPTIONS) as channel:
        head_service = InternalKVGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        question = InternalKVGetRequest(
            namespace=ray_constants.KV_NAMESPACE_CLUSTER, key=b"CLUSTER_METADATA"
        )
        answer = head_service.InternalKVGet(question, timeout=timeout_s)
    found: dict[str, Any] = json.loads(answer.value) if answer.value else {}
    return found


def same_versions(metadata: dict[str, Any]) -> bool:
    """Whether a cluster of this metadata has our Ray and Python.

    Without it another version is a page of text in the middle of a run.
    """
    try:
        check_version_info(metadata, "this machine")
    except RuntimeError:
        return False
    return True


def use_machine_token() -> None:
    """Take this machine's token. Without it "auto" is refused where ray.init would have joined."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def forget_token() -> None:
    """Without it a token that was set or deleted in the environment is not noticed."""
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def silent_listener() -> Iterator[None]:
    """Without it Ray's thread for errors of the cluster prints to stdout, over several lines.

    What concerns us reaches us as an exception, and what ends this process has its last word.
    """
    before = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Without it `ray.init` sets handlers of SIGTERM that end the process wherever it just is."""
    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


# ---- Ray Data

ACTORS_START_S = 300  # seconds after which model processes that do not start are an error
DATA_SETTINGS: dict[str, Any] = {  # fields of DataContext
    "enable_progress_bars": False,  # without it Ray Data's bars lie over our own progress
    "print_on_execution_start": False,  # without it, lines of each execution's plan
    "memory_usage_poll_interval_s": None,  # without it, a thread a task that nobody reads
    "raise_original_map_exception": True,  # without it own_error finds no error of ours
    # without it tasks that hold all cores can keep an actor from starting for ten seconds
    "wait_for_min_actors_s": ACTORS_START_S,
}
DATA_LOGGER = "ray.data"  # its errors reach us as exceptions, and need no second telling


def add_callback(callback: type[ExecutionCallback]) -> None:
    """Every execution of this process gets one. Without it Ray Data's scheduler takes half a core.

    `callback` overrides before_execution_starts(executor) and on_execution_step(executor).
    """
    callbacks = DataContext.get_current().custom_execution_callback_classes
    if callback not in callbacks:
        callbacks.append(callback)


def set_callback(dataset: Dataset, callback: type[ExecutionCallback]) -> None:
    """The same for one dataset, in place of the others."""
    dataset.context.custom_execution_callback_classes = [callback]


def stop_executor(executor: Any) -> None:
    """End an execution that is left half-way. Without it its loop asks a Ray that is gone, which
    can abort the process.
    """
    executor.shutdown(force=False)


def book_cpus(dataset: Dataset, cpus: float) -> None:
    """Cores of each task of a dataset's last step.

    Without it a repartition books a whole core, which never comes free beside the networks, and its
    public method takes no other number.
    """
    last = dataset._logical_plan.dag
    last.ray_remote_args["num_cpus"] = cpus  # type: ignore[attr-defined]


def map_blocks(dataset: Dataset, stage: Callable[..., Any], **options: Any) -> Dataset:
    """map_batches of whole blocks, also on GPUs.

    Without it groups of inputs are cut and joined: the public method wants a number of rows with
    GPUs. Nor has that another way yet to bound retries (`max_task_retries`).
    """
    return dataset.map_batches_internal(stage, batch_size=None, **options)


# ---- Ray Train


def resize_check(seconds: float) -> dict[str, Any]:
    """For ScalingConfig. Without it nodes that join or leave are noticed after a minute."""
    return {"elastic_resize_monitor_interval_s": seconds}


def worker_env(runtime_env: dict[str, Any]) -> dict[str, Any]:
    """For RunConfig. Without it a training's workers run without jemalloc."""
    return {"worker_runtime_env": runtime_env}

"""Ray for the time of one verb: joined at RAY_ADDRESS, or a local one of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray.data import DataContext

from segpipe.cluster.join import cluster_address, join_cluster
from segpipe.cluster.nodes import (
    num_own_cores,
)
from segpipe.cluster.quiet import silent_listener
from segpipe.cluster.start import own_token, ray_folder, start_ray
from segpipe.cluster.throttle import SchedulerThrottle
from segpipe.cluster.workers import ACTORS_START_S

# By default Ray ends a process that rests for a second while more run than there are cores, and
# starts another when a task comes: with several light stages a core, that took half of the cores.
OWN_CLUSTER = {
    "num_workers_soft_limit": 64,
    "idle_worker_killing_time_threshold_ms": 600_000,
    "worker_maximum_startup_concurrency": 4,  # and no warning until 16 processes have started
}


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
    with running_ray(own):
        try:
            yield
        finally:
            for executor in set(SchedulerThrottle.running):  # a loop without Ray aborts the process
                executor.shutdown(force=False)
            ray.shutdown()


def configure_ray_data() -> None:
    """Our own progress speaks for Ray Data's, and its scheduler rests."""
    context = DataContext.get_current()
    if SchedulerThrottle not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(SchedulerThrottle)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # nobody reads it, and it takes a thread a task
    context.raise_original_map_exception = True  # for own_error
    # Actors first: tasks that hold all cores can keep an actor from starting for ten seconds.
    context.wait_for_min_actors_s = ACTORS_START_S
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors reach us as exceptions


@contextmanager
def running_ray(own: dict[str, Any]) -> Iterator[None]:
    """Ray, joined or started with the options `own`; the caller shuts it down.

    Raises UserError for what the user must change, Unfinished where another try may help.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors reach us as exceptions
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # and so need no second telling
    with ExitStack() as meanwhile:
        meanwhile.enter_context(silent_listener())
        address = cluster_address()
        if address is not None:
            join_cluster(address)
        else:
            # Nobody takes this one node away: 2 s of CPU less for each training.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            folder = meanwhile.enter_context(ray_folder())
            meanwhile.enter_context(own_token())
            start_ray(own | ({"_temp_dir": folder} if folder else {}))
        yield

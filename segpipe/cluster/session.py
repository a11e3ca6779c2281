"""Ray for the time of one verb: joined at RAY_ADDRESS, or a local one of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import ray
from ray.data import DataContext

from segpipe import ray_compat
from segpipe.cluster.join import cluster_address, join_cluster
from segpipe.cluster.nodes import num_own_cores
from segpipe.cluster.start import own_token, ray_folder, start_ray
from segpipe.cluster.throttle import SchedulerThrottle


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the time of one verb: the running one, the cluster at RAY_ADDRESS, or a local one."""
    configure_ray_data()
    if ray.is_initialized():
        yield
        return
    with running_ray():
        try:
            yield
        finally:
            for executor in set(SchedulerThrottle.running):
                ray_compat.stop_executor(executor)
            ray.shutdown()


def configure_ray_data() -> None:
    """Our own progress speaks for Ray Data's, and its scheduler rests."""
    context = DataContext.get_current()
    for name, value in ray_compat.DATA_SETTINGS.items():
        setattr(context, name, value)
    ray_compat.add_callback(SchedulerThrottle)
    logging.getLogger(ray_compat.DATA_LOGGER).setLevel(logging.CRITICAL)


@contextmanager
def running_ray() -> Iterator[None]:
    """Ray, joined or started; the caller shuts it down.

    Raises UserError for what the user must change, Unfinished where another try may help.
    """
    _set_defaults(ray_compat.ENVIRONMENT)
    with ExitStack() as meanwhile:
        meanwhile.enter_context(ray_compat.silent_listener())
        address = cluster_address()
        if address is not None:
            join_cluster(address)
        else:
            _set_defaults(ray_compat.OWN_ENVIRONMENT)
            folder = meanwhile.enter_context(ray_folder())
            meanwhile.enter_context(own_token())
            # It dies with us and needs no dashboard.
            own = ray_compat.own_options(folder)
            start_ray(own | {"include_dashboard": False, "num_cpus": num_own_cores()})
        yield


def _set_defaults(environment: dict[str, str]) -> None:
    for name, value in environment.items():
        os.environ.setdefault(name, value)

"""Stages on workers: their threads, their allocator, their blocks.

Run: pytest tests/test_workers.py
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray

from segpipe.cluster.nodes import Share
from segpipe.cluster.workers import (
    _on_its_node,
    cluster_model_env,
    jemalloc,
    model_env,
    network_stage,
)
from segpipe.segment.stopwatch import StageTimes

SMALL = {"CPU": 2.0}


class Stage:
    def __init__(self, name: str, num_threads: int) -> None:
        self.made = name, num_threads


@pytest.mark.parametrize(
    ("node", "own_cores", "threads"),
    [("a", 16, 8), ("a", 4, 2), ("b", 16, 1), ("later", 16, 8), ("later", 2, 1)],
)
def test_a_stage_is_made_with_what_its_process_may_use(monkeypatch, node, own_cores, threads):
    """Fewer cores than Ray counts, as under taskset, or more, where Ray was told of few."""
    monkeypatch.setattr(
        ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: node)
    )
    monkeypatch.setattr("segpipe.cluster.workers.num_own_cores", lambda: own_cores)
    shares = {"a": Share(2, 16), "b": Share(1, 1)}
    stage = _on_its_node(Stage, shares)
    assert stage.__name__ == "Stage"
    assert stage("name").made == ("name", threads)


ALLOCATOR = """
import os
print("libjemalloc" in open("/proc/self/maps").read(), os.environ["MALLOC_CONF"][:10])
"""


def test_a_node_with_another_path_to_python_has_its_own_jemalloc(monkeypatch):
    """The loader passes over what is not there."""
    own = jemalloc()
    monkeypatch.setattr("segpipe.cluster.workers.jemalloc", lambda: "/of/the/driver/libjemalloc.so")
    env = model_env(["", "/of/a/third/libjemalloc.so", own, own])["env_vars"]
    words = [sys.executable, "-c", ALLOCATOR]
    told = subprocess.run(words, env=os.environ | env, check=True, capture_output=True)
    assert told.stdout.split() == [b"True", b"thp:always"]


def test_each_node_is_asked_for_its_jemalloc_and_one_line_names_those_without(
    ray_cluster, monkeypatch, capsys
):
    [node] = ray.nodes()
    gone = "ab" * 28
    own = jemalloc()
    monkeypatch.setattr(
        "segpipe.cluster.workers.node_resources",
        lambda: {node["NodeID"]: SMALL, gone: SMALL, "head": {}},
    )
    monkeypatch.setattr("segpipe.cluster.workers.model_env", list)  # what the nodes said
    assert cluster_model_env() == [own]
    [line] = capsys.readouterr().err.splitlines()
    assert line == "segpipe: 1 of 2 nodes told of no jemalloc, torch is slower there: abababab"


def test_a_stage_on_gpus_takes_whole_blocks_and_books_one_each(ray_cluster):
    """Ray's own map_batches refuses that; groups of an archive must stay whole."""
    staged = network_stage(ray.data.range(1), StageTimes, (), "cuda", 1)
    last = staged._logical_plan.dag
    assert (last.batch_size, last.ray_remote_args["num_gpus"]) == (None, 1)
    assert last.name == "MapBatches(StageTimes)"

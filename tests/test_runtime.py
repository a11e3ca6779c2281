"""What Ray hides and what people see: rates, time left, the error behind Ray's.

Run: pytest tests/test_runtime.py
"""

import os
import re
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from processes import wait_until

from segpipe.cluster import runtime
from segpipe.errors import StoreDown, UserError
from segpipe.progress import Progress, SteadyRate, time_left
from segpipe.segment.gauges import Gauges
from segpipe.segment.stopwatch import STAGES, StageTimes


def test_the_steady_rate_leaves_the_first_group_out():
    """Two at once start the clock; four more in the next two seconds are two a second."""
    rate = SteadyRate()
    assert rate.value is None
    rate.add(10.0, 2)
    assert rate.value is None
    rate.add(11.0, 2)
    rate.add(12.0, 2)
    assert rate.value == 2.0


def test_time_left_is_told_in_hours_minutes_and_seconds():
    assert time_left(10, 110, 0.01) == "2:46:40 left"
    assert time_left(0, 10, None) == "time left unknown"


CPU_NODE, GPU_NODE = {"CPU": 8.0}, {"CPU": 4.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "num_workers", "device", "wanted"),
    [
        ([{"CPU": 2.0}], 2, "cpu", 0.8),
        ([{"CPU": 1.0}] * 2, 2, "cpu", 0.8),
        ([{"CPU": 1.0}] * 2, 3, "cpu", 0.5),  # a third of 1.6 cores would let one on each node
        ([{}, CPU_NODE, CPU_NODE], 4, "cpu", 1.0),
        ([CPU_NODE, GPU_NODE], 8, "cuda", 0.5),  # a core each is not there, beside the GPUs
        ([CPU_NODE, {"CPU": 1.0, "GPU": 1.0}], 1, "cuda", 1.0),
        ([CPU_NODE, {"CPU": 1.0, "GPU": 1.0}], 2, "cuda", 1.0),  # a node more must come
        ([{"CPU": 1.0}], 200, "cpu", 0.01),
    ],
)
def test_workers_book_what_their_nodes_have(monkeypatch, nodes, num_workers, device, wanted):
    have(monkeypatch, nodes)
    assert runtime.cpus_per_worker(num_workers, device) == wanted


def have(monkeypatch, nodes: list[dict[str, float]]) -> None:
    """A cluster of nodes 0, 1 ... with these resources, and one that is gone."""
    gone = {"Alive": False, "NodeID": "gone", "Resources": {"CPU": 99.0}}
    alive = [
        {"Alive": True, "NodeID": str(number), "Resources": node}
        for number, node in enumerate(nodes)
    ]
    monkeypatch.setattr(ray, "nodes", lambda: [gone, *alive])


SMALL, LARGE = {"CPU": 2.0}, {"CPU": 16.0}


@pytest.mark.parametrize(
    ("nodes", "num_workers", "device", "threads"),
    [
        ([SMALL, LARGE], 2, "cpu", [2, 16]),
        ([SMALL, LARGE], 4, "cpu", [1, 8]),
        ([SMALL, LARGE], 5, "cpu", [1, 5]),  # a third has no room on the small one
        ([SMALL, LARGE], 18, "cpu", [1, 1]),
        ([LARGE], 4, "cpu", [4]),
        ([{}, LARGE], 2, "cpu", [None, 8]),
        ([LARGE, {"CPU": 8.0, "GPU": 4.0}], 4, "cuda", [None, 2]),
        ([SMALL], 50, "cpu", [1]),
    ],
)
def test_a_worker_takes_the_threads_that_its_own_node_has_for_it(
    monkeypatch, nodes, num_workers, device, threads
):
    """Whatever the driver's cores are: here it has one."""
    have(monkeypatch, nodes)
    shares = runtime.plan_workers(num_workers, runtime.cpus_per_worker(num_workers, device), device)
    monkeypatch.setattr(runtime, "num_own_cores", lambda: 1)
    assert sum(share.num_workers for share in shares.values()) <= num_workers
    found = [
        share.threads(int(node.get("CPU", 0))) if share.num_workers else None
        for share, node in zip(shares.values(), nodes, strict=True)
    ]
    assert found == threads


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
    monkeypatch.setattr(runtime, "num_own_cores", lambda: own_cores)
    shares = {"a": runtime.Share(2, 16), "b": runtime.Share(1, 1)}
    stage = runtime._on_its_node(Stage, shares)
    assert stage.__name__ == "Stage"
    assert stage("name").made == ("name", threads)


ALLOCATOR = """
import os
print("libjemalloc" in open("/proc/self/maps").read(), os.environ["MALLOC_CONF"][:10])
"""


def test_a_node_with_another_path_to_python_has_its_own_jemalloc(monkeypatch):
    """The loader passes over what is not there."""
    own = runtime.jemalloc()
    monkeypatch.setattr(runtime, "jemalloc", lambda: "/of/the/driver/libjemalloc.so")
    env = runtime.model_env(["", "/of/a/third/libjemalloc.so", own, own])["env_vars"]
    words = [sys.executable, "-c", ALLOCATOR]
    told = subprocess.run(words, env=os.environ | env, check=True, capture_output=True)
    assert told.stdout.split() == [b"True", b"thp:always"]


def test_each_node_is_asked_for_its_jemalloc_and_one_line_names_those_without(
    ray_cluster, monkeypatch, capsys
):
    [node] = ray.nodes()
    gone = "ab" * 28
    own = runtime.jemalloc()
    monkeypatch.setattr(runtime, "_nodes", lambda: {node["NodeID"]: SMALL, gone: SMALL, "head": {}})
    monkeypatch.setattr(runtime, "model_env", list)  # what the nodes said
    assert runtime.cluster_model_env() == [own]
    [line] = capsys.readouterr().err.splitlines()
    assert line == "segpipe: 1 of 2 nodes told of no jemalloc, torch is slower there: abababab"


def test_a_stage_on_gpus_takes_whole_blocks_and_books_one_each(ray_cluster):
    """Ray's own map_batches refuses that; groups of an archive must stay whole."""
    staged = runtime.network_stage(ray.data.range(1), StageTimes, (), "cuda", 1)
    last = staged._logical_plan.dag
    assert (last.batch_size, last.ray_remote_args["num_gpus"]) == (None, 1)
    assert last.name == "MapBatches(StageTimes)"


@pytest.mark.parametrize("kind", [StoreDown, UserError])
def test_the_error_behind_rays_is_found_and_its_message_is_one_line(ray_cluster, kind):
    def fails(_):
        raise kind("what happened")

    dataset = ray.data.range(1, override_num_blocks=1).map_batches(fails)
    with pytest.raises(Exception) as raised:  # noqa: PT011  whatever Ray makes of it
        dataset.materialize()
    found = runtime.own_error(raised.value)
    assert type(found) in (kind, OSError)
    assert str(found) == "what happened"


def test_other_errors_are_not_taken_for_ours():
    assert runtime.own_error(KeyError("x")) is None


class Clock:
    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(runtime.time, "monotonic", lambda: self.now)


def shown(monkeypatch, capsys, terminal: bool) -> str:
    """What a minute of progress, told every second, writes."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    progress = Progress("segment")
    for number in range(61):
        progress.show(f"{number}/61")
        clock.now += 1
    progress.show("the end", always=True)
    return capsys.readouterr().err


def test_without_a_terminal_progress_is_a_line_every_30_seconds(monkeypatch, capsys):
    wanted = ["segment: 0/61", "segment: 30/61", "segment: 60/61", "segment: the end"]
    assert shown(monkeypatch, capsys, terminal=False).splitlines() == wanted


def test_on_a_terminal_progress_is_one_line_that_is_written_over(monkeypatch, capsys):
    parts = shown(monkeypatch, capsys, terminal=True).split("\r\033[K")
    assert parts[1:] == [*(f"segment: {number}/61" for number in range(61)), "segment: the end\n"]


def test_the_bottleneck_is_where_most_of_the_workers_seconds_went():
    """Two workers for 10 s: 12 s of decoding, 4 s of the model, 1 s between groups; 1 s listing."""
    seconds = dict.fromkeys(STAGES, 0.0)
    times = StageTimes(num_workers=2, listing_s=1.0)
    for started, finished, decode in (
        (100.0, 109.5, 7.0),
        (100.0, 105.0, 2.0),
        (105.5, 110.0, 3.0),
    ):
        group = seconds | {"decode": decode, "model": 4 / 3}
        times.add(np.asarray(list(group.values())), started, finished)
    found = times.summary()
    assert found["bottleneck"] == "decode"
    told = {name: spent for name, spent in found["stages"].items() if spent}
    assert told == {"list": 2.0, "decode": 12.0, "model": 4.0, "waiting for work": 1.0}


def test_workers_without_work_are_a_bottleneck_too():
    times = StageTimes(num_workers=4, listing_s=0.0)
    times.add(np.full(len(STAGES), 0.1), 0.0, 1.0)
    times.add(np.full(len(STAGES), 0.1), 9.0, 10.0)
    assert times.summary()["bottleneck"] == "waiting for work"
    assert StageTimes(2, 1.0).summary() == {"stages": None, "bottleneck": None}


def metrics() -> dict[str, float]:
    """What Prometheus would scrape of ours, by name and the value of our label."""
    [node] = ray.nodes()
    place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(place, timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r"^(ray_segpipe_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
    labels = [re.search(r'(?:status|stage)="(\w+)"', told) for _, told, _ in found]
    return {
        f"{name} {label[1]}" if label else name: float(value)
        for (name, _, value), label in zip(found, labels, strict=True)
    }


def test_prometheus_sees_counts_stages_and_the_rate(ray_cluster):
    """Counters add up over groups; the names are those of docs/results.md."""
    before, gauges = metrics(), Gauges()
    seconds = np.arange(len(STAGES), dtype=float)
    for _ in range(2):
        gauges.add({"ok": 3, "rejected": 1, "open": 0}, seconds)
    gauges.set(7, 12.5)
    rate = "ray_segpipe_images_per_second"
    wait_until(lambda: metrics().get(rate) == 12.5, "metrics", 60)
    after = metrics()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["ray_segpipe_images_total ok"] == 6
    assert grown["ray_segpipe_images_total rejected"] == 2
    for number, stage in enumerate(STAGES[1:], 1):
        assert grown[f"ray_segpipe_stage_seconds_total {stage}"] == 2 * number
    assert after["ray_segpipe_images_open"] == 7


LEFT = """
import threading, time, ray
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from segpipe import runtime

def later_ones_hang(batch):
    time.sleep(3600 * (int(batch["id"][0]) > 3))
    return batch

with runtime.ray_session():
    stage = ray.data.range(6, override_num_blocks=6).map_batches(later_ones_hang, num_cpus=0.1)
    left = iter(stage.iter_batches(batch_size=None))
    next(left)
    print(sum(isinstance(thread, StreamingExecutor) for thread in threading.enumerate()))
print(sum(isinstance(thread, StreamingExecutor) for thread in threading.enumerate()))
"""


def test_what_is_left_half_way_stops_before_ray_does(ray_cluster):
    """Else its loop asks a Ray that is gone, which can abort the process."""
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    words = [sys.executable, "-c", LEFT]
    told = subprocess.run(words, env=env, check=False, capture_output=True, timeout=120)
    assert told.returncode == 0, told.stderr.decode()
    assert told.stdout.split() == [b"1", b"0"]

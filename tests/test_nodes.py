"""What a worker books of its node, and how many threads it takes there.

Run: pytest tests/test_nodes.py
"""

import pytest
import ray

from segpipe.cluster.nodes import cpus_per_worker, plan_workers

CPU_NODE, GPU_NODE = {"CPU": 8.0}, {"CPU": 4.0, "GPU": 8.0}


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
    assert cpus_per_worker(num_workers, device) == wanted


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
    shares = plan_workers(num_workers, cpus_per_worker(num_workers, device), device)
    monkeypatch.setattr("segpipe.cluster.nodes.num_own_cores", lambda: 1)
    assert sum(share.num_workers for share in shares.values()) <= num_workers
    found = [
        share.threads(int(node.get("CPU", 0))) if share.num_workers else None
        for share, node in zip(shares.values(), nodes, strict=True)
    ]
    assert found == threads

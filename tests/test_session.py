"""Ray for one verb ends with it, and writes nothing of its own.

Run: pytest tests/test_session.py (with -m cluster those that start Ray)
"""

import os
import signal
import subprocess
import sys

import pytest
import ray
from processes import command_of, family, running, wait_until

from segpipe.cluster.quiet import signals_later

SEGMENT = ["-m", "segpipe", "segment", "--tta", "none", "--backend", "torch", "--precision", "fp32"]
SEGMENT += ["--workers", 1, "--report-images", "off", "--input"]


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly)],
)
def test_a_signal_while_ray_starts_ends_as_later(number, code, labelled, tmp_path):
    with running(*SEGMENT, labelled / "test/images", "--output", tmp_path) as job:
        pids: list[int] = []

        def starting() -> bool:
            assert job.runs(), job.told()
            pids[:] = family(job.process.pid)
            return any("gcs_server" in command_of(pid) for pid in pids)

        wait_until(starting, "start of Ray")
        job.process.send_signal(number)
        assert job.wait() == code, job.told()
        lines = job.told().splitlines()
        wait_until(lambda: not any(map(command_of, pids)), "end of what Ray started")
    assert lines == ["segpipe segment: stopped, run the same command again to resume"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_comes_after_rays_start(number):
    """Of several the first, to the handler that there was."""
    before, came, done = signal.getsignal(number), [], []
    signal.signal(number, lambda number, _: came.append(number))
    try:
        with signals_later():
            signal.raise_signal(number)
            signal.raise_signal(number)
            done += came
        assert (done, came) == ([], [number])
    finally:
        signal.signal(number, before)


LEFT = """
import threading, time, ray
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from segpipe.cluster.session import ray_session

def later_ones_hang(batch):
    time.sleep(3600 * (int(batch["id"][0]) > 3))
    return batch

with ray_session():
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

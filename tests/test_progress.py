"""What people see: rates, time left, the bottleneck, lines of progress; and what Prometheus sees.

Run: pytest tests/test_progress.py
"""

import re
import sys
import urllib.request

import numpy as np
import ray
from processes import wait_until

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


class Clock:
    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("segpipe.progress.time.monotonic", lambda: self.now)


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

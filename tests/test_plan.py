"""A plan is arithmetic that a hand can follow, deaths that drawn ones agree with, and a true fit.

Run: pytest tests/test_plan.py
"""

import json
import random
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
from verbs import run

from segpipe.errors import UserError
from segpipe.models import checkpoint
from segpipe.models.checkpoint import Card
from segpipe.planning import costs
from segpipe.planning.costs import Costs, Measured
from segpipe.planning.forecast import REPLACE_S, Setting, forecast, index_s, list_s, with_deaths
from segpipe.planning.run import PlanConfig, setting_of

DIAMETER_PX = 1000.0
ROUND = Costs(  # round numbers, for hands
    photograph_s=0.010,
    megabyte_s=0.010,
    decoded_s=0.005,
    megapixel_s=0.001,
    model_s=0.060,
    group_s=0.020,
    request_s=0.001,
    contention=1.0,
    start_s=5.0,
    key_s=1e-5,
    page_s=1e-3,
    driver_group_s=0.004,
    part_s=0.001,
    row_s=2e-5,
    end_s=1.0,
    driver_mib=1000.0,
    row_bytes=400.0,
    worker_mib=200.0,
)
LOCAL = Setting(64_000, 1e6, 1.0, 2, 5, ROUND, DIAMETER_PX, s3=False)
S3 = replace(
    LOCAL,
    s3=True,
    request_s=0.1,
    connection_bytes_s=50e6,
    gets_s=5500.0,
    puts_s=3500.0,
    node_bytes_s=1.25e9,
)


# ---- the formula


def test_a_local_run_takes_what_a_hand_computes():
    # a photograph: 10 + 10 + 5 + 1 + 60 ms; 64 of them and 20 ms a group; 100 groups a worker
    found = forecast(LOCAL)
    assert LOCAL.photograph_s == pytest.approx(0.086)
    assert found.phases == pytest.approx(
        {
            "list": 0.64,
            "start": 5 + 16 * 1e-3,
            "work": 100 * (64 * 0.086 + 0.020),
            "end": 1000 * 2 * 0.001 + 64_000 * 2e-5 + 1.0,
        }
    )
    assert found.rate == pytest.approx(64_000 / 552.4)
    assert next(iter(found.limits)) == "cores"
    assert found.driver_bytes == pytest.approx(1000 * 2**20 + 64_000 * 400)
    assert found.node_bytes == pytest.approx(5 * 200 * 2**20)
    assert (found.gets, found.puts) == (0, 0)


def test_a_run_on_s3_takes_what_a_hand_computes():
    # a page's 64 groups go to 10 workers, and all ten read it: 0.9^64 is a thousandth
    found = forecast(S3)
    page_reads = 10 * (1 - 0.9**64) / 64
    page_s = 0.1 + 60 * 4096 / 50e6
    group_s = page_reads * page_s + (0.1 + 1 / 50) + 64 * 0.088 + 2 * 0.1 + 0.020
    assert found.phases["work"] == pytest.approx(100 * group_s)
    assert found.phases["list"] == pytest.approx(64 * 0.1 + 16 * page_s + 0.64)
    reading = 2 * 1000 * (0.002 + 0.1 / 16)
    assert found.phases["end"] == pytest.approx(0.1 + reading + 1.28 + 1)
    assert found.gets == pytest.approx(64_000 + 1000 * page_reads + 2 * 1000)
    assert found.puts == pytest.approx(64_000 + 1000 + 16 + 64 + 1)


def test_slow_answers_make_the_connections_the_bottleneck():
    slow = replace(S3, request_s=0.5)
    found = forecast(slow)
    assert next(iter(found.limits)) == "8 requests in flight a worker"
    # a GET of 0.5 s + 20 ms and a PUT of 0.5 s over 8 connections: 127.5 ms, more than 88 ms
    assert slow.group_s > 64 * 0.1275
    assert found.rate < 10 / 0.1275


@pytest.mark.parametrize(
    ("changed", "name", "rate"),
    [
        ({"gets_s": 50.0}, "GETs at the store", 50 / (1 + 10 * (1 - 0.9**64) / 64 / 64)),
        ({"puts_s": 50.0}, "PUTs at the store", 50 * 64 / 65),
        ({"node_bytes_s": 20e6}, "network of the nodes", 40.0),
    ],
)
def test_a_saturated_store_gives_its_own_rate(changed, name, rate):
    setting = replace(S3, **changed)
    found = forecast(setting)
    assert next(iter(found.limits)) == name
    assert found.rate == pytest.approx(rate, rel=1e-6)


def test_a_driver_that_cannot_hand_out_more_sets_the_rate():
    setting = replace(LOCAL, costs=replace(ROUND, driver_group_s=1.0))
    assert forecast(setting).rate == pytest.approx(64)


def test_gpus_take_the_network_off_the_cores():
    setting = replace(LOCAL, gpus=1, gpu_s=0.020)
    assert setting.photograph_s == pytest.approx(0.026)
    found = forecast(setting)
    assert list(found.limits)[:2] == ["GPUs", "cores"]
    assert found.rate == pytest.approx(2 / 0.020)


def test_large_jpegs_are_decoded_at_a_part_of_their_size():
    # 4:3: 4 megapixels have a shorter side of 1,732 px, 12 of 3,000: half of it keeps 1.1 x 1,000
    assert costs.decoded_megapixels(4.0, DIAMETER_PX) == 4.0
    assert costs.decoded_megapixels(12.0, DIAMETER_PX) == 3.0


def test_cores_slow_each_other_only_where_there_are_several():
    slow = replace(LOCAL, costs=replace(ROUND, contention=1.5))
    assert slow.photograph_s == pytest.approx(1.5 * 0.086)
    assert replace(slow, cores=1).photograph_s == pytest.approx(0.086)


@pytest.mark.parametrize("setting", [LOCAL, S3], ids=["local", "s3"])
def test_more_nodes_are_never_slower(setting):
    # of an archive that fills its groups: where more workers get smaller ones, a store's answers
    # are waited for more often
    large = replace(setting, images=20_000_000)
    times = [forecast(replace(large, nodes=nodes)).seconds for nodes in range(1, 70)]
    assert all(later <= before for before, later in pairwise(times))


# ---- nodes that die


def drawn(rng: np.random.Generator, setting: Setting, life_s: float) -> tuple[float, int]:
    """Seconds and deaths of one course on one node, step by step.

    The node may die in any step; what counts of a step that it dies in is only whole groups.
    """
    found = forecast(setting).phases
    seconds, deaths, to_do = 0.0, 0, setting.groups
    while True:
        index = index_s(setting, (setting.groups - to_do) * setting.group) if to_do else 0.0
        if not to_do:
            index = index_s(setting, setting.images)
        steps = [list_s(setting) + index + ROUND.start_s]
        steps += [setting.group_s] * -(-to_do // setting.workers) + [found["end"]]
        for step in steps:
            left = rng.exponential(life_s)
            if left < step:
                seconds, deaths = seconds + left + REPLACE_S, deaths + 1
                break
            seconds += step
            if step == setting.group_s:
                to_do = max(0, to_do - setting.workers)
        else:
            return seconds, deaths


@pytest.mark.parametrize("life_h", [0.2, 2.0])
def test_the_mean_cost_of_deaths_is_that_of_drawn_ones(life_h):
    setting, rng = replace(S3, nodes=1, cores=10), np.random.default_rng(0)
    courses = np.array([drawn(rng, setting, 3600 * life_h) for _ in range(4000)])
    found = with_deaths(setting, life_h)
    assert found.deaths == found.restarts
    assert found.seconds == pytest.approx(courses[:, 0].mean(), rel=0.03)
    assert found.restarts == pytest.approx(courses[:, 1].mean(), rel=0.1)


def test_a_workers_node_that_dies_costs_the_groups_it_held_and_its_absence():
    """Nodes that die every hour are away 5 minutes of 65, and work is that much longer."""
    setting = replace(LOCAL, nodes=100, images=5_000_000)
    found, whole = with_deaths(setting, 1.0), forecast(setting).phases["work"]
    others = found.deaths - found.restarts
    assert others == pytest.approx(99 * whole * (65 / 60) / 3900, rel=0.01)
    in_work = whole * (65 / 60) / 3600  # deaths of the driver's node, which stop all workers
    assert found.repeated == pytest.approx((others * 5 + in_work * 500) * 64, rel=0.01)


@pytest.mark.parametrize("setting", [LOCAL, S3], ids=["local", "s3"])
def test_nodes_that_live_long_cost_nothing(setting):
    found = with_deaths(setting, 1e9)
    assert found.seconds == pytest.approx(forecast(setting).seconds)
    assert found.deaths < 1e-5


# ---- the fit


def measured_row(items, image_bytes, megapixels, true: Costs, **others):
    """What a run at one worker would report: made here, not by the code that is tested."""
    shorter = (megapixels * 1e6 * 0.75) ** 0.5
    decoded = megapixels / (4 if shorter >= 2160 else 1)
    group = min(64, max(4, -(-items // 32)))
    groups = -(-items // group)
    stages = {
        "list": 0.01,
        "fetch": 0.1 * items * true.photograph_s,
        "decode": items * (true.megabyte_s * image_bytes / 1e6 + 0.7 * true.decoded_s * decoded),
        "field": 0.5 * items * true.photograph_s,
        "resize": 0.3 * items * true.decoded_s * decoded,
        "handover": 0.3 * items * true.photograph_s,
        "model": items * true.model_s,
        "mask": 0.4 * items * true.megapixel_s * megapixels,
        "encode": 0.6 * items * true.megapixel_s * megapixels,
        "write": 0.1 * items * true.photograph_s,
        "commit": 0.4 * groups * true.group_s,
        "waiting for work": 0.6 * groups * true.group_s,
    }
    return {
        "job": "segment",
        "mode": "strong",
        "part": "job",
        "workers": 1,
        "repeat": 1,
        "items": items,
        "rate": items / (sum(stages.values()) - 0.01),
        "stages": stages,
        "startup_s": true.start_s + items * true.key_s,
        "end_s": true.end_s + items * true.row_s + 2 * groups * true.part_s,
        "driver_cpu_s": 3.0
        + items * (true.key_s + true.row_s)
        + groups * (true.driver_group_s + 2 * true.part_s),
        "peak_mib": true.driver_mib + true.worker_mib,
        "image_bytes": image_bytes,
        "image_megapixels": megapixels,
        "batch_size": 64,
        "checkpoint": "resunet",
        "engine": "native fp32",
        "machine": {"cpu": "an abacus", "cores": 8},
        "time": "2026-11-26T18:00:00Z",
    } | others


SIZES = ((400, 7e4, 0.33), (4000, 7e5, 4.2), (1000, 1.3e6, 12.2), (2000, 5e5, 6.0))
START = Measured(
    replace(ROUND, photograph_s=0.004, megabyte_s=0.02, decoded_s=0.003, megapixel_s=0.003),
    dict.fromkeys(asdict(ROUND), "reference"),
)


def test_a_fit_finds_the_costs_that_made_the_rows():
    true = replace(ROUND, photograph_s=0.006, start_s=7.0, end_s=2.0, driver_group_s=0.009)
    rows = [measured_row(*size, true) for size in SIZES]
    rows += [measured_row(*SIZES[0], true, workers=2, peak_mib=true.driver_mib + 400)]
    random.Random(0).shuffle(rows)
    found = costs.fit(rows, START, DIAMETER_PX)
    assert asdict(found.costs) == pytest.approx(asdict(true), rel=0.02)
    assert "4 runs at 1 worker, 8 cores, an abacus, 2026-11-26" in found.sources["model_s"]
    assert found.sources["row_s"] == "reference"


def test_a_fit_of_one_size_keeps_the_references_shape_and_the_rows_sum():
    true = replace(START.costs, photograph_s=0.008, decoded_s=0.006, megabyte_s=0.04)
    row = measured_row(1000, 4e5, 2.0, true)
    found = costs.fit([row], START, DIAMETER_PX).costs
    setting = replace(LOCAL, images=1000, image_bytes=4e5, megapixels=2.0, nodes=1, cores=1)
    fitted = replace(setting, costs=found)
    assert forecast(fitted).rate == pytest.approx(row["rate"], rel=0.01)
    assert found.megabyte_s > START.costs.megabyte_s


def test_a_fit_takes_the_steady_rate_for_the_sum_of_the_stages():
    row = measured_row(*SIZES[1], ROUND)
    twice = costs.fit([row | {"rate": row["rate"] / 2}], START, DIAMETER_PX).costs
    once = costs.fit([row], START, DIAMETER_PX).costs
    assert twice.model_s == pytest.approx(2 * once.model_s)


def test_a_fit_reads_from_jobs_how_cores_slow_each_other():
    alone = measured_row(*SIZES[1], ROUND)
    rows = [alone]
    for workers, slower in ((2, 1.1), (4, 1.25)):
        stages = alone["stages"] | {"model": slower * alone["stages"]["model"]}
        rows.append(alone | {"workers": workers, "stages": stages})
    rows.append(alone | {"part": "model", "workers": 4, "rate": 1.0, "stages": None})
    assert costs.fit(rows, START, DIAMETER_PX).costs.contention == pytest.approx(1.25)


def told_flips(true: Costs, flips: int) -> int:
    """What a plan takes from rows."""
    found = costs.fit([measured_row(*SIZES[1], true, flips=flips)], START, DIAMETER_PX)
    card = Card("net", 540.0, 0.5, "drawn", ("outside", "vessel", "background"), "0", flips=4)
    return setting_of(PlanConfig(1000), found, card).flips


def test_a_photograph_takes_the_network_once_for_each_flip():
    """A fit divides by the flips of its rows, a forecast multiplies by its own."""
    true = replace(ROUND, model_s=4 * ROUND.model_s)
    four = costs.fit([measured_row(*SIZES[1], true, flips=4)], START, DIAMETER_PX).costs
    one = costs.fit([measured_row(*SIZES[1], ROUND)], START, DIAMETER_PX).costs
    assert four.model_s == pytest.approx(one.model_s)
    assert told_flips(true, 4) == 4
    assert told_flips(ROUND, 1) == 1  # not the default checkpoint's
    longer = replace(LOCAL, flips=4).photograph_s - LOCAL.photograph_s
    assert longer == pytest.approx(3 * LOCAL.contention * ROUND.model_s)


# ---- the command


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(measured_row(*size, ROUND)) + "\n" for size in SIZES))
    return path


def test_the_command_tells_costs_sources_and_a_forecast(results, tmp_path, capsys):
    words = ["plan", "--images", "10000000", "--nodes", "8", "--price", "2"]
    assert run(*words, "--measured", results, "--output", tmp_path / "plan.json") == 0
    out = capsys.readouterr().out
    assert "10,000,000 photographs" in out
    assert "measured: 4 runs at 1 worker" in out
    assert "assumed" in out
    assert "bottleneck" in out
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["costs"]["model_s"] == pytest.approx(0.060, rel=0.02)
    hours = told["forecast"]["seconds"] / 3600
    assert told["prices"]["nodes"] == pytest.approx(8 * 2 * hours)
    assert told["forecast"]["gets"] > 10_000_000


def test_deaths_are_told_where_nodes_have_a_lifetime(tmp_path, capsys):
    words = ["plan", "--images", "1000000", "--nodes", "4", "--node-hours", "3"]
    assert run(*words, "--output", tmp_path / "plan.json") == 0
    assert "nodes that die " in capsys.readouterr().out
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["with_deaths"]["seconds"] > told["forecast"]["seconds"]


def test_nodes_that_die_before_they_have_done_anything_are_refused(capsys):
    assert run("plan", "--images", 1000, "--node-hours", 1e-9) == 2
    assert "--node-hours 1e-09: nodes die before" in capsys.readouterr().err


def test_without_measurements_the_package_has_its_own(capsys):
    assert run("plan", "--images", "1000", "--store", "local") == 0
    assert "worker: the network" in capsys.readouterr().out


def test_every_cost_of_the_reference_has_a_source():
    assert costs.reference() == costs.reference(checkpoint.DEFAULT)
    for name in checkpoint.shipped():
        known = costs.reference(name)
        assert known.sources.keys() == asdict(known.costs).keys()
        assert all(value > 0 for value in asdict(known.costs).values())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--images", "0"], "--images 0: must be 1 or more"),
        (["--images", "5", "--nodes", "0"], "--nodes 0"),
        (["--images", "5", "--mean-bytes", "nan"], "--mean-bytes nan"),
        (["--images", "5", "--store", "tape"], "choose from s3, local"),
        (["--images", "5", "--price", "-1"], "--price -1.0"),
        (["--images", "5", "--measured", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--images", "5", "--output", "/nowhere/plan.json"], "--output /nowhere/plan.json: No"),
        (["--images", "5", "--node-hours", "0"], "--node-hours 0.0: must be above 0"),
        (["--images", "5", "--checkpoint", "other"], "choose from fineunet, resunet, segnet-lite"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(words, told, capsys):
    assert run("plan", *words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: [row | {"workers": 2}], "no run of segment on 1 core"),
        (lambda row: [row, row | {"checkpoint": "segnet-lite"}], "choose one by --checkpoint"),
        (lambda row: [row | {"image_megapixels": None}], "lacks image_megapixels"),
    ],
)
def test_rows_that_do_not_do_are_refused(change, told):
    with pytest.raises(UserError, match=told):
        costs.fit(change(measured_row(*SIZES[0], ROUND)), START, DIAMETER_PX)


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "line 1 is no JSON object"), ('\n{"job": "segment"}', "line 2 lacks part")],
)
def test_lines_that_are_no_rows_are_refused(text, told):
    with pytest.raises(UserError, match=told):
        costs.read_rows(text, "results.jsonl")

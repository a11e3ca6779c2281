"""What more workers buy is measured on pinned cores, once, and told as it was.

Run: pytest tests/test_scale.py, and with -m cluster what takes longer.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from processes import command_of, family, finish, ray_nodes, running, token, wait_until
from verbs import run

from segpipe.scaling import figure, findings, measurement, pinned
from segpipe.scaling import run as scale
from segpipe.scaling.findings import Spread
from segpipe.scaling.run import ScaleConfig
from segpipe.segment.run import SegmentConfig
from segpipe.storage import open_store
from segpipe.train.config import TrainConfig
from segpipe.train.recipes import RECIPES

CORES = sorted(os.sched_getaffinity(0))
PAGE = Path(__file__).resolve().parent.parent / "docs/scaling.md"


@pytest.fixture
def images(labelled: Path) -> Path:
    """Two drawn photographs."""
    return labelled / "test/images"


# ---- flags


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--job", "evaluate"], "--job evaluate: choose from segment, train"),
        (["--job", "segment"], "--job segment: needs --input"),
        (["--job", "train"], "--job train: needs --data"),
        (["--job", "segment", "--input", "x", "--epochs", "3"], "--epochs 3: is a flag of --job"),
        (
            ["--job", "train", "--data", "x", "--limit", "3"],
            "--limit 3: is a flag of --job segment",
        ),
        (
            ["--job", "segment", "--input", "x", "--mode", "both"],
            "--mode both: choose from strong, weak",
        ),
        (["--job", "segment", "--input", "x", "--workers", "0"], "--workers 0: wanted"),
        (["--job", "segment", "--input", "x", "--workers"], "--workers"),
        (["--job", "segment", "--input", "x", "--workers", "2", "2"], "--workers 2 2: a number"),
        (["--job", "segment", "--input", "x", "--workers", "1.5"], "--workers"),
        (["--job", "segment", "--input", "x", "--repeats", "0"], "--repeats 0: must be 1 or more"),
        (["--job", "segment", "--input", "x", "--ceiling-seconds", "-1"], "must be 0 or more"),
        (["--job", "train", "--data", "x", "--recipe", "best"], "--recipe best: choose from"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_in_one_line(flags, wanted, tmp_path, capfd):
    assert run("scale", "--output", tmp_path / "out", *flags) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert wanted in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--workers", 1, 4096], "--workers 4096: this process may use"),
        (["--workers", 1, "--limit", 3], "2 photographs, wanted 3, lower --limit"),
        (["--workers", 1, "--device", "gpu"], "--device gpu: this machine has no GPU"),
    ],
)
def test_what_this_machine_or_input_cannot_give_is_refused_in_one_line(
    flags, wanted, images, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(scale, "_gpus", list)
    words = ["--job", "segment", "--input", images, "--output", tmp_path / "out", *flags]
    assert run("scale", *words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert wanted in line
    assert not (tmp_path / "out").exists()


def test_an_output_inside_the_input_is_refused(images, capfd):
    words = ["--job", "segment", "--input", images, "--workers", 1]
    assert run("scale", *words, "--output", images / "out") == 2
    assert "lies inside" in capfd.readouterr().err


def test_what_a_job_does_without_flags_is_what_its_verb_does():
    """scale imports no other verb, so it names their defaults again."""
    verbs = {
        "segment": SegmentConfig("x", "y"),
        "train": TrainConfig.by_recipe("lecture", "x", "y"),
    }
    told = {"input", "data", "recipe", "epochs"}
    for job, verb in verbs.items():
        for name, value in scale.JOB_FLAGS[job].items():
            if name not in told:
                assert getattr(verb, name) == value, name


def test_a_recipes_flags_are_taken_and_given_ones_replace_them():
    config = ScaleConfig("train", "x", data="y", recipe="resunet", batch_size=8)
    flags, recipe = config.of_job(), RECIPES["resunet"]
    assert flags["model"] == recipe["model"]
    assert flags["crop_size"] == recipe["crop_size"]
    assert flags["batch_size"] == 8 != recipe["batch_size"]
    assert flags["epochs"] == 3


def test_points_are_measured_in_turns():
    config = ScaleConfig("train", "x", workers=(4, 1), repeats=2)
    keys = config.wanted(("job", "bare"))
    assert [(key.repeat, key.workers) for key in keys if key.part == "job"] == [
        (1, 1),
        (1, 4),
        (2, 1),
        (2, 4),
    ]
    assert [key.part for key in keys[:2]] == ["job", "bare"]


# ---- what a measurement writes


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_what_measurements_wrote_is_deleted_and_nothing_else(place, tmp_path, request):
    """Also that of a process which was killed, from under another name."""
    uri = tmp_path if place == "disk" else f"{request.getfixturevalue('s3').uri}/{tmp_path.name}"
    output = open_store(str(uri))
    mine = ["_segpipe/run/notes.txt", "_segpipe/run/masks/mine.png", "_segpipe/run/0123/x", "masks"]
    for key in mine:
        output.put(key, b"mine")
    for _ in range(2):
        experiment = measurement.Experiment("segment", "strong", output, {}, 0.0, "cpu", [0], [])
        open_store(output.uri(experiment.run)).put("masks/a.png", b"ours")
    assert len(list(output.list())) == len(mine) + 2
    measurement.clear(experiment)
    assert [entry.key for entry in output.list()] == sorted(mine)


# ---- arithmetic


def row(workers: int, rate: float, part: str = "job", repeat: int = 1, **others) -> dict:
    """A line of results.jsonl."""
    only_job = {"startup_s": 8.0, "end_s": 2.0, "stall": 0.125, "bottleneck": "model"}
    return (
        {
            "job": "segment",
            "mode": "strong",
            "workers": workers,
            "repeat": repeat,
            "part": part,
            "items": 100,
            "rate": rate,
            "seconds": 10.0,
            "engine": "native fp32",
            "model": "resunet",
            "device": "cpu",
            "image_megapixels": 0.33,
            "machine": {"cpu": "a CPU", "cores": 2},
            "versions": {"ray": "2.60.0"},
            "commit": "abc1234",
            "time": "2026-11-26T17:00:00+00:00",
        }
        | (only_job if part == "job" else dict.fromkeys(only_job))
        | others
    )


ALONE = {"fetch": 1000, "decode": 40, "model": 20, "write": 100}
ROWS = [
    *[row(1, rate, repeat=n) for n, rate in enumerate((10.0, 8.0, 12.0), start=1)],
    *[row(2, rate, repeat=n) for n, rate in enumerate((15.0, 16.0, 14.0), start=1)],
    *[row(n, n * rate, part) for n in (1, 2) for part, rate in ALONE.items()],
]


def test_efficiency_is_the_rate_of_a_worker_as_a_share_of_that_at_the_first_point():
    """Medians 10 with one and 15 with two: 15 / (2 * 10); from 2 to 4 workers the same way."""
    one, two = findings.points(ROWS)
    assert one.rate == Spread(10.0, 8.0, 12.0)
    assert two.rate == Spread(15.0, 14.0, 16.0)
    assert findings.efficiency(two, one) == 0.75
    two, four = findings.points([row(2, 15.0), row(4, 27.0)])
    assert findings.efficiency(four, two) == pytest.approx(0.9)


def test_parts_in_a_row_take_the_sum_of_their_seconds():
    """1 + 25 + 50 + 10 ms an image; on a GPU they do not come in a row."""
    one, two = findings.points(ROWS)
    assert one.in_a_row == pytest.approx(1 / 0.086)
    assert two.in_a_row == pytest.approx(2 / 0.086)
    on_gpu = findings.points([line | {"device": "cuda"} for line in ROWS])
    assert [point.in_a_row for point in on_gpu] == [None, None]


def test_the_steady_rate_gives_no_gift_to_many_workers():
    """n workers, an image a second each, all in step: n images a second, however many they are."""
    for workers in (1, 2, 8):
        finished = np.repeat(np.arange(10.0, 15.0), workers)
        assert findings.steady_rate(finished[::-1], workers) == workers
    assert findings.steady_rate(np.array([1.0, 2.0]), 2) is None


def test_the_table_has_a_line_a_point_with_shares_of_the_ceilings():
    lines = findings.table(ROWS, ["- fact"]).splitlines()
    assert lines[0] == "- fact"
    assert lines[2] == (
        "| workers | images/s | efficiency | fetch alone | decode alone | model alone | "
        "write alone | parts in a row | stall | bottleneck | start-up, s | end, s |"
    )
    assert lines[4] == (
        "| 1 | 10.0 (8.00–12.0) | 1.00 | 1000 (1%) | 40.0 (25%) | 20.0 (50%) | 100 (10%) | "
        "11.6 (86%) | 12.5% | model | 8.0 | 2.0 |"
    )
    assert lines[5].startswith("| 2 | 15.0 (14.0–16.0) | 0.75 | 2000 (1%) | 80.0 (19%) |")


def test_a_table_without_ceilings_has_no_columns_for_them():
    lines = findings.table([row(1, 10.0)], []).splitlines()
    assert (
        lines[1]
        == "| workers | images/s | efficiency | stall | bottleneck | start-up, s | end, s |"
    )
    assert "alone" not in "".join(lines)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["points", "a point"])
def test_the_figure_is_drawn(rows, tmp_path):
    (tmp_path / "x.png").write_bytes(
        figure.curve(findings.points(rows), "title", "image", "workers")
    )
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 400


# ---- the experiment, with measurements that are made up


@pytest.fixture
def measured(monkeypatch) -> list:
    """Takes the place of real measurements -> their keys; a test may raise in one of them."""
    keys: list = []

    def measure(experiment, key, before):
        keys.append(key)
        return row(key.workers, 10.0 * key.workers, key.part, key.repeat, mode=experiment.mode)

    monkeypatch.setattr(measurement, "measure", measure)
    return keys


def lines_of(output: str) -> list[dict]:
    return [json.loads(line) for line in open_store(output).get("results.jsonl").splitlines()]


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_what_is_measured_is_not_measured_again(place, images, tmp_path, request, measured, capsys):
    output = str(tmp_path / "out")
    if place == "s3":
        output = f"{request.getfixturevalue('s3').uri}/{request.node.name}"
    words = ["scale", "--job", "segment", "--input", images, "--output", output, "--workers", 1]
    assert run(*words, "--repeats", 1) == 0
    first, (warm_up, *keys) = lines_of(output), measured.copy()
    assert warm_up == (0, 1, "job")
    assert keys == [(1, 1, part) for part in ("job", "fetch", "decode", "model", "write")]
    measured.clear()
    assert run(*words, "--repeats", 1) == 0
    assert "all 5 measurements are done" in capsys.readouterr().out
    assert measured == []
    assert run(*words, "--repeats", 2) == 0
    assert {key.repeat for key in measured} == {0, 2}
    assert lines_of(output)[:5] == first
    store = open_store(output)
    assert b"| 1 | 10.0 |" in store.get("table.md")
    assert store.get("scaling.png").startswith(b"\x89PNG")


def test_a_failure_keeps_what_was_measured_and_the_same_command_goes_on(
    images, tmp_path, measured, monkeypatch, capfd
):
    output = str(tmp_path / "out")
    words = ["scale", "--job", "segment", "--input", images, "--output", output, "--workers", 1]
    works = measurement.measure

    def fails(experiment, key, before):
        if key.part == "model":
            raise measurement.Unfinished("model: exit code 3: out of luck")
        return works(experiment, key, before)

    monkeypatch.setattr(measurement, "measure", fails)
    assert run(*words) == 1
    assert capfd.readouterr().err.splitlines()[-1] == (
        "segpipe scale: model: exit code 3: out of luck"
    )
    assert [line["part"] for line in lines_of(output)] == ["job", "fetch", "decode"]
    measured.clear()
    monkeypatch.setattr(measurement, "measure", works)
    assert run(*words, "--repeats", 1) == 0
    assert [key.part for key in measured] == ["job", "model", "write"]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--group-size", 2], "--group-size 2"),
        (["--mode", "weak"], "--mode weak"),
        (["--checkpoint", "segnet-lite"], "--checkpoint segnet-lite"),
    ],
)
def test_other_settings_are_refused_in_one_line(flags, wanted, images, tmp_path, measured, capfd):
    words = ["scale", "--job", "segment", "--input", images, "--output", tmp_path / "out"]
    words += ["--workers", 1, "--repeats", 1]
    assert run(*words) == 0
    capfd.readouterr()
    assert run(*words, *flags) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert wanted in line
    assert "choose another --output" in line


# ---- pinned processes

CHILD = "import subprocess, sys; subprocess.run(['cat', '/proc/self/status'])"


def test_a_commands_children_are_pinned_to_its_cores_and_ours_stay():
    before = os.sched_getaffinity(0)
    ended = pinned.run([sys.executable, "-c", CHILD], CORES[-1:], {})
    (told,) = [line for line in ended.stdout.splitlines() if line.startswith("Cpus_allowed_list")]
    assert told.split()[1] == str(CORES[-1])
    assert ended.cores == (CORES[-1],)
    assert os.sched_getaffinity(0) == before


def test_a_commands_end_is_told_as_it_was():
    words = [sys.executable, "-c", "import sys; print('out'); sys.exit('the\\nlast word')"]
    ended = pinned.run(words, None, {})
    assert (ended.code, ended.stdout, ended.last_word) == (1, "out\n", "last word")
    assert 0 < ended.seconds < 60


def test_cpu_seconds_and_memory_are_those_of_all_processes(tmp_path, monkeypatch):
    """Two processes that compute for three seconds each, hold 100 MB each, and go on until both
    were seen so."""
    seen = tmp_path / "seen"

    class Watched(pinned._Usage):
        def look(self, driver: psutil.Process, memory: bool) -> None:
            super().look(driver, memory)
            if sum(used > 2.9 for used in self.cpu_s.values()) == 2:
                seen.touch()

    monkeypatch.setattr(pinned, "MEMORY_EVERY", 1)
    monkeypatch.setattr(pinned, "_Usage", Watched)
    work = (
        "import os, time; x = b'1' * 100_000_000\nwhile time.process_time() < 3: pass\n"
        f"while not os.path.exists({str(seen)!r}): time.sleep(0.1)"
    )
    both = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {work!r}])\n{work}"
    ended = pinned.run([sys.executable, "-c", both + "\np.wait()"], None, {})
    assert ended.cpu_s == pytest.approx(6, abs=0.5)
    assert ended.driver_cpu_s == pytest.approx(3, abs=0.25)
    assert 200 < ended.peak_mib < 300


ORPHAN = "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)"


def sleepers(marker: str) -> list[psutil.Process]:
    """Processes that have this in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_MARK") == marker:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_what_a_command_leaves_behind_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(pinned, "END_S", 0.5)
    mark = {"TEST_MARK": str(tmp_path)}
    assert pinned.run([sys.executable, "-c", ORPHAN], None, mark).code == 0
    assert sleepers(str(tmp_path)) == []


def test_a_command_ends_with_the_process_that_measures_it(tmp_path):
    """Even where that is killed, and so cannot end it."""
    mark = {"TEST_MARK": str(tmp_path)}
    words = f"from segpipe.scaling import pinned; pinned.run(['sleep', '1000'], None, {mark!r})"
    with running("-c", words) as job:
        wait_until(lambda: sleepers(str(tmp_path)), "command")
        job.process.kill()
        wait_until(lambda: not sleepers(str(tmp_path)), "end of the command", 10)


def test_cores_are_taken_one_of_each_physical_core_first(tmp_path, monkeypatch):
    for core in range(4):
        (tmp_path / str(core)).write_text("0-1\n" if core < 2 else "2-3\n")
    monkeypatch.setattr(pinned, "SIBLINGS", str(tmp_path / "{}"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert pinned.own_cores() == [0, 2, 1, 3]
    assert [pinned.num_physical(cores) for cores in ([0, 2], [0, 1], [0, 2, 1])] == [2, 1, 2]


RAYS_CORES = """
from segpipe.cluster.nodes import worker_threads
from segpipe.cluster.session import ray_session
import ray
with ray_session():
    print("cores", ray.cluster_resources()["CPU"], worker_threads(1))
"""


@pytest.mark.cluster
def test_a_local_ray_has_the_cores_that_its_process_may_use():
    done = pinned.run([sys.executable, "-c", RAYS_CORES], CORES[:1], {})
    assert done.stdout.split() == ["cores", "1.0", "1"], done.stderr


# ---- for real

TINY = ["--workers", 1, "--repeats", 1]
SLOW_S = 580  # of an experiment on one core, beside others; a minute where it is alone


def allowed(pid: int) -> str:
    """The cores of a process, as the kernel tells; empty where it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    return text.partition("Cpus_allowed_list:")[2].split("\n")[0].strip()


def flags_of_the_page(job: str, given: dict[str, Path | str]) -> list[object]:
    """Those of the command in docs/scaling.md; what the page calls by a name is given by name."""
    (command,) = re.findall(rf"^segpipe scale (--job {job} .*)$", PAGE.read_text(), re.MULTILINE)
    words = [given.get(word, word) for word in shlex.split(command)]
    return words[: words.index("--output")]


def scaled(output: Path | str, *flags: object) -> tuple[list[dict], dict[str, str]]:
    """Lines of a real experiment, and the cores of all processes that its measurements had."""
    seen: dict[str, str] = {}
    with running("-m", "jobs.scale", "--output", output, *flags, *TINY) as job:

        def ended() -> bool:
            for pid in family(job.process.pid)[1:]:
                # read in this order: a process that just began is pinned before it has its name
                command = command_of(pid)
                # the experiment's own: git for the commit, and the shell with its last word
                own = command.startswith("git ") or "segpipe scale: something ended" in command
                if ("segpipe" in command or "ray" in command) and not own:
                    seen[command] = allowed(pid) or seen.get(command, "")
            return not job.runs()

        wait_until(ended, "end", SLOW_S)
        assert job.wait() == 0, job.told()
    return lines_of(str(output)), {name: cores for name, cores in seen.items() if cores}


TRAINING = ["--epochs", 2, "--crops-per-image", 5, "--crop-size", 64, "--batch-size", 4]


@pytest.mark.cluster  # two minutes
@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_training_is_measured_beside_the_bare_step(labelled, tmp_path):
    flags = flags_of_the_page("train", {"DRIVE": labelled})
    (job, bare), cores = scaled(tmp_path / "out", *flags, "--mode", "weak", *TRAINING)
    assert set(cores.values()) == {str(pinned.own_cores()[0])}, cores
    assert (job["part"], bare["part"]) == ("job", "bare")
    assert job["items"] == 9 * 4  # steps: 4 photographs, 5 crops, 4 a step, 2 epochs; one is warm
    assert bare["items"] == 10 * 4
    assert job["engine"] == bare["engine"]
    assert job["startup_s"] + job["end_s"] < job["seconds"]


@pytest.mark.cluster
@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_segmentation_is_measured_beside_its_ceilings_pinned_and_goes_on_with_what_is_missing(
    archive, s3, request
):
    """From a bucket into a bucket, where the parts that fetch and write are measured too."""
    place = f"{s3.uri}/{request.node.name}"
    photographs = open_store(f"{place}/photographs")
    for path in archive.iterdir():  # not into the server's folder, whose listing it keeps a while
        photographs.put(path.name, path.read_bytes())
    output = open_store(f"{place}/out")
    flags = flags_of_the_page("segment", {"ARCHIVE": f"{place}/photographs"})
    flags += ["--limit", 7, "--ceiling-seconds", 0.2, "--checkpoint", "segnet-lite"]
    before, cores = scaled(output.uri(), *flags)
    assert [line["part"] for line in before] == ["job", *findings.PARTS["segment"]]
    core = str(pinned.own_cores()[0])
    assert any("raylet" in command for command in cores)
    assert any("segpipe.data.decoder" in command for command in cores)
    assert set(cores.values()) == {core}, cores
    job, *parts = before
    assert {tuple(line["cores"]) for line in before} == {(int(core),)}
    assert job["items"] == 7
    assert job["image_megapixels"] == pytest.approx(565 * 584 / 1e6)
    assert 0 < job["startup_s"] < job["seconds"] - job["end_s"] < job["seconds"]
    assert job["stall"] == job["stages"]["waiting for work"] / sum(job["stages"].values())
    assert all(part["items"] > 0 for part in parts)
    assert output.get("table.md").decode().count("| 1 | ") == 1
    lines = output.get("results.jsonl").splitlines(keepends=True)
    output.put("results.jsonl", b"".join(lines[:-1]))
    after, _ = scaled(output.uri(), *flags)
    assert after[:-1] == before[:-1]
    assert after[-1]["part"] == "write"
    assert after[-1]["time"] > before[-1]["time"]
    left = {entry.key for entry in output.list()}
    assert left == {"results.jsonl", "scaling.png", "table.md", "_segpipe/settings.json"}


@pytest.mark.cluster
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)]
)
def test_a_stopped_experiment_leaves_no_process(number, archive, tmp_path):
    words = ["-m", "segpipe", "scale", "--job", "segment", "--input", archive, *TINY]
    mark = {"TEST_MARK": str(tmp_path)}
    with running(*words, "--output", tmp_path / "out", env=mark) as job:
        wait_until(lambda: any("ray::" in command_of(p) for p in family(job.process.pid)), "worker")
        members = [psutil.Process(pid) for pid in family(job.process.pid)]
        os.kill(job.process.pid, number)
        assert job.wait() == 128 + number
        assert job.told().splitlines()[-1].endswith("run the same command again to resume")
    assert [member for member in members if member.is_running()] == []
    assert sleepers(str(tmp_path)) == []
    assert not [p for p in (tmp_path / "out/_segpipe/run").rglob("*") if p.is_file()]


@pytest.mark.cluster
@pytest.mark.nightly
def test_on_a_cluster_nothing_is_pinned_and_the_table_says_so(archive, tmp_path):
    words = ["-m", "segpipe", "scale", "--job", "segment", "--input", archive, *TINY]
    env = token()
    with ray_nodes([2], env) as cluster:
        joined = env | {"RAY_ADDRESS": cluster.address}
        done = finish(*words, "--output", tmp_path / "out", env=joined)
    assert done.returncode == 0, done.stderr
    (job,) = lines_of(str(tmp_path / "out"))
    assert (job["part"], job["device"], job["cores"], job["cpu_s"]) == ("job", "cpu", None, None)
    assert "RAY_ADDRESS. Nothing is pinned" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.cluster
@pytest.mark.nightly
def test_a_measurement_that_fails_is_told_by_its_own_last_line(labelled, tmp_path):
    """A training set that lacks a label."""
    broken = tmp_path / "set"
    subprocess.run(["cp", "-r", labelled, broken], check=True)
    (broken / "training/1st_manual/03_manual1.gif").unlink()
    words = ["-m", "segpipe", "scale", "--job", "train", "--data", broken, *TINY]
    done = finish(*words, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "job with 1 worker, to warm up: exit code 2: segpipe train: " in done.stderr
    assert "03_manual1.gif" in done.stderr.splitlines()[-1]

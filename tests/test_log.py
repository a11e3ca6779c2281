"""What verbs log: lines for people, or JSON for machines, from the driver and from its workers.

Run: pytest tests/test_log.py
"""

import json
import logging
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from types import ModuleType

import numpy as np
import pytest
import ray
from proxy import Proxy
from verbs import run

from segpipe import cli
from segpipe.cluster.workers import network_stage
from segpipe.errors import Unfinished, UserError, internal_error
from segpipe.progress import LogSettings, Progress, log_settings
from segpipe.segment.compact import compact
from segpipe.segment.manifest import list_inputs
from segpipe.storage import Entry, open_store

FIELDS = ["time", "level", "logger", "message", "verb"]


@dataclass(frozen=True)
class PlayConfig:
    end: str = ""
    """How it ends."""


ENDS: dict[str, BaseException] = {
    "user": UserError("--x 1: choose 2"),
    "unfinished": Unfinished("the store is down; run it again"),
    "bug": ZeroDivisionError("by zero"),
    "stopped": KeyboardInterrupt(),
}


@pytest.fixture
def play(monkeypatch, capfd):
    """Run a verb that logs on every level and ends in one of ENDS -> (exit code, its lines)."""
    logger = logging.getLogger("segpipe.play")

    def play(config: PlayConfig) -> None:
        logger.debug("play: %s", "details")
        Progress("play").show("1/2")
        logger.warning("play: warning: 100 %")
        logger.error("play: ä\nb")
        if config.end:
            raise ENDS[config.end]

    module = ModuleType("play")
    module.PlayConfig, module.play = PlayConfig, play
    monkeypatch.setitem(sys.modules, "play", module)
    monkeypatch.setitem(cli.VERBS, "play", ("play", "PlayConfig", "for a test"))

    def played(*flags: str) -> tuple[int, list[str]]:
        code = run("play", *flags)
        out, err = capfd.readouterr()
        assert out == ""
        return code, err.splitlines()

    return played


LINES = ["play: 1/2", "play: warning: 100 %", "play: ä", "b"]
LAST = {
    "user": "segpipe play: --x 1: choose 2",
    "unfinished": "segpipe play: the store is down; run it again",
    "bug": "segpipe play: ZeroDivisionError: by zero (--debug shows where)",
    "stopped": "segpipe play: stopped, run the same command again to resume",
}
CODES = {"user": 2, "unfinished": 1, "bug": 1, "stopped": 130}


@pytest.mark.parametrize("end", list(ENDS))
def test_lines_for_people_are_the_messages_alone(play, end):
    assert play() == (0, LINES)
    assert play("--log-format", "text", "--end", end) == (CODES[end], [*LINES, LAST[end]])


@pytest.mark.parametrize("end", list(ENDS))
def test_lines_for_machines_are_objects_of_the_same_messages(play, end):
    before = datetime.now(UTC)
    code, lines = play("--end", end, "--log-format=json")
    entries = [json.loads(line) for line in lines]
    assert code == CODES[end]
    assert all(list(entry) == FIELDS for entry in entries)
    assert [entry["message"] for entry in entries] == [*LINES[:2], "play: ä\nb", LAST[end]]
    last = "warning" if end == "stopped" else "error"
    assert [entry["level"] for entry in entries] == ["info", "warning", "error", last]
    assert {entry["verb"] for entry in entries} == {"play"}
    loggers = ["segpipe.progress", "segpipe.play", "segpipe.play", "segpipe.cli"]
    assert [entry["logger"] for entry in entries] == loggers
    times = [datetime.fromisoformat(entry["time"]).timestamp() for entry in entries]
    assert times == sorted(times)
    assert before.timestamp() - 1e-3 <= times[0] <= datetime.now(UTC).timestamp()


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        ("debug", ["play: details", *LINES]),
        ("info", LINES),
        ("warning", LINES[1:]),
        ("error", LINES[2:]),
    ],
)
def test_lower_levels_are_left_out(play, level, lines):
    assert play("--log_level", level) == (0, lines)


def test_flags_of_every_verb_may_stand_before_it(play, capfd):
    assert run("--log_level=warning", "--debug", "--log-format", "text", "play") == 0
    assert capfd.readouterr().err.splitlines() == LINES[1:]
    assert run("--log-format", "text") == 2  # no verb
    assert "usage: segpipe VERB" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--log-format", "xml"], "--log-format xml: choose from text, json"),
        (["--log-level=loud"], "--log-level loud: choose from debug, info, warning, error"),
        (["--log-level"], "--log-level: choose from debug, info, warning, error"),
        (["--log-levl", "x"], "--log-levl: unknown flag, did you mean --log-level?"),
    ],
)
def test_another_word_is_refused_in_one_line(play, flags, line):
    code, [told] = play(*flags)
    assert code == 2
    assert told.startswith(f"segpipe play: {line}")


def test_a_bug_has_its_traceback_in_one_entry(capsys):
    LogSettings("segment", format="json").apply()
    try:
        _ = 1 / 0
    except ZeroDivisionError as error:
        internal_error(error)
    [line] = capsys.readouterr().err.splitlines()
    message = json.loads(line)["message"]
    assert message.startswith("Traceback (most recent call last):")
    assert message.endswith("ZeroDivisionError: division by zero")


GONE = """
import os
from segpipe.progress import LogSettings, last_word
LogSettings("train", format="json").apply()
with last_word('gone: "100 %s"'):
    os._exit(1)
"""


def test_the_last_word_of_a_process_that_is_ended_is_an_object_too():
    done = subprocess.run([sys.executable, "-c", GONE], check=False, capture_output=True)
    entry = json.loads(done.stderr)
    assert list(entry) == FIELDS
    assert (entry["message"], entry["level"], entry["verb"]) == ('gone: "100 %s"', "error", "train")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(entry["time"])).total_seconds()) < 600


LIBRARY = """
import logging
from segpipe.progress import Progress
Progress("segment").show("1/2", always=True)
logging.getLogger("segpipe.storage").warning("a warning")
"""


def test_a_library_shows_warnings_alone_and_sets_nothing_up():
    done = subprocess.run([sys.executable, "-c", LIBRARY], check=True, capture_output=True)
    assert done.stderr == b"a warning\n"


def test_a_line_after_one_of_progress_on_a_terminal_does_not_hide_it(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress, logger = Progress("play"), logging.getLogger("segpipe.play")
    logger.info("first")
    progress.show("1/2")
    logger.info("between")
    progress.show("2/2")
    progress.show("the end", always=True)
    told = capsys.readouterr().err
    clear = "\r\033[K"
    assert told == f"first\n{clear}play: 1/2\nbetween\n{clear}play: 2/2{clear}play: the end\n"


def test_objects_are_never_written_over(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    LogSettings("play", format="json").apply()
    progress = Progress("play")
    for number in range(3):
        progress.show(f"{number}/3")
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "play: 0/3"


def test_workers_log_as_the_driver_does(ray_cluster):
    class Told:
        def __init__(self, device: str, num_threads: int) -> None:
            pass

        def __call__(self, batch: dict) -> dict:
            found = log_settings()
            return {"told": np.array([f"{found.verb} {found.level} {found.format}"])}

    LogSettings("segment", "debug", "json").apply()
    stage = network_stage(ray.data.range(1), Told, (), "cpu", 1, light=True)
    assert stage.take_all() == [{"told": "segment debug json"}]


@pytest.mark.parametrize("page_rows", [2, 100])
def test_compaction_of_a_large_archive_tells_how_far_it_is(
    monkeypatch, capsys, tmp_path, page_rows
):
    """One of more than a page of inputs; none of these is done."""
    monkeypatch.setattr("segpipe.segment.manifest.PAGE_ROWS", page_rows)
    monkeypatch.setattr("segpipe.progress.PLAIN_LINE_S", 0.0)
    manifest = list_inputs([Entry(f"{n}", 1, "1") for n in range(5)])
    compact(open_store(str(tmp_path)), manifest)
    lines = [line.split(" rows, ") for line in capsys.readouterr().err.splitlines()]
    counts = ["2 of 5", "4 of 5", "5 of 5"] if page_rows == 2 else []
    assert [start for start, _ in lines] == [f"segment: compacting, {count}" for count in counts]
    assert all("/s, " in rest and rest.endswith(" left") for _, rest in lines)


def test_what_a_store_is_asked_again_is_told_on_request(s3, capsys, monkeypatch):
    """A key once more, with the reason and no secret."""
    LogSettings("segment", "debug").apply()
    with Proxy(s3.endpoint, fault=lambda *words: "503" if words[-1] == 0 else None) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        open_store(f"{s3.uri}/again").put("a.png", b"x")
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"store: s3://\S+/again/a.png: tried again in \d.\d s: .*503.*", line)

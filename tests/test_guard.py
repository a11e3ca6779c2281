"""The last word of a process that something ends. Run: pytest tests/test_guard.py"""

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = "import os, signal, sys\nfrom segpipe import progress\n"
PROGRAM += "with progress.last_word('gone: 100 %s'):\n"


def ended(how: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", f"{PROGRAM}    {how}"]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("os._exit(1)", 1),  # as Ray's core does
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.abort()", -signal.SIGABRT),
    ],
)
def test_a_process_that_is_ended_has_a_last_word(how, code):
    """Its callers see the end of both streams: communicate() waits for that."""
    done = ended(how)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "gone: 100 %s\n")


@pytest.mark.parametrize("how", ["pass", "sys.exit(0)"])
def test_a_process_that_ends_by_itself_has_none(how):
    done = ended(how)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_the_last_word(number):
    """As Ctrl-C and schedulers send it; the process itself dies of the next thing."""
    program = (
        f"{PROGRAM}    signal.signal({number:d}, lambda *_: os._exit(1))\n"
        "    print('ready', flush=True)\n    signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        os.killpg(process.pid, number)
        assert process.communicate(timeout=60) == (b"", b"gone: 100 %s\n")


def test_a_verb_that_is_ended_names_itself_and_what_to_do():
    program = (
        "import os, sys, types\nfrom segpipe import cli\n"
        "verb = sys.modules['verb'] = types.ModuleType('verb')\n"
        "class Config: pass\n"
        "verb.Config, verb.segment = Config, lambda config: os._exit(1)\n"
        "cli.VERBS['segment'] = ('verb', 'Config', '')\ncli.main(['segment'])\n"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("segpipe segment: something ended this process")
    assert done.stderr.endswith("; run the same command again\n")
    assert done.stderr.count("\n") == 1

"""One writer for each output, on disk and on S3.

Run: pytest tests/test_lock.py
"""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import wait_until

from segpipe.errors import Skipped, StoreDown, Unfinished, UserError
from segpipe.storage import lock, open_store
from segpipe.storage.files import read_json
from segpipe.storage.local import LocalStore

DEADLINE_S = 20.0


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    if request.param == "local":
        return open_store(str(tmp_path / "out"))
    return open_store(f"{request.getfixturevalue('s3').uri}/{tmp_path.name}")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("BEAT_S", 0.1), ("FIRST_BEAT_S", 0.05), ("SILENCE_S", 1.0)):
        monkeypatch.setattr(lock, name, seconds)


def holder(output) -> dict | None:
    return read_json(output, lock.LOCK)


def leave_lease(output, **changes) -> None:
    card = lock.Lock(output).card | {"beat": time.time(), "progress": {}} | changes
    output.put(lock.LOCK, json.dumps(card).encode())


def test_a_second_writer_is_refused_while_the_first_one_holds_and_let_in_afterwards(output):
    with lock.hold(output):
        with pytest.raises(UserError, match=r"locked by process \d+ on "):
            lock.hold(output).__enter__()
        assert holder(output)["pid"] > 0
    assert holder(output) is None
    with lock.hold(output):
        pass


def test_a_run_that_skips_a_locked_output_sees_who_holds_it_and_writes_nothing(output, monkeypatch):
    """Held by this process, which is alive, with no heartbeat that would write."""
    leave_lease(output, since=0.0, host="here")
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(0))

    def refuse(*_, **__):
        raise AssertionError("written")

    for name in ("put", "put_new", "delete", "check_writable"):
        monkeypatch.setattr(type(output), name, refuse)
    with pytest.raises(Skipped) as told:
        lock.hold(output, "skip").__enter__()
    assert str(told.value).startswith(f"skipped, {output.uri()}: locked by process ")
    assert str(told.value).endswith(f" on here (since {at})")


def test_an_output_is_taken_only_where_it_can_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"--output .*cannot write there"):
        lock.hold(open_store(str(tmp_path / "file/out"))).__enter__()


def test_a_run_that_is_refused_leaves_the_folders_that_were_there_and_no_others(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    for folder in (kept / "new" / "out", kept):
        with pytest.raises(UserError, match="refused"), lock.hold(open_store(str(folder))):
            raise UserError("refused")
        assert list(tmp_path.rglob("*")) == [kept]
    with lock.hold(open_store(str(kept / "new" / "out"))) as held:
        held.output.put("made", b"1")
    assert (kept / "new" / "out" / "made").exists()


@pytest.mark.parametrize("if_locked", lock.IF_LOCKED)
def test_the_lease_of_a_process_that_was_killed_here_is_taken_over_at_once(
    output, if_locked, monkeypatch
):
    monkeypatch.setattr(lock, "SILENCE_S", 1000.0)
    program = (
        "import os, signal, sys; from segpipe import storage; from segpipe.storage import lock\n"
        "store = storage.open_store(sys.argv[1])\n"
        "with lock.hold(store): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, output.uri()], check=False, timeout=60)
    dead = holder(output)
    with lock.hold(output, if_locked) as held:
        assert held.mine()
        assert dead["pid"] != holder(output)["pid"]


@pytest.mark.parametrize("if_locked", lock.IF_LOCKED)
def test_a_silent_lease_of_another_machine_is_taken_over_after_the_silence(
    output, if_locked, capsys
):
    leave_lease(output, place="elsewhere", host="far")
    with lock.hold(output, if_locked) as held:
        assert held.mine()
    looks = capsys.readouterr().err.count("s for its heartbeat")
    assert 0 < looks <= lock.SILENCE_S / lock.BEAT_S  # it is waited for once


@pytest.mark.parametrize(("if_locked", "error"), [("fail", UserError), ("skip", Skipped)])
def test_a_beating_lease_of_another_machine_is_refused(output, if_locked, error):
    ended = threading.Event()

    def beat():
        while not ended.wait(0.02):
            leave_lease(output, place="elsewhere", host="far", owner="them")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        wait_until(lambda: holder(output) is not None, "change", DEADLINE_S)
        with pytest.raises(error, match="on far"):
            lock.hold(output, if_locked).__enter__()
    finally:
        ended.set()
        thread.join()


def test_who_lost_the_lease_stops_and_leaves_it_to_the_other(output):
    with lock.hold(output) as held:
        leave_lease(output, owner="another")
        wait_until(lambda: held.lost, "change", DEADLINE_S)
        with pytest.raises(Unfinished, match="taken over"):
            held.check()
    assert holder(output)["owner"] == "another"


def test_of_many_at_once_one_gets_the_lease(output):
    held, refused = [], []
    start, end = threading.Barrier(8), threading.Event()

    def take():
        start.wait()
        try:
            with lock.hold(output) as mine:
                end.wait(2)
                held.append(mine.lost)
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(
        lambda: len(refused) == 7 or end.is_set() or len(held) + len(refused) == 8,
        "change of the lock",
        DEADLINE_S,
    )
    end.set()
    for thread in threads:
        thread.join()
    assert held.count(False) == 1


def test_progress_travels_with_the_heartbeat(output):
    with lock.hold(output) as held:
        held.progress = {"ok": 5}
        wait_until(
            lambda: holder(output)["progress"] == {"ok": 5}, "change of the lock", DEADLINE_S
        )


class FailingStore(LocalStore):
    """A real folder, which raises `error` where it is read while there is one."""

    error: Exception | None = None

    def get(self, key: str, version: str | None = None) -> bytes:
        if FailingStore.error:
            raise FailingStore.error
        return super().get(key, version)


@pytest.fixture
def failing(tmp_path, monkeypatch):
    monkeypatch.setattr(FailingStore, "error", None)
    return FailingStore(str(tmp_path / "failing"))


FAILURES = [
    UserError("the credentials have expired"),
    ValueError("bad JSON"),
    StoreDown("no answer"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_heartbeats_go_on_after_a_failure_of_any_kind(failing, error, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE_S", 1000.0)
    with lock.hold(failing) as held:
        monkeypatch.setattr(FailingStore, "error", error)
        wait_until(lambda: held.failure is error, "failure", DEADLINE_S)
        held.check()  # it may pass
        monkeypatch.setattr(FailingStore, "error", None)
        before = holder(failing)["beat"]
        wait_until(lambda: holder(failing)["beat"] > before, "heartbeat", DEADLINE_S)
        assert held.failure is None


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_lease_that_could_not_be_renewed_for_the_silence_is_lost_until_the_store_says_more(
    failing, error, monkeypatch
):
    with lock.hold(failing) as held:
        monkeypatch.setattr(FailingStore, "error", error)
        wait_until(lambda: held.silent_s() > lock.SILENCE_S, "silence", DEADLINE_S)
        with pytest.raises(Unfinished, match=rf"could not be renewed for \d+ s.*\({error}\)"):
            held.check()
        monkeypatch.setattr(FailingStore, "error", None)
        held.check()  # nobody had taken it over
        assert held.silent_s() < lock.SILENCE_S
        monkeypatch.setattr(FailingStore, "error", error)
        wait_until(lambda: held.silent_s() > lock.SILENCE_S, "silence", DEADLINE_S)
        monkeypatch.setattr(FailingStore, "error", None)
        leave_lease(failing, owner="another")
        with pytest.raises(Unfinished, match="taken over"):
            held.check()
    assert holder(failing)["owner"] == "another"


SUSPENDED = """
import os, signal, sys
from segpipe import storage; from segpipe.storage import lock
store = storage.open_store(sys.argv[1])
lock.SILENCE_S = float(sys.argv[2])
with lock.hold(store) as held:
    held.check()
    store.put("work", b"before")
    os.kill(os.getpid(), signal.SIGSTOP)
    held.check()
    store.put("work", b"after")
"""


def test_a_process_that_was_suspended_learns_of_its_loss_before_it_writes_more(tmp_path):
    output, silence_s = open_store(str(tmp_path)), 0.5
    words = [sys.executable, "-c", SUSPENDED, str(tmp_path), str(silence_s)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        stat = Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: ") T " in stat.read_text(), "suspended process", 60)
        since = time.monotonic()
        leave_lease(output, owner="another")
        wait_until(lambda: time.monotonic() > since + silence_s, "silence", DEADLINE_S)
        process.send_signal(signal.SIGCONT)
        told = process.communicate(timeout=60)[1]
    assert "Unfinished" in told.splitlines()[-1]
    assert "another run has taken over" in told
    assert output.get("work") == b"before"
    assert holder(output)["owner"] == "another"


@pytest.mark.parametrize(
    "data", [b"", b'{"owner": "them", "ho', b"\x89PNG\r\n", b"[]", b'"text"', b'{"owner": 1}']
)
def test_a_lease_that_cannot_be_read_is_taken_over_after_the_silence(output, data, capsys):
    output.put(lock.LOCK, data)
    with lock.hold(output) as held:
        assert held.mine()
        assert "a lock that cannot be read" in capsys.readouterr().err
        output.put(lock.LOCK, data)  # a server lost it; nobody else says that it is his
        held.claim().check()
        wait_until(lambda: lock.read_holder(output), "heartbeat", DEADLINE_S)
        held.check()
    assert lock.read_holder(output) is None


def test_another_process_of_the_run_sees_in_the_store_who_holds_the_lease(output):
    with lock.hold(output) as held:
        claim = held.claim()
        assert claim.output == output  # with all its patience
        claim.check()
        leave_lease(output, owner="another", host="far")
        with pytest.raises(Unfinished, match=r"process \d+ on far .* has taken over"):
            claim.check()
        output.delete(lock.LOCK)
        with pytest.raises(Unfinished, match="the lock is gone"):
            claim.check()

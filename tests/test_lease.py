"""One writer for each output, on disk and on S3.

Run: pytest tests/test_lease.py
"""

import json
import subprocess
import sys
import threading
import time

import pytest
from processes import wait_until

from segpipe import archive, lease
from segpipe.errors import Unfinished, UserError
from segpipe.storage import open_store

DEADLINE_S = 20.0


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    if request.param == "local":
        return open_store(str(tmp_path / "out"))
    return open_store(f"{request.getfixturevalue('s3').uri}/{tmp_path.name}")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("BEAT_S", 0.1), ("FIRST_BEAT_S", 0.05), ("SILENCE_S", 1.0)):
        monkeypatch.setattr(lease, name, seconds)


def holder(output) -> dict | None:
    return archive.read_json(output, lease.LEASE)


def leave_lease(output, **changes) -> None:
    card = lease.Lease(output).card | {"beat": time.time(), "progress": {}} | changes
    output.put(lease.LEASE, json.dumps(card).encode())


def test_a_second_writer_is_refused_while_the_first_one_holds_and_let_in_afterwards(output):
    with lease.hold(output):
        with pytest.raises(UserError, match=r"process \d+ on .* is writing there"):
            lease.hold(output).__enter__()
        assert holder(output)["pid"] > 0
    assert holder(output) is None
    with lease.hold(output):
        pass


def test_the_lease_of_a_process_that_was_killed_here_is_taken_over_at_once(output, monkeypatch):
    monkeypatch.setattr(lease, "SILENCE_S", 1000.0)
    program = (
        "import os, signal, sys; from segpipe import lease, storage\n"
        "store = storage.open_store(sys.argv[1])\n"
        "with lease.hold(store): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, output.uri()], check=False, timeout=60)
    dead = holder(output)
    with lease.hold(output) as held:
        assert held.mine()
        assert dead["pid"] != holder(output)["pid"]


def test_a_silent_lease_of_another_machine_is_taken_over_after_the_silence(output, capsys):
    leave_lease(output, place="elsewhere", host="far")
    with lease.hold(output) as held:
        assert held.mine()
    assert "waiting whether process" in capsys.readouterr().err


def test_a_beating_lease_of_another_machine_is_refused(output):
    ended = threading.Event()

    def beat():
        while not ended.wait(0.02):
            leave_lease(output, place="elsewhere", host="far", owner="them")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        wait_until(lambda: holder(output) is not None, "change", DEADLINE_S)
        with pytest.raises(UserError, match="on far"):
            lease.hold(output).__enter__()
    finally:
        ended.set()
        thread.join()


def test_who_lost_the_lease_stops_and_leaves_it_to_the_other(output):
    with lease.hold(output) as held:
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
            with lease.hold(output) as mine:
                end.wait(2)
                held.append(mine.lost)
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(
        lambda: len(refused) == 7 or end.is_set() or len(held) + len(refused) == 8,
        "change of the lease",
        DEADLINE_S,
    )
    end.set()
    for thread in threads:
        thread.join()
    assert held.count(False) == 1


def test_progress_travels_with_the_heartbeat(output):
    with lease.hold(output) as held:
        held.progress = {"ok": 5}
        wait_until(
            lambda: holder(output)["progress"] == {"ok": 5}, "change of the lease", DEADLINE_S
        )

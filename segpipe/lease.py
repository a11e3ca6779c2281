"""One writer for each output: a lease with a heartbeat, which also tells how far the writer is.

A lease whose process is gone from this machine, or that was silent for two minutes, is taken over.
Two that take it over at once both find out at their next heartbeat who holds it; what the other
wrote until then are the same masks, or states of a training, under the same names.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segpipe.archive import read_json
from segpipe.errors import Unfinished, UserError
from segpipe.storage import Store

LEASE = "_segpipe/lease.json"
BEAT_S = 10.0  # seconds between heartbeats
FIRST_BEAT_S = 1.0  # seconds until the first look whether another one took the lease as well
SILENCE_S = 120.0  # seconds without a heartbeat after which a lease is taken over
PATIENCE_S = 20.0  # seconds for which a heartbeat is tried again
OLD_S = 3600.0  # seconds; a heartbeat so old is silence whatever the clocks of two machines say


class Lease:
    """Held by this process; `progress` travels with its heartbeats."""

    def __init__(self, output: Store) -> None:
        self.output = output.with_patience(PATIENCE_S)
        self.card: dict[str, Any] = {
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "place": _place(),
            "pid": os.getpid(),
            "process": _started(os.getpid()),
            "since": time.time(),
        }
        self.progress: dict[str, Any] = {}
        self.lost = False
        self.ended = threading.Event()

    def check(self) -> None:
        """Raise Unfinished where another run has taken over."""
        if self.lost:
            raise Unfinished(f"{self.output.uri()}: another run has taken over, this one stops")

    def data(self) -> bytes:
        return json.dumps(self.card | {"beat": time.time(), "progress": self.progress}).encode()

    def mine(self) -> bool:
        found = read_json(self.output, LEASE)
        return found is not None and found["owner"] == self.card["owner"]

    def beat(self) -> None:
        """Runs in a thread of its own until the lease is given back."""
        pause = FIRST_BEAT_S
        while not self.ended.wait(pause):
            with suppress(OSError):  # a store that is down; the work itself will tell
                if not self.mine():
                    self.lost = True
                    return
                self.output.put(LEASE, self.data())
            pause = BEAT_S


@contextmanager
def hold(output: Store) -> Iterator[Lease]:
    """The lease on an output. Raises UserError where another run holds it."""
    lease = Lease(output)
    while not output.put_new(LEASE, lease.data()):
        holder = read_json(output, LEASE)
        if holder is not None and _silent(output, holder):
            output.put(LEASE, lease.data())
            break
    thread = threading.Thread(target=lease.beat, daemon=True, name="lease")
    thread.start()
    try:
        yield lease
    finally:
        lease.ended.set()
        thread.join(BEAT_S)
        with suppress(OSError):
            if not lease.lost and lease.mine():
                lease.output.delete(LEASE)


def _silent(output: Store, holder: dict[str, Any]) -> bool:
    """Whether the holder is gone; waits for as long as it may only be slow."""
    if _dead(holder) or time.time() - holder["beat"] > OLD_S:
        return True
    here = holder["place"] == _place()
    end = time.monotonic() + SILENCE_S
    while not here and time.monotonic() < end:
        print(
            f"waiting whether {describe(holder)} still writes to {output.uri()}",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(BEAT_S)
        now = read_json(output, LEASE)
        if now is None or now["owner"] != holder["owner"]:
            return False  # given back, or taken by another one: begin anew
        here = now["beat"] != holder["beat"]
    if not here:
        return True
    raise UserError(
        f"{output.uri()}: {describe(holder)} is writing there, wait for it or choose another "
        "--output"
    )


def describe(holder: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
    return f"process {holder['pid']} on {holder['host']} (since {since})"


def is_silent(holder: dict[str, Any]) -> bool:
    """Whether nobody stands behind a lease any more, as far as one look can tell."""
    return _dead(holder) or time.time() - holder["beat"] > SILENCE_S


def _dead(holder: dict[str, Any]) -> bool:
    """Whether the holder ran here and does not any more."""
    return bool(holder["place"] == _place() and _started(holder["pid"]) != holder["process"])


def _place() -> str:
    """Names this boot of this machine and this space of process numbers."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> str | None:
    """When a process started, in ticks since boot; None where it has ended (proc(5), stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]

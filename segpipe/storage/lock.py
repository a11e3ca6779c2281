"""One writer for each output: a lock with a heartbeat, which also tells how far the writer is.

A lock whose process is gone from this machine, or that was silent for two minutes, is taken over.
So whoever could not renew his own for that time, suspended or cut off, holds it only where the
store still says so. Two that take it over at once both look again who holds it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn

from segpipe.errors import Skipped, Unfinished, UserError
from segpipe.storage import Store, named
from segpipe.storage.files import Damaged, read_json

logger = logging.getLogger(__name__)

LOCK = "_segpipe/lease.json"
BEAT_S = 10.0  # seconds between heartbeats
FIRST_BEAT_S = 1.0  # seconds until a look whether another one took the lock as well
SILENCE_S = 120.0  # seconds without a heartbeat after which a lock is taken over
PATIENCE_S = 20.0  # seconds for which a heartbeat is tried again
IF_LOCKED = ("fail", "skip")  # what a run does where another one holds the lock
OLD_S = 3600.0  # seconds; a heartbeat so old is silence whatever the clocks of two machines say
FIELDS: dict[str, type | UnionType] = {
    "owner": str,
    "host": str,
    "place": str,
    "pid": int,
    "process": str | NoneType,
    "since": int | float,
    "beat": int | float,
    "progress": dict,
}
UNREADABLE: dict[str, Any] = {}  # the holder of a lock that is empty, cut off or no lock


class Lock:
    """Held by this process; `progress` travels with its heartbeats."""

    def __init__(self, output: Store) -> None:
        self.patient, self.output = output, output.with_patience(PATIENCE_S)
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
        self.renewed = _now()
        self.failure: Exception | None = None  # of the last heartbeat
        self.renewing = threading.Lock()

    def check(self) -> None:
        """Raise Unfinished where another run has taken over, or may have: where no heartbeat was
        written for as long as a lock may be silent.

        The clock runs on while this process is suspended, so that it learns of it here before its
        next write.
        """
        if not self.lost and self.silent_s() > SILENCE_S / 2:
            self._try_to_renew()
        if self.lost:
            raise Unfinished(f"{self.output.uri()}: another run has taken over, this one stops")
        if (silent_s := self.silent_s()) > SILENCE_S:
            raise Unfinished(
                f"{self.output.uri()}: the lock could not be renewed for {silent_s:.0f} s, another "
                f"run may have taken over ({_told(self.failure)}); run the same command again"
            )

    def silent_s(self) -> float:
        """Seconds since the last heartbeat that was written."""
        return _now() - self.renewed

    def claim(self) -> Claim:
        """For other processes of this run, whose work waits for the store as long as it may."""
        return Claim(self.patient, self.card["owner"])

    def data(self) -> bytes:
        return json.dumps(self.card | {"beat": time.time(), "progress": self.progress}).encode()

    def mine(self) -> bool:
        """Whether the store says so. What cannot be read is nobody else's."""
        found = read_holder(self.output)
        return found is not None and found.get("owner", self.card["owner"]) == self.card["owner"]

    def take(self) -> bool:
        """Write it, and look after a moment who holds it -> whether this one does."""
        self.output.put(LOCK, self.data(), durable=False)
        self.ended.wait(FIRST_BEAT_S)
        return self.mine()

    def renew(self) -> None:
        """One heartbeat; `lost` where another one holds the lock. Raises what the store raises."""
        with self.renewing:
            now, late = _now(), self.silent_s() > SILENCE_S / 2
            if not self.mine() or (late and not self.take()):
                self.lost = True
                return
            if not late:
                self.output.put(LOCK, self.data(), durable=False)
            self.renewed, self.failure = now, None
            logger.debug("lock: heartbeat of %s", self.output.uri(LOCK))

    def _try_to_renew(self) -> None:
        try:
            self.renew()
        except Exception as error:  # whatever it is: `check` tells of it where it lasts
            self.failure = error

    def beat(self) -> None:
        """Runs in a thread of its own until the lock is given back."""
        pause = FIRST_BEAT_S
        while not self.lost and not self.ended.wait(pause):
            self._try_to_renew()
            pause = BEAT_S


@dataclass(frozen=True)
class Claim:
    """A lock as seen by another process of the run that holds it, perhaps on another node."""

    output: Store
    owner: str

    def check(self) -> None:
        """Raise Unfinished where the store says that the run does not hold the lock any more."""
        holder = read_holder(self.output)
        if holder is None or holder.get("owner", self.owner) != self.owner:
            taken = "the lock is gone" if holder is None else f"{describe(holder)} has taken over"
            raise Unfinished(f"{self.output.uri()}: {taken}, this run stops")


@contextmanager
def hold(
    output: Store, if_locked: str = "fail", progress: dict[str, Any] | None = None
) -> Iterator[Lock]:
    """The lock on an output that can be written, which shows this progress from its first moment.

    Raises UserError where another run holds it, or Skipped where `if_locked` is "skip", before
    anything is written; and UserError where nothing can be written.
    """
    lock, missing = Lock(output), output.missing_folders()
    lock.progress = progress or {}
    _acquire(lock, if_locked)
    lock.renewed = _now()
    thread = threading.Thread(target=lock.beat, daemon=True, name="lock")
    thread.start()
    try:
        yield lock
    finally:
        lock.ended.set()
        thread.join(BEAT_S)
        with suppress(OSError, UserError):  # the work has told, or will be told by the next run
            if not lock.lost and lock.mine():
                lock.output.delete(LOCK)
                lock.output.remove_folders(missing)


def _acquire(lock: Lock, if_locked: str) -> None:
    """Take the lock once nobody holds it. Raises as `hold` does."""
    output = lock.output
    silent = read_holder(output)
    while silent is not None and not _silent(output, silent, if_locked):
        silent = read_holder(output)
    with named("--output"):
        output.check_writable()
    while not output.put_new(LOCK, lock.data()):
        holder = read_holder(output)
        gone = holder is not None and (holder == silent or _silent(output, holder, if_locked))
        if gone and lock.take():
            break


def read_holder(output: Store) -> dict[str, Any] | None:
    """Who holds the lock: FIELDS; None where nobody does, UNREADABLE where it cannot be read."""
    try:
        return read_json(output, LOCK, FIELDS)
    except Damaged:
        return UNREADABLE


def _now() -> float:
    """Seconds of a clock that runs on while this process or the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _told(failure: Exception | None) -> str:
    return " ".join(str(failure).split()) if failure else "this process was suspended"


def _silent(output: Store, holder: dict[str, Any], if_locked: str) -> bool:
    """Whether the holder is gone; waits for as long as it may only be slow. Raises as `hold` does
    where it is not.
    """
    if holder and (_dead(holder) or time.time() - holder["beat"] > OLD_S):
        return True
    here = holder.get("place") == _place()
    end = time.monotonic() + SILENCE_S
    while not here and time.monotonic() < end:
        logger.warning(
            "%s: locked by %s, waiting up to %.0f s for its heartbeat",
            output.uri(),
            describe(holder),
            SILENCE_S,
        )
        time.sleep(BEAT_S)
        now = read_holder(output)
        if now is None or now.get("owner") != holder.get("owner"):
            return False  # given back, or taken by another one: begin anew
        here = now.get("beat") != holder.get("beat")
    if not here:
        return True
    _refuse(output, holder, if_locked)


def _refuse(output: Store, holder: dict[str, Any], if_locked: str) -> NoReturn:
    text = f"{output.uri()}: locked by {describe(holder)}"
    if if_locked == "skip":
        raise Skipped(f"skipped, {text}")
    raise UserError(f"{text}, wait for it or choose another --output")


def describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "whoever left a lock that cannot be read"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
    return f"process {holder['pid']} on {holder['host']} (since {since})"


def is_silent(holder: dict[str, Any]) -> bool:
    """Whether nobody holds a lock any more, as far as one look can tell."""
    return not holder or _dead(holder) or time.time() - holder["beat"] > SILENCE_S


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

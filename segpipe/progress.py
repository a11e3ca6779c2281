"""The last word of a process that something ends before it can say it: a kill, or Ray's core."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# It reads until the process writes a line, which is the end that was meant, or is gone. It must
# outlive signals to a whole job, and those to a group or of a terminal from its first moment on: it
# has a session of its own.
WATCH = """trap '' HUP INT QUIT TERM; read -r word || printf '%s\\n' "$0" >&2"""


@contextmanager
def last_word(text: str) -> Iterator[None]:
    """Meanwhile a shell waits, which writes `text` to stderr where this process ends without us."""
    start = "\n" if sys.stderr.isatty() else ""  # a live line of progress has none
    try:
        watcher = subprocess.Popen(
            ["sh", "-c", WATCH, start + text],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:  # a system without a shell: the run is worth more than the line
        yield
        return
    try:
        yield
    finally:
        watcher.communicate(b"\n")


PLAIN_LINE_S = 30.0  # seconds between progress lines where there is no terminal


def process_seconds() -> float:
    """Seconds since this process was started, its imports included (proc(5), field 22 of stat)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Progress:
    """One live line on a terminal, a plain line every 30 s elsewhere, on stderr."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.live = sys.stderr.isatty()
        self.next_line = 0.0

    def show(self, text: str, always: bool = False) -> None:
        """Show the present state; `always` for what must not be skipped."""
        now = time.monotonic()
        if self.live and not always:
            print(f"\r\033[K{self.verb}: {text}", end="", file=sys.stderr, flush=True)
        elif always or now >= self.next_line:
            self.next_line = now + PLAIN_LINE_S
            start = "\r\033[K" if self.live else ""
            print(f"{start}{self.verb}: {text}", file=sys.stderr, flush=True)


class SteadyRate:
    """Images a second after the first finished group, which only starts the clock."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.num = 0

    def add(self, finished: float, num: int) -> None:
        """`num` more were finished at this time (seconds since any moment)."""
        if not self.first:
            self.first = self.last = finished
        elif finished > self.first:
            self.last, self.num = max(self.last, finished), self.num + num

    @property
    def value(self) -> float | None:
        """None until a second group is finished."""
        return self.num / (self.last - self.first) if self.num else None


def time_left(done: int, total: int, rate: float | None) -> str:
    """Seconds left at `rate` per second, for people."""
    if not rate:
        return "time left unknown"
    seconds = round((total - done) / rate)
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d} left"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"

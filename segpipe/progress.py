"""What a process tells of itself on stderr: its log, its progress, its last word.

Modules log to `logging.getLogger(__name__)`, below the one logger `segpipe`. Nothing is set up at
import: without `LogSettings.apply`, as in a library, warnings and errors alone are printed.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
CLEAR_LINE = "\r\033[K"  # of a terminal
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogSettings:
    """How a process logs; workers of Ray get the driver's."""

    verb: str
    level: str = "info"
    """The lowest that is written: one of LEVELS."""
    format: str = "text"
    """text, for people: the message alone; json, for machines: an object a line."""

    def apply(self) -> None:
        """Log so from now on, to stderr."""
        package = logging.getLogger("segpipe")
        package.handlers = [StderrHandler(self)]
        package.setLevel(self.level.upper())
        package.propagate = False


def log_settings() -> LogSettings | None:
    """Those that were applied in this process."""
    for handler in logging.getLogger("segpipe").handlers:
        if isinstance(handler, StderrHandler):
            return handler.settings
    return None


class StderrHandler(logging.Handler):
    """Lines on stderr. One of progress on a terminal is written over by the next."""

    def __init__(self, settings: LogSettings) -> None:
        super().__init__()
        self.settings = settings
        self.live = False  # whether the last line can be written over

    def emit(self, record: logging.LogRecord) -> None:
        live = getattr(record, "live", None)  # None where it is no progress
        start = "" if not self.live and not live else "\n" if live is None else CLEAR_LINE
        self.live = bool(live)
        try:
            print(start + self._line(record), end="" if live else "\n", file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if self.settings.format == "text":
            return text
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": when} | self.entry(record.levelname, record.name, text))

    def entry(self, level: str, name: str, text: str) -> dict[str, str]:
        """All of a JSON line but its time."""
        verb = self.settings.verb
        return {"level": level.lower(), "logger": name, "message": text, "verb": verb}


# It reads until the process writes a line, which is the end that was meant, or is gone. It must
# outlive signals to a whole job, and those to a group or of a terminal from its first moment on: it
# has a session of its own.
WATCH = "trap '' HUP INT QUIT TERM; read -r word || "
TEXT_END = """printf '%s\\n' "$0" >&2"""
JSON_END = """printf '{"time": "%s", %s\\n' "$(date -u +%Y-%m-%dT%H:%M:%S+00:00)" "$0" >&2"""


@contextmanager
def last_word(text: str) -> Iterator[None]:
    """Meanwhile a shell waits, which writes `text` to stderr where this process ends without us."""
    settings = log_settings()
    if settings and settings.format == "json":
        entry = StderrHandler(settings).entry("error", logger.name, text)
        end, words = JSON_END, json.dumps(entry).removeprefix("{")
    else:
        start = "\n" if sys.stderr.isatty() else ""  # a live line of progress has none
        end, words = TEXT_END, start + text
    try:
        watcher = subprocess.Popen(
            ["sh", "-c", WATCH + end, words],
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
        settings = log_settings()
        self.live = settings is not None and settings.format == "text" and sys.stderr.isatty()
        self.next_line = 0.0

    def show(self, text: str, always: bool = False) -> None:
        """Show the present state; `always` for what must not be skipped."""
        now = time.monotonic()
        live = self.live and not always
        if live or always or now >= self.next_line:
            self.next_line = now + PLAIN_LINE_S
            logger.info("%s: %s", self.verb, text, extra={"live": live})


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
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"

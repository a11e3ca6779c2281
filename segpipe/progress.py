"""The last word of a process that something ends before it can say it: a kill, or Ray's core."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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

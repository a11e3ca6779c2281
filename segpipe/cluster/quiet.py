"""Ray without its own writing to stdout and stderr, and without its handlers of signals."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray


def init_ray(**options: Any) -> None:
    try:
        with silent_stderr(), handler_kept(signal.SIGTERM):
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except SystemExit as stop:  # of Ray's handler of SIGTERM, while that is in place
        handler = signal.getsignal(signal.SIGTERM)
        if stop.code == signal.SIGTERM and callable(handler):
            handler(signal.SIGTERM, None)
        raise


@contextmanager
def handler_kept(number: signal.Signals) -> Iterator[None]:
    """Afterwards the signal has the handler that it had before, whoever set another."""
    before = signal.getsignal(number)
    try:
        yield
    finally:
        # Only the main thread may set one; None is one that C set, which cannot be put back.
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(number, before)


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Without what Ray's core writes to file descriptor 2 about its own log level."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)

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

from segpipe import ray_compat


def init_ray(**options: Any) -> None:
    try:
        with signals_later(), silent_stderr(), ray_compat.sigterm_kept():
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except KeyboardInterrupt:
        ray.shutdown()  # while its token is there, which its threads ask for
        raise


@contextmanager
def signals_later() -> Iterator[None]:
    """SIGINT and SIGTERM come afterwards: what they raise within Ray's start may be lost there, as
    in a finalizer, and leave the lock of Python's logging held, for which all threads then wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


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

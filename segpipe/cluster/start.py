"""A Ray of our own: its folder, its token, and tries to start it on a busy machine."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from segpipe import ray_compat
from segpipe.cluster.errors import last_line
from segpipe.cluster.join import CONNECT_S
from segpipe.cluster.quiet import init_ray
from segpipe.errors import Unfinished, UserError

logger = logging.getLogger(__name__)

TRIES = 3  # starts of a Ray of our own: its agents get 15 s, a constant in Ray's core
LONGEST_SOCKET = 107  # bytes of a path (unix(7), sun_path)
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def start_ray(options: dict[str, Any]) -> None:
    for number in range(1, TRIES + 1):
        before = set(psutil.Process().children(recursive=True))
        try:
            init_ray(address="local", **options)
            return
        except (TypeError, ValueError):
            raise
        except Exception as error:
            failure = error
        ray.shutdown()
        _end(set(psutil.Process().children(recursive=True)) - before)
        if number < TRIES:
            logger.warning(
                "segpipe: Ray did not start (%s), as on a busy machine; try %d of %d",
                last_line(failure),
                number + 1,
                TRIES,
            )
    raise Unfinished(
        f"Ray did not start in {TRIES} tries ({last_line(failure)}): this machine is too busy or "
        "short of memory; run the same command again when less runs here"
    ) from failure


def _end(processes: set[psutil.Process]) -> None:
    """What a start that failed leaves behind: the next one would meet it."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=CONNECT_S)


@contextmanager
def own_token() -> Iterator[None]:
    """A token for a cluster of our own: Ray's would lie in the home, where there is one to write.

    That file is also what two runs that start at once would write both.
    """
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if named or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ray_compat.forget_token()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
        ray_compat.forget_token()


@contextmanager
def ray_folder() -> Iterator[str | None]:
    """A folder for Ray's sockets where its own would be too deep, gone afterwards; else None.

    Raises UserError where its own cannot be written.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "RAY_TMPDIR")
    folder = os.environ.get(name, "/tmp")
    if too_deep(folder):
        short = _short_folder(f"{name} {folder}")
        try:
            yield short
        finally:
            shutil.rmtree(short, ignore_errors=True)
        return
    try:
        Path(folder, "ray").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=Path(folder, "ray")):
            pass
    except OSError as error:
        raise UserError(
            f"{name} {folder}: Ray cannot write there ({error.strerror}), set {name} to a folder "
            "that can be written"
        ) from error
    yield None


def too_deep(folder: str) -> bool:
    """Whether Ray's sockets below this temporary folder have longer paths than Linux allows."""
    path = Path(os.path.abspath(folder), ray_compat.SOCKET.format(pid=os.getpid()))
    return len(os.fsencode(path)) > LONGEST_SOCKET


def _short_folder(named: str) -> str:
    for parent in SHORT_FOLDERS:
        with suppress(OSError):
            return tempfile.mkdtemp(prefix="segpipe-ray-", dir=parent)
    raise UserError(
        f"{named}: too long for Ray's sockets ({LONGEST_SOCKET} bytes), and none of "
        f"{', '.join(SHORT_FOLDERS)} can be written; set RAY_TMPDIR to a short path"
    )

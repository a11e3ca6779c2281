"""Ray of one verb: the cluster at RAY_ADDRESS, or one of our own, and one line for what fails."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import psutil
import ray
from ray._private import ray_constants, services, worker
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.grpc_utils import init_grpc_channel
from ray._private.utils import check_version_info
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2 import (  # type: ignore[attr-defined]
    InternalKVGetRequest,
)
from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub
from ray.exceptions import AuthenticationError

from segpipe.errors import Unfinished, UserError

CONNECT_S = 10.0  # to a TCP connection with a cluster's head
ANSWER_S = 15.0  # to the head's answer
NODE_S = 10.0  # to a node of the cluster on this machine
POLL_S = 0.2
TRIES = 3  # starts of a Ray of our own: its agents get 15 s, a constant in Ray's core
LONGEST_SOCKET = 107  # bytes of a path (unix(7), sun_path)
# The longest of the paths that Ray makes below its temporary folder, with the pid in the middle.
SOCKET = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
ITS_TOKEN = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"
NO_TOKEN = "the cluster wants a token and got none"
ANOTHER_TOKEN = "the cluster has another token"
WANTED = "wanted HOST:PORT of a cluster's head, such as 10.0.0.1:6379"


@contextmanager
def running_ray(own: dict[str, Any]) -> Iterator[None]:
    """Ray, joined or started with the options `own`; the caller shuts it down.

    Raises UserError for what the user must change, Unfinished where another try may help.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors reach us as exceptions
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # and so need no second telling
    with ExitStack() as meanwhile:
        meanwhile.enter_context(_silent_listener())
        address = cluster_address()
        if address is not None:
            _join(address)
        else:
            # Nobody takes this one node away: 2 s of CPU less for each training.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            folder = meanwhile.enter_context(_ray_folder())
            meanwhile.enter_context(_own_token())
            _start(own | ({"_temp_dir": folder} if folder else {}))
        yield


# ---- a cluster that is there


def cluster_address() -> str | None:
    """HOST:PORT that RAY_ADDRESS names, or "auto"; None for a Ray of our own.

    Raises UserError for another form.
    """
    told = os.environ.get("RAY_ADDRESS", "").strip()
    if told in ("", "local"):
        return None
    scheme, separator, _ = told.partition("://")
    if separator and scheme in ("http", "https"):
        kind = "the address of a dashboard, which `ray job submit` takes"
        raise UserError(f"RAY_ADDRESS {told}: {kind}; {WANTED}")
    if separator and scheme == "ray":
        raise UserError(f"RAY_ADDRESS {told}: the address of Ray Client, not used here; {WANTED}")
    host, _, port = told.rpartition(":")
    if told != "auto" and (
        separator or not host or not port.isdecimal() or not 0 < int(port) < 2**16
    ):
        raise UserError(f"RAY_ADDRESS {told}: {WANTED}, or unset it for a Ray of this machine")
    return told


def check_cluster() -> None:
    """Raises UserError where RAY_ADDRESS names a cluster that does not answer, within seconds."""
    address = cluster_address()
    if address is not None:
        _check_answers(address, _head(address))


def _head(address: str) -> str:
    """HOST:PORT as Ray will ask for it: of the latest cluster of this machine for "auto"."""
    with suppress(ConnectionError, ValueError):
        if found := services.canonicalize_bootstrap_address(address):
            return str(found)
    raise UserError(
        f"RAY_ADDRESS {address}: no cluster runs on this machine, start one (ray start --head) or "
        "unset it"
    )


def _check_answers(address: str, head: str) -> None:
    host, _, port = head.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            return
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise UserError(
            f"RAY_ADDRESS {address}: no such host ({why}), correct or unset it"
        ) from error
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS {address}: no cluster answers there, start one or unset it"
        ) from error


def _join(address: str) -> None:
    head = _head(address)
    print(f"segpipe: joining the cluster at {head}", file=sys.stderr, flush=True)
    _check_answers(address, head)
    with _silent_stderr():
        if address == "auto":  # Ray takes the token of this machine for that one form
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        _check_head(address, head)
        _check_node(address)
    try:
        _init(address=address)
    except Exception as error:
        raise Unfinished(
            f"RAY_ADDRESS {address}: not joined ({_one_line(error)}), run the same command again"
        ) from error


def _check_head(address: str, head: str) -> None:
    """Raises UserError where no head of our version answers, or not without another token."""
    try:
        with init_grpc_channel(head, ray_constants.GLOBAL_GRPC_OPTIONS) as channel:
            head_service = InternalKVGcsServiceStub(channel)  # type: ignore[no-untyped-call]
            question = InternalKVGetRequest(
                namespace=ray_constants.KV_NAMESPACE_CLUSTER, key=b"CLUSTER_METADATA"
            )
            metadata = head_service.InternalKVGet(question, timeout=ANSWER_S)
    except AuthenticationError as error:
        raise UserError(f"RAY_ADDRESS {address}: {NO_TOKEN}; {ITS_TOKEN}") from error
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.UNAUTHENTICATED:
            raise UserError(
                f"RAY_ADDRESS {address}: what answers there is no head of a Ray cluster "
                f"({error.code().name.lower()}); {WANTED}"
            ) from error
        sent = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
        wrong = ANOTHER_TOKEN if sent else NO_TOKEN
        raise UserError(f"RAY_ADDRESS {address}: {wrong}; {ITS_TOKEN}") from error
    if metadata.value:
        check_version(address, json.loads(metadata.value))


def check_version(address: str, metadata: dict[str, Any]) -> None:
    """Raises UserError where a cluster of this metadata has another Ray or Python."""
    try:
        check_version_info(metadata, "this machine")
    except RuntimeError as error:
        theirs = f"Ray {metadata['ray_version']} and Python {metadata['python_version']}"
        ours = f"Ray {ray.__version__} and Python {sys.version.split()[0]}"
        raise UserError(
            f"RAY_ADDRESS {address}: the cluster has {theirs}, this process {ours}; use the same"
        ) from error


def _check_node(address: str) -> None:
    """Raises UserError where no node runs on this machine: Ray would look for one for a minute."""
    end = time.monotonic() + NODE_S
    while not services.find_node_ids():  # type: ignore[no-untyped-call]
        if time.monotonic() > end:
            raise UserError(
                f"RAY_ADDRESS {address}: no node of it runs on this machine, start one (ray start "
                "--address) or use `ray job submit`"
            )
        time.sleep(POLL_S)


# ---- a Ray of our own


def _start(options: dict[str, Any]) -> None:
    for number in range(1, TRIES + 1):
        before = set(psutil.Process().children(recursive=True))
        try:
            _init(address="local", **options)
            return
        except (TypeError, ValueError):
            raise
        except Exception as error:
            failure = error
        ray.shutdown()
        _end(set(psutil.Process().children(recursive=True)) - before)
        if number < TRIES:
            print(
                f"segpipe: Ray did not start ({_one_line(failure)}), as on a busy machine; "
                f"try {number + 1} of {TRIES}",
                file=sys.stderr,
                flush=True,
            )
    raise Unfinished(
        f"Ray did not start in {TRIES} tries ({_one_line(failure)}): this machine is too busy or "
        "short of memory; run the same command again when less runs here"
    ) from failure


def _end(processes: set[psutil.Process]) -> None:
    """What a start that failed leaves behind: the next one would meet it."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=CONNECT_S)


@contextmanager
def _own_token() -> Iterator[None]:
    """A token for a cluster of our own: Ray's would lie in the home, where there is one to write.

    That file is also what two runs that start at once would write both.
    """
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if named or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _ray_folder() -> Iterator[str | None]:
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
    path = Path(os.path.abspath(folder), SOCKET.format(pid=os.getpid()))
    return len(os.fsencode(path)) > LONGEST_SOCKET


def _short_folder(told: str) -> str:
    for parent in SHORT_FOLDERS:
        with suppress(OSError):
            return tempfile.mkdtemp(prefix="segpipe-ray-", dir=parent)
    raise UserError(
        f"{told}: too long for Ray's sockets ({LONGEST_SOCKET} bytes), and none of "
        f"{', '.join(SHORT_FOLDERS)} can be written; set RAY_TMPDIR to a short path"
    )


# ---- both


def _init(**options: Any) -> None:
    try:
        with _silent_stderr(), handler_kept(signal.SIGTERM):
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
def _silent_stderr() -> Iterator[None]:
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


@contextmanager
def _silent_listener() -> Iterator[None]:
    """Without what Ray's thread for errors of the cluster prints: to stdout, over several lines.

    What concerns us reaches us as an exception, and what ends this process has its last word.
    """
    before = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _one_line(error: BaseException) -> str:
    """The last that the first cause of an error says."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

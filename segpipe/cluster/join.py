"""A cluster that is there: RAY_ADDRESS checked and joined, and one line for what fails."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from typing import Any

import grpc  # type: ignore[import-untyped]
import ray
from ray.exceptions import AuthenticationError

from segpipe import ray_compat
from segpipe.cluster.errors import last_line
from segpipe.cluster.quiet import init_ray, silent_stderr
from segpipe.errors import Unfinished, UserError

logger = logging.getLogger(__name__)

CONNECT_S = 10.0  # to a TCP connection with a cluster's head
ANSWER_S = 15.0  # to the head's answer
NODE_S = 10.0  # to a node of the cluster on this machine
POLL_S = 0.2
ITS_TOKEN = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"
NO_TOKEN = "the cluster wants a token and got none"
ANOTHER_TOKEN = "the cluster has another token"
WANTED = "wanted HOST:PORT of a cluster's head, such as 10.0.0.1:6379"


def cluster_address() -> str | None:
    """HOST:PORT that RAY_ADDRESS names, or "auto"; None for a Ray of our own.

    Raises UserError for another form.
    """
    text = os.environ.get("RAY_ADDRESS", "").strip()
    if text in ("", "local"):
        return None
    scheme, separator, _ = text.partition("://")
    if separator and scheme in ("http", "https"):
        kind = "the address of a dashboard, which `ray job submit` takes"
        raise UserError(f"RAY_ADDRESS {text}: {kind}; {WANTED}")
    if separator and scheme == "ray":
        raise UserError(f"RAY_ADDRESS {text}: the address of Ray Client, not used here; {WANTED}")
    host, _, port = text.rpartition(":")
    if text != "auto" and (
        separator or not host or not port.isdecimal() or not 0 < int(port) < 2**16
    ):
        raise UserError(f"RAY_ADDRESS {text}: {WANTED}, or unset it for a Ray of this machine")
    return text


def check_cluster() -> None:
    """Raises UserError where RAY_ADDRESS names a cluster that does not answer, within seconds."""
    address = cluster_address()
    if address is not None:
        _check_answers(address, _head(address))


def _head(address: str) -> str:
    """HOST:PORT as Ray will ask for it: of the latest cluster of this machine for "auto"."""
    if found := ray_compat.find_head(address):
        return found
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


def join_cluster(address: str) -> None:
    head = _head(address)
    logger.info("segpipe: joining the cluster at %s", head)
    _check_answers(address, head)
    with silent_stderr():
        if address == "auto":  # Ray takes the token of this machine for that one form
            ray_compat.use_machine_token()
        _check_head(address, head)
        _check_node(address)
    try:
        init_ray(address=address)
    except Exception as error:
        raise Unfinished(
            f"RAY_ADDRESS {address}: not joined ({last_line(error)}), run the same command again"
        ) from error


def _check_head(address: str, head: str) -> None:
    """Raises UserError where no head of our version answers, or not without another token."""
    try:
        metadata = ray_compat.head_metadata(head, ANSWER_S)
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
    if metadata:
        check_version(address, metadata)


def check_version(address: str, metadata: dict[str, Any]) -> None:
    """Raises UserError where a cluster of this metadata has another Ray or Python."""
    if ray_compat.same_versions(metadata):
        return
    theirs = f"Ray {metadata['ray_version']} and Python {metadata['python_version']}"
    ours = f"Ray {ray.__version__} and Python {sys.version.split()[0]}"
    raise UserError(
        f"RAY_ADDRESS {address}: the cluster has {theirs}, this process {ours}; use the same"
    )


def _check_node(address: str) -> None:
    """Raises UserError where no node runs on this machine: Ray would look for one for a minute."""
    end = time.monotonic() + NODE_S
    while not ray_compat.has_node_here():
        if time.monotonic() > end:
            raise UserError(
                f"RAY_ADDRESS {address}: no node of it runs on this machine, start one (ray start "
                "--address) or use `ray job submit`"
            )
        time.sleep(POLL_S)

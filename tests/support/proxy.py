"""A loopback proxy that stands before a real S3 server: it counts, and it fails on demand.

    with Proxy(s3.endpoint, fault=random_faults(0.1, seed=0)) as proxy:
        client = boto3.client("s3", endpoint_url=proxy.endpoint)

Requests go through as they came (method, raw path, headers, body), so that signatures hold.
"""

from __future__ import annotations

import http.client
import itertools
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = (
    "503",  # S3's SlowDown, not forwarded
    "500",  # S3's InternalError, not forwarded
    "refuse",  # not forwarded, no answer, the connection closed in order
    "reset",  # not forwarded, no answer, the connection reset
    "reset-after",  # forwarded, so that it took effect; no answer, the connection reset
    "truncate",  # forwarded; the answer's whole Content-Length, half of its body, the end
    "stall",  # forwarded after `stall_s`
)
CODES = {"503": "SlowDown", "500": "InternalError", "403": "AccessDenied"}  # no accident: 403
NO_ANSWER = 0  # the status on record where the client got none
STALL_S = 5.0
SERVER_S = 60.0  # seconds that the server may take
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends RST
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}

Fault = Callable[[str, str, int], "str | None"]  # (method, path with query, number from 0)
Hook = Callable[[str, str, int], None]


def random_faults(share: float, seed: int) -> Fault:
    """Any kind of fault for this share of requests, a pure function of seed and number."""

    def fault(method: str, path: str, number: int) -> str | None:
        chance = random.Random(f"{seed}/{number}")
        return chance.choice(FAULTS) if chance.random() < share else None

    return fault


@dataclass(frozen=True)
class Answer:
    """Headers without those that concern one connection only; a HEAD's body is empty."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    length: str | None
    """Content-Length: of the body, or of the one that a HEAD leaves out."""


@dataclass
class Proxy:
    """A context manager; its settings may be changed while it serves."""

    target: str
    fault: Fault | None = None
    before: Hook | None = None
    """Called before a request is forwarded."""
    after: Hook | None = None
    """Called when the server has answered and the client has not heard of it."""
    edit: Callable[[str, str, Answer], Answer] | None = None
    """What the client gets instead of the server's answer: (method, path with query, answer)."""
    stall_s: float = STALL_S
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """(method, path with query, status that the client got), on record before it gets it."""
    endpoint: str = ""

    def __post_init__(self) -> None:
        self.numbers = itertools.count()  # next() and list.append are atomic

    def __enter__(self) -> Proxy:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def forward(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes
    ) -> Answer:
        """Ask the server. `body` is as it came, with the marks of its chunks if it had any."""
        address = urlsplit(self.target)
        assert address.hostname
        server = http.client.HTTPConnection(address.hostname, address.port, timeout=SERVER_S)
        try:
            server.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                if name.lower() != "expect":  # it was met here
                    server.putheader(name, value)
            server.endheaders(body or None)
            response = server.getresponse()
            content = response.read()
        finally:
            server.close()
        kept = [(n, v) for n, v in response.getheaders() if n.lower() not in HOP_BY_HOP]
        length = response.getheader("Content-Length")
        if content or response.getheader("Transfer-Encoding"):
            length = str(len(content))
        return Answer(response.status, kept, content, length)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: Proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away, or was killed, is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        proxy, number = self.server.proxy, next(self.server.proxy.numbers)
        path = self.requestline.split()[1]  # self.path is normalised
        body = self._body()
        fault = proxy.fault and proxy.fault(self.command, path, number)
        assert fault is None or fault in FAULTS or fault in CODES, fault
        if fault == "stall":
            time.sleep(proxy.stall_s)
        answer = None
        if fault in CODES:
            answer = _error(fault, self.command)
        elif fault not in ("refuse", "reset"):
            answer = self._forwarded(path, number, body)
        lost = answer is None or fault == "reset-after"
        proxy.requests.append((self.command, path, NO_ANSWER if lost else answer.status))
        if fault in ("reset", "reset-after"):
            self._reset()
        elif fault == "refuse":
            self.close_connection = True
        else:
            self._reply(answer, cut=fault == "truncate")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _body(self) -> bytes:
        """As it came, with the marks of its chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        lines = []
        while size := int((mark := self.rfile.readline()).split(b";")[0], 16):
            lines += [mark, self.rfile.read(size), self.rfile.readline()]
        lines.append(mark)  # of length 0; then trailers, if any, and an empty line
        while (trailer := self.rfile.readline()).strip():
            lines.append(trailer)
        return b"".join([*lines, trailer])

    def _forwarded(self, path: str, number: int, body: bytes) -> Answer:
        proxy = self.server.proxy
        if proxy.before:
            proxy.before(self.command, path, number)
        answer = proxy.forward(self.command, path, self.headers.items(), body)
        if proxy.edit:
            answer = proxy.edit(self.command, path, answer)
        if proxy.after:
            proxy.after(self.command, path, number)
        return answer

    def _reply(self, answer: Answer, cut: bool) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.length is not None:
            self.send_header("Content-Length", answer.length)
        self.end_headers()
        self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        self.close_connection = self.close_connection or cut

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        os.close(self.connection.detach())  # at once: the server's own way sends FIN first
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: `requests` is the log."""


def _error(status: str, method: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{CODES[status]}</Code></Error>'
    kept = b"" if method == "HEAD" else body.encode()
    return Answer(int(status), [("Content-Type", "application/xml")], kept, str(len(body)))

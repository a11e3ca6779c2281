"""The child that `segpipe.data.decoder` starts: it fits one photograph after the other.

It keeps the limits of memory and CPU time, and dies where a photograph passes them in C code.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segpipe.data.decoder_pipe import (
    ANSWER_FIELDS,
    CPU_LIMIT,
    LENGTH,
    READY,
    SHARED_BYTES,
    WALL_TIMES,
    Settings,
    SharedMemory,
    send,
)
from segpipe.data.fitting import fit
from segpipe.errors import Fault, RejectedImage, internal_error

# Of 43 kinds of file DICOM in YBR maps the most, 30 bytes a pixel beside the encoded file; 16 bit
# PPM and 32 bit TIFF 24, WebP 23, RGB in JPEG 8. Half as much again is in reserve.
BYTES_PER_PIXEL = 48
SPARE_BYTES = 256 << 20  # what does not grow with the photograph: Pillow's plugins, pydicom, canvas
KEPT_BYTES = 160 << 20  # resident: what a photograph of 10 megapixels leaves is worth keeping
TOO_LARGE = "needs too much memory to decode"
Work = Callable[[bytes, Settings, SharedMemory], dict[str, Any]]
"""Bytes -> the header that is sent back; arrays are left in the shared memory."""


def serve(work: Work) -> None:
    """Answer until stdin ends. Arguments: MEMORY DIAMETER MEGAPIXELS SECONDS."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's affair
    settings = Settings(*map(float, sys.argv[2:]))
    shared = SharedMemory.of(int(sys.argv[1]), settings)
    os.close(int(sys.argv[1]))
    requests, replies = _take_pipes()
    _expose()
    memory = _mapped_bytes() + SPARE_BYTES
    memory += int(settings.max_megapixels * 1e6 * BYTES_PER_PIXEL)
    with suppress(EOFError, BrokenPipeError):  # the parent needs no more, or has ended
        send(replies, READY)
        while True:  # no variable keeps a photograph while the next one is awaited
            send(replies, *_answer(work, _next_image(requests, shared), shared, settings, memory))
            _return_memory()


def _take_pipes() -> tuple[io.BufferedReader, int]:
    """Standard input and output; who reads or prints from now on meets the null device."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return requests, replies


def _expose() -> None:
    """This process dies first where memory is short, leaves no core, and cannot outlive a limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    for number in (signal.SIGALRM, CPU_LIMIT):
        signal.signal(number, signal.SIG_DFL)  # both may have been inherited otherwise
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


def _mapped_bytes() -> int:
    """The address space that this process takes (proc(5), statm)."""
    return _statm_bytes(0)


def _return_memory() -> None:
    """Free pages serve again, but after a large photograph they go back to the system."""
    if _statm_bytes(1) > KEPT_BYTES:
        ctypes.CDLL(None).malloc_trim(0)


def _statm_bytes(field: int) -> int:
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()


def _next_image(requests: io.BufferedReader, shared: SharedMemory) -> bytes:
    """Raises EOFError where the parent has closed the pipe, or ended, also amid an image."""
    size = requests.read(LENGTH.size)
    if len(size) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(size)
    if length <= SHARED_BYTES:
        return bytes(shared.encoded[:length])
    data = requests.read(length)
    if len(data) < length:
        raise EOFError
    return data


@contextmanager
def _limits(memory: int, seconds: float) -> Iterator[None]:
    """At most so many bytes mapped, else MemoryError; at most so many seconds of CPU, else death.

    CPU time tells a photograph that takes long from a node that has no time for it; SIGALRM comes
    after WALL_TIMES as long on the clock. The signals' default action ends the process where Python
    would not come to run a handler, and where there is no parent any more.
    """
    before = _, most = resource.getrlimit(resource.RLIMIT_AS)
    allowed = min(memory, sys.maxsize if most == resource.RLIM_INFINITY else most)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, most))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WALL_TIMES * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _answer(
    work: Work, data: bytes, shared: SharedMemory, settings: Settings, memory: int
) -> list[bytes]:
    """The header that is sent back; the arrays are shared unless the photograph is rejected."""
    try:
        with _limits(memory + len(data), settings.timeout_s):
            header = work(data, settings, shared)
    except Exception as error:
        rejection = _rejection(error)
        return _headed({"rejected": str(rejection), "code": rejection.fault})
    return _headed(header)


def _fit(data: bytes, settings: Settings, shared: SharedMemory) -> dict[str, Any]:
    """A photograph on its canvas, of which the arrays are shared."""
    fitted = fit(data, settings.working, settings.max_megapixels, shared.canvases)
    header = {"side": len(fitted.fov), "geometry": fitted.geometry.to_list()}
    header["acquisition"] = asdict(fitted.acquisition)
    return header | {name: getattr(fitted, name) for name in ANSWER_FIELDS}


def _headed(header: dict[str, Any]) -> list[bytes]:
    text = json.dumps(header).encode()
    return [LENGTH.pack(len(text)), text]


def _rejection(error: Exception) -> RejectedImage:
    """What the row says. An error of our own is also printed, so that it is seen."""
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return RejectedImage(Fault.TOO_MUCH_MEMORY, TOO_LARGE)
    return error if isinstance(error, RejectedImage) else internal_error(error)


if __name__ == "__main__":
    serve(_fit)

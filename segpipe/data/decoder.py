"""Untrusted bytes are decoded in a child process: bytes -> canvas, field of view, geometry.

A photograph may crash, hang or bloat whatever decodes it. The process that holds the network and
the credentials survives that: its child has no secret in its environment, limits of memory and CPU
time, a deadline for each image, and ends with its parent. A child that dies is replaced. It is no
sandbox: code that a photograph smuggled in could do there what this user may.

How a child ends tells whose fault it is. A crash, the limit of memory and the limit of CPU time are
the photograph's: twice, and it is rejected. SIGKILL (the kernel's, where memory is short) and the
deadline are the node's: the photograph is tried again while no other process of the node does so,
and then it stays open.

This is the parent's side; the child's is decoder_child.py, and what they say to each other is in
decoder_pipe.py. Other work on untrusted bytes is done the same way: a Guarded and a child of its
own. Neither imports torch, ray, pyarrow or boto3: a child starts in 0.3 s and holds
60 MB.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from segpipe.data.canvas import Diameter, Geometry, Working
from segpipe.data.decoder_pipe import (
    ANSWER_FIELDS,
    CPU_LIMIT,
    LENGTH,
    READY,
    SHARED_BYTES,
    WALL_TIMES,
    Settings,
    SharedMemory,
    receive,
    send,
)
from segpipe.data.fitting import Fitted
from segpipe.data.photograph import Acquisition
from segpipe.errors import Fault, RejectedImage, StarvedDecoder

DECODING_S = 60.0  # seconds of CPU for one photograph; 200 megapixels take some 10
TRIES = 2  # crashes of a child on one photograph: the first may have been another's fault
PAUSES_S = (0.5, 2.0, 8.0)  # before each try alone on the node, for its memory to come back
POLL_S = 0.1  # between two looks whether another process still tries alone
EXIT_S = 5.0  # for a child to end that has closed its pipes
START_TRIES = 3  # children that may die before they are ready: that is never the photograph's fault
NOISE_BYTES = 1 << 16  # read at once while a child starts
INHERITED = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONHOME",
    "TMPDIR",
)
ADDED = {
    "OMP_NUM_THREADS": "1",  # every thread of numpy's BLAS maps memory, and none is needed
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",  # so too OpenCV's, which also spin while they wait
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # glibc: arrays of a photograph reuse pages, which
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),  # takes 11.3 ms for one of DRIVE's instead of 12.6 ms
}
Answer = TypeVar("Answer")
ROOT = Path(__file__).absolute().parents[2]  # the folder in which a child finds this package

TOO_SLOW = "decoding took longer than the limit"
CRASHED = "the decoder crashed twice on this file"
CRASHES = (  # a child's own; any other signal comes from outside, SIGALRM at the deadline
    *(signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
    *(signal.SIGSYS, signal.SIGTRAP),
)
SHORT_OF = (errno.ENOMEM, errno.EAGAIN)  # what a node lacks where it cannot start a process


class _Child(NamedTuple):
    process: subprocess.Popen[bytes]
    requests: int  # file descriptors
    replies: int
    shared: SharedMemory


class _Crash(RejectedImage):
    """The child has ended, and its photograph is to blame: rejected if that happens again."""


class _Killed(Exception):
    """The child was ended by signal `number` from outside."""

    def __init__(self, number: int) -> None:
        late = number == signal.SIGALRM
        super().__init__(
            "decoding got too little CPU time before its deadline"
            if late
            else f"the decoder was killed (signal {number}), as where memory is short"
        )
        self.number = number


class Guarded(ABC, Generic[Answer]):
    """Work on untrusted bytes in a child, which starts with the first of them, or before, and is
    reused.

    Safe for threads, which take turns. Also a context manager.
    """

    module: ClassVar[str]
    """The child's, which calls `decoder_child.serve`."""

    def __init__(self, working: Diameter, max_megapixels: float, timeout_s: float) -> None:
        """`timeout_s` seconds of CPU for each try, WALL_TIMES on the clock."""
        self.settings = Settings(*Working.of(working), max_megapixels, timeout_s)
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._pauses: tuple[float, ...] = PAUSES_S

    @abstractmethod
    def _read(self, header: dict[str, Any], shared: SharedMemory) -> Answer:
        """What a child's header, and the memory shared with it, say of one image.

        Raises KeyError, TypeError or ValueError for what no child of this module says.
        """

    def ask(self, data: bytes) -> Answer:
        """What the child makes of these bytes.

        Raises RejectedImage also for a photograph on which two children crash, StarvedDecoder where
        the node has no memory or CPU for it now, and RuntimeError where no child starts.
        """
        with self._lock:
            try:
                answer = self._ask(data)
            except StarvedDecoder:
                self._pauses = PAUSES_S[:1]  # the next photograph finds the same node
                raise
            self._pauses = PAUSES_S
            return answer

    def start(self) -> None:
        """Start the child now. Raises RuntimeError where none starts."""
        with self._lock, suppress(_Killed):  # the first photograph tries again
            self._living()

    def close(self) -> None:
        """End the child; a later `fit` starts another."""
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, data: bytes) -> Answer:
        timeout_s = WALL_TIMES * self.settings.timeout_s
        end = time.monotonic() + TRIES * timeout_s  # of waiting for a turn alone
        num_crashes, num_late, pauses = 0, 0, list(self._pauses)
        with ExitStack() as alone:
            while True:
                try:
                    return self._try(data)
                except _Crash as crash:
                    num_crashes += 1
                    if num_crashes == TRIES:
                        raise RejectedImage(crash.fault, str(crash)) from None
                except _Killed as killed:
                    num_late += killed.number == signal.SIGALRM
                    if num_late == TRIES or not pauses:
                        raise StarvedDecoder(str(killed)) from None
                    if len(pauses) == len(self._pauses):
                        alone.enter_context(_alone(end))
                    time.sleep(pauses.pop(0))

    def _try(self, data: bytes) -> Answer:
        """Raises RejectedImage, and _Crash or _Killed where the child ends instead of an answer."""
        child = self._living()
        try:
            return self._exchange(child, data)
        except (EOFError, BrokenPipeError):
            status = self._end(EXIT_S)
        except RejectedImage as error:
            if error.fault is not Fault.TOO_MUCH_MEMORY:
                raise
            self._end()  # another child has nothing mapped that photographs before left behind
            raise _Crash(error.fault, str(error)) from None
        except (KeyError, TypeError, ValueError):
            self._end()
            raise _Crash(Fault.DECODER_CRASHED, f"{CRASHED} (unreadable answer)") from None
        except BaseException:
            self._end()  # an answer half read would be taken for the next image's
            raise
        if status == -CPU_LIMIT:
            raise _Crash(Fault.TOO_SLOW, TOO_SLOW)
        if -status in CRASHES:
            raise _Crash(Fault.DECODER_CRASHED, f"{CRASHED} (signal {-status})")
        if status >= 0:
            raise _Crash(Fault.DECODER_CRASHED, f"{CRASHED} (exit code {status})")
        raise _Killed(-status)

    def _exchange(self, child: _Child, data: bytes) -> Answer:
        """Raises EOFError or BrokenPipeError where the child dies of it."""
        shared, short = child.shared, len(data) <= SHARED_BYTES
        if short:
            shared.encoded[: len(data)] = data
        send(child.requests, LENGTH.pack(len(data)), b"" if short else data)
        (length,) = LENGTH.unpack(receive(child.replies, LENGTH.size))
        header = json.loads(receive(child.replies, length))
        if "rejected" in header:
            raise RejectedImage(Fault(header["code"]), header["rejected"])
        return self._read(header, shared)

    def _living(self) -> _Child:
        """The child, or another where none is or it has died between two images.

        Raises RuntimeError where none starts, _Killed where that is for want of memory.
        """
        if self._child and self._child.process.poll() is None:
            return self._child
        status = 0
        for _ in range(START_TRIES):
            self._end()
            try:
                self._child = _start(self.settings, self.module)
                _await_ready(self._child.replies)
            except EOFError:
                status = self._end(EXIT_S)
            except OSError as error:
                if error.errno not in SHORT_OF:
                    raise
                raise _Killed(signal.SIGKILL) from error
            else:
                return self._child
        if status < 0 and -status not in CRASHES:
            raise _Killed(-status)
        raise RuntimeError(f"the decoder's process does not start: exit code {status}")

    def _end(self, patience_s: float = 0.0) -> int:
        """No child is left; returns what the one that there was ended with (0: there was none).

        Where it does not end by itself within `patience_s` that is 1.
        """
        if self._child is None:
            return 0
        with self._child.process as process:  # closes the pipes and waits
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
            status = process.returncode
            process.kill()  # nothing to one that has ended
        self._child = None
        return 1 if status is None else status


class Decoder(Guarded[Fitted]):
    """Does `fitting.fit` in a child."""

    module = "segpipe.data.decoder_child"

    def fit(self, data: bytes) -> Fitted:
        """As the function of that name; raises as `ask` does."""
        return self.ask(data)

    def _read(self, header: dict[str, Any], shared: SharedMemory) -> Fitted:
        # copies: the next image's come there too
        canvas, fov = (one.copy() for one in shared.canvases(header["side"]))
        geometry = Geometry.from_list(header["geometry"])
        fields = {name: header[name] for name in ANSWER_FIELDS}
        acquisition = Acquisition(**header["acquisition"])
        return Fitted(canvas, fov, geometry, **fields, acquisition=acquisition)


@contextmanager
def _alone(end: float) -> Iterator[None]:
    """No other process of this user on this node is within this.

    Without a lock where the temporary folder takes none. Raises StarvedDecoder where it is not its
    turn before `end`, in seconds of the monotonic clock.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        file = os.open(lock_file(), flags, 0o600)
    except OSError:
        yield
        return
    try:
        while not _locked(file):
            if time.monotonic() >= end:
                raise StarvedDecoder("other processes of the node have decoders killed as well")
            time.sleep(POLL_S)
        yield
    finally:
        os.close(file)  # which unlocks it


def lock_file() -> Path:
    """Locked while a process of this user tries a photograph again alone on this node."""
    return Path(tempfile.gettempdir(), f"segpipe-decoder-{os.getuid()}.lock")


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(settings: Settings, module: str) -> _Child:
    command = [sys.executable, "-P", "-m", module]  # -P: not from the working folder
    memory = os.memfd_create("segpipe.data.decoder", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, SharedMemory.num_bytes(settings))
        # or a child that cuts it off would kill its parent with SIGBUS
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        shared = SharedMemory.of(memory, settings)
        process = subprocess.Popen(
            [*command, str(memory), *map(str, settings)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            pass_fds=[memory],
        )
    finally:
        os.close(memory)
    assert process.stdin
    assert process.stdout
    return _Child(process, process.stdin.fileno(), process.stdout.fileno(), shared)


def _environment() -> dict[str, str]:
    """What the child needs of this process's environment: a list, since secrets have any name."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    path = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return kept | ADDED | {"PYTHONPATH": os.pathsep.join([*path, str(ROOT)])}


def _await_ready(replies: int) -> None:
    """Raises EOFError where the child ends instead."""
    heard = b""
    while not heard.endswith(READY):
        more = os.read(replies, NOISE_BYTES)
        if not more:
            raise EOFError
        heard += more

"""Untrusted bytes are decoded in a child process: bytes -> canvas, field of view, geometry.

A photograph may crash, hang or bloat whatever decodes it. The process that holds the network and
the credentials survives that: its child has no secret in its environment, limits of memory and CPU
time, a deadline for each image, and ends with its parent. A child that dies is replaced. It is no
sandbox: code that a photograph smuggled in could do there what this user may.

How a child ends tells whose fault it is. A crash, the limit of memory and the limit of CPU time are
the photograph's: twice, and it is rejected. SIGKILL (the kernel's, where memory is short) and the
deadline are the node's: the photograph is tried again while no other process of the node does so,
and then it stays open.

    parent -> child    LENGTH; the encoded bytes, in memory that both share or, many, in the pipe
    child -> parent    READY once; then for each image LENGTH, a JSON object, and where that object
                       has no "rejected", in the shared memory: canvas [S, S, 3], fov [S, S], uint8

Neither side imports torch, ray, pyarrow or boto3: a child starts in 0.3 s and holds 60 MB.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import json
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from segpipe.data import codecs
from segpipe.data.canvas import Geometry, canvas_side, fit_fov, fit_image, plan_fit
from segpipe.data.fov import Field, find_field, fov_diameter
from segpipe.data.photograph import NOTHING_SAID, Acquisition, Photograph
from segpipe.errors import Fault, RejectedImage, StarvedDecoder, internal_error

TRIES = 2  # crashes of a child on one photograph: the first may have been another's fault
WALL_TIMES = 5  # the deadline on the clock / the limit of CPU time: what a loaded node may take
PAUSES_S = (0.5, 2.0, 8.0)  # before each try alone on the node, for its memory to come back
POLL_S = 0.1  # between two looks whether another process still tries alone
EXIT_S = 5.0  # for a child to end that has closed its pipes
START_TRIES = 3  # children that may die before they are ready: that is never the photograph's fault
# Of 43 kinds of file DICOM in YBR maps the most, 30 bytes a pixel beside the encoded file; 16 bit
# PPM and 32 bit TIFF 24, WebP 23, RGB in JPEG 8. Half as much again is in reserve.
BYTES_PER_PIXEL = 48
SPARE_BYTES = 256 << 20  # what does not grow with the photograph: Pillow's plugins, pydicom, canvas
KEPT_BYTES = 160 << 20  # resident: what a photograph of 10 megapixels leaves is worth keeping
SHARED_BYTES = 8 << 20  # encoded, beside canvas and fov: what is longer goes through the pipe
NOISE_BYTES = 1 << 16  # read at once while a child starts
SHARP = 2.0  # times the working diameter: what a field has at least in a JPEG that comes reduced
STEPS = ("decode", "field", "resize")
PIXELS = 2  # it changes with what a photograph's bytes become: its field, its picture
TOLD = (
    "orientation",
    "note",
    "seconds",
    "uncertain_fraction",
    "second_fraction",
)  # of Fitted, as JSON
LENGTH = struct.Struct("<Q")
READY = (
    b"\0segpipe.data.decoder is ready\n"  # all before it was printed by others while Python started
)
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
ROOT = Path(__file__).absolute().parents[2]  # the folder in which a child finds this package

TOO_LARGE = "needs too much memory to decode"
TOO_SLOW = "decoding took longer than the limit"
CRASHED = "the decoder crashed twice on this file"
CPU_LIMIT = signal.SIGPROF  # ends a child that has used up its CPU time
CRASHES = (  # a child's own; any other signal comes from outside, SIGALRM at the deadline
    *(signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
    *(signal.SIGSYS, signal.SIGTRAP),
)
SHORT_OF = (errno.ENOMEM, errno.EAGAIN)  # what a node lacks where it cannot start a process


@dataclass(frozen=True)
class Fitted:
    """A photograph on the working canvas."""

    canvas: npt.NDArray[np.uint8]
    """[S, S, 3] RGB, zeros beyond the fitted box."""
    fov: npt.NDArray[np.uint8]
    """[S, S], 255 inside the field of view, soft at the rim where it was scaled."""
    geometry: Geometry
    orientation: int
    """As EXIF numbers it, 1 to 8; 1 is upright."""
    note: str
    """What was odd about the file or its field, or ''."""
    seconds: dict[str, float] = field(default_factory=dict)
    """On the clock, of each step: "decode", "field", "resize"."""
    uncertain_fraction: float = 0.0
    """Share of the picture that is left out of the field and may be retina."""
    second_fraction: float = 0.0
    """Share of the picture that other fields have."""
    acquisition: Acquisition = NOTHING_SAID
    """What the file says of how it was taken."""


def fit(data: bytes, diameter: float, max_megapixels: float) -> Fitted:
    """An encoded photograph -> the same on the canvas of this working diameter (px), in process.

    Raises RejectedImage where the bytes are no photograph of a fundus.
    """
    enough, clock = SHARP * diameter, _Clock()
    photograph = codecs.decode_photograph(data, max_megapixels, enough)
    clock.passed("decode")
    while (found := _field(photograph, enough)) is None:
        clock.passed("field")
        finer = photograph.reduction // 2
        photograph = codecs.decode_photograph(data, max_megapixels, min(photograph.size) / finer)
        clock.passed("decode")
    reduction, side = photograph.reduction, canvas_side(diameter)
    geometry = plan_fit(found.fov, diameter, photograph.size, reduction)
    clock.passed("field")
    canvas = fit_image(photograph.picture, geometry, side, reduction)
    fov_canvas = fit_fov(found.fov, geometry, side, reduction)
    clock.passed("resize")
    return Fitted(
        canvas,
        fov_canvas,
        geometry,
        photograph.orientation,
        "; ".join(note for note in (photograph.note, found.note) if note),
        clock.seconds,
        found.uncertain_fraction,
        found.second_fraction,
        photograph.acquisition,
    )


def _field(photograph: Photograph, enough: float) -> Field | None:
    """None where the photograph came reduced and its field is smaller than `enough` px, or none."""
    if photograph.reduction == 1:
        return find_field(photograph.picture)
    with suppress(RejectedImage):  # the whole photograph decides, and says why
        found = find_field(photograph.picture, photograph.reduction)
        return found if fov_diameter(found.fov) >= enough else None
    return None


class _Clock:
    """Seconds of each step, in turns."""

    def __init__(self) -> None:
        self.seconds, self.last = dict.fromkeys(STEPS, 0.0), time.perf_counter()

    def passed(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] += now - self.last
        self.last = now


# ---- the parent's side


class _Settings(NamedTuple):
    """The words of the child's command line."""

    diameter: float
    max_megapixels: float
    timeout_s: float


class _Child(NamedTuple):
    process: subprocess.Popen[bytes]
    requests: int  # file descriptors
    replies: int
    shared: _Shared


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


class Decoder:
    """Does `fit` in a child that is started with the first image, or before, and then reused.

    Safe for threads, which take turns. Also a context manager.
    """

    def __init__(self, diameter: float, max_megapixels: float, timeout_s: float) -> None:
        """`diameter` in px; `timeout_s` seconds of CPU for each try, WALL_TIMES on the clock."""
        self.settings = _Settings(diameter, max_megapixels, timeout_s)
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._pauses: tuple[float, ...] = PAUSES_S

    def fit(self, data: bytes) -> Fitted:
        """As the function of that name.

        Raises RejectedImage also for a photograph on which two children crash, StarvedDecoder where
        the node has no memory or CPU for it now, and RuntimeError where no child starts.
        """
        with self._lock:
            try:
                fitted = self._fit(data)
            except StarvedDecoder:
                self._pauses = PAUSES_S[:1]  # the next photograph finds the same node
                raise
            self._pauses = PAUSES_S
            return fitted

    def start(self) -> None:
        """Start the child now. Raises RuntimeError where none starts."""
        with self._lock, suppress(_Killed):  # the first photograph tries again
            self._living()

    def close(self) -> None:
        """End the child; a later `fit` starts another."""
        with self._lock:
            self._end()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fit(self, data: bytes) -> Fitted:
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

    def _try(self, data: bytes) -> Fitted:
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

    def _exchange(self, child: _Child, data: bytes) -> Fitted:
        """Raises EOFError or BrokenPipeError where the child dies of it."""
        shared, short = child.shared, len(data) <= SHARED_BYTES
        if short:
            shared.encoded[: len(data)] = data
        _send(child.requests, LENGTH.pack(len(data)), b"" if short else data)
        (length,) = LENGTH.unpack(_read(child.replies, LENGTH.size))
        header = json.loads(_read(child.replies, length))
        if "rejected" in header:
            raise RejectedImage(Fault(header["code"]), header["rejected"])
        canvas, fov = shared.canvas.copy(), shared.fov.copy()  # the next image's come there too
        geometry = Geometry(*header["geometry"])
        told = {name: header[name] for name in TOLD}
        acquisition = Acquisition(**header["acquisition"])
        return Fitted(canvas, fov, geometry, **told, acquisition=acquisition)

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
                self._child = _start(self.settings)
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


def _start(settings: _Settings) -> _Child:
    command = [
        sys.executable,
        "-P",
        "-m",
        "segpipe.data.decoder",
    ]  # -P: not from the working folder
    memory = os.memfd_create("segpipe.data.decoder", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, _Shared.num_bytes(settings))
        # or a child that cuts it off would kill its parent with SIGBUS
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        shared = _Shared.of(memory, settings)
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


# ---- both sides


class _Shared(NamedTuple):
    """Views of the memory that parent and child share; each writes where the other one waits."""

    encoded: memoryview
    canvas: npt.NDArray[np.uint8]
    fov: npt.NDArray[np.uint8]

    @staticmethod
    def num_bytes(settings: _Settings) -> int:
        return SHARED_BYTES + 4 * canvas_side(settings.diameter) ** 2

    @classmethod
    def of(cls, memory: int, settings: _Settings) -> _Shared:
        """Maps the memory behind this file descriptor, until the views are gone."""
        mapped = mmap.mmap(memory, cls.num_bytes(settings))
        pixels = np.frombuffer(mapped, np.uint8, offset=SHARED_BYTES)
        side = canvas_side(settings.diameter)
        canvas, fov = np.split(pixels, [3 * side**2])
        return cls(memoryview(mapped), canvas.reshape(side, side, 3), fov.reshape(side, side))


def _send(pipe: int, *parts: bytes) -> None:
    for part in parts:
        left = memoryview(part).cast("B")
        while left:
            left = left[os.write(pipe, left) :]


def _read(pipe: int, num_bytes: int) -> bytes:
    """Raises EOFError where the other side ends before that."""
    found = b""
    while len(found) < num_bytes:
        more = os.read(pipe, num_bytes - len(found))
        if not more:
            raise EOFError
        found += more
    return found


# ---- the child's side


def main() -> None:
    """`-m segpipe.data.decoder MEMORY DIAMETER MEGAPIXELS SECONDS`: answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's affair
    settings = _Settings(*map(float, sys.argv[2:]))
    shared = _Shared.of(int(sys.argv[1]), settings)
    os.close(int(sys.argv[1]))
    requests, replies = _take_pipes()
    _expose()
    memory = _mapped_bytes() + SPARE_BYTES
    memory += int(settings.max_megapixels * 1e6 * BYTES_PER_PIXEL)
    with suppress(EOFError, BrokenPipeError):  # the parent needs no more, or has ended
        _send(replies, READY)
        while True:  # no variable keeps a photograph while the next one is awaited
            _send(replies, *_answer(_next_image(requests, shared), shared, settings, memory))
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


def _next_image(requests: io.BufferedReader, shared: _Shared) -> bytes:
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


def _answer(data: bytes, shared: _Shared, settings: _Settings, memory: int) -> list[bytes]:
    """The header that is sent back; the arrays are shared unless the photograph is rejected."""
    try:
        with _limits(memory + len(data), settings.timeout_s):
            fitted = fit(data, settings.diameter, settings.max_megapixels)
    except Exception as error:
        rejection = _rejection(error)
        return _headed({"rejected": str(rejection), "code": rejection.fault})
    shared.canvas[:], shared.fov[:] = fitted.canvas, fitted.fov
    header = {"geometry": astuple(fitted.geometry), "acquisition": asdict(fitted.acquisition)}
    header |= {name: getattr(fitted, name) for name in TOLD}
    return _headed(header)


def _headed(header: dict[str, Any]) -> list[bytes]:
    text = json.dumps(header).encode()
    return [LENGTH.pack(len(text)), text]


def _rejection(error: Exception) -> RejectedImage:
    """What the row says. An error of our own is also printed, so that it is seen."""
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return RejectedImage(Fault.TOO_MUCH_MEMORY, TOO_LARGE)
    return error if isinstance(error, RejectedImage) else internal_error(error)


if __name__ == "__main__":
    main()

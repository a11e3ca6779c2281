"""The library of loops: compiled on first use for this machine's CPU, kept in the user's cache.

kernels-FINGERPRINT-DIGEST.so   the library; DIGEST is of its bytes, so a damaged one is seen
kernels-FINGERPRINT.lock        held by the process that builds, others wait
kernels-FINGERPRINT.failed      what the compiler said, so that it is not asked again for a day
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segpipe.storage import folders

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-O3",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-Wno-psabi",
    "-shared",
    "-fPIC",
    "-std=c++17",
)
BUILD_S = 600.0  # after which a compiler has hung; it takes some ten seconds of a core
POLL_S = 0.1  # between two looks whether another process has built
FAILED_S = 86400.0  # for which a failed build is not tried again
# What a compiler says that lacks memory or disk: the next process tries again.
TRANSIENT = ("killed", "no space left on device", "cannot allocate memory")


class BuildError(OSError):
    """There is no compiler, or it does not build the kernels."""


def cache_folder() -> Path:
    """Where what is built once is kept: $SEGPIPE_CACHE, else segpipe/ in the user's cache.

    In the temporary folder where that cache cannot be written.
    """
    if named := os.environ.get("SEGPIPE_CACHE"):
        return Path(named)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        cache = Path(os.devnull)
    return folders.kept(cache / "segpipe")


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Of the source, the flags and the CPU: what a built library depends on."""
    texts = [path.read_bytes() for path in (*SOURCES, *HEADERS)]
    parts = [*texts, " ".join(FLAGS).encode(), platform.machine().encode(), _cpu()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cpu() -> bytes:
    """Model and instruction sets of the CPU (proc(5), cpuinfo)."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0].splitlines()
    except OSError:
        return platform.processor().encode()
    kept = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(line for line in lines if line.startswith(kept))


@lru_cache(maxsize=1)
def missing() -> str:
    """Why there are no kernels here, or ''. Builds them where that was not done yet."""
    try:
        library()
    except OSError as error:
        return str(error)
    return ""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The built library. Raises OSError where it cannot be built or loaded."""
    try:
        loaded = _shared(cache_folder())
    except BuildError:
        raise
    except OSError:  # a cache that cannot be written: for this process alone
        with tempfile.TemporaryDirectory() as folder:
            loaded = ctypes.CDLL(str(_place(Path(folder), _compile())))
    loaded.segnet_lite_scores.restype = loaded.native_mask.restype = None
    loaded.resunet_scores.restype = loaded.resunet_close.restype = None
    loaded.resunet_open.restype = ctypes.c_void_p
    loaded.segnet_lite_gradients.restype = ctypes.c_double
    loaded.native_score.restype = None
    loaded.packed_rows.restype = ctypes.c_int64
    return loaded


def _shared(folder: Path) -> ctypes.CDLL:
    """The library in this folder, built there by one process while others wait.

    Raises BuildError where the compiler fails or has failed, OSError where the folder cannot be
    written.
    """
    if found := _load(folder):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / f"kernels-{fingerprint()}.lock"):
        if found := _load(folder):  # another process has built it
            return found
        failed = folder / f"kernels-{fingerprint()}.failed"
        if problem := _remembered(failed):
            raise BuildError(problem)
        for damaged in _libraries(folder):
            damaged.unlink(missing_ok=True)
        try:
            _place(folder, _compile())
            if (found := _load(folder)) is None:
                raise BuildError(f"{_compiler()} builds kernels that do not load")
        except BuildError as error:
            _remember(failed, str(error))
            raise
        failed.unlink(missing_ok=True)
        return found


def _libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"kernels-{fingerprint()}-*.so"))


def _load(folder: Path) -> ctypes.CDLL | None:
    """The folder's whole library; None where there is none, or none that loads.

    The loader of a cut-off library may end the process (SIGBUS): bytes are compared before.
    """
    for path in _libraries(folder):
        with suppress(OSError):
            if path.name == _name(path.read_bytes()):
                return ctypes.CDLL(str(path))
    return None


def _name(data: bytes) -> str:
    return f"kernels-{fingerprint()}-{hashlib.sha256(data).hexdigest()[:32]}.so"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process; free when that one ends. Raises OSError where it cannot be made.

    A file system without locks, or one that is held for longer than a build takes, is done
    without: then two processes may build, each in whole.
    """
    with path.open("ab") as file:
        deadline = time.monotonic() + BUILD_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                    break
            time.sleep(POLL_S)
        yield


def _compiler() -> str:
    """The command that compiles. Raises BuildError where there is none."""
    if named := os.environ.get("CXX", "").strip():
        if shutil.which(named.split()[0]) is None:
            raise BuildError(
                f"CXX {named}: no such command; name a C++ compiler there, or unset it"
            )
        return named
    found = next(filter(shutil.which, COMPILERS), None)
    if found is None:
        raise BuildError(f"no C++ compiler ({', '.join(COMPILERS)}, or what CXX names)")
    return found


def _identity() -> list[str]:
    """Of the compiler: its words and, of those that are programs, where, how large and how old."""
    flags = []
    for word in _compiler().split():
        if path := shutil.which(word):
            found = os.stat(path)
            word = f"{os.path.realpath(path)} {found.st_size} {found.st_mtime_ns}"
        flags.append(word)
    return flags


def _remember(path: Path, problem: str) -> None:
    if any(word in problem.lower() for word in TRANSIENT):
        return
    with suppress(OSError):  # no compiler, or no space: then the next process tries again
        record = {"compiler": _identity(), "problem": problem, "time": time.time()}
        _write(path, json.dumps(record).encode())


def _remembered(path: Path) -> str:
    """What this compiler said within a day, or ''."""
    try:
        record = json.loads(path.read_bytes())
        known = record["compiler"] == _identity() and 0 <= time.time() - record["time"] < FAILED_S
        return f"{record['problem']} (delete {path} to try again)" if known else ""
    except (OSError, ValueError, TypeError, KeyError):  # none, or a damaged one
        return ""


def _compile() -> bytes:
    """The bytes of a library. Raises BuildError."""
    compiler = _compiler()
    tune = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "kernels.so"
        words = [*compiler.split(), *FLAGS, tune, *map(str, SOURCES), "-o", str(built)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_S)
        except subprocess.TimeoutExpired:
            raise BuildError(f"{compiler} builds no kernels within {BUILD_S:g} s") from None
        if done.returncode or not built.exists():
            ended = "killed" if done.returncode < 0 else f"exit code {done.returncode}"
            line = next(iter(done.stderr.splitlines()), ended)
            raise BuildError(f"{compiler} does not build the kernels: {line}")
        return built.read_bytes()


def _place(folder: Path, data: bytes) -> Path:
    """The library in this folder, whole or not at all."""
    path = folder / _name(data)
    _write(path, data)
    return path


def _write(path: Path, data: bytes) -> None:
    part = path.with_suffix(f".{time.time_ns()}")
    part.write_bytes(data)
    part.replace(path)


def pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    """To its numbers, which live as long as the pointer, of a copy made on the way too."""
    assert array.flags.c_contiguous
    return array.ctypes.data_as(ctypes.c_void_p)

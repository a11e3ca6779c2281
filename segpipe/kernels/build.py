"""The library of loops: compiled on first use for this machine's CPU, kept in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segpipe import folders

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
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return ""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The built library. Raises OSError or SubprocessError where it cannot be built or loaded."""
    name = f"kernels-{fingerprint()}.so"
    try:
        loaded = ctypes.CDLL(str(_built(cache_folder() / name)))
    except OSError:  # a cache that cannot be written, or holds a damaged one: for this process
        with tempfile.TemporaryDirectory() as folder:
            loaded = ctypes.CDLL(str(_built(Path(folder) / name)))
    loaded.segnet_lite_scores.restype = loaded.native_mask.restype = None
    loaded.resunet_scores.restype = loaded.resunet_close.restype = None
    loaded.resunet_open.restype = ctypes.c_void_p
    loaded.segnet_lite_gradients.restype = ctypes.c_double
    return loaded


def _built(path: Path) -> Path:
    if path.exists():
        return path
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise OSError(f"no C++ compiler ({', '.join(COMPILERS)}, or what CXX names)")
    path.parent.mkdir(parents=True, exist_ok=True)
    tune = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        words = [*compiler.split(), *FLAGS, tune, *map(str, SOURCES), "-o", str(built)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_S)
        if done.returncode:
            line = next(iter(done.stderr.splitlines()), f"exit code {done.returncode}")
            raise OSError(f"{compiler} does not build the kernels: {line}")
        built.replace(path)  # whole or not at all, also when several processes build
    return path


def pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    """To its numbers, which live as long as the pointer, of a copy made on the way too."""
    assert array.flags.c_contiguous
    return array.ctypes.data_as(ctypes.c_void_p)

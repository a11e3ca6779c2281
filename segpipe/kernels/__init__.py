"""Loops in C++ where numpy and torch have none: built on first use, kept on disk, optional.

    build    kernels.cpp -> a shared library for this machine's CPU, in the user's cache folder
    segnet_lite_scores, native_mask    the same as models.segnet and fundus.native_mask, quicker

Without a C++ compiler `missing` says so, and those who call take the plain path. Nothing here
knows torch: a process that segments with these starts in half a second.
"""

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

SOURCE = Path(__file__).with_name("kernels.cpp")
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
BUILD_S = 120.0  # seconds after which a compiler has hung; it takes one or two
WIDTH_STEP, MOST_WIDTH = 16, 512  # channels, as in kernels.cpp
REACH_PX = 2  # canvas px beyond the field of view whose scores its rim's pixels are mixed from

Image8 = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]


def cache_folder() -> Path:
    """Where what is built once is kept: $SEGPIPE_CACHE, else segpipe/ in the user's cache."""
    for variable, folder in (("SEGPIPE_CACHE", ""), ("XDG_CACHE_HOME", "segpipe")):
        if os.environ.get(variable):
            return Path(os.environ[variable]) / folder
    try:
        return Path.home() / ".cache" / "segpipe"
    except RuntimeError:  # a user without a home: nothing can be kept there
        return Path(os.devnull) / "segpipe"


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Of the source, the flags and the CPU: what a built library depends on."""
    parts = [SOURCE.read_bytes(), " ".join(FLAGS).encode(), platform.machine().encode(), _cpu()]
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
        words = [*compiler.split(), *FLAGS, tune, str(SOURCE), "-o", str(built)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_S)
        if done.returncode:
            line = next(iter(done.stderr.splitlines()), f"exit code {done.returncode}")
            raise OSError(f"{compiler} does not build the kernels: {line}")
        built.replace(path)  # whole or not at all, also when several processes build
    return path


def _pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


class SegNetLiteScores:
    """segnet-lite's score p(vessel) / (p(vessel) + p(background)) of a canvas, in float32.

    A 2x2 pooling window keeps one value a channel, the first maximum of its four positions, so the
    decoder reads a quarter of what a convolution would: each kept value adds its 3x3 kernel to a
    4x4 neighbourhood (cf. SegNet's sparse upsampled maps, arXiv:1511.00561, section 3). Only the
    difference of the two retinal logits is computed, and only where the field of view is.
    """

    def __init__(
        self,
        encoder_weight: Plane,
        encoder_bias: Plane,
        decoder_weight: Plane,
        decoder_bias: float,
    ) -> None:
        """encoder [C, 3, 3, 3] and [C] for pixels in [0, 1]; decoder [C, 3, 3] for the difference.

        C is a multiple of 16, at most 512. Raises ValueError for other widths.
        """
        self.width = len(encoder_bias)
        if self.width % WIDTH_STEP or not 0 < self.width <= MOST_WIDTH:
            raise ValueError(f"{self.width} channels, wanted a multiple of {WIDTH_STEP}")
        taps = (encoder_weight / np.float32(255)).transpose(2, 3, 1, 0).reshape(27, self.width)
        rows = np.concatenate([taps, encoder_bias[None]])  # [27 + 1, C]
        blocks = rows.reshape(28, -1, WIDTH_STEP).transpose(1, 0, 2)
        self.encoder = np.ascontiguousarray(blocks, np.float32)
        # [C, position in the window, 4, 4]: what a value kept there adds around its window
        spread = np.zeros((self.width, 2, 2, 4, 4), np.float32)
        for row in range(2):
            for column in range(2):
                flipped = decoder_weight[:, ::-1, ::-1]
                spread[:, row, column, row : row + 3, column : column + 3] = flipped
        self.decoder = spread
        self.bias = float(decoder_bias)

    def __call__(self, canvas: Image8, fov: Image8) -> Plane:
        """canvas [S, S, 3] uint8 RGB, fov [S, S] uint8 -> scores [S, S] float32, S even.

        0 where no pixel of the field (fov above 0) is near.
        """
        side = len(canvas)
        spans, scores = window_spans(fov), np.empty((side, side), np.float32)
        library().segnet_lite_scores(
            _pointer(np.ascontiguousarray(canvas)),
            ctypes.c_int32(side),
            _pointer(spans),
            ctypes.c_int32(self.width),
            _pointer(self.encoder),
            _pointer(self.decoder),
            ctypes.c_float(self.bias),
            _pointer(scores),
        )
        return scores


def window_spans(fov: Image8) -> npt.NDArray[np.int32]:
    """fov [S, S] uint8 -> [S/2, 2]: in each row of 2x2 windows the first and behind the last.

    They hold all pixels within REACH_PX of the field, and the windows that reach these.
    """
    side = len(fov)
    reach = REACH_PX + 2  # a window adds to the pixels around it as well
    inside = fov > 0
    lit = inside.any(axis=1)
    first = np.where(lit, inside.argmax(axis=1), side)
    last = np.where(lit, side - inside[:, ::-1].argmax(axis=1), 0)
    around = range(-reach, reach + 1)
    padded_first = np.pad(first, reach, constant_values=side)
    padded_last = np.pad(last, reach, constant_values=0)
    first = np.min([padded_first[reach + k : reach + k + side] for k in around], axis=0)
    last = np.max([padded_last[reach + k : reach + k + side] for k in around], axis=0)
    first, last = first.reshape(-1, 2).min(axis=1), last.reshape(-1, 2).max(axis=1)
    spans = np.stack([(first - reach) // 2, (last + reach + 1) // 2], axis=1).clip(0, side // 2)
    spans[last == 0] = 0
    return spans.astype(np.int32)


def native_mask(
    score: Plane, fov: Image8, geometry: npt.NDArray[np.int32], threshold: float
) -> Image8:
    """As fundus.native_mask, for a geometry [8] that nowhere shrinks the canvas."""
    height, width = int(geometry[0]), int(geometry[1])
    mask = np.empty((height, width), np.uint8)
    library().native_mask(
        _pointer(np.ascontiguousarray(score)),
        _pointer(np.ascontiguousarray(fov)),
        ctypes.c_int32(len(score)),
        _pointer(np.ascontiguousarray(geometry, np.int32)),
        ctypes.c_float(threshold),
        _pointer(mask),
    )
    return mask

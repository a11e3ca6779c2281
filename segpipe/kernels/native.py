"""The native library: of those that were built with the package, the best that this CPU runs."""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from segpipe.kernels import build
from segpipe.kernels.build import VARIANTS, Variant

NO_MEMORY = 1  # of border.h's codes; 0 is done
CPUINFO = Path("/proc/cpuinfo")
SETS = (b"flags", b"Features")  # what it calls instruction sets, on x86 and on Arm

U8, I32, I64, F32, F64 = (
    np.ctypeslib.ndpointer(dtype, flags="C_CONTIGUOUS")
    for dtype in (np.uint8, np.int32, np.int64, np.float32, np.float64)
)


def _optional(kind: Any) -> Any:
    """The same for ctypes, where None is passed as a null pointer."""
    found = classmethod(lambda _, array: None if array is None else kind.from_param(array))
    return type(f"optional_{kind.__name__}", (kind,), {"from_param": found})


# a picture's first byte, as `pictures` has it: its rows and its pixels may lie apart
BYTES = np.ctypeslib.ndpointer(np.uint8)
F32_OR_NONE, F64_OR_NONE = _optional(F32), _optional(F64)
INT, LONG, FLOAT, DOUBLE = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_double
NETWORK = ctypes.c_void_p
SIGNATURES: dict[str, tuple[Any, ...]] = {  # all return a code
    "native_mask": (F32, U8, INT, I32, FLOAT, U8),
    "native_kinds": (U8, U8, INT, I32, U8),
    "box_counts": (U8, INT, INT, I32, INT, INT, F64),
    "thin_lines": (U8, INT, INT, U8),
    "without_specks": (U8, INT, INT, DOUBLE, I32),
    "long_parts": (U8, INT, INT, INT, I32),
    "block_levels": (U8, *[INT] * 4, U8),
    "trace_lines": (U8, INT, INT, I32, I32, U8, I32, I32),
    "without_spurs": (U8, INT, INT, F32, DOUBLE, DOUBLE),
    "filtered_paths": (F64, I64, I64, U8, INT, F64, INT, F64),
    "cover_sums": (U8, *[INT] * 5, F64),
    "vessel_depth": (U8, INT, INT, F32),
    "nearest_labels": (I32, INT, INT),
    "native_score": (F32, U8, INT, I32, U8),
    "averaged_levels": (U8, *[INT] * 5, U8),
    "box_levels": (BYTES, LONG, *[INT] * 6, U8),
    "resized_levels": (BYTES, LONG, *[INT] * 4, F32, *[INT] * 2, BYTES, LONG),
    "packed_rows": (U8, *[INT] * 4, U8, I64),
    "segnet_lite_scores": (U8, INT, I32, INT, F32, F32, FLOAT, F32),
    "segnet_lite_gradients": (U8, U8, INT, INT, INT, F32, F32, F32, F32, F64, F64, F64, F64),
    "convolution_forward": (F32, F32_OR_NONE, F32, F32_OR_NONE, *[INT] * 7, F32, F64_OR_NONE),
    "convolution_backward": (
        *(F32, F32_OR_NONE, F32, F32, F32_OR_NONE, F32_OR_NONE, *[INT] * 8),
        *(F64, F64_OR_NONE, F32_OR_NONE, F64_OR_NONE),
    ),
    "normalise": (F32, F32, F32_OR_NONE, *[INT] * 6, F32),
    "normalise_backward": (F32, F32, F32, F32, *[INT] * 6, F32, F64),
    "halve_forward": (F32, F32, *[INT] * 7, F32, F64),
    "halve_backward": (F32, F32, F32, F32, F32, *[INT] * 7, F64, F32),
    "double_forward": (F32, F32, F32, F32, *[INT] * 7, F32),
    "double_backward": (F32, F32, F32, F32, *[INT] * 7, F32, F32, F64, F64),
    "likelihood": (F32, U8, F32, *[INT] * 7, F32, F64),
    "square_cells": (U8, *[INT] * 7, F32),
    "resunet_open": (INT, INT, I32, INT, F64, INT, ctypes.POINTER(NETWORK)),
    "resunet_scores": (NETWORK, U8, U8, INT, INT, F32),
}


@lru_cache(maxsize=1)
def missing() -> str:
    """Why there are no kernels here, in one line, or ''."""
    try:
        library()
    except OSError as error:
        return str(error)
    return ""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The best variant. Raises OSError where this CPU runs none, or there is none that loads."""
    return load(library_path())


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Of the library and the CPU: what speed and rounding depend on."""
    try:
        loop = library_path().read_bytes()
    except OSError:
        loop = b""
    return hashlib.sha256(b"\0".join((loop, *_cpu()))).hexdigest()[:16]


def library_path() -> Path:
    """Raises OSError, which says what to do."""
    variants = runnable()
    if not variants:
        least = VARIANTS[-1]
        lacking = ", ".join(sorted(least.needs - instruction_sets()))
        raise OSError(f"this CPU lacks {lacking} of {least.name}: its networks run on torch")
    folders = list(_folders())
    for variant in variants:
        for folder in folders:
            if (path := build.library_path(folder, variant)).exists():
                return path
    for reason in map(build.reason_path, folders):
        if reason.exists():
            raise OSError(f"no native library was built with the package: {reason.read_text()}")
    raise OSError(
        f"{folders[0]}: no native library of these sources; build it: python {build.__file__}"
    )


def runnable() -> list[Variant]:
    """Of VARIANTS those that this CPU runs, the best first."""
    return [variant for variant in VARIANTS if variant.needs <= instruction_sets()]


def load(path: Path) -> ctypes.CDLL:
    """Raises OSError for what is no library."""
    loaded = ctypes.CDLL(str(path))
    for name, arguments in SIGNATURES.items():
        function = getattr(loaded, name)  # loaded[name] would be another
        function.argtypes, function.restype, function.errcheck = arguments, INT, _check
    for answer in (loaded.segnet_lite_lanes, loaded.has_tiles):
        answer.argtypes, answer.restype = (), INT
    loaded.resunet_close.argtypes, loaded.resunet_close.restype = (NETWORK,), None
    return loaded


def shaped(
    name: str, array: npt.NDArray[Any], shape: tuple[int, ...], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """The array, C-contiguous. Raises ValueError for another shape or dtype."""
    if array.shape != shape or array.dtype != dtype:
        wanted = f"{shape} {np.dtype(dtype)}"
        raise ValueError(f"{name}: {array.shape} {array.dtype}, wanted {wanted}")
    return np.ascontiguousarray(array)


def _check(code: Any, function: Any, _: tuple[Any, ...]) -> Any:
    if code == NO_MEMORY:
        raise MemoryError(f"{function.__name__}: not enough memory")
    if code:
        raise RuntimeError(f"{function.__name__}: failed")
    return code


def _folders() -> Iterator[Path]:
    """Where libraries may be: beside this file, or in the package that is installed.

    A job's checkout that Ray brought to a node has sources alone.
    """
    inside = Path("segpipe", "kernels", "lib")
    yield Path(__file__).resolve().parent / "lib"
    try:
        installed = distribution("segpipe")
    except PackageNotFoundError:
        return
    yield Path(str(installed.locate_file(str(inside))))
    origin = json.loads(installed.read_text("direct_url.json") or "{}")  # PEP 610
    if origin.get("dir_info", {}).get("editable"):
        yield Path(unquote(urlsplit(origin["url"]).path)) / inside


def _cpu() -> list[bytes]:
    """Of the first core: lines of its model and its instruction sets (proc(5), cpuinfo)."""
    try:
        lines = CPUINFO.read_bytes().split(b"\n\n")[0].splitlines()
    except OSError:
        return [platform.processor().encode()]
    return [line for line in lines if line.startswith((b"model name", *SETS))]


def instruction_sets() -> frozenset[str]:
    """Of the first core, as Linux names them; empty where it does not tell."""
    lines = (line.decode() for line in _cpu() if line.startswith(SETS))
    return frozenset(next(lines, "").partition(":")[2].split())

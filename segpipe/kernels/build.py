"""Compiles the loops into one library for each variant of CPU: when the package is built.

setup.py calls `build`; after a change of a source in a checkout: python segpipe/kernels/build.py.
It needs a C++ compiler and the standard library alone: no other part of segpipe is imported here.

lib/DIGEST-VARIANT.so   a library; DIGEST is of the sources and flags that it was made from
lib/DIGEST.txt          why there are none
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SOURCES = sorted(HERE.glob("*.cpp"))
HEADERS = sorted(HERE.glob("*.h"))
COMPILERS = ("c++", "g++", "clang++")
ZIGLANG = "ziglang==0.17.1"  # its C++ compiler, from PyPI, where the system has none
FLAGS = (
    "-O3",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-Wno-psabi",
    "-shared",
    "-fPIC",
    "-s",
    "-std=c++17",
)
BUILD_S = 1800.0  # after which a compiler has hung; ten seconds of a core, with ziglang two minutes


class Variant(NamedTuple):
    """A kind of CPU that a library is made for."""

    name: str
    level: str
    """Of the psABI (x86-64 psABI, section 3.1.1), and what -march calls it."""
    needs: frozenset[str]
    """What /proc/cpuinfo calls its instruction sets."""
    flags: tuple[str, ...] = ()
    """Of the compiler, for what is beyond the level."""


V3 = frozenset(
    ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "popcnt", "sse4_2", "ssse3")
)
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
TILES = V4 | {"amx_tile", "amx_bf16", "avx512_bf16"}
VARIANTS = (  # the best first
    Variant("x86-64-v4-amx", "x86-64-v4", TILES, ("-mamx-tile", "-mamx-bf16", "-mavx512bf16")),
    Variant("x86-64-v4", "x86-64-v4", V4),
    Variant("x86-64-v3", "x86-64-v3", V3),
)


class BuildError(OSError):
    """There is no compiler, or it does not build the loops."""


def digest() -> str:
    """Of sources, flags and variants: what a library is made from."""
    texts = [path.read_bytes() for path in (*SOURCES, *HEADERS)]
    flags = " ".join((*FLAGS, *(word for one in VARIANTS for word in (one.level, *one.flags))))
    return hashlib.sha256(b"\0".join([*texts, flags.encode()])).hexdigest()[:16]


def library_path(folder: Path, variant: Variant) -> Path:
    return folder / f"{digest()}-{variant.name}.so"


def reason_path(folder: Path) -> Path:
    return folder / f"{digest()}.txt"


def compilers() -> Iterator[list[str]]:
    """The command that CXX names alone; else those of the system, and ziglang's."""
    if named := os.environ.get("CXX", "").split():
        yield named
        return
    yield from ([name] for name in COMPILERS if shutil.which(name))
    if importlib.util.find_spec("ziglang"):
        # It links its own C++ runtime: an exception that one runtime throws and another unwinds,
        # torch's libstdc++, ends the process.
        yield [sys.executable, "-m", "ziglang", "c++", "-Wl,-Bsymbolic"]


def build(folder: Path) -> str:
    """Make what the folder lacks, remove what other sources left -> why there is none, or ''."""
    libraries = [library_path(folder, variant) for variant in VARIANTS]
    if all(path.exists() for path in libraries):
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    problem = f"no C++ compiler ({', '.join(COMPILERS)}, what CXX names, or {ZIGLANG} of PyPI)"
    for compiler in compilers():
        try:
            compile_all(compiler, libraries)
        except BuildError as error:
            problem = str(error)
        else:
            problem = ""
            break
    if problem:
        reason_path(folder).write_text(problem)
    for path in (*folder.glob("*.so"), *folder.glob("*.txt")):
        if path not in (reason_path(folder) if problem else None, *libraries):
            path.unlink(missing_ok=True)
    return problem


def compile_all(compiler: Sequence[str], libraries: Sequence[Path]) -> None:
    """One of each of VARIANTS, each file whole or not at all. Raises BuildError."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(partial(compile_one, compiler), VARIANTS, libraries))


def compile_one(
    compiler: Sequence[str], variant: Variant, library: Path, flags: Sequence[str] = FLAGS
) -> None:
    """Raises BuildError."""
    name = " ".join(compiler)
    march = variant.level.replace("-", "_") if "ziglang" in compiler else variant.level
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        built = Path(scratch) / library.name
        words = [*compiler, *flags, f"-march={march}", *variant.flags]
        words += [*map(str, SOURCES), "-o", str(built)]
        env = {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch} | os.environ
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_S, env=env)
        except subprocess.TimeoutExpired:
            raise BuildError(f"{name} builds no {variant.name} within {BUILD_S:g} s") from None
        except OSError as error:
            raise BuildError(
                f"CXX {name}: {error.strerror}; name a C++ compiler there, or unset it"
            ) from None
        if done.returncode or not built.exists():
            ended = "killed" if done.returncode < 0 else f"exit code {done.returncode}"
            line = next(iter(done.stderr.splitlines()), ended)
            raise BuildError(f"{name} does not build {variant.name}: {line}")
        built.replace(library)


if __name__ == "__main__":
    why = build(HERE / "lib")
    sys.exit(f"no native library: {why}; networks run on torch" if why else None)

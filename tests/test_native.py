"""The native library: which variant a CPU takes, what is said where there is none, and its border.

A stub stands for the compiler where nothing depends on what it makes.

Run: pytest tests/test_native.py
"""

import ctypes
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import needs
import numpy as np
import pytest
import test_layers
import torch
from needs import why_skip

from segpipe import kernels
from segpipe.data.classes import BACKGROUND, VESSEL
from segpipe.errors import UserError
from segpipe.kernels import build, native
from segpipe.kernels import resunet as resunet_kernel
from segpipe.models import checkpoint, engine
from segpipe.models.resunet import ResUNet

NEEDS_LIBRARY = pytest.mark.skipif(bool(why_skip()), reason=why_skip())
ROOT = Path(__file__).resolve().parent.parent
LEVEL_3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe popcnt sse4_2 ssse3"
LEVEL_4 = f"{LEVEL_3} avx512f avx512bw avx512cd avx512dq avx512vl"
CACHED = (native.library, native.missing, native.fingerprint)
ATOL = 2e-6  # of a score, as against torch


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What a process finds once is found anew, before and after."""
    for found in CACHED:
        found.cache_clear()
    yield
    for found in CACHED:
        found.cache_clear()


@pytest.fixture
def cpu(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Sets the flags that /proc/cpuinfo tells."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(native, "CPUINFO", path)

    def set_flags(flags: str, model: str = "drawn") -> None:
        core = f"model name\t: {model}\nflags\t\t: fpu {flags}\n"
        path.write_text(f"processor\t: 0\n{core}\nprocessor\t: 1\n{core}\n")

    return set_flags


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The only place where libraries are looked for."""
    monkeypatch.setattr(native, "_folders", lambda: iter([tmp_path / "lib"]))
    (tmp_path / "lib").mkdir()
    return tmp_path / "lib"


def stub(path: Path, then: str) -> Path:
    """A compiler that appends to a file of calls, then does this with the $last of its words."""
    path.write_text(f'#!/bin/sh\necho "$*" >> "{path}.calls"\nfor last; do :; done\n{then}\n')
    path.chmod(0o755)
    return path


def calls(compiler: Path) -> list[str]:
    told = compiler.with_name(f"{compiler.name}.calls")
    return told.read_text().splitlines() if told.exists() else []


# ---- what a CPU takes


@pytest.mark.parametrize(
    ("flags", "variant"),
    [
        (LEVEL_4, "x86-64-v4"),
        (f"{LEVEL_4} avx512_bf16 amx_tile amx_bf16", "x86-64-v4-amx"),
        (f"{LEVEL_4} avx512_bf16", "x86-64-v4"),
        (LEVEL_4.replace("avx512vl", ""), "x86-64-v3"),
        (LEVEL_3, "x86-64-v3"),
    ],
)
def test_a_cpu_takes_the_best_variant_that_it_runs(cpu, folder, flags, variant):
    for name in ("x86-64-v3", "x86-64-v4", "x86-64-v4-amx"):
        (folder / f"{build.digest()}-{name}.so").write_bytes(b"")
    cpu(flags)
    assert native.library_path().name == f"{build.digest()}-{variant}.so"


def test_a_node_without_avx2_runs_torch_and_says_so(cpu, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache"))
    cpu(LEVEL_3.replace("avx2 ", "").replace("fma ", ""))
    weights = checkpoint.read("segnet-lite")
    trials = engine.find_trials(weights, "cpu")
    assert engine.select(trials, "auto", "fp32").engine == engine.REFERENCE
    [told] = {trial.problem for trial in trials if trial.engine.name == "native fp32"}
    assert told == "this CPU lacks avx2, fma of x86-64-v3: its networks run on torch"
    with pytest.raises(UserError, match="lacks avx2, fma"):
        engine.select(trials, "native", "auto")


@NEEDS_LIBRARY
def test_all_variants_that_this_cpu_runs_agree(monkeypatch):
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (160, 160, 3), np.uint8)
    y, x = np.ogrid[:160, :160]
    fov = (((y - 80) ** 2 + (x - 75) ** 2 < 70**2) * 255).astype(np.uint8)
    labels = rng.integers(0, 3, (1, 160, 160), np.uint8)
    geometry = np.array([330, 340, 3, 5, 320, 320, 160, 160], np.int32)
    weights = [rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((64, 3, 3, 3), (64,))]
    decoder = rng.normal(0, 0.1, (3, 64, 3, 3)).astype(np.float32)
    state = drawn_state(24)

    def everything(variant: build.Variant) -> tuple[tuple[int, int], list[np.ndarray]]:
        monkeypatch.setattr(native, "library", lambda: native.load(path_of(variant)))
        scores = kernels.SegNetLiteScores(*weights, decoder[1] - decoder[2], 0.1)(canvas, fov)
        resunet = kernels.ResUNetScores(state, VESSEL, BACKGROUND)(canvas, fov)
        bias = np.zeros(3, np.float32)
        found = kernels.SegNetLiteGradients(1)(canvas[None], labels, *weights, decoder, bias)
        of_loss = [part / np.abs(part).max() for part in found]
        mask = kernels.native_mask(scores, fov, geometry, 0.5)
        one = np.full(mask.shape, 1, np.uint8)
        levels = kernels.native_score((canvas[..., 0] / 255).astype(np.float32), one, geometry)
        of_mask = kernels.packed_rows(mask, 2) + kernels.packed_rows(mask, 4)
        png = np.frombuffer(kernels.packed_rows(levels) + of_mask, np.uint8)
        told = kernels.native_kinds(canvas[..., 0], mask, geometry)
        of_score = [levels.astype(float), png.astype(float), told.astype(float)]
        line = kernels.thin_lines(np.pad(levels > 128, 1).astype(np.uint8)).astype(float)
        large, num = kernels.without_specks((levels > 200).astype(np.uint8), 9)
        boxes = kernels.box_counts(large, [2, 3, 8], 4)
        of_lines = [line, large.astype(float), np.array(num), boxes]
        library = native.library()
        kind = library.segnet_lite_lanes(), library.has_tiles()
        return kind, [scores, resunet, *of_loss, *of_score, *of_lines, mask]

    def path_of(variant: build.Variant) -> Path:
        kept = (build.library_path(folder, variant) for folder in native._folders())
        return next(path for path in kept if path.exists())

    found = [everything(variant) for variant in native.runnable()]
    assert len({kind for kind, _ in found}) == len(found)  # they are not the same library
    for _, others in found[1:]:
        *numbers, mask = others
        for number, wanted in zip(numbers, found[0][1], strict=False):
            assert np.std(wanted) > 0.01 or wanted.ndim == 0
            np.testing.assert_allclose(number, wanted, rtol=0, atol=ATOL)
        assert (mask != found[0][1][-1]).mean() < 1e-4
        assert set(np.unique(mask)) == {0, 1, 2}


# ---- where there is none


def test_a_checkout_that_was_not_built_says_what_to_do(folder):
    told = native.missing()
    assert told.startswith(f"{folder}: no native library of these sources; build it: python ")
    assert Path(told.split()[-1]).samefile(build.__file__)


def test_what_is_no_library_is_told(folder, cpu):
    cpu(LEVEL_3)
    build.library_path(folder, build.VARIANTS[-1]).write_bytes(b"no library")
    assert "\n" not in native.missing()
    assert "x86-64-v3.so" in native.missing()


def test_why_the_package_has_none_is_told(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(stub(tmp_path / "cc", "echo 'no such thing' >&2; exit 1")))
    assert build.build(folder)
    told = native.missing()
    assert told.startswith("no native library was built with the package: ")
    assert told.endswith("cc does not build x86-64-v4-amx: no such thing")


def test_without_a_compiler_the_reason_names_what_would_do(folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda _: None)
    assert build.build(folder).startswith("no C++ compiler (c++, g++, clang++, what CXX names, or")
    assert "no C++ compiler" in native.missing()
    monkeypatch.setenv("CXX", "no-such-command")
    assert "CXX no-such-command: No such file" in build.build(folder)


def test_a_compiler_that_fails_leaves_it_to_the_next(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first = stub(tmp_path / "c++", "exit 1")
    second = stub(tmp_path / "g++", 'echo made > "$last"')
    assert build.build(folder) == ""
    assert 1 <= len(calls(first)) <= 3  # its first failure calls off what has not begun
    assert len(calls(second)) == 3
    assert {path.read_text() for path in folder.iterdir()} == {"made\n"}


def test_what_is_there_is_not_compiled_again_and_what_was_changed_is(folder, monkeypatch, tmp_path):
    compiler = stub(tmp_path / "cc", 'echo made > "$last"')
    monkeypatch.setenv("CXX", str(compiler))
    assert build.build(folder) == build.build(folder) == ""
    found = [(call.count("-march=x86-64-v4"), call.count("-mamx-bf16")) for call in calls(compiler)]
    assert sorted(found) == [(0, 0), (1, 0), (1, 1)]
    before = set(folder.iterdir())
    (tmp_path / "changed.h").write_text("// another header")
    monkeypatch.setattr(build, "HEADERS", [tmp_path / "changed.h"])
    assert native.missing().startswith(f"{folder}: no native library of these sources")
    assert build.build(folder) == ""
    after = set(folder.iterdir())
    assert len(after) == 3
    assert not before & after


def test_a_library_that_failed_once_is_built_when_the_compiler_is_mended(
    folder, monkeypatch, tmp_path
):
    monkeypatch.setenv("CXX", str(stub(tmp_path / "cc", "exit 1")))
    assert build.build(folder).endswith("exit code 1")
    stub(tmp_path / "cc", 'echo made > "$last"')
    assert build.build(folder) == ""
    assert [path.suffix for path in folder.iterdir()] == [".so"] * 3


def test_the_fingerprint_follows_the_library_and_the_cpu(folder, cpu):
    found = set()
    for content, flags, model in (
        (None, LEVEL_4, "a"),
        (b"one", LEVEL_4, "a"),
        (b"other", LEVEL_4, "a"),
        (b"other", LEVEL_4, "b"),
        (b"other", f"{LEVEL_4} avx512_vnni", "b"),
    ):
        cpu(flags, model)
        if content:
            build.library_path(folder, build.VARIANTS[1]).write_bytes(content)
        native.fingerprint.cache_clear()
        found.add(native.fingerprint())
    assert len(found) == 5


@NEEDS_LIBRARY
def test_a_checkout_that_was_sent_to_a_node_uses_the_installed_packages_library(tmp_path):
    """`ray job submit --working-dir .` sends no library. Only of the same sources is one used."""
    job, site = tmp_path / "job", tmp_path / "site"
    shutil.copytree(ROOT / "segpipe", job / "segpipe", ignore=shutil.ignore_patterns("lib"))
    installed = site / "segpipe" / "kernels" / "lib"
    installed.mkdir(parents=True)
    (site / "segpipe-0.2.0.dist-info").mkdir()
    (site / "segpipe-0.2.0.dist-info" / "METADATA").write_text("Name: segpipe\nVersion: 0.2.0\n")
    (site / "segpipe-0.2.0.dist-info" / "RECORD").write_text("")
    shutil.copy(native.library_path(), installed)
    program = (
        "from segpipe.kernels import native; print(native.missing()); print(native.library_path())"
    )

    def ask() -> list[str]:
        env = os.environ | {"PYTHONPATH": f"{job}:{site}"}
        words = [sys.executable, "-c", program]
        done = subprocess.run(words, cwd=job, env=env, capture_output=True, text=True, timeout=120)
        return done.stdout.splitlines()

    assert ask() == ["", str(installed / native.library_path().name)]
    with (job / "segpipe/kernels/lanes.h").open("a") as file:
        file.write("// changed\n")
    assert "no native library of these sources" in ask()[0]


# ---- the border


def drawn_state(width: int) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    return {name: tensor.numpy() for name, tensor in ResUNet(width).state_dict().items()}


def refused() -> dict[str, str]:
    """What each call says that C++ would read or write beyond an array for."""
    canvas, fov = np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 255, np.uint8)
    score = np.zeros((32, 32), np.float32)
    encoder = np.zeros((16, 3, 3, 3), np.float32), np.zeros(16, np.float32)
    decoder, bias = np.zeros((3, 16, 3, 3), np.float32), np.zeros(3, np.float32)
    labels = np.zeros((1, 32, 32), np.uint8)
    geometry = np.array([32, 32, 0, 0, 32, 32, 32, 32], np.int32)
    lite = kernels.SegNetLiteScores(*encoder, decoder[0], 0.0)
    resunet = kernels.ResUNetScores(drawn_state(8), VESSEL, BACKGROUND)
    gradients = kernels.SegNetLiteGradients(1)
    with_bad_box = [geometry.copy() for _ in range(3)]
    with_bad_box[0][2], with_bad_box[1][5], with_bad_box[2][6] = 1, 33, 33
    bad: dict[str, Callable[[], object]] = {
        "lite: canvas": lambda: lite(canvas[:, :30], fov),
        "lite: fov": lambda: lite(canvas, fov[:30, :30]),
        "lite: float canvas": lambda: lite(canvas.astype(np.float32), fov),
        "lite: odd": lambda: lite(canvas[:31, :31], fov[:31, :31]),
        "lite: empty": lambda: lite(canvas[:0, :0], fov[:0, :0]),
        "lite: decoder": lambda: kernels.SegNetLiteScores(*encoder, decoder[0, :8], 0.0),
        "resunet: canvas": lambda: resunet(canvas[:, :16], fov),
        "resunet: fov": lambda: resunet(canvas, fov[:16, :16]),
        "resunet: bool fov": lambda: resunet(canvas, fov > 0),
        "resunet: side": lambda: resunet(canvas[:0, :0], fov[:0, :0]),
        "gradients: labels": lambda: gradients(
            canvas[None], labels[:, :30], *encoder, decoder, bias
        ),
        "gradients: wide labels": lambda: gradients(
            canvas[None], labels.astype(np.int64), *encoder, decoder, bias
        ),
        "gradients: odd": lambda: gradients(
            canvas[None, :31], labels[:, :31], *encoder, decoder, bias
        ),
        "gradients: width": lambda: gradients(
            canvas[None], labels, encoder[0][:8], encoder[1][:8], decoder[:, :8], bias
        ),
        "gradients: decoder": lambda: gradients(canvas[None], labels, *encoder, decoder[:2], bias),
        "mask: fov": lambda: kernels.native_mask(score, fov[:30], geometry, 0.5),
        "mask: float64": lambda: kernels.native_mask(score.astype(float), fov, geometry, 0.5),
        "mask: geometry": lambda: kernels.native_mask(score, fov, geometry[:7], 0.5),
        "mask: top": lambda: kernels.native_mask(score, fov, with_bad_box[0], 0.5),
        "mask: width": lambda: kernels.native_mask(score, fov, with_bad_box[1], 0.5),
        "mask: canvas": lambda: kernels.native_mask(score, fov, with_bad_box[2], 0.5),
        "kinds: plane": lambda: kernels.native_kinds(fov[:, :30], fov, geometry),
        "kinds: mask": lambda: kernels.native_kinds(fov, fov[:30], geometry),
        "kinds: top": lambda: kernels.native_kinds(fov, fov, with_bad_box[0]),
        "levels: mask": lambda: kernels.native_score(score, fov[:30, :9], geometry),
        "levels: score": lambda: kernels.native_score(score[:, :9], fov, geometry),
        "levels: top": lambda: kernels.native_score(score, fov, with_bad_box[0]),
        "resized: float64": lambda: kernels.resized(score.astype(float), 99, 99),
        "resized: channels": lambda: kernels.resized(np.zeros((2, 2, 5), np.uint8), 9, 9),
        "resized: box": lambda: kernels.resized(canvas, 9, 9, (0, 0, 33, 9)),
        "resized: smaller": lambda: kernels.resized(canvas, 99, 1),
        "resized: into": lambda: kernels.resized(fov, 40, 40, into=canvas[:, :, 0]),
        "boxes: float64": lambda: kernels.box_means(canvas.astype(float), 9, 9),
        "boxes: grey": lambda: kernels.box_means(fov, 9, 9),
        "boxes: larger": lambda: kernels.box_means(canvas, 33, 9),
        "rows: float64": lambda: kernels.packed_rows(score.astype(float)),
        "rows: nothing": lambda: kernels.packed_rows(fov[:0]),
        "rows: channels": lambda: kernels.packed_rows(canvas),
        "rows: bits": lambda: kernels.packed_rows(fov, 1),
    }
    told = {}
    for name, call in (bad | test_layers.refused()).items():
        try:
            call()
            told[name] = "nothing"
        except ValueError as error:
            told[name] = str(error)
    return told


@NEEDS_LIBRARY
@pytest.mark.parametrize("flags", [(), ("-O",)])
def test_arrays_that_do_not_fit_are_refused_by_optimised_python_too(flags):
    program = "import json, test_native; print(json.dumps(test_native.refused()), __debug__)"
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'support'}"}
    words = [sys.executable, *flags, "-c", program]
    done = subprocess.run(words, env=env, check=True, capture_output=True, text=True, timeout=200)
    told, debug = done.stdout.strip().rsplit(" ", 1)
    assert debug == str(not flags)
    found = json.loads(told)
    assert len(found) == 66
    assert {name for name, error in found.items() if "wanted" not in error} == {
        "kinds: top",
        "levels: top",
        "mask: top",
        "mask: width",
        "mask: canvas",
    }
    assert "its box is not in picture and canvas" in found["mask: top"]
    assert found["resunet: canvas"] == "canvas: (32, 16, 3) uint8, wanted (32, 32, 3) uint8"


@contextmanager
def memory_left(num_bytes: int) -> Iterator[None]:
    """Of this process's addresses."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    top = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (top, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def short_of_memory() -> None:
    """A plane of 1,024 px and 32 channels is 134 MB; matrices of a network 64 wide are 240."""
    state, side = drawn_state(32), 1024
    canvas, fov = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8)
    canvas[240:, 240:], fov[250:260, 250:260] = 200, 255
    score = kernels.ResUNetScores(state, VESSEL, BACKGROUND)
    score(canvas[:16, :16], fov[:16, :16])
    with (
        memory_left(8 << 20),
        pytest.raises(MemoryError, match="resunet_scores: not enough memory"),
    ):
        score(canvas, fov)
    wanted = kernels.ResUNetScores(state, VESSEL, BACKGROUND)(canvas, fov)
    np.testing.assert_array_equal(score(canvas, fov), wanted)
    levels = np.array([64, 192, 384, 384, 384], np.int32)
    parts = resunet_kernel._arrays(drawn_state(64), 1, levels.tolist(), [(VESSEL, BACKGROUND)])
    numbers = np.concatenate([array.ravel() for array in parts])
    network = ctypes.c_void_p()
    with memory_left(8 << 20), pytest.raises(MemoryError, match="resunet_open"):
        native.library().resunet_open(1, 5, levels, 1, numbers, 0, ctypes.byref(network))
    assert network.value is None


def short_of_memory_in_training() -> None:
    encoder = np.zeros((16, 3, 3, 3), np.float32), np.zeros(16, np.float32)
    decoder, bias = np.zeros((3, 16, 3, 3), np.float32), np.zeros(3, np.float32)
    images, labels = np.zeros((1, 2048, 2048, 3), np.uint8), np.zeros((1, 2048, 2048), np.uint8)
    gradients = kernels.SegNetLiteGradients(1)
    gradients(images[:, :16, :16], labels[:, :16, :16], *encoder, decoder, bias)
    with memory_left(8 << 20), pytest.raises(MemoryError, match="segnet_lite_gradients"):
        gradients(images, labels, *encoder, decoder, bias)


@NEEDS_LIBRARY
@pytest.mark.parametrize("work", [short_of_memory, short_of_memory_in_training])
def test_a_lack_of_memory_is_an_error_of_python_and_the_next_call_works(work):
    """In a process of its own, without free memory of other tests and threads that want some."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(work).result()


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", build.VARIANTS, ids=lambda variant: variant.name)
def test_the_kernels_tests_pass_with_address_and_undefined_behaviour_sanitizers(tmp_path, variant):
    if variant not in native.runnable():
        pytest.skip(f"this CPU does not run {variant.name}")
    if shutil.which("g++") is None:
        needs.lacking("g++ with its sanitizers is not installed")
    library = tmp_path / "sanitized.so"
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    shared = ("-shared", "-fPIC", "-std=c++17", "-Wno-psabi")
    build.compile_one(["g++"], variant, library, (*flags, *shared))
    preloaded = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    env = os.environ | {
        "SANITIZED": str(library),
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}",
    }
    names = ("test_kernels.py", "test_resunet_kernel.py", "test_layers.py", "test_lines_kernel.py")
    tests = [ROOT / "tests" / name for name in names]
    words = [sys.executable, "-m", "pytest", "-q", "-p", "sanitized", "--timeout=1800", *tests]
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 200  # some want AMX, some none


# ---- what tests need


@pytest.mark.parametrize(
    ("missing", "ci", "skipped"),
    [
        ("", "", False),
        ("no native library was built with the package: no C++ compiler (c++ ...)", "", True),
        ("no native library was built with the package: no C++ compiler (c++ ...)", "true", False),
        ("this CPU lacks avx2 of x86-64-v3: its networks run on torch", "", True),
        ("lib: no native library of these sources; build it: python build.py", "", False),
        ("no native library was built with the package: c++ does not build it: error", "", False),
    ],
)
def test_kernels_that_do_not_build_fail_their_tests(monkeypatch, missing, ci, skipped):
    monkeypatch.setattr(kernels, "missing", lambda: missing)
    monkeypatch.setenv("CI", ci)
    assert bool(needs.why_skip()) == skipped


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)]
)
def test_in_ci_a_set_or_a_program_that_is_missing_fails_its_tests(
    monkeypatch, tmp_path, ci, outcome
):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("SEGPIPE_DATA", str(tmp_path))
    with pytest.raises(outcome, match="holds no DRIVE/"):
        needs.real_set("DRIVE")
    (tmp_path / "DRIVE").mkdir()
    assert needs.real_set("DRIVE") == tmp_path / "DRIVE"

"""A photograph that kills, hangs or bloats its decoder costs that photograph and nothing else.

The evil codecs come with a sitecustomize.py, which every Python reads that is started: a PPM whose
comment is `# word argument ...` calls the function of that name before it is decoded as usual.

Run: pytest tests/test_decoder.py
"""

import errno
import fcntl
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from files import encapsulated, tiff
from PIL import Image
from processes import wait_until
from pydicom.uid import JPEG2000Lossless
from scipy import ndimage

from segpipe.data import codecs, decoder
from segpipe.data.canvas import (
    Working,
    canvas_side,
    fit_fov,
    fit_image,
    plan_fit,
    restore,
)
from segpipe.data.decoder import Decoder
from segpipe.data.decoder_child import BYTES_PER_PIXEL, KEPT_BYTES
from segpipe.data.decoder_pipe import SHARED_BYTES
from segpipe.data.fitting import SHARP, Fitted, fit
from segpipe.data.fov import SEARCH_PX, find_field, find_fov, fov_diameter
from segpipe.errors import Fault, RejectedImage, StarvedDecoder

DIAMETER = 64.0  # px
DEADLINE_S = 30.0
LIMIT_S = 0.5
GREEDY = ["JPEG", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "JXL", "few-bit PNG", "float TIFF"]
GREEDY += ["DICOM"]
CODECS = '''
import collections, ctypes, fcntl, itertools, os, signal, sys, time
from PIL import PpmImagePlugin

print("printed while Python starts", flush=True)

def end(log, number, most=99):
    """Send the process this signal, and log it, unless that was done so often; 0: exit."""
    with open(log, "a+") as file:
        file.seek(0)
        if len(file.readlines()) >= int(most):
            return
        print(os.getpid(), file=file)
    if number == "0":
        os._exit(3)
    os.kill(os.getpid(), int(number))

def babble():
    """Have the answer be no JSON, as after a fault that overwrote memory."""
    import json
    json.dumps = lambda _: "{"

def kill(log, most=99):
    end(log, signal.SIGKILL, most)

def kill_unless_alone(lock, log):
    """As where memory is short as long as the other processes of the node decode too."""
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    kill(log)

def hang(log):
    open(log, "w").close()
    time.sleep(1000)

def hold(log):  # busy in C for ever, and Python's interpreter locked
    open(log, "w").close()
    collections.deque(itertools.repeat(0), maxlen=0)

def hog(num_mib):  # pages that are never touched
    time.kept = [bytearray(1 << 20) for _ in range(int(num_mib))]

def shout():
    print("garbage", flush=True)
    os.write(1, bytes(1 << 16))
    ctypes.CDLL(None).puts(b"more garbage")
    assert not sys.stdin.read()

def bug():
    import numpy
    numpy.interp = lambda *_: 1 / 0  # in find_fov, not in the codec

def opened(self):
    self.fp.readline()
    words = self.fp.readline().decode().split()
    self.fp.seek(0)
    if words[0] == "#":
        globals()[words[1]](*words[2:])
    return usual(self)

usual, PpmImagePlugin.PpmImageFile._open = PpmImagePlugin.PpmImageFile._open, opened
'''


@pytest.fixture(autouse=True)
def _evil_codecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(CODECS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.fixture
def child() -> Iterator[Decoder]:
    with Decoder(DIAMETER, max_megapixels=1, timeout_s=DEADLINE_S) as made:
        yield made


def photograph(*comment: object, side: int = 100) -> bytes:
    """A lit disc as PPM, whose comment the codec obeys."""
    y, x = np.mgrid[:side, :side] - side / 2
    lit = np.hypot(x, y) < 0.45 * side
    pixels = (lit[..., None] * np.asarray([200, 90, 40])).astype(np.uint8)
    words = " ".join(map(str, ("#", *comment) if comment else ()))
    return f"P6\n{words}\n{side} {side}\n255\n".replace("\n\n", "\n").encode() + pixels.tobytes()


def as_other(data: bytes, kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def assert_same(fitted: Fitted, other: Fitted) -> None:
    """But for the seconds."""
    assert fitted.canvas.dtype == fitted.fov.dtype == np.uint8
    assert np.array_equal(fitted.canvas, other.canvas)
    assert np.array_equal(fitted.fov, other.fov)
    assert fitted.geometry == other.geometry
    for name in ("orientation", "note", "uncertain_fraction", "second_fraction"):
        assert getattr(fitted, name) == getattr(other, name)


def assert_as_in_process(fitted: Fitted, data: bytes, diameter: float = DIAMETER) -> None:
    assert_same(fitted, fit(data, diameter, 200))


def test_canvases_of_several_sizes_come_one_after_the_other():
    working = Working(64, 80)
    with Decoder(working, max_megapixels=1, timeout_s=DEADLINE_S) as child:
        for px, side in ((300, canvas_side(80)), (60, canvas_side(64)), (300, canvas_side(80))):
            fitted = child.fit(photograph(side=px))
            assert fitted.canvas.shape == (side, side, 3)
            assert_same(fitted, fit(photograph(side=px), working, 200))


def fitted_whole(data: bytes, diameter: float = DIAMETER) -> Fitted:
    """Step by step, of the photograph at its own size."""
    taken = codecs.decode_photograph(data)
    found = find_field(taken.image)
    geometry, side = plan_fit(found.fov, diameter), canvas_side(diameter)
    canvas = fit_image(taken.image, geometry, side)
    fov_canvas = fit_fov(found.fov, geometry, side)
    return Fitted(
        canvas,
        fov_canvas,
        geometry,
        taken.orientation,
        "; ".join(filter(None, (taken.note, found.note))),
        uncertain_fraction=found.uncertain_fraction,
        second_fraction=found.second_fraction,
    )


OTHERS: set[int] = set()  # decoders that tests of other files have left in this process


@pytest.fixture(autouse=True, scope="module")
def _others() -> None:
    OTHERS.update(children(os.getpid()))


def children(parent: int) -> list[int]:
    """The decoders that this file's tests have started and that live."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # no process, or it has ended
        own = int(ppid) == parent and int(entry.name) not in OTHERS
        if own and state != "Z" and b"segpipe.data.decoder_child" in words:
            found.append(int(entry.name))
    return found


def only_child() -> int:
    [pid] = children(os.getpid())
    return pid


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- what comes back


def test_a_photograph_of_any_format_comes_back_as_in_process(child):
    one = photograph(side=300)
    exif = Image.Exif()
    exif[0x112] = 6
    for data in (
        one,
        as_other(one, "JPEG", exif=exif.tobytes()),
        as_other(one, "TIFF", compression="tiff_lzw"),
        as_other(one, "PNG", "L"),
        photograph(side=60),
    ):
        assert_as_in_process(child.fit(data), data)
        if not data.startswith(b"\xff\xd8"):  # a JPEG comes reduced
            assert_same(child.fit(data), fitted_whole(data))


def test_what_was_left_out_of_the_field_comes_back(child):
    """Two eyes of one size, with a page more that is not read."""
    first, second = (Image.open(io.BytesIO(photograph(side=side))) for side in (400, 396))
    both = Image.new("RGB", (800, 400))
    both.paste(first, (0, 0))
    both.paste(second, (402, 2))
    file = io.BytesIO()
    both.save(file, "TIFF", save_all=True, append_images=[both])
    fitted = child.fit(file.getvalue())
    assert_as_in_process(fitted, file.getvalue())
    assert fitted.second_fraction == pytest.approx(
        np.pi * (0.45 * 396) ** 2 / (800 * 400), abs=0.01
    )
    words = "a second field of view of 31% of the picture was left out"
    assert fitted.note == f"first of 2 pages; {words}"


def test_the_photographs_of_drive_come_back_as_in_process(drive):
    with Decoder(540, 200, DEADLINE_S) as child:
        for path in sorted((drive / "test" / "images").iterdir())[:5]:
            assert_same(child.fit(path.read_bytes()), fitted_whole(path.read_bytes(), 540))
        assert len(children(os.getpid())) == 1


def marked(height: int, width: int, radius: float) -> tuple[bytes, np.ndarray]:
    """A lit disc with a dark spot in each quarter as JPEG, and the spots' centres in px."""
    y, x = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), 3, np.uint8)
    pixels[np.hypot(y - height / 2, x - width / 2) < radius] = 200, 120, 60
    places = [(-0.5, -0.4), (-0.6, 0.5), (0.5, -0.6), (0.4, 0.4)]
    spots = [(height / 2 + radius * down, width / 2 + radius * right) for down, right in places]
    for spot in spots:
        pixels[np.hypot(y - spot[0], x - spot[1]) < radius / 16] = 90, 60, 40
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue(), np.asarray(spots)


@pytest.mark.parametrize(
    ("height", "width", "share"),
    [(401, 603, 0.47), (601, 403, 0.47), (1111, 1207, 0.47), (1013, 1501, 0.6), (800, 800, 0.3)],
)
def test_a_large_jpeg_that_comes_reduced_lies_where_the_whole_would(height, width, share):
    """In the file's own pixels: box, field and spots; also of odd sizes and of a field cut off."""
    data, spots = marked(height, width, share * min(height, width))
    reduced = codecs.decode_photograph(data, 200, SHARP * DIAMETER).reduction
    assert reduced > 1
    fitted = fit(data, DIAMETER, 200)
    whole = plan_fit(find_fov(codecs.decode_image(data)), DIAMETER)
    cell = -(-max(height, width) // SEARCH_PX)
    assert (fitted.geometry.height, fitted.geometry.width) == (height, width)
    assert np.abs(np.subtract(fitted.geometry.to_list(), whole.to_list())).max() <= 2 * (
        cell + reduced
    )
    red = restore(fitted.canvas[..., 0].astype(np.float32), fitted.geometry)
    field = restore(fitted.fov.astype(np.float32), fitted.geometry) > 127
    regions, num = ndimage.label((red < 150) & ndimage.binary_erosion(field, iterations=20))
    assert num == len(spots)
    centres = np.asarray(ndimage.center_of_mass(regions > 0, regions, range(1, num + 1)))
    np.testing.assert_allclose(sorted(centres.tolist()), sorted(spots.tolist()), atol=0.5)


@pytest.mark.parametrize("radius", [55, 65])
def test_a_small_field_in_a_large_jpeg_is_seen_whole(radius):
    """Its canvas is that of the file decoded whole: nothing is enlarged that was reduced before."""
    data, _ = marked(400, 400, radius)
    assert codecs.decode_photograph(data, 200, SHARP * DIAMETER).reduction > 1
    assert_same(fit(data, DIAMETER, 200), fitted_whole(data))


def test_between_the_working_diameters_a_field_keeps_the_size_that_was_decoded():
    """480 px wide, and 120 where a quarter is decoded, as a field of 110 is large enough."""
    fitted = fit(marked(500, 500, 240)[0], Working(100, 125), 200)
    assert fov_diameter(fitted.fov > 127) == pytest.approx(120, abs=1)
    assert len(fitted.fov) == canvas_side(120)


def test_a_field_too_small_at_one_size_is_taken_at_the_next_finer_one(monkeypatch):
    """Of 600 px an eighth would do, but not of the field, which is 480 px wide."""
    data, _ = marked(600, 600, 240)
    came, usual = [], codecs.decode_photograph

    def watched(*words: object) -> codecs.Photograph:
        came.append(usual(*words))
        return came[-1]

    monkeypatch.setattr(codecs, "decode_photograph", watched)
    fitted = fit(data, DIAMETER, 200)
    assert [photograph.reduction for photograph in came] == [8, 4]
    assert fitted.geometry.height == 600


def test_a_reduced_jpeg_without_a_field_is_rejected_in_the_words_for_the_whole():
    data, _ = marked(600, 600, 20)
    with pytest.raises(RejectedImage) as expected:
        find_fov(codecs.decode_image(data))
    with pytest.raises(RejectedImage) as caught:
        fit(data, DIAMETER, 200)
    assert str(caught.value) == str(expected.value)


def test_the_seconds_of_each_step_come_along(child):
    start = time.perf_counter()
    seconds = child.fit(photograph(side=300)).seconds
    assert list(seconds) == ["decode", "field", "resize"]
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) < time.perf_counter() - start


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        photograph()[:-100],
        photograph(side=1001),
        as_other(photograph(), "PNG")[:-40],
        b"P6\n100 100\n255\n" + bytes(30000),
    ],
    ids=["empty", "text", "cut off", "beyond the limit", "cut off PNG", "black"],
)
def test_a_rejection_reads_as_in_process_and_costs_no_child(child, data):
    child.fit(photograph())
    pid = only_child()
    with pytest.raises(RejectedImage) as expected:
        fit(data, DIAMETER, 1)
    with pytest.raises(RejectedImage) as caught:
        child.fit(data)
    assert str(caught.value) == str(expected.value)
    assert caught.value.fault == expected.value.fault
    assert_as_in_process(child.fit(photograph()), photograph())
    assert only_child() == pid


def test_a_bug_of_our_own_is_a_rejection_and_is_printed(child, capfd):
    words = r"^internal error \(ZeroDivisionError at segpipe/data/fov.py:\d+\)$"
    with pytest.raises(RejectedImage, match=words) as rejection:
        child.fit(photograph("bug"))
    assert rejection.value.fault == Fault.INTERNAL_ERROR
    assert "find_fov" in capfd.readouterr().err


def test_what_a_codec_prints_and_reads_does_not_matter(child):
    assert_as_in_process(child.fit(photograph("shout")), photograph())


def test_what_came_back_stays_as_it_was_when_others_come(child):
    """No array shows the memory in which the next photograph's arrives."""
    data = [photograph(side=side) for side in (60, 90, 120)]
    kept = [child.fit(one) for one in data]
    for fitted, one in zip(kept, data, strict=True):
        assert_as_in_process(fitted, one)
        fitted.canvas[:] = 0  # and it may be written to
    assert_as_in_process(child.fit(data[0]), data[0])


@pytest.mark.parametrize("more", [-1, 0, 1, SHARED_BYTES])
def test_files_too_long_for_the_shared_memory_come_through_the_pipe(child, more):
    short = photograph()
    data = short + bytes(SHARED_BYTES + more - len(short))
    assert_as_in_process(child.fit(data), short)
    assert_as_in_process(child.fit(short), short)


def test_the_child_cannot_take_the_shared_memory_from_under_its_parent(child):
    child.fit(photograph())
    files = [entry for entry in Path(f"/proc/{only_child()}/fd").iterdir() if entry.is_file()]
    [memory] = [entry for entry in files if "memfd:segpipe" in os.readlink(entry)]
    with memory.open("r+b") as file, pytest.raises(PermissionError):
        file.truncate(0)
    assert_as_in_process(child.fit(photograph()), photograph())


def test_threads_take_turns(child):
    inputs = [photograph(side=side) for side in range(50, 90)]
    with ThreadPoolExecutor(4) as pool:
        for data, fitted in zip(inputs, pool.map(child.fit, inputs), strict=True):
            assert_as_in_process(fitted, data)
    assert only_child()


# ---- what a photograph may do


@pytest.fixture
def no_pauses(monkeypatch) -> None:
    """As many tries alone, none of them later."""
    monkeypatch.setattr(decoder, "PAUSES_S", (0.0,) * len(decoder.PAUSES_S))


CRASHES = [
    *((number, f"signal {number}") for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)),
    *((number, f"signal {number}") for number in (signal.SIGFPE, signal.SIGILL)),
    (0, "exit code 3"),
]


@pytest.mark.parametrize(("number", "words"), CRASHES, ids=[words for _, words in CRASHES])
def test_a_photograph_on_which_two_children_crash_is_rejected(child, tmp_path, number, words):
    with pytest.raises(RejectedImage) as rejection:
        child.fit(photograph("end", tmp_path / "log", int(number)))
    assert str(rejection.value) == f"the decoder crashed twice on this file ({words})"
    assert rejection.value.fault == Fault.DECODER_CRASHED
    assert len(set((tmp_path / "log").read_text().split())) == 2
    assert_as_in_process(child.fit(photograph()), photograph())


def test_a_photograph_with_an_answer_that_cannot_be_read_is_rejected(child):
    with pytest.raises(RejectedImage, match=r"crashed twice on this file \(unreadable answer\)"):
        child.fit(photograph("babble"))
    assert_as_in_process(child.fit(photograph()), photograph())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_photograph_on_which_one_child_ends_passes_at_the_second_try(child, tmp_path, number):
    data = photograph("end", tmp_path / "log", int(number), 1)
    assert_as_in_process(child.fit(data), photograph())
    assert len((tmp_path / "log").read_text().split()) == 1


@pytest.mark.usefixtures("no_pauses")
def test_a_photograph_whose_children_are_killed_from_outside_is_not_rejected(child, tmp_path):
    """It is left open after some tries; a photograph after it has fewer, until one passes."""
    log, tries = tmp_path / "log", 1 + len(decoder.PAUSES_S)
    for wanted in (tries, tries + 2):
        with pytest.raises(StarvedDecoder, match=r"killed \(signal 9\)"):
            child.fit(photograph("kill", log))
        assert len(set(log.read_text().split())) == wanted
    assert_as_in_process(child.fit(photograph("kill", log, wanted + 1)), photograph())
    assert_as_in_process(child.fit(photograph("kill", log, wanted + 4)), photograph())


@pytest.mark.usefixtures("no_pauses")
def test_what_was_killed_is_tried_again_alone_on_the_node(child, tmp_path, monkeypatch):
    """The codec lives on only while the lock is taken, here by a process of its own."""
    monkeypatch.setattr(decoder, "lock_file", lambda: tmp_path / "lock")
    data = photograph("kill_unless_alone", tmp_path / "lock", tmp_path / "log")
    assert_as_in_process(child.fit(data), photograph())
    assert len((tmp_path / "log").read_text().split()) == 1
    with (tmp_path / "lock").open() as file:  # afterwards it is free
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.usefixtures("no_pauses")
def test_two_photographs_are_not_tried_again_at_once(child, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder, "lock_file", lambda: tmp_path / "lock")
    log = tmp_path / "log"
    with ThreadPoolExecutor(1) as pool, (tmp_path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        fitted = pool.submit(child.fit, photograph("kill", log, 1))
        wait_until(lambda: log.exists() and not children(os.getpid()), "death", DEADLINE_S)
        with pytest.raises(TimeoutError):
            fitted.result(timeout=5 * decoder.POLL_S)
        fcntl.flock(other, fcntl.LOCK_UN)
        assert_as_in_process(fitted.result(timeout=DEADLINE_S), photograph())


@pytest.mark.usefixtures("no_pauses")
def test_a_turn_alone_is_not_awaited_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(decoder, "lock_file", lambda: tmp_path / "lock")
    with Decoder(DIAMETER, 1, LIMIT_S) as child, (tmp_path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StarvedDecoder, match="other processes of the node"):
            child.fit(photograph("kill", tmp_path / "log"))


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("planted", ["nothing", "link", "folder"])
def test_a_temporary_folder_without_locks_costs_no_photograph(
    child, tmp_path, monkeypatch, planted
):
    place = tmp_path / "lock"
    if planted == "link":
        place.symlink_to(tmp_path / "precious")
    if planted == "folder":
        place.mkdir()
    if planted == "nothing":
        place = tmp_path / "gone" / "lock"
    monkeypatch.setattr(decoder, "lock_file", lambda: place)
    assert_as_in_process(child.fit(photograph("kill", tmp_path / "log", 2)), photograph())
    assert not (tmp_path / "precious").exists()


@pytest.mark.usefixtures("no_pauses")
def test_a_node_on_which_no_process_can_be_started_rejects_nothing(child, monkeypatch):
    def start(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_start", start)
        with pytest.raises(StarvedDecoder):
            child.fit(photograph())
    assert_as_in_process(child.fit(photograph()), photograph())


@pytest.mark.parametrize("alarm", [signal.SIG_DFL, signal.SIG_IGN], ids=["", "inherits SIG_IGN"])
def test_a_photograph_that_takes_its_cpu_time_is_rejected_and_the_next_is_fine(tmp_path, alarm):
    before = [(number, signal.signal(number, alarm)) for number in (signal.SIGALRM, signal.SIGPROF)]
    try:
        with Decoder(DIAMETER, 1, LIMIT_S) as child:
            child.fit(photograph())
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            with pytest.raises(RejectedImage, match=r"^decoding took longer than the limit$") as e:
                child.fit(photograph("hold", tmp_path / "log"))
            assert e.value.fault == Fault.TOO_SLOW
            assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used > LIMIT_S
            assert_as_in_process(child.fit(photograph()), photograph())
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("alarm", [signal.SIG_DFL, signal.SIG_IGN], ids=["", "inherits SIG_IGN"])
def test_a_photograph_that_got_no_cpu_time_is_left_open_in_time(tmp_path, alarm):
    """It sleeps, which uses no more than a node that has no CPU for it."""
    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with Decoder(DIAMETER, 1, LIMIT_S) as child:
            with pytest.raises(StarvedDecoder, match="too little CPU time"):
                child.fit(photograph("hang", tmp_path / "log"))
            assert_as_in_process(child.fit(photograph()), photograph())
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_wait_between_photographs_counts_for_no_limit():
    with Decoder(DIAMETER, 1, LIMIT_S) as child:
        child.fit(photograph())
        pid = only_child()
        time.sleep(1.5 * LIMIT_S)  # nothing to await: nothing must happen
        child.fit(photograph())
        assert only_child() == pid


def test_a_photograph_that_hogs_memory_is_rejected_and_the_next_is_fine(child):
    child.fit(photograph())
    pid = only_child()
    with pytest.raises(RejectedImage, match=r"^needs too much memory to decode$") as rejection:
        child.fit(photograph("hog", 600))
    assert rejection.value.fault == Fault.TOO_MUCH_MEMORY
    assert_as_in_process(child.fit(photograph()), photograph())
    assert only_child() != pid  # it was tried with a fresh child too
    assert_as_in_process(child.fit(photograph("hog", 100)), photograph())


@pytest.mark.parametrize("kind", GREEDY)
def test_a_photograph_at_the_limit_takes_two_thirds_of_the_memory_it_may(kind):
    side = 2000
    data = greedy(kind, side)
    with Decoder(side / 2, side**2 / 1e6, DEADLINE_S) as child:  # so that no JPEG comes reduced
        child.fit(photograph())
        before = peak_bytes(only_child())
        assert child.fit(data).geometry.height == side
        taken = peak_bytes(only_child()) - before - len(data)
    assert side**2 * 7 < taken < side**2 * BYTES_PER_PIXEL * 2 / 3


def greedy(kind: str, side: int) -> bytes:
    """The photograph in the way of encoding it in this format that takes the most memory."""
    data = photograph(side=side)
    pixels = np.frombuffer(data[-(side**2) * 3 :], np.uint8).reshape(side, side, 3)
    if kind == "AVIF":
        return as_other(data, kind, "RGBA", subsampling="4:4:4", speed=10)
    if kind == "JPEG2000":
        deep = pixels.astype(np.uint16) << 4  # which is read twice
        return imagecodecs.jpeg2k_encode(deep, level=0, reversible=True, numthreads=1)
    if kind == "JXL":
        return imagecodecs.jpegxl_encode(pixels.astype(np.uint16) << 4, lossless=True, effort=1)
    if kind == "few-bit PNG":
        return cv2.imencode(".png", pixels[..., ::-1].astype(np.uint16) << 4)[1].tobytes()
    if kind == "float TIFF":
        return tiff(pixels.astype(np.float32), "rgb")
    if kind == "DICOM":
        deep = pixels.astype(np.uint16) << 4
        frame = imagecodecs.jpeg2k_encode(
            deep, level=0, reversible=True, codecformat="j2k", bitspersample=12
        )
        more = {"BitsStored": 12, "HighBit": 11}
        return encapsulated([frame], "RGB", JPEG2000Lossless, deep, **more)
    if kind == "JPEG":
        return as_other(data, kind, progressive=True, subsampling=0)
    if kind == "TIFF":
        return as_other(data, kind, "F")
    if kind == "WEBP":  # Pillow's decoder is one of animations
        return as_other(data, kind, "RGBA", lossless=True, quality=0, method=0)
    samples = pixels.astype(">u2") * 3
    return f"P6 {side} {side} 765\n".encode() + samples.tobytes()


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmPeak")).split()[1]) * 1024


def test_a_limit_beyond_what_any_machine_has_is_none():
    with Decoder(DIAMETER, 1e30, DEADLINE_S) as child:
        child.fit(photograph(side=300))


def test_a_large_photograph_leaves_a_small_child():
    with Decoder(DIAMETER, 10, DEADLINE_S) as child:
        child.fit(photograph(side=3000))
        statm = Path(f"/proc/{only_child()}/statm")
        wait_until(
            lambda: int(statm.read_text().split()[1]) * 4096 < KEPT_BYTES,
            "small child",
            DEADLINE_S,
        )


# ---- what others may do


def test_a_child_killed_between_two_photographs_costs_nothing(child, tmp_path):
    child.fit(photograph())
    pid = only_child()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not lives(pid), "end of the child", DEADLINE_S)
    assert_as_in_process(child.fit(photograph("kill", tmp_path / "log", 1)), photograph())


def test_an_interrupted_wait_costs_the_child_and_not_the_next_photograph(child, tmp_path):
    log, waiting = tmp_path / "log", threading.get_ident()

    def interrupt() -> None:
        wait_until(log.exists, "hanging child", DEADLINE_S)
        signal.pthread_kill(waiting, signal.SIGINT)

    with ThreadPoolExecutor(1) as other:
        other.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            child.fit(photograph("hang", log))
    assert children(os.getpid()) == []
    assert_as_in_process(child.fit(photograph(side=90)), photograph(side=90))


def test_ctrl_c_in_the_terminal_is_no_affair_of_the_child(child):
    child.fit(photograph())
    pid = only_child()
    os.kill(pid, signal.SIGINT)
    child.fit(photograph())
    assert only_child() == pid


def test_a_child_that_does_not_start_is_an_error_and_no_rejection(child, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="does not start: exit code 1"):
        child.fit(photograph())


@pytest.mark.parametrize("word", ["hang", "hold", ""])
def test_the_child_ends_with_its_parent(tmp_path, word):
    log = tmp_path / "log"
    code = (
        "import sys, pathlib, time; from segpipe.data.decoder import Decoder\n"
        "child = Decoder(64, 1, 2)\n"
        "for path in sys.argv[1:]: child.fit(pathlib.Path(path).read_bytes())\n"
        f"open({str(log)!r}, 'w'); time.sleep(1000)"
    )
    (tmp_path / "1").write_bytes(photograph())
    (tmp_path / "2").write_bytes(photograph(*([word, log] if word else [])))
    words = [sys.executable, "-c", code, tmp_path / "1", tmp_path / "2"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as parent:
        try:
            wait_until(log.exists, "hanging child", DEADLINE_S)
            [pid] = children(parent.pid)
        finally:
            parent.kill()
    wait_until(lambda: not lives(pid), "end of the child", DEADLINE_S)


def test_close_ends_the_child_and_a_later_photograph_starts_another():
    with Decoder(DIAMETER, 1, DEADLINE_S) as child:
        child.fit(photograph())
        child.close()
        assert children(os.getpid()) == []
        child.fit(photograph())
        assert only_child()
    assert children(os.getpid()) == []


# ---- what the child has


def test_the_child_has_no_secrets_and_dies_first(child, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "MY_TOKEN", "MALLOC_CONF"):
        monkeypatch.setenv(name, "hush")
    child.fit(photograph())
    home = Path(f"/proc/{only_child()}")
    words = (home / "environ").read_bytes().decode().split("\0")
    names = {word.partition("=")[0] for word in words if word}
    assert "hush" not in "".join(words)
    assert "PATH" in names
    assert names <= {*decoder.INHERITED, *decoder.ADDED, "PYTHONPATH"}
    assert (home / "oom_score_adj").read_text() == "1000\n"
    limits = (home / "limits").read_text().splitlines()
    assert next(line for line in limits if "core" in line).split()[4:6] == ["0", "0"]


def test_two_children_do_not_hold_each_others_pipes(child):
    with Decoder(DIAMETER, 1, DEADLINE_S) as other:
        child.fit(photograph())
        other.fit(photograph())
        one, two = (pipes(pid) for pid in children(os.getpid()))
    assert len(one) == len(two) == 2
    assert not one & two


def pipes(pid: int) -> set[str]:
    """Of its own: without standard error, which is the parent's."""
    opened = [entry for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.name != "2"]
    return {name for name in map(os.readlink, opened) if name.startswith("pipe:")}


def test_neither_side_imports_a_network_or_a_store():
    sides = "segpipe.data.decoder, segpipe.data.decoder_child"
    code = f"import json, sys, {sides}; print(json.dumps(list(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    loaded = set(json.loads(printed.splitlines()[-1]))
    assert not loaded & {"torch", "ray", "pyarrow", "boto3", "botocore"}

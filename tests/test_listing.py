"""The order of a bulk run's beginning: flags, stores, lock, listing; and what `status` says of it.

Run: pytest tests/test_listing.py
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator

import pytest
from processes import wait_until
from verbs import run

from segpipe.segment import inputs, status
from segpipe.segment.output import MANIFEST, SUMMARY
from segpipe.storage import Entry, lock, open_store
from segpipe.storage.files import read_json, write_json
from segpipe.storage.local import LocalStore


@pytest.fixture
def at_listing(monkeypatch, photographs) -> Callable[[Callable[[], None]], None]:
    """Have something done while the input is listed."""
    listed = LocalStore.list

    def hook(look: Callable[[], None]) -> None:
        def with_look(self: LocalStore, prefix: str = "") -> Iterator[Entry]:
            for entry in listed(self, prefix):
                yield entry
                if self.root == str(photographs):
                    look()

        monkeypatch.setattr(LocalStore, "list", with_look)

    return hook


def test_while_the_input_is_listed_status_says_so_and_the_lock_is_held(
    no_ray, photographs, tmp_path, at_listing, monkeypatch, capfd
):
    output = open_store(str(tmp_path / "out"))
    monkeypatch.setattr(inputs, "LISTED", 1)
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    monkeypatch.setattr(lock, "FIRST_BEAT_S", 0.02)
    found: list[dict] = []

    def look() -> None:
        held = read_json(output, lock.LOCK)
        assert held is not None
        if not found:

            def told() -> bool:
                beat = read_json(output, lock.LOCK)
                return beat is not None and beat["progress"] == {"listing": 1}

            wait_until(told, "heartbeat of the listing")
            assert run("status", "--output", output.uri(), "--json") == 0
            until_then = capfd.readouterr()
            assert f"segment: listing {photographs}, 1 files, " in until_then.err
            found.append(json.loads(until_then.out))
            assert run("status", "--output", output.uri()) == 0
            assert capfd.readouterr().out.splitlines()[:2] == ["state   listing", "files   1 seen"]

    at_listing(look)
    run("segment", "--input", photographs, "--output", output.uri())  # ends where Ray would start
    assert "Ray was started" in capfd.readouterr().err
    [state] = found
    assert (state["state"], state["listed"], state["inputs"]) == ("listing", 1, None)
    assert set(status.COUNTS) < set(state)
    assert read_json(output, lock.LOCK) is None


def test_a_run_that_has_just_taken_the_lock_is_listing(
    no_ray, photographs, tmp_path, at_listing, monkeypatch
):
    """Before its first heartbeat: `status` starts more quickly than that comes."""
    output = open_store(str(tmp_path / "out"))
    monkeypatch.setattr(lock.Lock, "beat", lambda _: None)
    found = []
    at_listing(lambda: found.append(status.state_of(output)))
    run("segment", "--input", photographs, "--output", output.uri())  # ends where Ray would start
    state = found[0]
    assert (state["state"], state["listed"], state["inputs"]) == ("listing", 0, None)


def test_a_listing_goes_before_the_summary_of_an_earlier_run(tmp_path):
    output = open_store(str(tmp_path / "out"))
    write_json(output, MANIFEST, {"inputs": 5, "digest": "x"})
    totals = {"inputs": 5, "ok": 5, "rejected": 0, "open": 0, "images_per_second": 1.0}
    write_json(output, SUMMARY, totals | {"inputs_digest": "x"})
    assert status.state_of(output)["state"] == "finished"
    with lock.hold(output) as held:
        held.progress = {"listing": 7}
        output.put(lock.LOCK, held.data())
        assert status.state_of(output)["listed"] == 7
        held.progress = {"ok": 5, "rejected": 0, "open": 3, "images_per_second": None}
        output.put(lock.LOCK, held.data())
        running = status.state_of(output)
        assert (running["state"], running["inputs"], running["done"]) == ("running", 8, 5)


@pytest.mark.parametrize(
    "flags",
    [("--device", "gpu"), ("--device", "tpu"), ("--checkpoint", "none"), ("--limit", "0")],
)
def test_what_is_refused_is_refused_before_anything_is_listed_or_written(
    no_ray, photographs, tmp_path, at_listing, flags
):
    def look() -> None:
        raise AssertionError("the input was listed")

    at_listing(look)
    assert run("segment", "--input", photographs, "--output", tmp_path / "out", *flags) == 2
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_or_is_locked_is_told_before_the_listing(
    no_ray, photographs, tmp_path, at_listing, capfd
):
    def look() -> None:
        raise AssertionError("the input was listed")

    at_listing(look)
    (tmp_path / "file").write_text("in the way")
    assert run("segment", "--input", photographs, "--output", tmp_path / "file/out") == 2
    assert "cannot write" in capfd.readouterr().err
    output, ended = open_store(str(tmp_path / "out")), threading.Event()
    with lock.hold(output) as held:

        def beat() -> None:
            while not ended.wait(0.02):
                output.put(lock.LOCK, held.data())

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            assert run("segment", "--input", photographs, "--output", output.uri()) == 2
        finally:
            ended.set()
            thread.join()
    assert "locked by process" in capfd.readouterr().err


def test_a_scheduled_run_skips_an_output_that_another_one_holds(
    no_ray, photographs, tmp_path, at_listing, capfd
):
    def look() -> None:
        raise AssertionError("the input was listed")

    at_listing(look)
    words = ["segment", "--input", photographs, "--output", tmp_path / "out"]
    words += ["--if-locked", "skip"]
    with lock.hold(open_store(str(tmp_path / "out"))):
        assert run(*words) == 0
    told = capfd.readouterr()
    assert told.err == ""
    (line,) = told.out.splitlines()
    assert line.startswith(f"segpipe segment: skipped, {tmp_path}/out: locked by process ")
    assert line.endswith(")")
    assert not list((tmp_path / "out").rglob("*"))  # nor is anything of the holder left
    assert run(*words) == 1  # nobody holds it any more
    assert "the input was listed" in capfd.readouterr().err


def test_a_run_that_is_refused_after_ray_started_leaves_no_manifest(
    photographs, tmp_path, ray_cluster, monkeypatch
):
    """As on a cluster without a GPU: Ray alone knows."""
    output = tmp_path / "out"
    assert run("segment", "--input", photographs, "--output", output, "--device", "gpu") == 2
    assert not list(output.rglob("*"))


def test_a_single_photograph_is_segmented_once(photographs, tmp_path, ray_cluster, capfd):
    shutil.copy(next(photographs.iterdir()), tmp_path / "scan.raw")
    words = ["segment", "--input", tmp_path / "scan.raw", "--output", tmp_path / "out"]
    words += ["--workers", 1, "--checkpoint", "segnet-lite"]
    assert run(*words) == 0
    assert [path.name for path in (tmp_path / "out/masks").iterdir()] == ["scan.raw.png"]
    before = capfd.readouterr()
    assert "1 masks, 0 rejected" in before.out
    assert run(*words) == 0
    assert "all 1 inputs are done" in capfd.readouterr().out

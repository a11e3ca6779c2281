"""An error of our own costs the photograph at which it came, and not the run.

Run: pytest tests/test_stages.py
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from segmenting import job_of

from segpipe.data import codecs
from segpipe.data.canvas import canvas_side
from segpipe.data.decoder import Decoder
from segpipe.data.synthetic import draw_fundus
from segpipe.errors import StarvedDecoder, StoreDown, UserError
from segpipe.measurement import trust
from segpipe.models.engine import REFERENCE
from segpipe.segment import group, stages
from segpipe.segment.job import SegmentJob
from segpipe.segment.keys import MASKS, PROBABILITIES
from segpipe.segment.manifest import list_inputs
from segpipe.segment.parts import read_parts
from segpipe.segment.todo import plan_todo
from segpipe.storage import Store, open_store
from segpipe.storage.files import read_parquet

NAMES = ["a.png", "b.png", "c.png"]


@pytest.fixture(scope="module")
def drawn() -> bytes:
    """A photograph's file."""
    return codecs.encode_grey(draw_fundus(1, 240, 232)[0][..., 1])


@pytest.fixture
def folder(drawn, tmp_path) -> Path:
    """Three photographs."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(drawn)
    return folder


@pytest.fixture
def job(folder, tmp_path) -> SegmentJob:
    source, output = open_store(str(folder)), open_store(str(tmp_path / "out"))
    return job_of(source, output, 100.0, 0.5, measure="full", probabilities=True)


@pytest.fixture(autouse=True)
def _own_decoder() -> Iterator[None]:
    yield
    stages.own_decoder.cache_clear()


def together(job: SegmentJob, batch: stages.Batch) -> stages.Batch:
    """Segmenter, with a network that takes what is not red for vessels."""
    segmenter = stages.Segmenter.__new__(stages.Segmenter)
    segmenter.job, segmenter.score, segmenter.engine = job, score, REFERENCE
    return segmenter(batch)


def apart(job: SegmentJob, batch: stages.Batch) -> stages.Batch:
    """As on a GPU."""
    scoring = stages.Scoring.__new__(stages.Scoring)
    scoring.keep_canvas, scoring.engine, scoring.scorer = True, REFERENCE, score_batch
    return stages.store(scoring(stages.load(batch, job)), job)


def score_batch(batch: stages.Batch) -> stages.Batch:
    """The score below, of rows; a network on a GPU has one for all."""
    canvases, fovs = batch.pop("canvas"), batch["fov"]
    return batch | {"score": np.stack(list(map(score, canvases, fovs)))}


def score(canvas: np.ndarray, fov: np.ndarray) -> np.ndarray:
    return (1 - canvas[..., 1] / 255).astype(np.float32)


def segmented(job: SegmentJob, way: Callable = together) -> stages.Batch:
    """One group of all inputs, committed."""
    return way(job, batch_of(job))


def batch_of(job: SegmentJob) -> stages.Batch:
    manifest = list_inputs(job.source.list())
    manifest.write(job.output)
    return {"page": np.array([manifest.key(0)]), "rows": np.array([[0, 1, 2]])}


def failing(usual: Callable, error: Exception) -> Callable:
    """The same function, which fails at its second call."""
    calls = []

    def called(*words: object) -> object:
        calls.append(words)
        if len(calls) == 2:
            raise error
        return usual(*words)

    return called


@pytest.mark.parametrize("way", [together, apart])
def test_a_row_tells_what_was_left_out_of_the_field(job, folder, way):
    """Two photographs side by side; of single ones nothing is left out."""
    single = codecs.decode_image((folder / "a.png").read_bytes())
    both = np.hstack([single, single[::-1]])
    for name, image in (("a.png", both), ("b.png", single), ("c.png", both[:, ::-1])):
        (folder / name).write_bytes(codecs.encode_grey(image[..., 1]))
    assert segmented(job, way)["ok"] == 3
    two, one, mirrored = rows_of(job)
    assert mirrored["second_fov_fraction"] > 0.1
    assert two["second_fov_fraction"] == pytest.approx(one["fov_fraction"] / 2, abs=0.02)
    assert two["note"].startswith("a second field of view of ")
    assert (one["second_fov_fraction"], one["note"]) == (0, None)
    assert one["fov_uncertain_fraction"] < 0.01


STEPS = [
    (group, "native_mask", "native_mask"),
    (codecs, "encode_mask", "encode_mask"),
    (codecs, "encode_grey", "encode_grey"),
    (trust, "assess_mask", "quality"),
]


def test_photographs_of_several_working_diameters_have_the_same_rows_either_way(job, folder):
    """A network that has a range of them; on a GPU canvases of several sizes are one batch."""
    for name, px in zip(NAMES, (90, 110, 240), strict=True):
        picture = draw_fundus(1, px, px)[0]
        (folder / name).write_bytes(codecs.encode_grey(picture[..., 1]))
    job = replace(job, card=replace(job.card, model="fineunet"))
    sides = stages.load(batch_of(job), job)["side"]
    assert sorted(sides) == [canvas_side(one) for one in (100, 108, 125)]
    rows = []
    for way in (together, apart):
        way(job, batch_of(job))
        [key] = read_parts(job.output).keys
        rows.append(read_parquet(job.output, key).drop(["finished"]).to_pylist())
    assert [row["status"] for row in rows[0]] == ["ok"] * 3
    np.testing.assert_equal(*rows)


@pytest.mark.parametrize(("module", "name", "_id"), STEPS, ids=[step[2] for step in STEPS])
@pytest.mark.parametrize("way", [together, apart])
def test_an_error_after_decoding_rejects_its_photograph_and_the_others_are_done(
    job, monkeypatch, capfd, way, module, name, _id
):
    error = OSError("encoder error -2") if name == "encode_grey" else TypeError("a bug")
    begun = datetime.now(UTC)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing(getattr(module, name), error))
        done = segmented(job, way)
    assert (done["ok"], done["rejected"], done["open"]) == (2, 1, 0)
    rows = rows_of(job)
    assert all(begun <= row["finished"] <= datetime.now(UTC) for row in rows)
    assert [row["status"] for row in rows] == ["ok", "rejected", "ok"]
    assert rows[1]["error_code"] == "internal_error"
    kind = type(error).__name__
    assert rows[1]["error"].startswith(f"internal error ({kind} at segpipe/segment/group.py:")
    assert rows[1]["mask_path"] is None
    told = capfd.readouterr().err
    assert "b.png" in told
    assert "Traceback (most recent call last):\n" in told
    for kind in (MASKS, PROBABILITIES):
        files = {entry.key for entry in job.output.list(kind)}
        assert files == {f"{kind}a.png.png", f"{kind}c.png.png"}
    manifest = list_inputs(job.source.list())
    parts = read_parts(job.output)
    assert plan_todo(manifest, parts).num_rows == 0
    assert plan_todo(manifest, parts, retry_rejected=True).num_rows == 1
    assert segmented(job, way)["ok"] == 3


def rows_of(job: SegmentJob) -> list[dict]:
    rows = []
    for key in read_parts(job.output).keys:
        rows += read_parquet(job.output, key).to_pylist()
    return rows


def green_fails(error: Exception, marks: list[float]) -> Callable:
    """A score that fails on canvases whose mean green is among these."""
    usual = score

    def called(canvas: np.ndarray, fov: np.ndarray) -> np.ndarray:
        if canvas[..., 1].mean() in marks:
            raise error
        return usual(canvas, fov)

    return called


@pytest.fixture
def greens(job, folder) -> list[float]:
    """Mean green of each photograph's canvas; the second differs from the others."""
    (folder / "b.png").write_bytes(
        codecs.encode_grey(codecs.decode_image((folder / "a.png").read_bytes())[::-1, :, 1] // 2)
    )
    manifest = list_inputs(job.source.list())
    manifest.write(job.output)
    rows = stages.load({"page": np.array([manifest.key(0)]), "rows": np.array([[0, 1, 2]])}, job)
    return [float(canvas[..., 1].mean()) for canvas in rows["canvas"]]


@pytest.mark.parametrize("way", [together, apart])
def test_an_error_of_the_network_rejects_its_photograph(job, greens, monkeypatch, way):
    error = green_fails(ZeroDivisionError(), greens[1:2])
    monkeypatch.setattr(__name__ + ".score", error)
    done = segmented(job, way)
    assert (done["ok"], done["rejected"]) == (2, 1)
    assert rows_of(job)[1]["error"].startswith("internal error (ZeroDivisionError")


def test_a_gpu_that_has_no_memory_for_one_photograph_leaves_it_open(job, greens, monkeypatch):
    error = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    monkeypatch.setattr(__name__ + ".score", green_fails(error, greens[1:2]))
    done = segmented(job, apart)
    assert (done["ok"], done["rejected"], done["open"]) == (2, 0, 1)


def test_a_photograph_on_which_a_gpu_fails_is_rejected_also_where_no_other_can_be_read(
    job, greens, folder, monkeypatch
):
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(b"no photograph")
    monkeypatch.setattr(__name__ + ".score", green_fails(ZeroDivisionError(), greens[1:2]))
    assert segmented(job, apart)["rejected"] == 3
    assert rows_of(job)[1]["error"].startswith("internal error (ZeroDivisionError")


@pytest.mark.parametrize("error", [PermissionError(13, "denied", "x"), OSError(30, "", "x")])
def test_what_the_user_must_change_about_the_output_is_told_so(job, monkeypatch, error):
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("segpipe.segment.group.commit_part", fails)
    with pytest.raises(UserError, match=r"x: .*check the path and who may use it"):
        segmented(job)


def test_a_gpu_that_fails_on_every_photograph_ends_the_run(job, greens, monkeypatch):
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(__name__ + ".score", green_fails(error, [*greens, 0.0]))
    with pytest.raises(RuntimeError, match="illegal memory"):
        segmented(job, apart)
    assert rows_of(job) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((1,), np.dtype("u1")),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["python", "numpy", "torch"],
)
def test_a_photograph_for_which_memory_is_short_stays_open(job, monkeypatch, capfd, error):
    monkeypatch.setattr(group, "native_mask", failing(group.native_mask, error))
    done = segmented(job)
    assert (done["ok"], done["rejected"], done["open"]) == (2, 0, 1)
    assert [row["path"] for row in rows_of(job)] == ["a.png", "c.png"]
    [why] = done["why_open"]
    assert why.startswith("b.png: ")
    assert f"segpipe: stays open: {why}" in capfd.readouterr().err


@pytest.mark.parametrize("way", [together, apart])
def test_a_photograph_whose_decoder_is_starved_stays_open(job, monkeypatch, way):
    usual = Decoder.fit
    monkeypatch.setattr(Decoder, "fit", failing(usual, StarvedDecoder("killed")))
    done = segmented(job, way)
    assert (done["ok"], done["rejected"], done["open"]) == (2, 0, 1)
    assert segmented(job, way)["ok"] == 3


@pytest.mark.parametrize("error", [UserError("--x"), StoreDown("s3://b"), KeyboardInterrupt()])
def test_what_is_not_one_photographs_ends_the_run(job, monkeypatch, error):
    monkeypatch.setattr(group, "native_mask", failing(group.native_mask, error))
    with pytest.raises(type(error)):
        segmented(job)
    assert rows_of(job) == []


def test_an_output_that_cannot_be_written_rejects_nothing(job, monkeypatch):
    usual = type(job.output).put

    def put(self: Store, key: str, data: bytes, durable: bool = True) -> None:
        if key.startswith(MASKS):
            raise OSError(28, "No space left on device", key)
        usual(self, key, data, durable)

    monkeypatch.setattr(type(job.output), "put", put)
    with pytest.raises(StoreDown, match="No space left"):
        segmented(job)
    assert rows_of(job) == []

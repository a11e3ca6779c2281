"""`import segpipe`: the results of `segpipe segment` without Ray, and errors that say what came.

Run: pytest tests/test_library.py
"""

import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segpipe
from segpipe.data import codecs
from segpipe.data.classes import OUTSIDE, VESSEL
from segpipe.data.synthetic import draw_fundus
from segpipe.models import checkpoint, engine
from segpipe.segment import stages
from segpipe.segment.config import SegmentConfig
from segpipe.segment.job import SegmentJob
from segpipe.segment.keys import MASKS, PROBABILITIES
from segpipe.segment.manifest import list_inputs
from segpipe.segment.started import Started
from segpipe.storage import open_store
from segpipe.storage.files import read_parquet

FILES = {  # name -> height, width, how it is saved
    "native.png": (584, 565, {}),
    "small.tif": (150, 140, {}),  # enlarged for the network
    "large.jpg": (1300, 1500, {"quality": 92}),  # decoded at half its size
}
SEGNET_LITE = "segnet-lite"  # quick in any engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for seed, (name, (height, width, options)) in enumerate(FILES.items()):
        image, _, _ = draw_fundus(seed, height, width)
        exif = Image.Exif()
        exif[0x112] = 6 if name == "large.jpg" else 1  # to be turned for display
        Image.fromarray(image).save(folder / name, exif=exif.tobytes(), **options)
    return folder


@pytest.fixture(scope="module", params=[SEGNET_LITE, checkpoint.DEFAULT])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> segpipe.Model:
    return segpipe.load_model(name)


@pytest.fixture(scope="module")
def written(folder, name, tmp_path_factory) -> dict[str, dict]:
    """What the stages of `segpipe segment` write of these files: path -> row, mask, score."""
    weights = checkpoint.read(name)
    card = checkpoint.load(weights, name).card
    chosen = engine.select(engine.find_trials(weights, "cpu"), "auto", "auto").engine
    source = open_store(str(folder))
    output = open_store(str(tmp_path_factory.mktemp("written")))
    config = SegmentConfig(source.uri(), output.uri(), measure="full", probabilities=True)
    job = SegmentJob(source, output, card, Started.of(config, source.uri(), "sha", card.tta))
    manifest = list_inputs(source.list())
    manifest.write(output)
    segmenter = stages.Segmenter(job, weights, None, chosen, "cpu", 1)
    segmenter({"page": np.array([manifest.key(0)]), "rows": np.array([[0, 1, 2]])})
    stages.own_decoder.cache_clear()
    parts = [entry.key for entry in output.list() if entry.key.endswith(".parquet")]
    rows = [row for key in parts for row in read_parquet(output, key).to_pylist()]
    return {
        row["path"]: row
        | {
            "mask": output.get(row["mask_path"]),
            "score": output.get(row["mask_path"].replace(MASKS, PROBABILITIES)),
        }
        for row in rows
        if row.get("mask_path")
    }


@pytest.mark.parametrize("file", FILES)
def test_a_file_has_the_mask_score_and_row_of_segpipe_segment(model, written, folder, file):
    result, row = model.segment(folder / file), written[file]
    orientation = 6 if file == "large.jpg" else 1
    assert codecs.encode_mask(result.mask, orientation) == row["mask"]
    score = np.asarray(Image.open(io.BytesIO(row["score"])))
    np.testing.assert_array_equal(np.rint(255 * result.score), score)
    assert (model.engine, result.note or None) == (row["engine"], row["note"])
    found = asdict(result.measurements) | asdict(result.quality)
    del found["vessel_density"]  # of the row's is that of the mask at the photograph's size
    assert row["measure_note"] == found.pop("measure_note")
    for key, value in found.items():
        assert row[key] == pytest.approx(value, rel=1e-6, nan_ok=True), key
    np.testing.assert_array_equal(result.fov, result.mask != OUTSIDE)
    assert result.mask.shape == result.score.shape == FILES[file][:2]
    assert (result.mask.dtype, result.score.dtype, result.fov.dtype) == (np.uint8, np.float32, bool)
    assert result.mask[result.fov].min() == VESSEL
    assert not result.score[~result.fov].any()


def assert_same(one: segpipe.Result, other: segpipe.Result) -> None:
    for name in ("mask", "score", "fov"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.measurements, one.quality, one.note) == (
        other.measurements,
        other.quality,
        other.note,
    )


@pytest.mark.parametrize("file", ["native.png", "small.tif"])
def test_an_array_has_the_result_of_its_file_however_it_lies_in_memory(folder, file):
    model = segpipe.load_model(SEGNET_LITE)
    image = np.array(Image.open(folder / file))
    expected = model.segment(str(folder / file))
    flipped = np.ascontiguousarray(image[..., ::-1])[..., ::-1]
    for array in (image, np.asfortranarray(image), flipped):
        assert_same(model.segment(array), expected)
        np.testing.assert_array_equal(segpipe.find_fov(array), segpipe.find_fov(image))
    assert segpipe.measure(np.asfortranarray(expected.mask)) == segpipe.measure(expected.mask)


def test_vessels_and_their_field_are_measured_as_the_mask_of_both():
    _, vessel, fov = draw_fundus(3)
    classes = np.where(fov, np.where(vessel, 1, 2), 0).astype(np.uint8)
    expected = segpipe.measure(classes)
    assert expected.num_branch_points > 10
    assert segpipe.measure(vessel, fov) == expected
    assert segpipe.measure(vessel.astype(np.uint8), fov) == expected


def test_a_field_found_covers_the_one_that_was_drawn():
    image, _, fov = draw_fundus(2)
    found = segpipe.find_fov(image)
    assert (found.shape, found.dtype) == (fov.shape, bool)
    assert (found & fov).sum() / (found | fov).sum() > 0.98


# ---- errors


WANTED = r"wanted an array \[H, W, 3\] of dtype uint8, RGB"
GREY, BLACK = np.zeros((40, 50), np.uint8), np.zeros((40, 50, 3), np.uint8)
IMAGES = [
    (GREY, rf"image: uint8 \[40 x 50\]; {WANTED}"),
    (BLACK.astype(np.float32), rf"image: float32 \[40 x 50 x 3\]; {WANTED}"),
    (np.zeros((40, 50, 4), np.uint8), rf"image: uint8 \[40 x 50 x 4\]; {WANTED}"),
    (np.zeros((0, 50, 3), np.uint8), rf"image: uint8 \[0 x 50 x 3\]; {WANTED}"),
    (BLACK, "image: no field of view found: the image is black"),
    (b"bytes", rf"image: bytes; {WANTED}"),
]


@pytest.mark.parametrize(("image", "words"), IMAGES, ids=range(len(IMAGES)))
def test_an_image_of_another_kind_is_an_error_that_says_what_came(image, words):
    with pytest.raises(ValueError, match=words):
        segpipe.load_model(SEGNET_LITE).segment(image)
    with pytest.raises(ValueError, match=words):
        segpipe.find_fov(image)


def test_a_file_that_is_no_photograph_is_an_error_that_names_it(tmp_path):
    model, file = segpipe.load_model(SEGNET_LITE), tmp_path / "a.png"
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        model.segment(file)
    file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png: not an image in a known format"):
        model.segment(file)
    header = b"P6\n20000 20000\n255\n"
    file.write_bytes(header)
    with pytest.raises(ValueError, match=r"a\.png: more than 200 megapixels"):
        model.segment(file)
    with pytest.raises(ValueError, match="image: too small: a side of less than 16 px"):
        model.segment(np.full((15, 40, 3), 200, np.uint8))


FIELD = np.ones((40, 50), bool)
MASKS_AND_FIELDS = [
    (GREY.astype(int), None, r"mask: int64 \[40 x 50\]; wanted \[H, W\] uint8 classes or bool"),
    (BLACK, None, r"mask: uint8 \[40 x 50 x 3\]; wanted"),
    ([[1, 2]], None, "mask: list; wanted"),
    (GREY + np.uint8(255), FIELD, r"mask: uint8 \[40 x 50\] with values up to 255; wanted 0 out"),
    (FIELD, None, r"mask: bool \[40 x 50\] of vessels alone; wanted fov"),
    (FIELD.astype(np.uint8), None, r"mask: uint8 \[40 x 50\] of vessels alone; wanted fov"),
    (FIELD, GREY, r"fov: uint8 \[40 x 50\]; wanted bool \[40 x 50\], as mask"),
    (FIELD, FIELD.T, r"fov: bool \[50 x 40\]; wanted bool \[40 x 50\], as mask"),
]


@pytest.mark.parametrize(
    ("mask", "fov", "words"), MASKS_AND_FIELDS, ids=range(len(MASKS_AND_FIELDS))
)
def test_a_mask_of_another_kind_is_an_error_that_says_what_came(mask, fov, words):
    with pytest.raises(ValueError, match=words):
        segpipe.measure(mask, fov)


def test_a_checkpoint_that_is_none_is_an_error_without_words_of_the_command_line(tmp_path):
    with pytest.raises(ValueError, match=r"^none\.pt: neither a file nor a shipped checkpoint"):
        segpipe.load_model("none.pt")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(checkpoint.read(SEGNET_LITE)[:1000])
    with pytest.raises(ValueError, match=r"damaged\.safetensors: not a safetensors file"):
        segpipe.load_model(damaged)


# ---- what is imported


def test_what_is_offered_is_what_is_listed_and_nothing_else():
    assert set(segpipe.__all__) <= set(dir(segpipe))
    assert all(getattr(segpipe, name) for name in segpipe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = segpipe.nothing


def test_importing_loads_no_library_and_a_model_loads_no_ray(folder):
    code = f"""
import json, sys, segpipe
before = list(sys.modules)
segpipe.load_model({SEGNET_LITE!r}).segment({str(folder / "small.tif")!r})
print(json.dumps([before, list(sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    before, after = json.loads(done.stdout)
    assert not {"torch", "ray", "numpy", "cv2"} & set(before)
    assert "ray" not in after


def test_threads_that_share_a_model_get_the_masks_of_one(photographs_of_threads):
    model = segpipe.load_model("resunet")
    wanted = [model.segment(image).mask for image in photographs_of_threads]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: model.segment(image).mask, photographs_of_threads * 4))
    for number, mask in enumerate(found):
        assert np.array_equal(mask, wanted[number % 2])


@pytest.fixture
def photographs_of_threads() -> list[np.ndarray]:
    return [draw_fundus(seed, 300, 300)[0] for seed in (1, 2)]


def test_what_is_no_regular_file_is_refused_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    model = segpipe.load_model("segnet-lite")
    for path in (tmp_path / "a.jpg", tmp_path, "/dev/null"):
        with pytest.raises(ValueError, match="no regular file"):
            model.segment(path)


@pytest.mark.parametrize("name", ["", None, 3])
def test_what_is_no_name_of_a_checkpoint_is_refused(name):
    with pytest.raises(ValueError, match="wanted a name or a path"):
        segpipe.load_model(name)

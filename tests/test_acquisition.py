"""What a DICOM file says of its acquisition is in the results; what it says of a patient nowhere.

Run: pytest tests/test_acquisition.py
"""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from files import SECRETS, dicom, encoded
from segmenting import job_of
from test_stages import apart, rows_of, together

from segpipe.data.decoder import Decoder
from segpipe.segment import report, stages
from segpipe.segment.compact import compact
from segpipe.segment.job import SegmentJob
from segpipe.segment.manifest import list_inputs
from segpipe.segment.output import REPORT, SUMMARY
from segpipe.storage import open_store
from segpipe.storage.files import write_json

SAID = {
    "ImageLaterality": "L",
    "PixelSpacing": [0.0117, 0.0117],
    "Manufacturer": "Acme",
    "ManufacturerModelName": "Eye 3",
    "AcquisitionDateTime": "20240229101530",
}
COLUMNS = ("laterality", "device", "acquired")


def fundus() -> np.ndarray:
    """A lit disc [200, 200, 3] uint8."""
    y, x = np.mgrid[:200, :200] - 100
    lit = np.hypot(x, y) < 90
    return (lit[..., None] * np.array([200, 90, 40])).astype(np.uint8)


@pytest.fixture
def job(tmp_path) -> SegmentJob:
    """A DICOM file that says all, one that says nothing, a PNG, and one that is no photograph."""
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = fundus()
    raw = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66"}
    (folder / "a.dcm").write_bytes(dicom(pixels, "RGB", **SAID, **SECRETS))
    (folder / "b.dcm").write_bytes(dicom(pixels, "RGB"))
    (folder / "c.png").write_bytes(encoded(pixels, "PNG"))
    (folder / "d.dcm").write_bytes(dicom(pixels, "RGB", **SAID, **SECRETS | raw))
    source, output = open_store(str(folder)), open_store(str(tmp_path / "out"))
    return job_of(source, output, 100.0, 0.5, measure="full", probabilities=True)


@pytest.fixture(autouse=True)
def _own_decoder():
    yield
    stages.own_decoder.cache_clear()


@pytest.mark.parametrize("way", [together, apart])
def test_an_acquisition_becomes_columns_and_a_patient_none(job, way, tmp_path, capfd):
    """Through the decoder's process, the parts, the results, the report and what is printed."""
    manifest = list_inputs(job.source.list())
    manifest.write(job.output)
    groups = {"page": np.array([manifest.key(0)]), "rows": np.array([[0, 1, 2, 3]])}
    assert way(job, groups)["ok"] == 3
    said, *others, rejected = rows_of(job)
    assert [said[name] for name in COLUMNS] == ["L", "Acme Eye 3", "2024-02-29T10:15:30"]
    assert math.isclose(said["pixel_spacing_mm"], 0.0117, rel_tol=1e-6)
    for row in (*others, rejected):
        assert [row[name] for name in (*COLUMNS, "pixel_spacing_mm")] == [None] * 4
    assert (rejected["error_code"], rejected["error"]) == (
        "not_a_photograph",
        "DICOM of no photograph: Raw Data Storage",
    )
    summary = compact(job.output, manifest)
    more = {"skipped": {}, "seconds": 1.0, "images_per_second": None}
    more |= {"model": {"model": "segnet-lite", "training_data": "DRIVE"}}
    page = report.archive_report(job.source, job.output, summary | more, overlays=4)
    job.output.put(REPORT, page)
    write_json(job.output, SUMMARY, summary)
    texts = [str(capfd.readouterr())]
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix == ".parquet":
            texts.append(str(pq.read_table(path).to_pylist()))
        elif path.is_file():
            texts.append(path.read_bytes().decode("latin-1"))
    assert len(texts) > 8
    assert any("Acme Eye 3" in text for text in texts)
    for secret in SECRETS.values():
        assert not [text[:80] for text in texts if secret in text], secret


def test_the_acquisition_comes_back_from_the_decoders_process():
    with Decoder(100.0, 1, 30) as child:
        found = child.fit(dicom(fundus(), "RGB", **SAID)).acquisition
        assert found.pixel_spacing_mm == 0.0117
        assert (found.laterality, found.device) == ("L", "Acme Eye 3")
        assert child.fit(encoded(fundus(), "PNG")).acquisition.device is None

"""Masks of drawn photographs are those that the release before the layout by verb made.

tests/masks/NETWORK-INDEX.png are files of `segpipe segment` at commit b16f72e, made on a CPU with
AVX-512 of photographs that `write_archive_image(root, INDEX, SEED)` drew. There no pixel differs.

Run: pytest tests/test_masks.py
"""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segpipe
from segpipe import kernels
from segpipe.data import codecs
from segpipe.data.synthetic_sets import write_archive_image

SEED = 7
KEPT = Path(__file__).parent / "masks"
FEW = 100  # px of some 250,000: on other CPUs rounding decides where a score is at the threshold


@pytest.mark.parametrize("network", ["resunet", "segnet-lite"])
@pytest.mark.parametrize("index", [1, 7])
def test_a_mask_is_what_it_was(tmp_path, network, index, monkeypatch):
    path = write_archive_image(tmp_path, index, SEED)
    mask = segpipe.load_model(network).segment(path).mask
    kept = (KEPT / f"{network}-{index}.png").read_bytes()
    before = np.asarray(Image.open(io.BytesIO(kept)))
    assert np.count_nonzero(mask == 1) > 5000
    assert np.count_nonzero(mask != before) <= FEW
    monkeypatch.setattr(kernels, "missing", lambda: "no C++ compiler")  # files were zlib's
    assert codecs.encode_mask(before, orientation=1) == kept

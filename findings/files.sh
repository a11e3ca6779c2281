#!/usr/bin/env bash
# Two silent faults with pictures of more than 8 bits, as fundus cameras and microscopes write them.
# 1. Pillow reads the white of a JPEG 2000 of 12 or 16 bits of colour as black (256 in a byte).
# 2. OpenCV reads a TIFF of 16 bits whose colours lie in planes apart (PlanarConfiguration 2) mixed
#    up, although it returns an array of the right shape and no error.
# Exit code 0 while both are so; 1 where one of them changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 pillow==13.0.0 imagecodecs==2026.3.6 \
  opencv-python-headless==5.0.0.93 tifffile==2026.3.3
cd "$folder"
cat > check.py <<'PY'
import io
import sys

import cv2
import imagecodecs
import numpy as np
import PIL
import tifffile
from PIL import Image

ramp = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
deep = np.stack([ramp, ramp[::-1], np.full_like(ramp, 4095)], axis=2)  # 12 bits, blue all white

data = imagecodecs.jpeg2k_encode(deep, level=0, reversible=True, bitspersample=12)
assert (imagecodecs.jpeg2k_decode(data) == deep).all()  # the file is right
read = np.asarray(Image.open(io.BytesIO(data)))
blue = int(read[..., 2].max())
print(f"Pillow {PIL.__version__}: JPEG 2000 of 12 bits, samples of 4095 (white): "
      f"expected 255, read {blue}")

file = io.BytesIO()
planes = np.ascontiguousarray(np.moveaxis(deep, 2, 0))
tifffile.imwrite(file, planes, photometric="rgb", planarconfig="separate")
assert (tifffile.imread(io.BytesIO(file.getvalue())) == planes).all()  # the file is right
found = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
right = found is not None and found.shape == deep.shape and (found[..., ::-1] == deep).all()
mixed = found is not None and found.shape == deep.shape and not right
print(f"OpenCV {cv2.__version__}: TIFF of 16 bits in planes apart: expected the picture or None, "
      f"got {'another picture of that shape' if mixed else 'the picture' if right else 'None'}")
sys.exit(0 if blue == 0 and mixed else 1)
PY
"$folder/venv/bin/python" check.py

"""DICOM photographs of the eye: the extra segpipe[dicom]. Imported for files that say so alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import get_nr_frames, pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from segpipe.data.codecs import check_scans, check_size
from segpipe.errors import Fault, RejectedImage

PREAMBLE = 132  # bytes: 128 of anything, then DICM
JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit)
JPEG_2000 = (JPEG2000Lossless, JPEG2000)
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
LUMA = ("YBR_FULL", "YBR_FULL_422")  # pydicom converts these to RGB
COLOURS = ("RGB", *LUMA, "YBR_ICT", "YBR_RCT")  # the last two only in JPEG 2000, which undoes them
GREYS = ("MONOCHROME1", "MONOCHROME2")
PRIMARIES = ("Red", "Green", "Blue")
ELEMENTS = (  # all that is read of a file: nothing else can do harm
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "NumberOfFrames", "PixelData"),
    *(f"{name}PaletteColorLookupTableDescriptor" for name in PRIMARIES),
    *(f"{name}PaletteColorLookupTableData" for name in PRIMARIES),
)

Image8 = npt.NDArray[np.uint8]


def decode_dicom(data: bytes, max_megapixels: float) -> tuple[Image8, str]:
    """A DICOM file -> the image [H, W, 3] uint8 RGB of its first frame, and a note on the others.

    Stored bits are scaled to 8 (of more than 8 the upper ones count), MONOCHROME1 is inverted, a
    palette looked up; windows (VOI) and calibrations are not applied. Raises RejectedImage, also
    for what is not read: other compressions than JPEG, JPEG 2000 and RLE, signed and float pixels.
    A file that is cut off or damaged raises what pydicom and Pillow raise.
    """
    syntax = _transfer_syntax(data)
    dataset = dcmread(io.BytesIO(data), specific_tags=list(ELEMENTS))
    if "PixelData" not in dataset:
        raise RejectedImage(Fault.UNSUPPORTED_PIXELS, "DICOM without integer pixel data")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_size(columns, rows, max_megapixels)
    _check_readable(dataset, syntax)
    num_frames = get_nr_frames(dataset, warn=False)
    as_rgb = _check_frame(dataset, syntax, num_frames) if syntax in (*JPEG, *JPEG_2000) else True
    pixels = pixel_array(dataset, index=0, as_rgb=as_rgb)
    image = _image(pixels, dataset)
    if image.shape != (rows, columns, 3):
        raise ValueError(f"{image.shape[:2]} pixels instead of {(rows, columns)}")
    return image, f"first of {num_frames} frames" if num_frames > 1 else ""


def _transfer_syntax(data: bytes) -> UID:
    """How the pixels are encoded, found before pydicom would unpack a deflated file of any size."""
    stream = io.BytesIO(data)
    stream.seek(PREAMBLE)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    syntax = UID(meta.TransferSyntaxUID)
    if syntax not in (*NATIVE, *JPEG, *JPEG_2000, RLELossless):
        raise RejectedImage(Fault.UNSUPPORTED_PIXELS, "DICOM in a transfer syntax that is not read")
    return syntax


def _check_readable(dataset: Dataset, syntax: UID) -> None:
    """Raises RejectedImage for pixels of which pydicom or `_image` would make something else."""
    kind, bits = str(dataset.PhotometricInterpretation), int(dataset.BitsAllocated)
    if dataset.PixelRepresentation != 0:
        raise RejectedImage(Fault.UNSUPPORTED_PIXELS, "DICOM of signed pixels")
    if (
        kind not in (*COLOURS, *GREYS, "PALETTE COLOR")
        or (kind in LUMA and bits != 8)
        or (kind in ("YBR_ICT", "YBR_RCT") and syntax not in JPEG_2000)
        or (kind == "PALETTE COLOR" and "RedPaletteColorLookupTableData" not in dataset)
    ):
        raise RejectedImage(
            Fault.UNSUPPORTED_PIXELS, "DICOM with colours of a kind that is not read"
        )
    if syntax == JPEGExtended12Bit and dataset.BitsStored != 8:
        raise RejectedImage(Fault.UNSUPPORTED_PIXELS, "DICOM in a transfer syntax that is not read")


def _check_frame(dataset: Dataset, syntax: UID, num_frames: int) -> bool:
    """Compares an encoded frame with the file's header; True where its colours are to be converted.

    The frame has a size of its own, which nobody else checks, and an Adobe marker makes Pillow
    convert it to RGB, which pydicom does not notice.
    """
    frame = get_frame(dataset.PixelData, 0, number_of_frames=num_frames)
    with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as picture:
        if picture.size != (dataset.Columns, dataset.Rows):
            raise RejectedImage(
                Fault.DAMAGED_FILE, "DICOM of a frame that has another size than its header"
            )
        if (picture.format == "JPEG") != (syntax in JPEG):
            raise ValueError(f"a frame in {picture.format}")
        if syntax in JPEG:
            check_scans(frame)
        return "adobe_transform" not in picture.info


def _image(pixels: npt.NDArray[Any], dataset: Dataset) -> Image8:
    """Stored values [H, W] or [H, W, 3] -> image [H, W, 3] uint8 RGB."""
    kind = str(dataset.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        return np.stack([_looked_up(pixels, dataset, name) for name in PRIMARIES], axis=2)
    eight = _to_eight_bits(pixels, int(dataset.BitsStored))
    if kind in COLOURS:
        return eight
    grey = 255 - eight if kind == "MONOCHROME1" else eight
    return np.repeat(grey[..., None], 3, axis=2)


def _looked_up(pixels: npt.NDArray[Any], dataset: Dataset, name: str) -> Image8:
    """Indices [H, W] -> one primary [H, W] uint8 through its table (PS3.3 C.7.6.3.1.5)."""
    num_entries, first, bits = dataset[f"{name}PaletteColorLookupTableDescriptor"].value
    num_entries = num_entries or 2**16
    raw = bytes(dataset[f"{name}PaletteColorLookupTableData"].value)
    order = ">" if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    wide = len(raw) >= 2 * num_entries
    table = np.frombuffer(raw, order + "u2" if wide else "u1", num_entries)
    places = np.clip(pixels.astype(np.int32) - first, 0, num_entries - 1)
    primary: Image8 = _to_eight_bits(table, bits)[places]
    return primary


def _to_eight_bits(values: npt.NDArray[Any], bits: int) -> Image8:
    """Unsigned values of this many bits -> uint8 over the full range, the upper bits kept."""
    if not 1 <= bits <= 8 * values.dtype.itemsize:
        raise ValueError(f"{bits} bits in {values.dtype}")
    if bits < 8:
        values = np.minimum(values, 2**bits - 1) * np.uint16(255) // np.uint16(2**bits - 1)
    elif values.dtype.itemsize > 1:
        values = np.minimum(values >> (bits - 8), 255)
    return values.astype(np.uint8, copy=False)

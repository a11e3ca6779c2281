"""DICOM photographs of the eye: the extra segpipe[dicom]. Imported for files that say so alone."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import get_nr_frames, pixel_array
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from segpipe.data import depth
from segpipe.data.arrays import Image8
from segpipe.data.dicom_frames import JPEG_2000, Frame, check_syntax, first_frame
from segpipe.data.dicom_objects import DESCRIPTION, acquisition_of, check_class
from segpipe.data.photograph import Photograph, check_area, check_size, joined
from segpipe.errors import Fault, RejectedImage

PREAMBLE = 132  # bytes: 128 of anything, then DICM; files out of an archive may lack it
LUMA = ("YBR_FULL", "YBR_FULL_422")  # pydicom converts these to RGB
COLOURS = ("RGB", *LUMA, "YBR_ICT", "YBR_RCT")  # the last two only in JPEG 2000, which undoes them
GREYS = ("MONOCHROME1", "MONOCHROME2")
PRIMARIES = ("Red", "Green", "Blue")
ELEMENTS = (  # all that is read of a file: nothing else can do harm, nothing names a patient
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames"),
    *("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "PixelData"),
    *(f"{name}PaletteColorLookupTableDescriptor" for name in PRIMARIES),
    *(f"{name}PaletteColorLookupTableData" for name in PRIMARIES),
    *DESCRIPTION,
)
HEAD_BYTES = 1 << 18  # of a deflated file: unpacked first, for the size that it states


def read_dicom(data: bytes, max_megapixels: float) -> Photograph:
    """A DICOM file -> its first frame, 8 bits a channel, with a note on the others.

    The SOP class says whether it is a photograph (`dicom_objects`). Stored bits are scaled to 8 (of
    more than 8 the upper ones count, of 16 those that are used), MONOCHROME1 is inverted, a palette
    looked up; windows (VOI) and calibrations are not applied, but a window tells how many of 16
    bits are used. Raises RejectedImage, also for signed and float pixels and for transfer syntaxes
    that are not read (`dicom_frames`). A file that is cut off or damaged raises what pydicom and
    the decoders raise.
    """
    dataset = _dataset(data, max_megapixels)
    check_class(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    check_syntax(syntax)
    if "PixelData" not in dataset:
        raise RejectedImage(Fault.UNSUPPORTED_PIXELS, "DICOM without integer pixel data")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    check_size(columns, rows, max_megapixels)
    _check_readable(dataset, syntax)
    num_frames = get_nr_frames(dataset, warn=False)
    frame = first_frame(dataset, syntax, num_frames) if syntax.is_encapsulated else Frame()
    pixels = pixel_array(
        dataset, index=0, as_rgb=frame.as_rgb, decoding_plugin=frame.decoding_plugin
    )
    image, depth_note = _image(pixels, dataset)
    if image.shape != (rows, columns, 3):
        raise ValueError(f"{image.shape[:2]} pixels instead of {(rows, columns)}")
    frames_note = f"first of {num_frames} frames" if num_frames > 1 else ""
    acquisition, spacing_note = acquisition_of(dataset)
    return Photograph(
        depth.as_colour(image),
        1,
        joined(frames_note, depth_note, spacing_note),
        (rows, columns),
        acquisition=acquisition,
    )


# ---- file -> dataset


def _dataset(data: bytes, max_megapixels: float) -> Dataset:
    """ELEMENTS of a file, with the transfer syntax of what pixel data are in it."""
    stream = io.BytesIO(data)
    stream.seek(PREAMBLE if data[PREAMBLE - 4 : PREAMBLE] == b"DICM" else 0)
    has_meta = bool(stream.tell()) or data.startswith(b"\2\0")
    if not has_meta:
        dataset = dcmread(io.BytesIO(data), force=True, specific_tags=list(ELEMENTS))
        is_implicit, _ = dataset.original_encoding
        return _with_syntax(
            dataset, ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
        )
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if UID(meta.TransferSyntaxUID) != DeflatedExplicitVRLittleEndian:
        return dcmread(io.BytesIO(data), force=True, specific_tags=list(ELEMENTS))
    # pydicom would unpack a deflated file of any size
    unpacked = _inflated(data[stream.tell() :], max_megapixels)
    return _with_syntax(_plain(unpacked), ExplicitVRLittleEndian)


def _with_syntax(dataset: Dataset, syntax: UID) -> Dataset:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _plain(data: bytes, header_only: bool = False) -> Dataset:
    """ELEMENTS of an explicit little endian dataset, as far as it goes."""
    tags: list[Any] = [Tag(name) for name in ("SpecificCharacterSet", *ELEMENTS)]
    pixel_data = Tag("PixelData")
    return read_dataset(
        io.BytesIO(data),
        False,
        True,
        stop_when=(lambda tag, vr, length: tag == pixel_data) if header_only else None,
        specific_tags=tags,
    )


def _inflated(data: bytes, max_megapixels: float) -> bytes:
    """A deflated dataset, unpacked no further than its header's size allows."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    head = unpacker.decompress(data, HEAD_BYTES)
    header = _with_syntax(_plain(head, header_only=True), ExplicitVRLittleEndian)
    check_class(header)
    rows, columns = int(header.Rows), int(header.Columns)
    check_size(columns, rows, max_megapixels)
    num_pixels = rows * columns * get_nr_frames(header, warn=False)
    check_area(num_pixels, max_megapixels)
    sample_bytes = int(header.SamplesPerPixel) * int(header.BitsAllocated) // 8
    rest = unpacker.decompress(unpacker.unconsumed_tail, num_pixels * sample_bytes + HEAD_BYTES)
    if not unpacker.eof:
        raise ValueError("more pixel data than the header says, or fewer")
    return head + rest


# ---- pixels -> 8 bits


def _check_readable(dataset: Dataset, syntax: UID) -> None:
    """Raises RejectedImage for pixels of which pydicom or `_image` would make something else."""
    kind, bits = str(dataset.PhotometricInterpretation), int(dataset.BitsAllocated)
    stored = int(dataset.BitsStored)
    if dataset.PixelRepresentation != 0:
        raise RejectedImage(Fault.UNSUPPORTED_PIXELS, "DICOM of signed pixels")
    if not 1 <= stored <= bits:
        raise ValueError(f"{stored} bits stored of {bits}")
    if dataset.get("HighBit", stored - 1) != stored - 1:
        raise RejectedImage(Fault.UNSUPPORTED_PIXELS, "DICOM whose HighBit is not BitsStored - 1")
    if (
        kind not in (*COLOURS, *GREYS, "PALETTE COLOR")
        or (kind in LUMA and bits != 8)
        or (kind in ("YBR_ICT", "YBR_RCT") and syntax not in JPEG_2000)
        or (kind == "PALETTE COLOR" and "RedPaletteColorLookupTableData" not in dataset)
    ):
        raise RejectedImage(
            Fault.UNSUPPORTED_PIXELS, "DICOM with colours of a kind that is not read"
        )


def _image(pixels: npt.NDArray[Any], dataset: Dataset) -> tuple[Image8, str]:
    """Stored values [H, W] or [H, W, 3] -> image [H, W, 3] uint8 RGB, and a note."""
    kind = str(dataset.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        primaries = [_looked_up(pixels, dataset, name) for name in PRIMARIES]
        return np.stack(primaries, axis=2), ""
    bits, note = int(dataset.BitsStored), ""
    if bits == 16 and pixels.dtype == np.uint16:
        eight, note = depth.upper_eight(pixels, _windowed(dataset))
    else:
        eight = _to_eight_bits(pixels, bits)
    if kind in COLOURS:
        return eight, note
    grey = 255 - eight if kind == "MONOCHROME1" else eight
    return np.repeat(grey[..., None], 3, axis=2), note


def _windowed(dataset: Dataset) -> int:
    """The stored value that the first window shows as white (PS3.3 C.11.2.1.2), 0 without any."""
    if (dataset.get("RescaleSlope") or 1, dataset.get("RescaleIntercept") or 0) != (1, 0):
        return 0  # a window of what the stored values are rescaled to
    try:
        centre, width = (
            float(np.atleast_1d(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth")
        )
        return round(min(max(centre - 0.5 + (width - 1) / 2, 0), depth.FULL_RANGE))
    except (KeyError, TypeError, ValueError, IndexError):
        return 0


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

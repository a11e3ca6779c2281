"""Compressed frames of a DICOM file: which transfer syntaxes are read, and what decodes them.

pydicom calls the decoders. One is named for each frame, so that the same file gives the same
pixels wherever it is read, and a frame's own header is compared with the file's before that.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

from PIL import Image
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from segpipe.data.headers import Header, check_scans, jpeg_2000_header, jpeg_header
from segpipe.errors import Fault, RejectedImage

NATIVE = (
    *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian),
    DeflatedExplicitVRLittleEndian,
)
JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit)
LOSSLESS_JPEG = (JPEGLossless, JPEGLosslessSV1)
JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
HT_JPEG_2000 = (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
JPEG_2000 = (JPEG2000Lossless, JPEG2000, *HT_JPEG_2000)
PROCESSES = {  # of JPEG: the markers with which a frame may begin
    JPEG: (0xC0, 0xC1, 0xC2),
    LOSSLESS_JPEG: (0xC3,),
    JPEG_LS: (0xF7,),
}
LIBJPEG = "imagecodecs"  # pydicom's name for the decoder at this file's end


class Frame(NamedTuple):
    """How pydicom is to decode a frame."""

    decoding_plugin: str = ""
    """pydicom's name of the decoder; none for pixels that are not compressed."""
    as_rgb: bool = True
    """Whether luma and chroma are still to be converted to RGB."""


def check_syntax(syntax: UID) -> None:
    """Raises RejectedImage for a transfer syntax that is never read."""
    if syntax in (*NATIVE, *JPEG, *LOSSLESS_JPEG, *JPEG_LS, *JPEG_2000, RLELossless):
        return
    raise RejectedImage(
        Fault.UNSUPPORTED_PIXELS, f"DICOM in a transfer syntax that is not read: {_name(syntax)}"
    )


def first_frame(dataset: Dataset, syntax: UID, num_frames: int) -> Frame:
    """How the first frame is decoded. Raises RejectedImage where the decoder is not installed, or
    where the frame is of another size than its header, which no decoder checks before it decodes.
    """
    if syntax == RLELossless:  # has no size of its own
        return Frame("pydicom")
    data = get_frame(dataset.PixelData, 0, number_of_frames=num_frames)
    header = _header(data, syntax)
    if header[:2] != (dataset.Columns, dataset.Rows):
        raise RejectedImage(
            Fault.DAMAGED_FILE, "DICOM of a frame that has another size than its header"
        )
    if header.components != dataset.SamplesPerPixel or header.bits > dataset.BitsAllocated:
        raise ValueError(f"{header} in a file of other samples")
    plugin = _available(syntax, header)
    if plugin == "pillow" and syntax in JPEG:
        return Frame(plugin, as_rgb=not _converted_by_pillow(data))
    if syntax in (*LOSSLESS_JPEG, *JPEG_LS):  # the file says what a lossless encoder was given
        return Frame(plugin, as_rgb=str(dataset.PhotometricInterpretation) != "RGB")
    return Frame(plugin)


def _header(data: bytes, syntax: UID) -> Header:
    if syntax in JPEG_2000:
        return jpeg_2000_header(data)
    check_scans(data, is_ls=syntax in JPEG_LS)
    header = jpeg_header(data)
    wanted = next(found for kinds, found in PROCESSES.items() if syntax in kinds)
    if header.process not in wanted:
        raise ValueError(f"a frame of process {header.process:#x}")
    return header


def _converted_by_pillow(data: bytes) -> bool:
    """Whether an Adobe marker makes Pillow convert to RGB, which pydicom does not notice."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
        return "adobe_transform" in picture.info


def _available(syntax: UID, header: Header) -> str:
    """The first decoder that is installed, of those that read such a frame right."""
    decoder = get_decoder(syntax)
    if syntax in (*JPEG, *LOSSLESS_JPEG) and LIBJPEG not in decoder.available_plugins:
        decoder.add_plugin(LIBJPEG, (__name__, "_decode_frame"))
    installed = decoder.available_plugins
    for name in _decoders(syntax, header):
        if name in installed:
            return name
    raise RejectedImage(
        Fault.MISSING_DICOM_EXTRA,
        f"DICOM in a transfer syntax that needs all of segpipe[dicom]: {_name(syntax)}",
    )


def _decoders(syntax: UID, header: Header) -> tuple[str, ...]:
    """Whatever reads such a frame right, in order of preference, by pydicom's names."""
    if syntax in JPEG_LS:
        return "pyjpegls", "pylibjpeg"
    if syntax in HT_JPEG_2000:
        return ("pylibjpeg",)
    if syntax in JPEG_2000:  # Pillow keeps the upper 8 bits of deeper colours
        return ("pillow",) if header.bits <= 8 or header.components == 1 else ("pylibjpeg",)
    if syntax in JPEG and header.bits == 8:
        return ("pillow",)
    return LIBJPEG, "pylibjpeg"


def _name(syntax: UID) -> str:
    known = syntax.is_valid and syntax.name != syntax
    return f"{syntax.name} ({syntax})" if known else str(syntax) if syntax.is_valid else "unknown"


# ---- a decoder as pydicom wants one: libjpeg-turbo 3 by imagecodecs, as Pillow's has 8 bits alone

DECODER_DEPENDENCIES = {syntax: ("imagecodecs",) for syntax in (*JPEG, *LOSSLESS_JPEG)}


def is_available(uid: str) -> bool:
    """Whether imagecodecs is installed."""
    try:
        import imagecodecs
    except ImportError:
        return False
    return bool(imagecodecs.JPEG8.available)


def _decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Samples as they were encoded, of 8 to 16 bits, colours beside each other."""
    import imagecodecs

    colours: dict[str, Any] = {}
    if runner.samples_per_pixel == 3:  # equal: nothing is converted
        colours = {"colorspace": "RGB", "outcolorspace": "RGB"}
    samples = imagecodecs.jpeg8_decode(src, **colours)
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * samples.dtype.itemsize)
    return bytes(samples.tobytes())

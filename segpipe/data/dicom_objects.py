"""Which DICOM objects are photographs of a fundus, and what they say of how they were taken."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from datetime import datetime
from typing import Any

from pydicom import Dataset
from pydicom.uid import (
    UID,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    OphthalmicPhotography8BitImageStorage,
    OphthalmicPhotography16BitImageStorage,
    SecondaryCaptureImageStorage,
    VLPhotographicImageStorage,
    WideFieldOphthalmicPhotography3DCoordinatesImageStorage,
    WideFieldOphthalmicPhotographyStereographicProjectionImageStorage,
)

from segpipe.data.photograph import Acquisition
from segpipe.errors import Fault, RejectedImage

OPHTHALMIC = (OphthalmicPhotography8BitImageStorage, OphthalmicPhotography16BitImageStorage)
PHOTOGRAPHS = (
    *OPHTHALMIC,
    WideFieldOphthalmicPhotographyStereographicProjectionImageStorage,
    WideFieldOphthalmicPhotography3DCoordinatesImageStorage,
    VLPhotographicImageStorage,
)
CAPTURES = (  # photographs that came from elsewhere, but also screenshots and reports
    SecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
)
FROM_A_CAMERA = ("DV", "DI", "DF", "SI")  # ConversionType: of video, digital, of film, scanned
EYE_MODALITIES = ("OP", "XC")  # Modality: ophthalmic photography, external camera
DESCRIPTION = (  # elements that are read for this, none of which names a patient
    *("SOPClassUID", "Modality", "ConversionType", "ImageLaterality", "Laterality"),
    *("PixelSpacing", "Manufacturer", "ManufacturerModelName"),
    *("AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "TimezoneOffsetFromUTC"),
)
LONGEST_TEXT = 64  # letters of an LO element (PS3.5 6.2)
SQUARE = 0.01  # by what a pixel's sides may differ
DATE_TIME = re.compile(r"(\d{8})(\d{2,6})?(?:\.\d{1,6})?([+-]\d{4})?")
ZONE = re.compile(r"[+-]\d{4}")


def check_class(dataset: Dataset) -> None:
    """Raises RejectedImage for an object whose SOP class is none of a photograph, naming it.

    A secondary capture is read where it says that it came from a camera: its Modality is OP or XC
    and its ConversionType DV, DI, DF or SI. What a workstation drew is a screenshot.
    """
    found = UID(dataset.get("SOPClassUID") or dataset.file_meta.MediaStorageSOPClassUID)
    if not found.is_valid:  # the file ends within it
        raise ValueError("no SOP class")
    if found in PHOTOGRAPHS:
        return
    if found in CAPTURES:
        source = str(dataset.get("ConversionType", "")), str(dataset.get("Modality", ""))
        if source[0] in FROM_A_CAMERA and source[1] in EYE_MODALITIES:
            return
        raise RejectedImage(
            Fault.NOT_A_PHOTOGRAPH,
            f"DICOM of a screenshot or scanned page, no photograph: {found.name}",
        )
    raise RejectedImage(Fault.NOT_A_PHOTOGRAPH, f"DICOM of no photograph: {found.name}")


def acquisition_of(dataset: Dataset) -> tuple[Acquisition, str]:
    """How a photograph says that it was taken, and a note; what is damaged counts as not said."""
    spacing, note = _pixel_spacing(dataset)
    names = (_text(dataset, "Manufacturer"), _text(dataset, "ManufacturerModelName"))
    return Acquisition(
        laterality=_laterality(dataset),
        pixel_spacing_mm=spacing,
        device=" ".join(filter(None, names)) or None,
        acquired=_acquired(dataset),
    ), note


def _text(dataset: Dataset, keyword: str) -> str:
    with suppress(Exception):
        text = str(dataset.get(keyword, "") or "").strip()
        return "".join(filter(str.isprintable, text))[:LONGEST_TEXT]
    return ""


def _laterality(dataset: Dataset) -> str | None:
    """Of the image (PS3.3 C.8.17.5), else of its series."""
    sides = (_text(dataset, keyword) for keyword in ("ImageLaterality", "Laterality"))
    return next((side for side in sides if side in ("R", "L", "B")), None)


def _pixel_spacing(dataset: Dataset) -> tuple[float | None, str]:
    """PixelSpacing of ophthalmic photography alone (PS3.3 C.8.17.2), None of oblong pixels.

    There it is the nominal distance at the focal plane in the retina, which varies over the field;
    of other classes it is none in the retina.
    """
    if str(dataset.get("SOPClassUID", "")) not in OPHTHALMIC:
        return None, ""
    with suppress(Exception):
        rows, columns = map(float, dataset.get("PixelSpacing") or ())
        if not (0 < rows < math.inf and 0 < columns < math.inf):
            return None, ""
        if abs(rows / columns - 1) > SQUARE:
            return None, "pixels are not square"
        return rows, ""
    return None, ""


def _acquired(dataset: Dataset) -> str | None:
    """AcquisitionDateTime, else date and time, in ISO 8601."""
    values = [
        _text(dataset, "AcquisitionDateTime"),
        _text(dataset, "AcquisitionDate") + _text(dataset, "AcquisitionTime"),
    ]
    found = next(filter(None, map(DATE_TIME.fullmatch, values)), None)
    if found is None:
        return None
    date, time, zone = found.groups()
    zone = zone or _text(dataset, "TimezoneOffsetFromUTC")
    digits: Any = date + (time or "")
    with suppress(ValueError):
        moment = datetime.strptime(digits, "%Y%m%d%H%M%S"[: 6 + len(time or "")])
        if not time:
            return moment.date().isoformat()
        return moment.isoformat() + (f"{zone[:3]}:{zone[3:]}" if ZONE.fullmatch(zone) else "")
    return None

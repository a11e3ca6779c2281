"""The SOP class says what is a photograph; how it was taken is kept, whose it is never.

Run: pytest tests/test_dicom_objects.py
"""

import io
import random

import numpy as np
import pytest
from files import SECRETS, dicom, header, saved, smooth, written
from pydicom import DataElement, dcmread
from pydicom.datadict import DicomDictionary
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    EncapsulatedPDFStorage,
    OphthalmicPhotography8BitImageStorage,
    OphthalmicPhotography16BitImageStorage,
    OphthalmicThicknessMapStorage,
    OphthalmicTomographyImageStorage,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    VLPhotographicImageStorage,
    WideFieldOphthalmicPhotographyStereographicProjectionImageStorage,
)

from segpipe.data.codecs import decode_photograph
from segpipe.data.dicom import ELEMENTS
from segpipe.data.photograph import Acquisition
from segpipe.errors import Fault, RejectedImage

PIXELS = smooth()
PHOTOGRAPHS = [
    OphthalmicPhotography8BitImageStorage,
    OphthalmicPhotography16BitImageStorage,
    WideFieldOphthalmicPhotographyStereographicProjectionImageStorage,
    VLPhotographicImageStorage,
]
OTHERS = [
    OphthalmicTomographyImageStorage,
    OphthalmicThicknessMapStorage,
    SegmentationStorage,
    RawDataStorage,
    EncapsulatedPDFStorage,
    UID("1.2.826.0.1.3680043.2.1"),  # a device's own
]


def rejection(data: bytes) -> RejectedImage:
    with pytest.raises(RejectedImage) as caught:
        decode_photograph(data)
    assert str(caught.value).isprintable()
    return caught.value


def acquisition(**elements: object) -> Acquisition:
    return decode_photograph(dicom(PIXELS, "RGB", **elements)).acquisition


@pytest.mark.parametrize("uid", PHOTOGRAPHS, ids=lambda uid: uid.keyword)
def test_a_class_of_photographs_is_read(uid):
    found = decode_photograph(dicom(PIXELS, "RGB", SOPClassUID=uid))
    np.testing.assert_array_equal(found.image, PIXELS)


@pytest.mark.parametrize("uid", OTHERS, ids=lambda uid: uid.keyword)
def test_another_class_is_rejected_by_its_name(uid):
    """Whatever it has of a photograph, and before its pixels, of which some have none."""
    for data in (
        dicom(PIXELS, "RGB", SOPClassUID=uid),
        dicom(PIXELS, "RGB", "1.2.840.10008.1.2.1.99", SOPClassUID=uid),
        saved(with_class(uid)),
    ):
        found = rejection(data)
        assert found.fault == Fault.NOT_A_PHOTOGRAPH
        assert str(found) == f"DICOM of no photograph: {uid.name}"


def with_class(uid: str):
    dataset = header(PIXELS, "RGB")
    dataset.SOPClassUID = uid
    return dataset


@pytest.mark.parametrize(
    ("modality", "conversion", "is_read"),
    [
        ("OP", "DI", True),
        ("OP", "SI", True),
        ("XC", "DF", True),
        ("OP", "WSD", False),
        ("OP", "SYN", False),
        ("OP", "SD", False),
        ("OP", None, False),
        ("OT", "DI", False),
        ("OPT", "DI", False),
    ],
)
def test_of_secondary_captures_those_from_a_camera_are_read(modality, conversion, is_read):
    elements = {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": modality}
    elements |= {"ConversionType": conversion} if conversion else {}
    data = dicom(PIXELS, "RGB", **elements)
    if is_read:
        np.testing.assert_array_equal(decode_photograph(data).image, PIXELS)
        return
    assert rejection(data).fault == Fault.NOT_A_PHOTOGRAPH
    assert "screenshot" in str(rejection(data))


def test_a_class_told_by_the_meta_information_alone_counts():
    dataset = header(PIXELS, "RGB")
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    data = written(dataset, PIXELS)
    place = data.index(b"\x08\0\x16\0UI", 132)  # its element in the dataset
    bare = data[:place] + data[place + 8 + int.from_bytes(data[place + 6 : place + 8], "little") :]
    assert "SOPClassUID" not in dcmread(io.BytesIO(bare))
    np.testing.assert_array_equal(decode_photograph(bare).image, PIXELS)


# ---- how it was taken


def test_a_file_that_says_nothing_has_no_acquisition():
    assert acquisition() == Acquisition()


@pytest.mark.parametrize(
    ("elements", "laterality"),
    [
        ({"ImageLaterality": "R"}, "R"),
        ({"ImageLaterality": "B"}, "B"),
        ({"Laterality": "L"}, "L"),
        ({"ImageLaterality": "L", "Laterality": "R"}, "L"),
        ({"ImageLaterality": "U"}, None),
        ({"ImageLaterality": ""}, None),
    ],
)
def test_the_eye_is_that_of_the_image_before_that_of_the_series(elements, laterality):
    assert acquisition(**elements).laterality == laterality


def test_the_spacing_is_told_of_square_pixels_in_the_retina():
    assert acquisition(PixelSpacing=[0.0117, 0.0117]).pixel_spacing_mm == 0.0117
    oblong = decode_photograph(dicom(PIXELS, "RGB", PixelSpacing=[0.01, 0.02]))
    assert (oblong.acquisition.pixel_spacing_mm, oblong.note) == (None, "pixels are not square")
    photographic = acquisition(
        SOPClassUID=VLPhotographicImageStorage, PixelSpacing=[0.0117, 0.0117]
    )
    assert photographic.pixel_spacing_mm is None  # there it is not in the retina
    for values in ([0, 0], [-1, -1]):
        assert acquisition(PixelSpacing=values).pixel_spacing_mm is None


def test_the_device_is_its_makers_name_and_model():
    assert acquisition(Manufacturer="Acme", ManufacturerModelName="Eye 3").device == "Acme Eye 3"
    assert acquisition(ManufacturerModelName="Eye 3").device == "Eye 3"
    assert acquisition(SpecificCharacterSet="ISO_IR 192", Manufacturer="Häm").device == "Häm"


@pytest.mark.parametrize(
    ("elements", "acquired"),
    [
        ({"AcquisitionDateTime": "20240229101530.125+0100"}, "2024-02-29T10:15:30+01:00"),
        ({"AcquisitionDateTime": "20240229101530"}, "2024-02-29T10:15:30"),
        ({"AcquisitionDateTime": "20240229"}, "2024-02-29"),
        ({"AcquisitionDate": "20240229", "AcquisitionTime": "1015"}, "2024-02-29T10:15:00"),
        (
            {
                "AcquisitionDate": "20240229",
                "AcquisitionTime": "101530",
                "TimezoneOffsetFromUTC": "-0330",
            },
            "2024-02-29T10:15:30-03:30",
        ),
        ({"AcquisitionTime": "101530"}, None),
        ({"AcquisitionDateTime": "2024"}, None),
        ({"AcquisitionDate": "20230229"}, None),
    ],
)
def test_the_time_is_that_of_the_acquisition(elements, acquired):
    assert acquisition(**elements).acquired == acquired


@pytest.mark.filterwarnings("ignore")  # pydicom's, of values that no element may have
def test_values_that_are_none_do_not_cost_the_photograph():
    dataset = header(PIXELS, "RGB")
    for keyword, vr, value in (
        ("PixelSpacing", "LO", "wide\\wide"),
        ("AcquisitionDateTime", "DT", "99999999999999"),
        ("ImageLaterality", "CS", "RIGHT\\L"),
        ("Manufacturer", "LO", "\x00\x1b[2J" + "a" * 500),
    ):
        dataset.add(DataElement(Tag(keyword), vr, value, validation_mode=0))
    found = decode_photograph(written(dataset, PIXELS))
    np.testing.assert_array_equal(found.image, PIXELS)
    assert found.acquisition.device.isprintable()
    assert len(found.acquisition.device) <= 64
    assert found.acquisition == Acquisition(device=found.acquisition.device)


# ---- whose it is


def test_nothing_that_names_a_patient_comes_out_of_a_file():
    data = dicom(PIXELS, "RGB", ImageLaterality="R", Manufacturer="Acme", **SECRETS)
    assert all(str(value).encode() in data for value in SECRETS.values())
    found = decode_photograph(data)
    told = f"{found.acquisition} {found.note}"
    assert "Acme" in told
    other = dicom(PIXELS, "RGB", SOPClassUID=RawDataStorage, **SECRETS)
    for text in (told, str(rejection(other)), str(rejection(data[:-5000]))):
        assert not [secret for secret in SECRETS.values() if secret in text]


def test_no_element_of_a_patient_or_a_person_is_read():
    """By the dictionary: of groups 0010 (patient), of names (PN) and unique identifiers (UI) none
    but the class; and no text but the few that are listed."""
    texts = {"Manufacturer", "ManufacturerModelName"}
    for keyword in ELEMENTS:
        tag = Tag(keyword)
        vr = DicomDictionary[int(tag)][0]
        assert tag.group != 0x0010, keyword
        assert vr != "PN", keyword
        assert vr != "UI" or keyword == "SOPClassUID", keyword
        assert vr not in ("LO", "LT", "ST", "UT", "AE", "UC") or keyword in texts, keyword


def test_every_attribute_of_the_dictionary_may_be_there():
    """Some hundred at random, with a word that must not come out."""
    dataset, dice = header(PIXELS, "RGB"), random.Random(0)
    kept = {*ELEMENTS, "SpecificCharacterSet"}
    plain = [
        tag
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items()
        if vr in ("LO", "SH", "PN", "ST", "LT") and keyword not in kept and tag >> 16 > 8
    ]
    for tag in dice.sample(plain, 300):
        dataset.add(DataElement(tag, DicomDictionary[tag][0], "Wxyz"))
    found = decode_photograph(written(dataset, PIXELS))
    assert "Wxyz" not in f"{found.acquisition} {found.note}"

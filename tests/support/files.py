"""Small files of every kind, made for tests by other libraries than those that read them here."""

import base64
import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

OPHTHALMIC_8_BIT = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
SECRETS = {  # attributes that name or describe a patient, each with a word to look for
    "PatientName": "Wxyzname^Secret",
    "PatientID": "Wxyzid",
    "IssuerOfPatientID": "Wxyzissuer",
    "OtherPatientIDs": "Wxyzother",
    "PatientBirthDate": "19330303",
    "PatientAddress": "Wxyzstreet",
    "PatientComments": "Wxyzcomment",
    "InstitutionName": "Wxyzclinic",
    "ReferringPhysicianName": "Wxyzdoctor",
    "OperatorsName": "Wxyzoperator",
    "AccessionNumber": "Wxyzaccession",
    "StudyDescription": "Wxyzstudy",
    "SeriesDescription": "Wxyzseries",
    "StudyID": "Wxyzstudyid",
    "StudyDate": "20190919",
    "ImageComments": "Wxyzimage",
    "DeviceSerialNumber": "Wxyzserial",
    "StationName": "Wxyzstation",
    "SOPInstanceUID": "1.2.777777.1",
    "StudyInstanceUID": "1.2.777777.2",
}


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    """A picture [H, W, 3] uint8 that no lossy format changes by much."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([3 * columns, 4 * rows, rows + columns], axis=2).astype(np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """By Pillow."""
    buffer = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, photometric: str = "minisblack", **options: object) -> bytes:
    """By tifffile."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric=photometric, **options)
    return buffer.getvalue()


def tiff_pages(*pages: tuple[np.ndarray, int]) -> bytes:
    """Pages of RGB, each with its NewSubfileType: 1 of a reduced copy, 4 of a mask."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for values, kind in pages:  # tifffile refuses some that others write
            file.write(values, photometric="rgb", extratags=[(254, 4, 1, kind, True)])
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Of a PNG."""
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def png16(values: np.ndarray, significant: int = 0) -> bytes:
    """A PNG of 16 bits of values [H, W] or [H, W, 3 or 4], with sBIT where bits are significant."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    says = chunk(b"sBIT", bytes([significant] * channels)) if significant else b""
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + says,
            chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""),
        ]
    )


def heic() -> bytes:
    """smooth() as pillow-heif 1.8.1 encodes it (quality 90), as nothing permissive writes HEVC."""
    return base64.b64decode(HEIC)


# ---- DICOM


def header(values: np.ndarray, kind: str, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """A dataset that describes values [H, W] or [H, W, 3] unsigned, without the pixels."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = OPHTHALMIC_8_BIT, "1.2.3.4"
    dataset.PatientName = "Nobody"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    dataset.PhotometricInterpretation = kind
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def written(dataset: Dataset, pixels: bytes | np.ndarray) -> bytes:
    syntax = dataset.file_meta.TransferSyntaxUID
    if isinstance(pixels, np.ndarray):
        order = "<" if syntax.is_little_endian else ">"
        pixels = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset.PixelData = pixels + bytes(len(pixels) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated <= 8 else "OW"
    return saved(dataset)


def saved(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(
    values: np.ndarray, kind: str, syntax: str = ExplicitVRLittleEndian, **more: object
) -> bytes:
    dataset = header(values, kind, syntax)
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    return written(dataset, values)


def encapsulated(
    frames: list[bytes], kind: str, syntax: str, like: np.ndarray, **more: object
) -> bytes:
    dataset = header(like, kind, syntax)
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    return written(dataset, encapsulate(frames))


def compressed(values: np.ndarray, kind: str, syntax: str, bits: int, **options: object) -> bytes:
    """By the encoder that pydicom has for this transfer syntax."""
    dataset = header(values, kind)
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelData = values.tobytes() + bytes(values.size % 2)
    dataset.compress(syntax, **options)
    return saved(dataset)


HEIC = """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAA
AAAAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAAdsAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAA
AAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34
+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5
uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAA
AAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAA
AAAAAAEAAQWBAgMFhAAAAeNtZGF0AAAB1ygBrwY4iTvUxe6GTpkPQ84OEyNZwo9tqYOmPBXupAUJ+2GFgQpFfVCS
AS6ZOKyeJeKinh/D8zQHLGfT27y7GtImW4j4cmk+rbw4ugStvtaKLTpiE7DXu2M69iEgkzO1xuB7egtFx7ULzLhC
4ir4pq5xStlD7sbXFabO4151GtK0q2Ikrxr0vXkXoXVoNK4CoIopspfCrTm2LT5JgUhvL259+PdUEJ63hsWadFmy
MFeLD+a/d4sn1Syvqa9ynLkyeDOh6TvaFWCB1xkius/y+zEUVRt9OU3TTUjV8FXHFT2Z77OLcMjNAReP3lEeekyv
Ny+XUux0nPegt2uHPfkvTVwvVl6T2HjoYIQC5oRz95G0bZf4/K9nPomS4E0L6aY7/d2+fSuxn3qJN/fKGHz8zJUu
n0/kfvKrXgrlYeIAyf4gpESW4hupuyTXDIXUMdgeu9eqv8THxSnjT08S11rHVDphbc+1TQS3v7uoOA0KeALonCEC
CCea/b17z+3/cccslM6oJnp22zhr9IuDdJZBzwOrchhVlU2vZqyL9W1kx5cBI9Q4cCKIFIgzvxBIa/sHsCq+MR7Y
OwBn9j4rk00Vj5HqYr3tuL7V5NZX9XutoS2nTgcwxyTW/w==
"""

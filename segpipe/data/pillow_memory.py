"""Pillow's pixels as an array, without a copy."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from PIL import Image

from segpipe.data.arrays import Image8

BANDS = 4  # bytes that Pillow keeps of a pixel of mode RGB

Box = tuple[int, int, int, int]


class _Arrow(ctypes.Structure):
    """The ArrowArray of Arrow's C data interface."""


_Arrow._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset")),
    *((name, ctypes.c_int64) for name in ("n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Arrow))),
]
_address_of = ctypes.pythonapi.PyCapsule_GetPointer
_address_of.restype, _address_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


class _Pixels:
    """What numpy reads of a picture's memory, and keeps alive."""

    def __init__(self, picture: Image.Image) -> None:
        """Raises ValueError for a picture in several pieces, as large ones are."""
        self.capsule: Any = picture.__arrow_c_array__()[1]
        pixels = _Arrow.from_address(_address_of(self.capsule, b"arrow_array"))
        first = pixels.children[0].contents.buffers[1]
        shape = picture.height, picture.width, BANDS
        self.__array_interface__ = {
            "shape": shape,
            "typestr": "|u1",
            "data": (first, True),  # not to be written
            "version": 3,
        }


def pixels_of(picture: Image.Image, box: Box | None = None) -> Image8:
    """picture of mode RGB -> [H, W, 3] uint8, not to be written; of its `box` (left, top, right,
    bottom, in px), or all.

    A view of Pillow's own memory, whose pixels are 4 bytes apart, where that is in one piece.
    """
    left, top, right, bottom = box or (0, 0, *picture.size)
    if picture.mode != "RGB":
        raise ValueError(f"picture of mode {picture.mode}, wanted RGB")
    try:
        whole = np.asarray(_Pixels(picture))
    except ValueError:
        return np.asarray(picture.crop(box) if box else picture)
    return whole[top:bottom, left:right, :3]

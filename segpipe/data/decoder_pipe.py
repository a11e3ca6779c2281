"""What the decoder's parent and child say to each other, and the memory that both share.

parent -> child    LENGTH; the encoded bytes, in the shared memory or, many, in the pipe
child -> parent    READY once; then for each image LENGTH, a JSON object, and where that object
                   has no "rejected", in the shared memory: canvas [S, S, 3], fov [S, S], uint8,
                   S being its "side"
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
from typing import NamedTuple

import numpy as np

from segpipe.data.arrays import Image8
from segpipe.data.canvas import Working, canvas_side

WALL_TIMES = 5  # the deadline on the clock / the limit of CPU time: what a loaded node may take
SHARED_BYTES = 8 << 20  # encoded, beside canvas and fov: what is longer goes through the pipe
ANSWER_FIELDS = (  # of Fitted, as JSON
    *("orientation", "note", "seconds"),
    *("uncertain_fraction", "second_fraction"),
)
LENGTH = struct.Struct("<Q")
# All before it was printed by others while Python started.
READY = b"\0segpipe.data.decoder is ready\n"
CPU_LIMIT = signal.SIGPROF  # ends a child that has used up its CPU time


class Settings(NamedTuple):
    """The words of the child's command line."""

    least_diameter: float
    """Working diameters, px."""
    most_diameter: float
    max_megapixels: float
    timeout_s: float
    """Seconds of CPU for each photograph."""

    @property
    def working(self) -> Working:
        return Working(self.least_diameter, self.most_diameter)


class SharedMemory(NamedTuple):
    """Views of the memory that parent and child share; each writes where the other one waits."""

    encoded: memoryview
    """Of the whole memory: a short file lies in its first SHARED_BYTES."""
    pixels: Image8
    """[N], the memory behind: of the largest canvas and its field."""

    @staticmethod
    def num_bytes(settings: Settings) -> int:
        return SHARED_BYTES + 4 * canvas_side(settings.most_diameter) ** 2

    @classmethod
    def of(cls, memory: int, settings: Settings) -> SharedMemory:
        """Maps the memory behind this file descriptor, until the views are gone."""
        mapped = mmap.mmap(memory, cls.num_bytes(settings))
        pixels = np.frombuffer(mapped, np.uint8, offset=SHARED_BYTES)
        return cls(memoryview(mapped), pixels)

    def canvases(self, side: int) -> tuple[Image8, Image8]:
        """Where a canvas [side, side, 3] and its field [side, side] are. Raises ValueError for a
        side that there is no room for."""
        canvas, fov, _ = np.split(self.pixels, [3 * side**2, 4 * side**2])
        return canvas.reshape(side, side, 3), fov.reshape(side, side)


def send(pipe: int, *parts: bytes) -> None:
    """Writes all of them. Raises BrokenPipeError where the other side has ended."""
    for part in parts:
        left = memoryview(part).cast("B")
        while left:
            left = left[os.write(pipe, left) :]


def receive(pipe: int, num_bytes: int) -> bytes:
    """Reads so many. Raises EOFError where the other side ends before that."""
    found = b""
    while len(found) < num_bytes:
        more = os.read(pipe, num_bytes - len(found))
        if not more:
            raise EOFError
        found += more
    return found

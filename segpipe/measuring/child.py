"""The files of a mask are decoded and measured in a child process: both sides of it.

What a photograph may do to its decoder (segpipe.data.decoder) a mask may do too. Numbers alone come
back. Neither side imports torch, ray, pyarrow or boto3.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from segpipe.data.colours import Scheme
from segpipe.data.decoder import Guarded
from segpipe.data.decoder_child import serve
from segpipe.data.decoder_pipe import LENGTH, Settings, SharedMemory
from segpipe.measuring.measured import DIAMETER, Files, measured

Answer = tuple[dict[str, Any], dict[str, float]]
NAMES = tuple(field.name for field in fields(Files))


class MeasuringChild(Guarded[Answer]):
    """Does `measured.measured` in a child."""

    module = "segpipe.measuring.child"

    def __init__(self, scheme: str | None, max_megapixels: float, timeout_s: float) -> None:
        """`timeout_s` as of a Decoder."""
        super().__init__(DIAMETER, max_megapixels, timeout_s)
        self.scheme = scheme

    def measure(self, files: Files) -> Answer:
        """As `measured`; raises as `ask` does."""
        return self.ask(packed(files, self.scheme))

    def _read(self, header: dict[str, Any], shared: SharedMemory) -> Answer:
        return header["columns"], header["seconds"]


def packed(files: Files, scheme: str | None) -> bytes:
    """What the child is told of a mask: LENGTH of a JSON object, that, and the files behind it."""
    parts = {name: data for name in NAMES if (data := getattr(files, name)) is not None}
    sizes = {name: len(data) for name, data in parts.items()}
    head = json.dumps({"scheme": scheme, "sizes": sizes}).encode()
    return b"".join([LENGTH.pack(len(head)), head, *parts.values()])


def unpacked(data: bytes) -> tuple[Files, str | None]:
    (length,) = LENGTH.unpack_from(data)
    start = LENGTH.size + length
    head = json.loads(data[LENGTH.size : start])
    parts: dict[str, bytes] = {}
    for name, size in head["sizes"].items():
        parts[name] = data[start : start + size]
        start += size
    return Files(**parts), head["scheme"]


def _measure(data: bytes, settings: Settings, shared: SharedMemory) -> dict[str, Any]:
    files, scheme = unpacked(data)
    del data
    colours = None if scheme is None else Scheme.parse(scheme)
    columns, seconds = measured(files, colours, settings.max_megapixels)
    return {"columns": columns, "seconds": seconds}


if __name__ == "__main__":
    serve(_measure)

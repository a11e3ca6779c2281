"""Names: an input's id, and where its mask goes."""

from __future__ import annotations

import hashlib
import re

MASKS = "masks/"
PROBABILITIES = "probabilities/"
KINDS = "arteries_veins/"
OVERLAYS = "overlays/"


def input_id(path: str, version: str) -> bytes:
    """16 bytes for what is done once: this path with this content."""
    return hashlib.sha256(f"{path}\0{version}".encode()).digest()[:16]


def overlay_key(mask: str) -> str:
    """Where the overlay of the input with this mask's key goes."""
    return OVERLAYS + mask.removeprefix(MASKS).removesuffix(".png") + ".jpg"


LONGEST_NAME = 200  # bytes of a component of a mask's key; file systems hold 255
LONGEST_KEY = 800  # bytes of a mask's key; S3 holds 1,024 with the output's prefix
ESCAPED = re.compile(r"~[0-9a-f]{32}")


def mask_key(name: str) -> str:
    """Where the mask of an input goes; collision-free, and never outside masks/.

    The input's key and extension are kept and `.png` added. A component that a file system cannot
    hold, that would climb, or that could be taken for an escaped one gets a hash, and so does a
    folder whose name ends in .png, because a mask could have that name.
    """
    *folders, file = name.split("/")
    key = MASKS + "/".join([*map(_folder, folders), _safe(file) + ".png"])
    return key if len(key.encode()) <= LONGEST_KEY else f"{MASKS}{_hashed(name)}.png"


def _folder(part: str) -> str:
    return _hashed(part) if part.lower().endswith(".png") else _safe(part)


def _safe(part: str) -> str:
    harmless = part not in ("", ".", "..") and part.isprintable() and "\\" not in part
    short = len(part.encode()) <= LONGEST_NAME
    return part if harmless and short and not ESCAPED.search(part) else _hashed(part)


def _hashed(part: str) -> str:
    """The part's first letters, for people, and a hash that no two parts share."""
    readable = re.sub(r"[^\w -]", "_", part)[:30]
    return f"{readable}~{hashlib.sha256(part.encode()).hexdigest()[:32]}"

"""Which eye a photograph's name says it is of."""

from __future__ import annotations

import posixpath
import re

WORDS = {"od": "R", "right": "R", "os": "L", "left": "L"}
"""In a name, parted by what is no letter: oculus dexter, oculus sinister, and in English."""
LETTERS = re.compile(r"[a-z]+")
NUMBERED = re.compile(r"\d([lr])(?:[^a-z0-9]|$)")  # as in Image_01L.jpg


def eye_in_name(key: str) -> str | None:
    """R or L where the last part of a key says one eye, as in 0123_OD.jpg, left-2.png or 01L.jpg;
    None where it says none, or both."""
    name = posixpath.basename(key).lower()
    eyes = {WORDS[word] for word in LETTERS.findall(name) if word in WORDS}
    eyes |= {letter.upper() for letter in NUMBERED.findall(name)}
    return eyes.pop() if len(eyes) == 1 else None

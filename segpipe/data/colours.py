"""What the colours of a label mean: a scheme for each published set, or the user's own.

The same colour means different things in different sets, so that a scheme is never guessed from the
colours that a file holds: it belongs to the place where a layout keeps such labels, or is named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from segpipe.errors import UserError

FLAG = "--av-colours"
MEANINGS = ("artery", "vein", "crossing", "uncertain", "vessel")
"""crossing: an artery and a vein, one above the other; uncertain: a vessel, artery or vein is not
known; vessel: one that was drawn without saying which, as of labels in a single colour."""
EITHER = {"crossing", "uncertain"}  # one colour may stand for both, as in HRF
FORM = "artery=FF0000,vein=0000FF,crossing=00FF00,uncertain=FFFFFF"
BLACK = 0, 0, 0  # the background of every scheme

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Scheme:
    """The meaning of each colour of a label; black is background."""

    meanings: tuple[tuple[str, Colour], ...]
    """Pairs of one of MEANINGS and red, green, blue of 0 to 255; a meaning may have several."""

    def colours(self, *meanings: str) -> tuple[Colour, ...]:
        """The colours of these meanings, each once; of all without any."""
        wanted = meanings or MEANINGS
        return tuple(dict.fromkeys(colour for name, colour in self.meanings if name in wanted))

    def code(self, colour: Colour) -> int:
        """1 + the place in MEANINGS of what this colour means; of two meanings uncertain."""
        names = [name for name, other in self.meanings if other == colour]
        return 1 + MEANINGS.index("uncertain" if "uncertain" in names else names[0])

    def __str__(self) -> str:
        """As the flag takes it."""
        return ",".join(f"{name}={in_hex(colour)}" for name, colour in self.meanings)

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """A scheme of SCHEMES by name, or MEANING=RRGGBB,...

        Raises UserError for anything else, and for a colour that stands for two things.
        """
        if text in SCHEMES:
            return SCHEMES[text]
        meanings: list[tuple[str, Colour]] = []
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            if name not in MEANINGS or not re.fullmatch("#?[0-9A-Fa-f]{6}", value):
                known = ", ".join(SCHEMES)
                raise UserError(
                    f"{FLAG} {text}: {part.strip() or 'nothing'} is no {'|'.join(MEANINGS)}="
                    f"RRGGBB, give colours as {FORM}, or the name of a set: {known}"
                )
            red, green, blue = bytes.fromhex(value.removeprefix("#"))
            meanings.append((name, (red, green, blue)))
        scheme = cls(tuple(dict.fromkeys(meanings)))
        for colour in scheme.colours():
            stands_for = {name for name, other in scheme.meanings if other == colour}
            stands_for |= {"background"} if colour == BLACK else set()
            if len(stands_for) > 1 and stands_for != EITHER:
                raise UserError(
                    f"{FLAG} {text}: {in_hex(colour)} stands for "
                    f"{' and '.join(sorted(stands_for))}, give each a colour of its own"
                )
        return scheme


def tells_kinds(text: str) -> bool:
    """Whether a scheme, as the flag takes it or "", tells arteries from veins."""
    names = {name for name, _ in Scheme.parse(text).meanings} if text else set()
    return {"artery", "vein"} <= names


def in_hex(colour: Colour) -> str:
    """As RRGGBB."""
    return bytes(colour).hex().upper()


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SCHEMES = {
    # Hu et al. 2013: crossings green, uncertain vessels white.
    "RITE": Scheme(
        (("artery", RED), ("vein", BLUE), ("crossing", GREEN), ("uncertain", WHITE)),
    ),
    # Orlando et al. 2018, as the set circulates: the other way round.
    "LES-AV": Scheme(
        (("artery", RED), ("vein", BLUE), ("crossing", WHITE), ("uncertain", GREEN)),
    ),
    # VC-Net (Hu et al. 2021) ships its copies of RITE, LES-AV and HRF in these colours, too.
    # Artery/vein labels by the ids of DRIVE: a crossing has the colour of the upper vessel.
    "DRIVE_AV": Scheme((("artery", RED), ("vein", BLUE), ("uncertain", GREEN))),
    # Of HRF: one green for crossings, for the tangle on the disc and for branches left open.
    "HRF": Scheme((("artery", RED), ("vein", BLUE), ("crossing", GREEN), ("uncertain", GREEN))),
}

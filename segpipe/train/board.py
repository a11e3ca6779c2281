"""What the workers of a training tell its driver, kept in a small process of its own.

Nothing heavy is imported: that process starts beside those that run the network.
"""

from __future__ import annotations

import re
from typing import Any

NUMBERS = re.compile(r"0x[0-9a-f]+|\d[\d.]*")  # of processes, addresses, free bytes: they vary


class Board:
    """Where rank 0 says how far it is, any rank why it gave up, and the driver reads both."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.last: dict[int, tuple[str, int]] = {}  # rank -> (text, step) of its last failure

    def post(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def take(self) -> list[dict[str, Any]]:
        lines, self.lines = self.lines, []
        return lines

    def fail(self, error: Exception) -> None:
        self.error = self.error or error

    def failure(self) -> Exception | None:
        return self.error

    def repeated(self, rank: int, text: str, step: int) -> bool:
        """Note a worker's failure -> whether this rank failed before at this step, in these words.

        Numbers in them do not count.
        """
        before = self.last.get(rank)
        self.last[rank] = (NUMBERS.sub("#", text), step)
        return before == self.last[rank]

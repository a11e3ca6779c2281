"""What the workers of a training tell its driver, kept in a small process of its own.

Nothing heavy is imported: that process starts beside those that run the network.
"""

from __future__ import annotations

from typing import Any


class Board:
    """Where rank 0 says how far it is, any rank why it gave up, and the driver reads both."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def post(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def take(self) -> list[dict[str, Any]]:
        lines, self.lines = self.lines, []
        return lines

    def fail(self, error: Exception) -> None:
        self.error = self.error or error

    def failure(self) -> Exception | None:
        return self.error

"""The two sides of --min-quality: how many masks each has, and the photographs nearest to it."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

EXAMPLES = 3  # photographs shown of each side


class Cut:
    """What the report tells of `ungradable`, from the rows in one pass."""

    def __init__(self, num_shown: int) -> None:
        self.num_shown = min(num_shown, EXAMPLES)  # of each side
        self.num_kept, self.num_ungradable = 0, 0
        self.below: list[dict[str, Any]] = []
        """Ungradable ones of the best quality, the best last."""
        self.above: list[dict[str, Any]] = []
        """Kept ones of the least quality, the least first."""

    def add(self, ok: pa.Table, read: Callable[[], pa.Table]) -> None:
        """Rows of masks with `quality` and `ungradable`; `read` reads the same rows with what is
        shown of them, masks too, and only where some of these are nearer than others."""
        flags = ok["ungradable"].to_pylist()
        self.num_kept += flags.count(False)
        self.num_ungradable += flags.count(True)
        if not self.num_shown or not (False in flags or True in flags):
            return
        quality = ok["quality"].fill_null(np.nan).to_numpy()
        known = [(float(quality[n]), n) for n in range(len(ok)) if quality[n] == quality[n]]
        below = sorted((one for one in known if flags[one[1]] is True), reverse=True)
        above = sorted(one for one in known if flags[one[1]] is False)
        below = [one for one in below[: self.num_shown] if self._is_nearer(one[0], self.below, 1)]
        above = [one for one in above[: self.num_shown] if self._is_nearer(one[0], self.above, -1)]
        if not (below or above):
            return
        rows = read()
        taken = [rows.take(pa.array([n for _, n in one], pa.int64())) for one in (below, above)]
        key = itemgetter("quality", "path")
        self.below = sorted(self.below + taken[0].to_pylist(), key=key)[-self.num_shown :]
        self.above = sorted(self.above + taken[1].to_pylist(), key=key)[: self.num_shown]

    def _is_nearer(self, quality: float, kept: list[dict[str, Any]], sign: int) -> bool:
        if len(kept) < self.num_shown:
            return True
        return any(sign * quality > sign * row["quality"] for row in kept)

    @property
    def shown(self) -> list[dict[str, Any]]:
        """Those on both sides, from the worst to the best."""
        return self.below + self.above

    @property
    def share_kept(self) -> float | None:
        """None where no row tells."""
        total = self.num_kept + self.num_ungradable
        return self.num_kept / total if total else None

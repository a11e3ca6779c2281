"""One input on its way through a run: listed, fetched, decoded, scored.

In a process of its own it is this object; between processes of Ray Data it is a row of columns of
one type each.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe.data.arrays import DISC_STEP, StructureMaps
from segpipe.data.canvas import Geometry, padded
from segpipe.data.fitting import Fitted
from segpipe.data.photograph import Acquisition
from segpipe.errors import (
    Fault,
    RejectedImage,
    StoreDown,
    Unfinished,
    UserError,
    internal_error,
)
from segpipe.storage import Entry

logger = logging.getLogger(__name__)

NO_MEMORY = (  # words of torch on a CPU, of OpenCV, and of torch on a GPU
    "can't allocate memory",
    "Insufficient memory",
    "CUDA out of memory",
)


@dataclass
class Photo:
    entry: Entry
    """As it was listed."""
    fitted: Fitted | None = None
    """Where it was decoded."""
    score: npt.NDArray[np.float32] | None = None
    """[S, S] in [0, 1], right where the canvas has a field of view."""
    maps: StructureMaps | None = None
    """Where structures are found."""
    engine: str = ""
    """That made the score."""
    rejection: RejectedImage | None = None
    """Why it has no mask and never will."""
    why_open: str = ""
    """Why it could not be done now, through no fault of its bytes."""

    @property
    def ended(self) -> bool:
        """Whether nothing more is done with it."""
        return self.rejection is not None or bool(self.why_open)

    def fail(self, error: Exception) -> None:
        """Our own code failed on it: it is rejected, or stays open where memory is short.

        Raises `error` again where it is not this input's: the user's, or a store's.
        """
        if isinstance(error, UserError | StoreDown | Unfinished):
            raise error
        if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
            self.leave_open(error)
            return
        logger.error("segpipe: %s:", self.entry.key)  # before the traceback
        self.rejection = internal_error(error)

    def leave_open(self, error: Exception) -> None:
        self.why_open = f"{self.entry.key}: {str(error) or type(error).__name__}"
        logger.warning("segpipe: stays open: %s", self.why_open)

    def outcome(self) -> dict[str, str]:
        """As columns: error is '' where it goes on, error_code is '' where it stays open too."""
        if self.rejection is None:
            return {"error": self.why_open, "error_code": ""}
        return {"error": str(self.rejection), "error_code": self.rejection.fault.value}

    def as_columns(self, side: int) -> dict[str, Any]:
        """A row of Ray Data, its canvas on one of this side in px; what was not decoded has an
        empty one."""
        fitted = self.fitted or _nothing(side)
        said = fitted.acquisition
        spacing_mm = said.pixel_spacing_mm
        return {
            "path": self.entry.key,
            "bytes": self.entry.bytes,
            "version": self.entry.version,
            **self.outcome(),
            "note": fitted.note,
            "uncertain": fitted.uncertain_fraction,
            "second": fitted.second_fraction,
            "orientation": fitted.orientation,
            "laterality": said.laterality or "",
            "pixel_spacing_mm": math.nan if spacing_mm is None else spacing_mm,
            "device": said.device or "",
            "acquired": said.acquired or "",
            "geometry": np.asarray(fitted.geometry.to_list(), np.int32),
            "side": len(fitted.fov),
            "canvas": padded(fitted.canvas, side),
            "fov": padded(fitted.fov, side),
        }

    @classmethod
    def from_columns(cls, row: dict[str, Any]) -> Photo:
        """A row of as_columns, and of the score; the canvas may have been left behind."""
        photo = cls(Entry(str(row["path"]), int(row["bytes"]), str(row["version"])))
        error, code = str(row["error"]), str(row["error_code"])
        if code:
            photo.rejection = RejectedImage(Fault(code), error)
        photo.why_open = "" if code else error
        if photo.ended:
            return photo
        spacing_mm = float(row["pixel_spacing_mm"])
        side = int(row["side"])
        own = np.s_[:side, :side]
        said = {name: str(row[name]) or None for name in ("laterality", "device", "acquired")}
        photo.fitted = Fitted(
            np.ascontiguousarray(row.get("canvas", np.zeros((0, 0), np.uint8))[own]),
            np.ascontiguousarray(row["fov"][own]),
            Geometry.from_list(row["geometry"]),
            int(row["orientation"]),
            str(row["note"]),
            uncertain_fraction=float(row["uncertain"]),
            second_fraction=float(row["second"]),
            acquisition=Acquisition(
                **said, pixel_spacing_mm=None if math.isnan(spacing_mm) else spacing_mm
            ),
        )
        photo.score, photo.engine = np.ascontiguousarray(row["score"][own]), str(row["engine"])
        if "artery" in row:
            small = np.s_[: side // DISC_STEP, : side // DISC_STEP]
            maps = row["artery"][own], row["disc"][small]
            photo.maps = StructureMaps(*(np.ascontiguousarray(one, np.float32) for one in maps))
        return photo


def _nothing(side: int) -> Fitted:
    empty = np.zeros((side, side, 3), np.uint8)
    return Fitted(empty, empty[..., 0], Geometry(*[0] * 8), orientation=1, note="")

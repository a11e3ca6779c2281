"""The flags of `segpipe measure`."""

from __future__ import annotations

from dataclasses import dataclass

from segpipe.data.colours import Scheme
from segpipe.data.photograph import MAX_MEGAPIXELS
from segpipe.errors import UserError
from segpipe.flags import (
    check_above_0,
    check_anonymous,
    check_at_least,
    check_choices,
    check_globs,
)
from segpipe.segment.config import TABLES
from segpipe.segment.lists import COLUMN, LISTS, split_column
from segpipe.storage import PATIENCE_S, check_places, lock


@dataclass(frozen=True)
class MeasureConfig:
    """Measure the vessels of masks that were made or corrected elsewhere.

    Run it again with the same --output to resume where it stopped.
    """

    input: str
    """Masks: a folder, s3://bucket/prefix, a single mask, or a .csv or .parquet list of files in
    its column `path`, whose other columns come back in the rows."""
    output: str
    """Folder or s3://bucket/prefix for results/ or tables/, columns.json, summary.json."""
    fov: str | None = None
    """Folder or s3://bucket/prefix of the masks' fields of view, white on black or themselves masks
    with classes, found by the masks' names; without, as the mask's own classes say, or as found in
    its photograph."""
    photographs: str | None = None
    """Folder or s3://bucket/prefix of the photographs, found by the masks' names: the fields of
    view of binary masks are found in them, and their quality is assessed into the rows."""
    av_colours: str | None = None
    """What the colours of masks mean: RITE, LES-AV, DRIVE_AV or HRF, or MEANING=RRGGBB,... of
    artery, vein, crossing, uncertain and vessel; without, colours are rejected. All are vessels."""
    workers: int | None = None
    """Processes that measure; one a core without. May change when resumed."""
    group_size: int = 64
    """Masks that are read, measured and committed together. May change when resumed."""
    table: str = "parquet"
    """What rows are written as: parquet in results/, csv in tables/, or both. May change when
    resumed: files of the other kind are then deleted."""
    max_rejected: float = 0.05
    """Share of rejected masks above which the exit code is 1."""
    max_megapixels: float = MAX_MEGAPIXELS
    """Files with more pixels (in millions) are rejected before they are decoded."""
    retry_rejected: bool = False
    """Do the rejected masks of an earlier run once more."""
    repair: bool = False
    """Make again the rows that were deleted since."""
    include: tuple[str, ...] = ()
    """Take only masks whose key matches one of these globs (* matches / as well)."""
    exclude: tuple[str, ...] = ()
    """Leave out masks whose key matches one of these globs."""
    column: str = COLUMN
    """Column of a list that names its masks, such as label; or a path with it in braces, such as
    masks/{image}.png."""
    anonymous: bool = False
    """Read --input, --fov and --photographs without S3 credentials: public buckets. May change when
    resumed."""
    store_patience: float = PATIENCE_S
    """Seconds for which a store that fails is tried again before the run ends. May change."""
    limit: int | None = None
    """Take only the first so many masks of the listing."""
    if_locked: str = "fail"
    """Where another run holds --output: fail (exit code 2), or skip: write nothing, exit code 0."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        check_places(self, "input", "output", "fov", "photographs")
        check_globs(self, "include", "exclude")
        check_at_least(self, 1, "workers", "group_size", "limit")
        check_at_least(self, 0, "store_patience")
        check_above_0(self, "max_megapixels")
        check_choices(self, {"table": TABLES, "if_locked": lock.IF_LOCKED})
        for name in ("fov", "photographs"):
            if (place := getattr(self, name)) and place.lower().endswith(LISTS):
                raise UserError(f"--{name} {place}: is a list, give the folder of the files")
        if self.av_colours is not None:
            Scheme.parse(self.av_colours)
        places = [place for place in (self.input, self.fov, self.photographs) if place]
        check_anonymous(self.anonymous, "--input", places, LISTS)
        split_column(self.column)
        if self.column != COLUMN and not self.input.lower().endswith(LISTS):
            raise UserError(f"--column {self.column}: --input is no list, leave it out")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"--max-rejected {self.max_rejected}: must be from 0 to 1")

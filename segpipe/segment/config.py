"""The flags of `segpipe segment`."""

from __future__ import annotations

from dataclasses import dataclass

from segpipe.data.photograph import MAX_MEGAPIXELS
from segpipe.errors import UserError
from segpipe.flags import (
    DEVICES,
    STRUCTURES,
    check_above_0,
    check_anonymous,
    check_at_least,
    check_choices,
    check_globs,
)
from segpipe.models import engine
from segpipe.models.tta import TTA
from segpipe.segment.lists import COLUMN, LISTS, split_column
from segpipe.storage import PATIENCE_S, check_places, lock

FORMATS = ("png", "parquet", "both")
TABLES = ("parquet", "csv", "both")
MEASURES = ("none", "full")


@dataclass(frozen=True)
class SegmentConfig:
    """Segment every photograph of a folder or an S3 prefix.

    Run it again with the same --output to resume where it stopped.
    """

    input: str
    """Folder, s3://bucket/prefix, a single photograph, or a .csv or .parquet list of files in its
    column `path`, whose other columns come back in the rows."""
    output: str
    """Folder or s3://bucket/prefix for masks/, results/ or tables/, summary.json, report.html."""
    checkpoint: str | None = None
    """Checkpoint file, or the name of a shipped one; the shipped default without."""
    workers: int | None = None
    """Processes that run the network; one a core or GPU without. May change when resumed."""
    group_size: int = 64
    """Photographs that are read, segmented and committed together. May change when resumed."""
    batch_size: int | None = None
    """Photographs that the network takes at once on a GPU; without, up to 16, as its memory allows.
    On CPUs it takes one. May change when resumed."""
    format: str = "png"
    """Where masks go: png files, parquet (the mask_png column of the rows), or both."""
    table: str = "parquet"
    """What rows are written as: parquet in results/, csv in tables/, or both. Masks and scores are
    in Parquet alone. May change when resumed: files of the other kind are then deleted."""
    measure: str = "none"
    """Measure each mask's vessels and each photograph's quality into the rows: none or full."""
    structures: str = "vessels"
    """What is found: vessels, or all: arteries, veins and the optic disc too, as pictures in
    arteries_veins/ and as columns. It wants a checkpoint of the default's working diameter."""
    overlays: bool = False
    """Write each photograph with its vessels drawn in, as a small JPEG in overlays/; with
    --structures all arteries red, veins blue, the disc and its zones."""
    min_quality: float | None = None
    """Mark masks of less quality (0 to 1) in the column `ungradable`; they are written all the
    same. Not marked without. Stays as the output was started with: for another cut, compare the
    column `quality`."""
    probabilities: bool = False
    """Write each photograph's vessel score too, as greyscale PNG: 255 for score 1."""
    tta: str | None = None
    """Test-time augmentation: none, or flip4, which averages the scores of four mirror images in
    four times the network's time; without, as the checkpoint was made for."""
    max_rejected: float = 0.05
    """Share of rejected inputs above which the exit code is 1."""
    max_megapixels: float = MAX_MEGAPIXELS
    """Photographs with more pixels (in millions) are rejected before they are decoded."""
    retry_rejected: bool = False
    """Do the rejected inputs of an earlier run once more."""
    repair: bool = False
    """Make again what was deleted since: masks, probabilities, and rows."""
    include: tuple[str, ...] = ()
    """Take only photographs whose key matches one of these globs (* matches / as well)."""
    exclude: tuple[str, ...] = ()
    """Leave out photographs whose key matches one of these globs."""
    column: str = COLUMN
    """Column of a list that names its files, such as image; or a path with it in braces, such as
    train/{image}.jpeg."""
    anonymous: bool = False
    """Read --input without S3 credentials: a public bucket. May change when resumed."""
    store_patience: float = PATIENCE_S
    """Seconds for which a store that fails is tried again before the run ends. May change."""
    limit: int | None = None
    """Take only the first so many photographs of the listing."""
    precision: str = "auto"
    """Of the network: fp32, bf16 (on a GPU, or a CPU that has bf16 arithmetic), or auto: the
    quickest that matches the reference, fp32."""
    backend: str = "auto"
    """What runs the network: native, its own loop in C++ on CPUs; torch; or auto: the quickest that
    matches the reference. May change when resumed, as --precision, where masks stay the same."""
    device: str = "auto"
    """Where the network runs: auto, cpu or gpu."""
    if_locked: str = "fail"
    """Where another run holds --output: fail (exit code 2), or skip: write nothing, exit code 0."""
    report_images: str = "on"
    """Keys and overlays in the report: on, or off where they may identify patients."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        check_places(self, "input", "output", "checkpoint")
        check_globs(self, "include", "exclude")
        check_at_least(self, 1, "workers", "group_size", "batch_size", "limit")
        check_at_least(self, 0, "store_patience")
        check_above_0(self, "max_megapixels")
        choices = {
            "format": FORMATS,
            "table": TABLES,
            "measure": MEASURES,
            "structures": STRUCTURES,
            "report_images": ("on", "off"),
            "if_locked": lock.IF_LOCKED,
            "backend": engine.BACKENDS,
            "precision": engine.PRECISION,
            "tta": TTA,
            "device": DEVICES,
        }
        check_choices(self, choices)
        if self.table == "csv" and self.format != "png":
            raise UserError(
                f"--table csv: has no room for masks, which --format {self.format} puts into rows; "
                "use --table both"
            )
        check_anonymous(self.anonymous, "--input", [self.input], LISTS)
        split_column(self.column)
        if self.column != COLUMN and not self.input.lower().endswith(LISTS):
            raise UserError(f"--column {self.column}: --input is no list, leave it out")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"--max-rejected {self.max_rejected}: must be from 0 to 1")
        if self.min_quality is not None and not 0 <= self.min_quality <= 1:
            raise UserError(f"--min-quality {self.min_quality}: must be from 0 to 1")

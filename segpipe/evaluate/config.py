"""The flags of `segpipe evaluate`."""

from __future__ import annotations

from dataclasses import dataclass

from segpipe.data.globs import Reading
from segpipe.data.known_sets import SPLITS
from segpipe.errors import UserError
from segpipe.flags import DEVICES, STRUCTURES, check_anonymous, check_at_least, check_choices
from segpipe.models import engine
from segpipe.models.tta import TTA
from segpipe.storage import check_places

FIELDS = ("given", "found")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a checkpoint against labelled sets."""

    data: tuple[str, ...]
    """Labelled sets: folders or s3://bucket/prefix in layouts that docs/training-data.md names."""
    output: str
    """Folder or s3://bucket/prefix for metrics.json, figures and report.html; of several sets a
    folder each, and table.md and table.json."""
    checkpoint: str | None = None
    """Checkpoint file, or the name of a shipped one; the shipped default without."""
    split: str = "test"
    """Part of the set to measure on: test or training; of a set without parts all."""
    fov: str = "given"
    """Field of view: given by the set's masks where it has some, or found in each photograph."""
    tta: str | None = None
    """Test-time augmentation: none, or flip4, which averages the scores of four mirror images;
    without, as the checkpoint was made for."""
    report_images: str = "on"
    """Names and pictures in the report: on, or off where they may identify patients."""
    structures: str = "vessels"
    """What is measured: vessels, or all: arteries and veins too, on photographs with a label of
    them, and with --discs the optic disc. It wants a checkpoint of the default's working
    diameter."""
    discs: str | None = None
    """CSV file of optic discs, with the columns file, x, y, height, width (px of the photograph),
    ok and, for several sets, set; with --structures all."""
    workers: int | None = None
    """Processes that run the network; one a core or GPU without."""
    precision: str = "auto"
    """Of the network: fp32, bf16, or auto: the quickest that matches the reference, fp32."""
    backend: str = "auto"
    """What runs the network: native, its own loop in C++ on CPUs; torch; or auto: the quickest that
    matches the reference, as segment chooses."""
    device: str = "auto"
    """Where the network runs: auto, cpu or gpu."""
    anonymous: bool = False
    """Read --data without S3 credentials: public buckets."""
    accept_labels: bool = False
    """Measure by labels that cannot be right, as `segpipe check` tells, with a warning."""
    images: str | None = None
    """Glob of the photographs below --data, of a set in no known layout; with --labels."""
    labels: str | None = None
    """Glob of the labels below --data; a star stands for the same in both."""
    masks: str | None = None
    """Glob of the masks of the field of view below --data; without, fields are found."""
    av_colours: str | None = None
    """What the colours of labels mean: RITE, LES-AV, DRIVE_AV or HRF, or MEANING=RRGGBB,... of
    artery, vein, crossing, uncertain and vessel; without, as the layout says. All are vessels."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        if not self.data:
            raise UserError("--data: no labelled set named, name one or more")
        check_places(self, "data", "output", "checkpoint", "discs")
        choices = {
            "split": SPLITS,
            "fov": FIELDS,
            "tta": TTA,
            "structures": STRUCTURES,
            "report_images": ("on", "off"),
            "precision": engine.PRECISION,
            "backend": engine.BACKENDS,
            "device": DEVICES,
        }
        check_choices(self, choices)
        check_at_least(self, 1, "workers")
        if self.discs is not None and self.structures != "all":
            raise UserError(f"--discs {self.discs}: needs --structures all, give both or none")
        check_anonymous(self.anonymous, "--data", self.data)
        Reading.of(self)

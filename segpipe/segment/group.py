"""Photographs that are committed together: scores -> masks, rows, one part."""

from __future__ import annotations

import logging
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from segpipe.data import codecs
from segpipe.data.arrays import StructureMaps
from segpipe.data.canvas import native_mask, native_score
from segpipe.data.classes import OUTSIDE, VESSEL
from segpipe.data.eye import eye_in_name
from segpipe.data.fitting import Fitted
from segpipe.errors import StoreDown, UserError, must_change, os_error_text
from segpipe.segment.fetch import transfers
from segpipe.segment.inputs import filed_as
from segpipe.segment.job import SegmentJob
from segpipe.segment.keys import KINDS, MASKS, PROBABILITIES, mask_key, overlay_key
from segpipe.segment.overlay import KIND_COLOURS, VESSEL_COLOUR, of_canvas
from segpipe.segment.parts import commit_part
from segpipe.segment.photo import Photo
from segpipe.segment.stopwatch import Stopwatch
from segpipe.storage import Store

if TYPE_CHECKING:
    from segpipe.measurement.structures import Structures  # scipy, which other runs do without

logger = logging.getLogger(__name__)


class RowGroup:
    """Rows of one group of inputs; committed, the group is done.

    Raises StoreDown where the output cannot be written.
    """

    def __init__(self, output: Store, of_job: dict[str, Any], verb: str = "segment") -> None:
        """`of_job`: columns that are the same in each row of a run."""
        self.output, self.of_job, self.verb = output, of_job, verb
        self.watch, self.started = Stopwatch(), time.time()
        self.rows: list[dict[str, Any]] = []
        self.writes: list[Future[None]] = []
        self.keys: list[str] = []
        """Of the pictures that are written."""
        self.num_open, self.why_open = 0, ""

    def end(self, photo: Photo, columns: dict[str, Any]) -> None:
        """An input with its columns, or with the reason why it has none."""
        if photo.why_open:
            self.num_open += 1
            self.why_open = self.why_open or photo.why_open
            return
        if photo.rejection is not None:
            columns = {"status": "rejected", **photo.outcome()}
        entry = photo.entry
        row = {"path": entry.key, "bytes": entry.bytes, "version": entry.version}
        logger.debug("%s: %s: %s", self.verb, entry.key, columns["status"])
        self.rows.append(row | self.of_job | columns | {"finished": datetime.now(UTC)})

    def commit(self) -> dict[str, npt.NDArray[Any]]:
        """-> one row `started, finished, ok, rejected, open, why_open, seconds [STAGES]`."""
        try:
            with self.watch.time("write"):
                for write in self.writes:
                    write.result()
                self.output.sync(self.keys)  # before the part that names them
            with self.watch.time("commit"):
                if self.rows:
                    commit_part(self.output, self.rows)
        except OSError as error:  # with a text alone, which survives the way to the driver
            if must_change(error):
                raise UserError(
                    f"{os_error_text(error)}, check the path and who may use it"
                ) from error
            raise StoreDown(str(error)) from error
        counts = Counter(row["status"] for row in self.rows)
        return {
            "started": np.asarray([self.started]),
            "finished": np.asarray([time.time()]),
            "ok": np.asarray([counts["ok"]]),
            "rejected": np.asarray([counts["rejected"]]),
            "open": np.asarray([self.num_open]),
            "why_open": np.asarray([self.why_open]),
            "seconds": self.watch.as_array()[None],
        }


class Group(RowGroup):
    """Masks of one group of inputs on their way into place."""

    def __init__(self, job: SegmentJob) -> None:
        self.job = job
        of_job = {
            "model": job.card.model,
            "checkpoint_sha256": job.started.checkpoint,
            "threshold": job.card.threshold,
            "settings": job.settings,
        }
        super().__init__(job.output, of_job)

    def add(self, photo: Photo) -> None:
        """An input with its score, or with the reason why it has none."""
        columns: dict[str, Any] = {}
        files: dict[str, bytes] = {}
        if not photo.ended:
            try:
                columns = self._mask(photo, files)
            except Exception as error:
                photo.fail(error)
        if not photo.ended:  # a mask is on its way when nothing can reject its photograph any more
            put = partial(self.output.put, durable=False)
            self.writes += [transfers().submit(put, *file) for file in files.items()]
            self.keys += files
        self.end(photo, columns)

    def _mask(self, photo: Photo, files: dict[str, bytes]) -> dict[str, Any]:
        """An input's columns; its pictures are added to `files`, by their key in the output."""
        fitted, score = photo.fitted, photo.score
        assert fitted is not None
        assert score is not None
        with self.watch.time("mask"):
            mask = native_mask(score, fitted.fov, fitted.geometry, self.job.card.threshold)
            field = int(np.count_nonzero(mask != OUTSIDE))
            vessel = int(np.count_nonzero(mask == VESSEL))
        with self.watch.time("encode"):
            png = codecs.encode_mask(mask, fitted.orientation)
        key = mask_key(filed_as(self.job.source, photo.entry.key))
        pictures = self._placed("mask", key, png, files)
        if self.job.started.probabilities:
            with self.watch.time("encode"):
                grey = native_score(score, mask, fitted.geometry)
                png = codecs.encode_grey(grey, fitted.orientation)
            place = PROBABILITIES + key.removeprefix(MASKS)
            pictures |= self._placed("probability", place, png, files)
        columns = asdict(fitted.acquisition) | pictures
        columns["laterality_source"] = "file" if columns["laterality"] else None
        found = None
        if self.job.started.structures:
            found = self._found(fitted, score, photo.maps)
            columns |= self._structures(photo, found, mask, key, files)
        if self.job.started.assesses:
            columns |= self._measured(fitted, score, found)
        if self.job.started.overlays:
            columns["overlay_path"] = place = overlay_key(key)
            with self.watch.time("encode"):
                files[place] = self._overlay(fitted, score, found)
        return columns | {
            "status": "ok",
            "engine": photo.engine,
            "note": fitted.note or None,
            "height": mask.shape[0],
            "width": mask.shape[1],
            "fov_fraction": field / mask.size,
            "fov_uncertain_fraction": fitted.uncertain_fraction,
            "second_fov_fraction": fitted.second_fraction,
            "vessel_density": vessel / max(field, 1),
        }

    def _placed(self, name: str, key: str, png: bytes, files: dict[str, bytes]) -> dict[str, Any]:
        """A picture to where --format says -> its columns."""
        form = self.job.started.format
        if form != "parquet":
            files[key] = png
        return {
            f"{name}_path": key if form != "parquet" else None,
            f"{name}_png": png if form != "png" else None,
        }

    def _measured(
        self, fitted: Fitted, score: npt.NDArray[np.float32], found: Structures | None
    ) -> dict[str, Any]:
        """Columns of quality, and with --measure full of vessels, and of what else was found."""
        # scipy's graphs take 0.2 s, which other runs need not wait for
        from segpipe.measurement import structures, trust, vessels

        cv2.setNumThreads(1)  # the cores are the workers'
        started, threshold = self.job.started, self.job.card.threshold
        geometry, zoom = fitted.geometry, vessels.zoom_of(fitted.geometry)
        with self.watch.time("measure"):
            hints = trust.assess_mask(fitted.canvas, fitted.fov, score, threshold, zoom)
            columns: dict[str, Any] = {"quality": hints.quality}
            if (least := started.min_quality) is not None:
                columns["ungradable"] = not hints.quality >= least  # NaN is none
            if started.measure == "none":
                return columns
            columns |= asdict(hints)
            if found is None:
                measured = vessels.measure_canvas(score, fitted.fov, geometry, threshold)
                return columns | asdict(measured)
            whole = structures.of_all_vessels(found, zoom)
            return columns | asdict(whole) | structures.measure(found, zoom)

    def _found(
        self,
        fitted: Fitted,
        score: npt.NDArray[np.float32],
        maps: StructureMaps | None,
    ) -> Structures:
        from segpipe.measurement import structures

        assert maps is not None
        cv2.setNumThreads(1)
        with self.watch.time("structures"):
            of_canvas = score, maps, fitted.fov, fitted.geometry
            return structures.find(*of_canvas, self.job.card.threshold)

    def _structures(
        self,
        photo: Photo,
        found: Structures,
        mask: npt.NDArray[np.uint8],
        key: str,
        files: dict[str, bytes],
    ) -> dict[str, Any]:
        """Columns of arteries, veins and the disc; the picture of them is added to `files`. `key`:
        of the mask."""
        from segpipe.measurement import structures

        fitted = photo.fitted
        assert fitted is not None
        geometry = fitted.geometry
        with self.watch.time("structures"):
            picture = structures.native_kinds(found.plane, mask, geometry)
            columns = structures.disc_columns(found, geometry, fitted.orientation)
        with self.watch.time("encode"):
            png = codecs.encode_kinds(picture, fitted.orientation)
        place = KINDS + key.removeprefix(MASKS)
        columns |= self._placed("arteries_veins", place, png, files)
        of_name, of_disc = eye_in_name(photo.entry.key), columns.pop("disc_laterality", None)
        eyes = {"file": fitted.acquisition.laterality, "name": of_name, "disc": of_disc}
        source = next((name for name, eye in eyes.items() if eye), None)
        columns |= {"laterality": eyes.get(source or ""), "laterality_source": source}
        columns["structures_sha256"] = self.job.started.structures
        return columns

    def _overlay(
        self, fitted: Fitted, score: npt.NDArray[np.float32], found: Structures | None
    ) -> bytes:
        """The field with what was found drawn in, as JPEG."""
        inside, disc = fitted.fov > 127, None
        vessel = inside & (score >= np.float32(self.job.card.threshold))
        parts = [(VESSEL_COLOUR, vessel)]
        if found is not None:
            kinds = enumerate(KIND_COLOURS, start=1)
            parts = [(colour, vessel & (found.plane == kind)) for kind, colour in kinds]
            if found.disc is not None:
                disc = found.disc.x, found.disc.y, found.disc.width, found.disc.height
        layers = [(colour, where.view(np.uint8) * np.uint8(255)) for colour, where in parts]
        return of_canvas(fitted.canvas, fitted.geometry, layers, disc, fitted.orientation)

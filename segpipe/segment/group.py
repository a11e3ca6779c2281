"""Photographs that are committed together: scores -> masks, rows, one part."""

from __future__ import annotations

import logging
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from segpipe.data import codecs
from segpipe.data.canvas import native_mask, native_score
from segpipe.data.classes import OUTSIDE, VESSEL
from segpipe.data.fitting import Fitted
from segpipe.errors import StoreDown, UserError, must_change, os_error_text
from segpipe.segment.fetch import transfers
from segpipe.segment.inputs import filed_as
from segpipe.segment.job import SegmentJob
from segpipe.segment.keys import MASKS, PROBABILITIES, mask_key
from segpipe.segment.parts import commit_part
from segpipe.segment.photo import Photo
from segpipe.segment.stopwatch import Stopwatch

logger = logging.getLogger(__name__)


class Group:
    """Masks of one group of inputs on their way into place; committed, the group is done.

    Raises StoreDown where the output cannot be written.
    """

    def __init__(self, job: SegmentJob) -> None:
        self.job, self.watch, self.started = job, Stopwatch(), time.time()
        self.of_job = {
            "model": job.card.model,
            "checkpoint_sha256": job.started.checkpoint,
            "threshold": job.card.threshold,
            "settings": job.settings,
        }
        self.rows: list[dict[str, Any]] = []
        self.writes: list[Future[None]] = []
        self.keys: list[str] = []
        """Of the pictures that are written."""
        self.num_open, self.why_open = 0, ""

    def add(self, photo: Photo) -> None:
        """An input with its score, or with the reason why it has none."""
        columns: dict[str, Any] = {}
        files: dict[str, bytes] = {}
        if not photo.ended:
            try:
                columns = self._mask(photo, files)
            except Exception as error:
                photo.fail(error)
        if photo.why_open:
            self.num_open += 1
            self.why_open = self.why_open or photo.why_open
            return
        if photo.rejection is not None:
            columns = {"status": "rejected", **photo.outcome()}
        else:  # a mask is on its way when nothing can reject its photograph any more
            put = partial(self.job.output.put, durable=False)
            self.writes += [transfers().submit(put, *file) for file in files.items()]
            self.keys += files
        entry = photo.entry
        row = {"path": entry.key, "bytes": entry.bytes, "version": entry.version}
        logger.debug("segment: %s: %s", entry.key, columns["status"])
        self.rows.append(row | self.of_job | columns | {"finished": datetime.now(UTC)})

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
            key = PROBABILITIES + key.removeprefix(MASKS)
            pictures |= self._placed("probability", key, png, files)
        return (
            self._measured(fitted, score)
            | pictures
            | asdict(fitted.acquisition)
            | {
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
        )

    def _placed(self, name: str, key: str, png: bytes, files: dict[str, bytes]) -> dict[str, Any]:
        """A picture to where --format says -> its columns."""
        form = self.job.started.format
        if form != "parquet":
            files[key] = png
        return {
            f"{name}_path": key if form != "parquet" else None,
            f"{name}_png": png if form != "png" else None,
        }

    def _measured(self, fitted: Fitted, score: npt.NDArray[np.float32]) -> dict[str, Any]:
        """Columns of vessels and quality, from the canvas."""
        started = self.job.started
        if not started.assesses:
            return {}
        import cv2

        # scipy's graphs take 0.2 s, which other runs need not wait for
        from segpipe.measurement import trust, vessels

        cv2.setNumThreads(1)  # the cores are the workers'
        with self.watch.time("measure"):
            threshold = self.job.card.threshold
            zoom = fitted.geometry.box_height / fitted.geometry.scaled_height
            hints = trust.assess_mask(fitted.canvas, fitted.fov, score, threshold, zoom)
            columns: dict[str, Any] = {"quality": hints.quality}
            if (least := started.min_quality) is not None:
                columns["ungradable"] = not hints.quality >= least  # NaN is none
            if started.measure == "none":
                return columns
            found = vessels.measure_canvas(score, fitted.fov, fitted.geometry, threshold)
            return asdict(found) | asdict(hints) | columns

    def commit(self) -> dict[str, npt.NDArray[Any]]:
        """-> one row `started, finished, ok, rejected, open, why_open, seconds [STAGES]`."""
        try:
            with self.watch.time("write"):
                for write in self.writes:
                    write.result()
                self.job.output.sync(self.keys)  # before the part that names them
            with self.watch.time("commit"):
                if self.rows:
                    commit_part(self.job.output, self.rows)
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

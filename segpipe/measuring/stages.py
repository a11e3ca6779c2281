"""What a worker does with a group of masks: fetch, measure in a child, commit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy.typing as npt

from segpipe.data.decoder import DECODING_S
from segpipe.errors import Fault, RejectedImage, StarvedDecoder
from segpipe.measuring.child import MeasuringChild
from segpipe.measuring.measured import Files
from segpipe.measuring.pairs import parted
from segpipe.measuring.started import Started
from segpipe.segment.fetch import Fetched, OpenInput, fetched, transfers
from segpipe.segment.group import RowGroup
from segpipe.segment.manifest import group_entries
from segpipe.segment.photo import Photo
from segpipe.segment.stopwatch import Stopwatch
from segpipe.storage import Entry, Source, Store

Batch = dict[str, npt.NDArray[Any]]
MASK = "mask"  # its own file among those of a mask
FIELDS = {"fov": "fov", "photographs": "photograph"}  # of Files, by flag
NAMES = {"mask": "", "fov": "its field of view: ", "photograph": "its photograph: "}


@dataclass(frozen=True)
class MeasureJob:
    """What every process of a run needs to know."""

    source: Source
    """Of the masks."""
    pairs: dict[str, Source]
    """By flag, fov or photographs, where these lie."""
    output: Store
    started: Started


class Measurer:
    """All that is done with a group, in one process; a mask after the other."""

    def __init__(self, job: MeasureJob, device: str, num_threads: int) -> None:
        self.job = job
        transfers().submit(_child_of(job.started).start)  # takes half a second

    def __call__(self, batch: Batch) -> Batch:
        """Groups of masks -> the groups, committed."""
        group = RowGroup(self.job.output, {"settings": self.job.started.row_hash()}, "measure")
        entries = [
            entry
            for page, rows in zip(batch["page"], batch["rows"], strict=True)
            for entry in group_entries(self.job.output, str(page), rows)
        ]
        for entry, files in fetched_files(self.job, entries, group.watch):
            photo = Photo(entry)
            group.end(photo, self._measured(photo, files, group.watch))
        return group.commit()

    def _measured(
        self, photo: Photo, files: dict[str, Fetched], watch: Stopwatch
    ) -> dict[str, Any]:
        """The columns of one mask; without any the reason is left in `photo`."""
        read: dict[str, bytes] = {}
        for name, data in files.items():
            if isinstance(data, OpenInput):
                photo.why_open = f"{NAMES[name]}{data.reason}"
                return {}
            if isinstance(data, RejectedImage):
                photo.rejection = RejectedImage(data.fault, f"{NAMES[name]}{data}")
                return {}
            read[name] = data
        start = time.perf_counter()
        seconds: dict[str, float] = {}
        try:
            columns, seconds = _child_of(self.job.started).measure(Files(**read))
        except (StarvedDecoder, MemoryError) as error:
            photo.leave_open(error)
            return {}
        except RejectedImage as error:
            photo.rejection = error
            return {}
        finally:
            whole = time.perf_counter() - start
            for name, spent in seconds.items():
                watch.seconds[name] += spent
            rest = "handover" if seconds else "decode"
            watch.seconds[rest] += max(0.0, whole - sum(seconds.values()))
        return columns


def fetched_files(
    job: MeasureJob, entries: list[Entry], watch: Stopwatch
) -> Iterator[tuple[Entry, dict[str, Fetched]]]:
    """Each mask, as the manifest has it, with its own file and those of its pairs, by the names of
    Files; without a pair that is missing there is nothing but that.
    """
    plans = [parted(entry) if job.pairs else (entry, []) for entry in entries]
    complete = [plan for plan in plans if all(pair.entry for pair in plan[1])]
    masks = fetched(job.source, iter([mask for mask, _ in complete]), watch)
    others = {
        flag: fetched(
            source,
            iter([p.entry for _, pairs in complete for p in pairs if p.entry and p.flag == flag]),
            watch,
        )
        for flag, source in job.pairs.items()
    }
    for entry, (_, pairs) in zip(entries, plans, strict=True):
        missing = [pair.problem for pair in pairs if pair.entry is None]
        if missing:
            yield entry, {MASK: RejectedImage(Fault.NO_PAIR, "; ".join(missing))}
            continue
        files = {MASK: next(masks)[1]}
        yield entry, files | {FIELDS[pair.flag]: next(others[pair.flag])[1] for pair in pairs}


@lru_cache(maxsize=1)
def _child_of(started: Started) -> MeasuringChild:
    """This process's child for untrusted files."""
    return MeasuringChild(started.av_colours, started.max_megapixels, DECODING_S)

"""What is left to do: what no part holds yet, and what was deleted since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from segpipe.segment.keys import KINDS, MASKS, OVERLAYS, PROBABILITIES
from segpipe.segment.manifest import NO_IDS, PAGE_ROWS, Ids, Manifest, page_ids
from segpipe.segment.output import read_tables
from segpipe.segment.parts import Hashes, Parts, path_hashes, read_parts
from segpipe.storage import Store
from segpipe.storage.settings import read_settings

TURNS = 32  # groups for each worker where inputs are few: at the end it waits for one group at most
FEWEST = 4  # inputs in a group, unless that would leave a worker without any
NO_FILE = path_hashes([""])[0]  # of a row that names no mask


@dataclass(frozen=True)
class Todo:
    """What this attempt has to do: rows of the manifest's pages."""

    num_ok: int
    num_rejected: int
    pages: list[tuple[str, npt.NDArray[np.int32]]]
    """(key, rows) of each page that is not done yet."""

    @property
    def num_rows(self) -> int:
        return sum(len(rows) for _, rows in self.pages)

    @property
    def num_done(self) -> int:
        return self.num_ok + self.num_rejected

    def progress(self, counts: Counter[str], rate: float | None) -> dict[str, Any]:
        """What a heartbeat tells, when `counts` of ok and rejected were added to what was done."""
        return {
            "ok": self.num_ok + counts["ok"],
            "rejected": self.num_rejected + counts["rejected"],
            "open": self.num_rows - counts["ok"] - counts["rejected"],
            "images_per_second": rate,
        }


def plan_todo(
    manifest: Manifest, parts: Parts, retry_rejected: bool = False, again: Ids = NO_IDS
) -> Todo:
    """The manifest minus what is done; `again` is done once more."""
    pages, num_ok, num_rejected = [], 0, 0
    for number in range(len(manifest.pages)):
        ids = page_ids(manifest.page(number))
        place = parts.find(ids)
        ok = np.append(parts.ok, False)[place]  # -1, what is not done, is not ok
        open_ = (~ok if retry_rejected else place < 0) | np.isin(ids, again)
        num_ok += int((ok & ~open_).sum())
        num_rejected += int((~ok & ~open_).sum())
        if open_.any():
            pages.append((manifest.key(number), np.flatnonzero(open_).astype(np.int32)))
    return Todo(num_ok, num_rejected, pages)


def group_rows(num_rows: int, workers: int, batch_size: int) -> int:
    """Inputs in a group: as many as --batch-size says, fewer where that left workers without."""
    shares = -(-num_rows // (TURNS * workers)), -(-num_rows // workers)
    return min(batch_size, max(FEWEST, shares[0]), shares[1])


def find_missing(
    output: Store, ids: Ids, damaged: Callable[[str], None] | None = None
) -> dict[str, Ids]:
    """Of these inputs those without a row (`rows`), and those whose mask is gone (`masks`, and
    `probabilities`, `arteries_veins` and `overlays` where the output has such): their row names a
    file that a listing does not show, or shows empty.

    Rows are read before the listing, so that what a run adds meanwhile is not missing. Held are 8
    bytes for each row and each file. `damaged` is as in `read_parts`.
    """
    settings = read_settings(output)
    parts = read_parts(output, damaged)
    place = parts.find(ids)
    missing = {"rows": ids[place < 0]}
    place = place[place >= 0]
    named = _named_masks(output, parts)[place]
    place, named = place[named != NO_FILE], named[named != NO_FILE]
    others = {PROBABILITIES: "--probabilities", KINDS: "--structures", OVERLAYS: "--overlays"}
    for folder in (MASKS, *(one for one, name in others.items() if settings.get(name))):
        listed = _listed_masks(output, folder) if len(named) else np.zeros(0, np.uint64)
        missing[folder.rstrip("/")] = parts.ids[place[~np.isin(named, listed)]]
    return missing


def _named_masks(output: Store, parts: Parts) -> Hashes:
    """Hash of each row's mask_path in order of the index, NO_FILE where it has none."""
    used = np.unique(parts.part)  # a damaged one is not
    tables = read_tables(output, [parts.keys[number] for number in used], ["mask_path"])
    hashes = [path_hashes(pc.fill_null(table["mask_path"], "").to_pylist()) for table in tables]
    first = np.cumsum([0, *map(len, hashes)])
    return np.concatenate([np.zeros(0, np.uint64), *hashes])[
        first[np.searchsorted(used, parts.part)] + parts.row
    ]


def _listed_masks(output: Store, folder: str) -> Hashes:
    """Hash of the key of each mask that lies in masks/, or of which a picture lies in `folder`."""
    listing, hashes = output.list(folder), [np.zeros(0, np.uint64)]
    while page := list(islice(listing, PAGE_ROWS)):
        names = [entry.key.removeprefix(folder) for entry in page if entry.bytes]
        if folder == OVERLAYS:
            names = [name.removesuffix(".jpg") + ".png" for name in names]
        keys = [MASKS + name for name in names]
        hashes.append(path_hashes(keys))
    return np.concatenate(hashes)

"""Inputs fetched ahead of those who decode them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from segpipe.errors import ChangedObject, Fault, NotNow, RejectedImage
from segpipe.segment.stopwatch import Stopwatch
from segpipe.storage import Entry, Source

TRANSFERS = 8  # objects that are fetched or written at once by one process
FETCHED_BYTES = 64 << 20  # of files that wait to be decoded in one process, or a single larger one
LARGEST_FILE_BYTES = 1 << 30  # 200 megapixels of 16-bit RGB are 1.2 GB; real files are compressed


@dataclass(frozen=True)
class OpenInput:
    """An input that could not be read now, through no fault of its bytes; it stays to do."""

    reason: str


Fetched = bytes | RejectedImage | OpenInput


def fetched(
    source: Source, entries: Iterator[Entry], watch: Stopwatch
) -> Iterator[tuple[Entry, Fetched]]:
    """Each of these inputs with its bytes; some are fetched ahead, but never many bytes."""
    waiting: deque[tuple[Entry, Future[Fetched]]] = deque()
    ahead_bytes = 0
    while True:
        while not waiting or ahead_bytes < FETCHED_BYTES:
            entry = next(entries, None)
            if entry is None:
                break
            waiting.append((entry, transfers().submit(fetch, source, entry)))
            ahead_bytes += entry.bytes
        if not waiting:
            return
        entry, found = waiting.popleft()
        ahead_bytes -= entry.bytes
        with watch.time("fetch"):
            data = found.result()
        yield entry, data


@lru_cache(maxsize=1)
def transfers() -> ThreadPoolExecutor:
    """This process's threads that wait for stores."""
    return ThreadPoolExecutor(TRANSFERS)


def fetch(source: Source, entry: Entry) -> Fetched:
    """An input's bytes. Raises OSError where not this input but its whole store fails."""
    if entry.bytes > LARGEST_FILE_BYTES:
        return RejectedImage(
            Fault.FILE_TOO_LARGE, f"file larger than {LARGEST_FILE_BYTES >> 20} MiB"
        )
    try:
        return source.get(entry.key, entry.version)
    except FileNotFoundError:
        if not source.answers(entry.key):  # the whole disk has gone
            raise
        return RejectedImage(Fault.NOT_FOUND, "not found")
    except IsADirectoryError:
        return RejectedImage(Fault.NOT_FOUND, "is a folder")
    except PermissionError:
        return RejectedImage(Fault.PERMISSION_DENIED, "permission denied")
    except OSError as error:
        if not isinstance(error, ChangedObject | NotNow) and not source.answers(entry.key):
            raise
        return OpenInput(str(error) or type(error).__name__)

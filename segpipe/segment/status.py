"""Status: how far the run on an output is, from any machine."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from segpipe.errors import UserError
from segpipe.progress import time_left
from segpipe.segment.compact import count_missing_results
from segpipe.segment.manifest import written_ids
from segpipe.segment.output import read_marker, read_summary
from segpipe.segment.parts import read_parts
from segpipe.segment.todo import find_missing
from segpipe.storage import Store, check_places, lock, named, open_store

COUNTS = ("inputs", "done", "ok", "rejected", "open", "images_per_second")


@dataclass(frozen=True)
class StatusConfig:
    """Tell how far the run that writes to --output is: done, open, rejected, rate, who writes."""

    output: str
    """Folder or s3://bucket/prefix of `segpipe segment`."""
    json: bool = False
    """Print one JSON object instead of lines for people."""
    verify: bool = False
    """Count what was deleted since it was written; exit code 1 where anything was."""

    def check(self) -> None:
        """Raise UserError for a flag that cannot be meant."""
        check_places(self, "output")


def status(config: StatusConfig) -> int:
    """Print the state of an output -> exit code. Reads alone; a run there is not disturbed."""
    config.check()
    output = open_store(config.output)
    with named("--output"):
        output.check_readable()
    found = state_of(output)
    missing = missing_of(output) if config.verify else {}
    if config.verify:
        found["missing"] = missing
    print(json.dumps(found) if config.json else _told(found))
    return int(any(missing.values()))


def state_of(output: Store) -> dict[str, Any]:
    """`state` listing | running | stopped | finished, counts of inputs, rate and writer.

    While a run lists its input, `listed` counts the files seen and the other counts are None.
    """
    holder = lock.read_holder(output)
    silent_s = time.time() - holder["beat"] if holder else None
    writer = {
        "writer": lock.describe(holder) if holder else None,
        "heartbeat_age_s": None if silent_s is None else round(silent_s, 1),
    }
    running = holder is not None and not lock.is_silent(holder)
    progress = holder["progress"] if running and holder else {}
    if "listing" in progress:
        unknown = dict.fromkeys(COUNTS)
        return {"state": "listing", **unknown, "listed": progress["listing"]} | writer
    if progress:  # also where the summary of an earlier run stands
        num_inputs = sum(progress[name] for name in ("ok", "rejected", "open"))
        return _state("running", num_inputs, progress) | writer
    if summary := read_summary(output):
        counts = {name: summary[name] for name in ("ok", "rejected", "open", "images_per_second")}
        return _state("finished", summary["inputs"] + summary["open"], counts) | writer
    manifest = read_marker(output, inputs=int)
    if manifest is None:
        raise UserError(
            f"--output {output.uri()}: no run of `segpipe segment` wrote there, check the path"
        )
    counts = _counted(output, manifest["inputs"])
    return _state("running" if running else "stopped", manifest["inputs"], counts) | writer


def missing_of(output: Store) -> dict[str, int]:
    """What rows and summary name and listings do not show: `masks, results`, `probabilities` where
    the output has such, and `rows` of inputs that the summary counts as done.
    """
    ids = written_ids(output)
    found = find_missing(output, ids, _passed_over)
    missing = {name: len(some) for name, some in found.items()}
    summary = read_summary(output)
    if summary is None:  # inputs without a row are still to do
        return missing | {"rows": 0, "results": 0}
    num_rows = len(ids) - missing["rows"]
    return missing | {
        "rows": max(0, summary["inputs"] - num_rows),
        "results": count_missing_results(output, summary),
    }


def _passed_over(key: str) -> None:
    """A damaged part's inputs are not done; the next run tells of it."""


def _counted(output: Store, num_inputs: int) -> dict[str, Any]:
    """What the parts hold, where no writer tells it; rows of vanished inputs are among them."""
    parts = read_parts(output, _passed_over)
    ok = int(parts.ok.sum())
    rejected = len(parts.ids) - ok
    return {
        "ok": ok,
        "rejected": rejected,
        "open": max(0, num_inputs - ok - rejected),
        "images_per_second": None,
    }


def _state(state: str, num_inputs: int, counts: dict[str, Any]) -> dict[str, Any]:
    return {
        "state": state,
        "inputs": num_inputs,
        "done": counts["ok"] + counts["rejected"],
    } | counts


def _told(found: dict[str, Any]) -> str:
    if found["state"] == "listing":
        return _lines({"state": "listing", "files": f"{found['listed']} seen"}, found)
    lines = {
        "state": found["state"],
        "done": f"{found['done']} of {found['inputs']} inputs, {found['rejected']} rejected",
        "open": str(found["open"]),
    }
    if rate := found["images_per_second"]:
        left = time_left(found["done"], found["inputs"], rate)
        lines["rate"] = f"{rate:.1f} images/s" + (f", {left}" if found["open"] else "")
    return _lines(lines, found)


def _lines(lines: dict[str, str], found: dict[str, Any]) -> str:
    if found["writer"]:
        lines["writer"] = f"{found['writer']}, last heard {found['heartbeat_age_s']:.0f} s ago"
    if "missing" in found:
        gone = [f"{count} {name}" for name, count in found["missing"].items() if count]
        again = ", `segpipe segment` with its flags and --repair makes them again"
        lines["missing"] = ", ".join(gone) + again if gone else "nothing"
    return "\n".join(f"{name:<7} {line}" for name, line in lines.items())

"""Status: how far the run on an output is, from any machine."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from segpipe import archive, lease
from segpipe.errors import UserError
from segpipe.runtime import time_left
from segpipe.storage import Store, open_store


@dataclass(frozen=True)
class StatusConfig:
    """Tell how far the run that writes to --output is: done, open, rejected, rate, who writes."""

    output: str
    """Folder or s3://bucket/prefix of `segpipe segment`."""
    json: bool = False
    """Print one JSON object instead of lines for people."""
    verify: bool = False
    """Count what was deleted since it was written; exit code 1 where anything was."""


def status(config: StatusConfig) -> int:
    """Print the state of an output -> exit code. Reads alone; a run there is not disturbed."""
    output = open_store(config.output)
    output.check_readable()
    found = state_of(output)
    missing = missing_of(output) if config.verify else {}
    if config.verify:
        found["missing"] = missing
    print(json.dumps(found) if config.json else _told(found))
    return int(any(missing.values()))


def state_of(output: Store) -> dict[str, Any]:
    """`state` running | stopped | finished, `inputs, done, ok, rejected, open`, rate and writer."""
    summary = archive.read_summary(output)
    holder = lease.read_holder(output)
    silent_s = time.time() - holder["beat"] if holder else None
    writer = {
        "writer": lease.describe(holder) if holder else None,
        "heartbeat_age_s": None if silent_s is None else round(silent_s, 1),
    }
    if summary:
        counts = {name: summary[name] for name in ("ok", "rejected", "open", "images_per_second")}
        return _state("finished", summary["inputs"] + summary["open"], counts) | writer
    manifest = archive.read_json(output, archive.MANIFEST, {"inputs": int})
    if manifest is None:
        raise UserError(f"--output {output.uri()}: no run of `segpipe segment` wrote there")
    running = holder is not None and not lease.is_silent(holder)
    if running and holder and holder["progress"]:
        return _state("running", manifest["inputs"], holder["progress"]) | writer
    counts = _counted(output, manifest["inputs"])
    return _state("running" if running else "stopped", manifest["inputs"], counts) | writer


def missing_of(output: Store) -> dict[str, int]:
    """What rows and summary name and listings do not show: `masks, results`, `probabilities` where
    the output has such, and `rows` of inputs that the summary counts as done.
    """
    ids = archive.written_ids(output)
    missing = {name: len(found) for name, found in archive.find_missing(output, ids).items()}
    summary = archive.read_json(output, archive.SUMMARY)
    if summary is None:  # inputs without a row are still to do
        return missing | {"rows": 0, "results": 0}
    num_rows = len(ids) - missing["rows"]
    return missing | {
        "rows": max(0, summary["inputs"] - num_rows),
        "results": archive.count_missing_results(output, summary),
    }


def _counted(output: Store, num_inputs: int) -> dict[str, Any]:
    """What the parts hold, where no writer tells it; rows of vanished inputs are among them."""
    parts = archive.read_parts(output, lambda key: None)  # the next run tells of damaged ones
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
    lines = {
        "state": found["state"],
        "done": f"{found['done']} of {found['inputs']} inputs, {found['rejected']} rejected",
        "open": str(found["open"]),
    }
    if rate := found["images_per_second"]:
        left = time_left(found["done"], found["inputs"], rate)
        lines["rate"] = f"{rate:.1f} images/s" + (f", {left}" if found["open"] else "")
    if found["writer"]:
        lines["writer"] = f"{found['writer']}, last heard {found['heartbeat_age_s']:.0f} s ago"
    if "missing" in found:
        told = [f"{count} {name}" for name, count in found["missing"].items() if count]
        again = ", `segpipe segment` with its flags and --repair makes them again"
        lines["missing"] = ", ".join(told) + again if told else "nothing"
    return "\n".join(f"{name:<7} {line}" for name, line in lines.items())

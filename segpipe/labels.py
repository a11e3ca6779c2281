"""Every label of a set is looked at, on all nodes, before anything starts with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import ray.data

from segpipe.cluster.workers import data_stage
from segpipe.data import survey
from segpipe.data.layouts import Example
from segpipe.data.survey import Look
from segpipe.errors import UserError
from segpipe.storage import Store

logger = logging.getLogger(__name__)
HINT = "replace it, or give --accept-labels to take labels as they are"


def look_at_all(
    store: Store, examples: list[Example], find_field: bool = False, with_second: bool = False
) -> list[Look]:
    """Look at every example once, on all nodes -> what was seen of each, in order.

    Raises UserError for the first that cannot be used.
    """

    def look_at(row: dict[str, Any]) -> dict[str, Any]:
        try:
            found, _ = survey.look(store, Example.from_row(row), find_field, with_second)
        except UserError as error:
            return {"image": row["image"], "look": "", "error": str(error)}
        return {"image": row["image"], "look": found.as_json(), "error": ""}

    if not examples:
        return []
    listed = ray.data.from_items([example.as_row() for example in examples])
    looked = listed.map(look_at, **data_stage(len(examples)))
    found = {row["image"]: row for row in looked.iter_rows()}
    rows = [found[example.image] for example in examples]
    if errors := [row["error"] for row in rows if row["error"]]:
        raise UserError(errors[0])
    return [Look.from_json(row["look"]) for row in rows]


def settle(
    verb: str,
    uri: Callable[[str], str],
    looks: Sequence[Look],
    accept: bool,
    text: str,
    notes: Sequence[str] = (),
) -> None:
    """Print `text`, the set's own `notes` and what is to be noted of its labels.

    Raises UserError for labels that cannot be right; with `accept` that is printed as a warning.
    """
    lines = survey.problem_lines(uri, [one.problem for one in looks])
    if lines and not accept:
        *before, last = lines
        for line in before:
            logger.error("segpipe %s: %s", verb, line)
        raise UserError(f"{last}; {HINT}")
    print(f"{verb}: {text}")
    for line in lines:
        logger.warning("%s: warning: %s", verb, line)
    for line in [*notes, *survey.notes(looks)]:
        logger.warning("%s: %s", verb, line)

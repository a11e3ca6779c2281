"""Folders of nnU-Net: what their dataset.json says, and photographs that are split by channel.

nnU-Net stores each channel of a case in a file of its own, case_0000 and on, but an RGB picture in
one: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from segpipe.errors import UserError, some_of

if TYPE_CHECKING:
    from segpipe.storage import Source  # its libraries stay out of processes that only decode

DESCRIPTION = "dataset.json"
BACKGROUND = "background"
VALUES = (1, 255)  # of vessels in a label; anything else is not two-valued
CHANNEL = re.compile(r"(images(?:Tr|Ts)/(?:.+/)?(.+))_(?!0000)\d{4}")


def check_channels(uri: str, paths: Iterable[str]) -> None:
    """Raise UserError where a path without extension is another channel than the first."""
    for path in sorted(paths):
        if match := CHANNEL.fullmatch(path):
            raise UserError(
                f"{posixpath.join(uri, path)}: is one of several channels, wanted all of a "
                f"photograph in one RGB file {match[2]}_0000"
            )


def notes_of(store: Source) -> list[str]:
    """Look at dataset.json -> what is worth a line of it.

    Raises UserError where its labels are not a background and one class.
    """
    place = store.uri(DESCRIPTION)
    try:
        labels = json.loads(store.get(DESCRIPTION))["labels"]
        classes = _classes(labels)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{place}: has no labels as nnU-Net writes them, wanted "
            f'{{"labels": {{"{BACKGROUND}": 0, "vessel": 1}}}}'
        ) from error
    others = [name for name, value in classes.items() if value != 0]
    if len(others) != 1 or classes[others[0]] not in VALUES or 0 not in classes.values():
        text = some_of([f"{name} {value}" for name, value in classes.items()])
        raise UserError(f"{place}: its labels are {text}; wanted {BACKGROUND} 0 and one of vessels")
    if "vessel" in others[0].lower():
        return []
    return [f"{DESCRIPTION}: its class {others[0]} is taken for the vessels"]


def _classes(labels: dict[str, object]) -> dict[str, object]:
    """Name -> value; nnU-Net's first version had them the other way round."""
    if all(key.isdecimal() for key in labels):
        return {str(name): int(value) for value, name in labels.items()}
    return dict(labels)

"""Several labelled sets below one folder, as one: each in its own layout, with its own splits."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from segpipe.data.globs import Reading
from segpipe.data.known_sets import SPLITS
from segpipe.data.layouts import Example, LabelledSet, open_labelled
from segpipe.errors import UserError
from segpipe.flags import EMPTY, flag
from segpipe.storage import Store, check_there, named


def set_names(config: Any) -> tuple[str, ...]:
    """The folders below --data that --sets of a verb names, in their order; none without the flag.

    Raises UserError for what cannot be meant.
    """
    if config.sets is None:
        return ()
    if not config.sets:
        raise UserError("--sets: no folder named, name one or more below --data")
    for name in config.sets:
        if not name.strip() or {"", ".", ".."} & set(name.removesuffix("/").split("/")):
            raise UserError(f"--sets {name or EMPTY}: is no folder below --data, name one as DRIVE")
    names = tuple(sorted((name.removesuffix("/") for name in config.sets), key=_as_folder))
    given = shlex.join(names)
    for one, other in pairwise(names):
        if one == other:
            raise UserError(f"--sets {given}: {one} is named twice, name it once")
        if other.startswith(_as_folder(one)):
            raise UserError(f"--sets {given}: {other} lies in {one}, name one of them")
    for name in ("images", "labels", "masks"):
        if getattr(config, name) is not None:
            raise UserError(
                f"--sets {given}: not with {flag(name)}, which describes one set; leave one of "
                "them out"
            )
    return names


def _as_folder(name: str) -> str:
    return f"{name}/"  # so that what lies in a folder comes after it at once


def sources(store: Store, names: Iterable[str]) -> list[Store]:
    """Where each of these sets is; the store itself without names.

    Raises UserError where one of them is not there.
    """
    stores = [store.below(name) for name in names]
    for one in stores:
        with named("--sets"):
            one.check_readable()
        check_there(one, "--sets")
    return stores or [store]


def open_sets(store: Store, names: tuple[str, ...], reading: Reading) -> LabelledSet:
    """The sets of these names below the store, their examples' names and keys from there.

    Without names it is the set that is in the store itself. Raises UserError as open_labelled
    does, and where one of several sets has nothing to train on.
    """
    if not names:
        return open_labelled(store, reading=reading)
    sets = dict[str, LabelledSet]()
    for name, one in zip(names, sources(store, names), strict=True):
        with named("--sets"):
            sets[name] = open_labelled(one, reading=reading)
            sets[name].examples("training")
    training = [
        # Those that are held back, the last ones, are of each set in proportion.
        ((place + 0.5) / len(one.training), _below(name, example))
        for name, one in sets.items()
        for place, example in enumerate(one.training)
    ]
    return LabelledSet(
        uri=store.uri(),
        layout=", ".join(f"{name} {_counts(one)}" for name, one in sets.items()),
        split=True,
        training=tuple(example for _, example in sorted(training, key=lambda pair: pair[0])),
        test=tuple(_below(name, example) for name, one in sets.items() for example in one.test),
        entries={
            f"{name}/{key}": replace(entry, key=f"{name}/{key}")
            for name, one in sets.items()
            for key, entry in one.entries.items()
        },
        folders=dict.fromkeys(SPLITS, ", ".join(names)),
        unlabelled={},
        num_labels={},
        notes=tuple(f"{name}: {note}" for name, one in sets.items() for note in one.notes),
        numbered=any(one.numbered for one in sets.values()),
    )


def _counts(one: LabelledSet) -> str:
    return " + ".join(str(len(examples)) for examples in (one.training, one.test) if examples)


def _below(name: str, example: Example) -> Example:
    """The example of the set of this name, as one of all."""

    def key(of_set: str | None) -> str | None:
        return of_set and f"{name}/{of_set}"

    return replace(
        example,
        name=f"{name}/{example.name}",
        image=f"{name}/{example.image}",
        label=f"{name}/{example.label}",
        mask=key(example.mask),
        second=key(example.second),
        kinds=key(example.kinds),
    )

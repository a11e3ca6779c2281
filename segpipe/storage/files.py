"""JSON and Parquet files of a store, written whole, and named where they are damaged."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from types import UnionType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segpipe.errors import UserError
from segpipe.storage import Store

REMEDY = "delete it and run the same again"


def write_parquet(store: Store, key: str, table: pa.Table) -> None:
    store.put(key, parquet_bytes(table))


def parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


class Damaged(UserError):
    """A file of ours that is empty, cut off, or holds something else."""


def read_parquet(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    """Raises Damaged where it is none, or lacks one of these columns."""
    data = store.get(key)
    try:
        table = pq.read_table(io.BytesIO(data), columns=columns)
        return table if columns is None else table.select(columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise damaged_file(store, key) from error


def damaged_file(store: Store, key: str, remedy: str = REMEDY) -> Damaged:
    return Damaged(f"{store.uri(key)}: damaged, {remedy}")


def read_json(
    store: Store,
    key: str,
    fields: Mapping[str, type | UnionType] | None = None,
    remedy: str = REMEDY,
) -> dict[str, Any] | None:
    """A JSON object, None where there is none. Raises Damaged where it lacks one of these fields,
    or is no such object.
    """
    try:
        data = store.get(key)
    except FileNotFoundError:
        return None
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
        if isinstance(found, dict) and all(
            name in found and isinstance(found[name], kind) for name, kind in (fields or {}).items()
        ):
            return found
    raise damaged_file(store, key, remedy)


def write_json(store: Store, key: str, value: dict[str, Any]) -> None:
    store.put(key, json.dumps(value, indent=1, ensure_ascii=False).encode())

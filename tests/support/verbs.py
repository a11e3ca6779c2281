"""Verbs run in this process, and what they wrote."""

import io
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tyro

from segpipe import cli
from segpipe.models import checkpoint
from segpipe.storage import Store, open_store

ONE = ["--workers", 1]  # enough for a few photographs


def commands_of(page: str) -> list[str]:
    """The lines of a page's shell blocks, continued ones as one."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def parse(command: str) -> None:
    """Have `segpipe VERB FLAGS` read by the verb's own parser. Raises what that raises."""
    _, verb, *flags = shlex.split(command, comments=True)
    module, name, _ = cli.VERBS[verb]
    config = tyro.cli(getattr(import_module(module), name), args=flags)
    if hasattr(config, "check"):
        config.check()


def run(*words: object) -> int:
    """The exit code of `segpipe WORDS`."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    return int(stop.value.code or 0)


def rows(output: Store) -> list[dict]:
    """All rows of the results, in their order."""
    files = [io.BytesIO(output.get(entry.key)) for entry in output.list("results/part-")]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def rows_of(output: Path) -> list[dict]:
    return rows(open_store(str(output)))


def masks(output: Store) -> dict[str, bytes]:
    return {entry.key: output.get(entry.key) for entry in output.list("masks/")}


def weights(path: Path) -> dict[str, np.ndarray]:
    """By name, of a checkpoint."""
    return checkpoint.load(path.read_bytes(), path.name).state


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)

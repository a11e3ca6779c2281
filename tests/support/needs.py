"""What tests need of the machine: without it they are skipped, and in CI they fail."""

import os
import re
from pathlib import Path

import pytest

from segpipe import kernels


def why_skip() -> str:
    """Why there are no kernels to test, or ''.

    Only a machine without a compiler, or without AVX2, is excused, and none in CI: elsewhere the
    tests run and fail.
    """
    missing = kernels.missing()
    excused = re.search(r"no C\+\+ compiler|this CPU lacks", missing) and not os.environ.get("CI")
    return missing if excused else ""


def lacking(what: str) -> None:
    """Skip the test for want of this; in CI fail it."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


def real_set(name: str) -> Path:
    """The folder of a published set, below SEGPIPE_DATA.

    Without the variable its tests are skipped: the real data may not be passed on.
    """
    data = os.environ.get("SEGPIPE_DATA")
    if not data:
        pytest.skip("SEGPIPE_DATA is unset: the real data may not be passed on")
    root = Path(data).absolute() / name
    if not root.is_dir():
        lacking(f"SEGPIPE_DATA {data}: holds no {name}/")
    return root

"""Folders of this user for what is kept between runs, also where there is no home to keep it in."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """Where what is found once is kept: $SEGPIPE_CACHE, else segpipe/ in the user's cache.

    In the temporary folder where that cache cannot be written.
    """
    if named := os.environ.get("SEGPIPE_CACHE"):
        return Path(named)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        cache = Path(os.devnull)
    return kept(cache / "segpipe")


def kept(folder: Path) -> Path:
    """`folder`; one in the temporary folder where it is empty or missing and cannot be written.

    /dev/null/segpipe, in which nothing can be kept, where that is another user's.
    """
    if can_write(folder) or _holds_anything(folder):
        return folder
    try:
        return _own_temporary() / folder.name
    except OSError:
        return Path(os.devnull) / folder.name


def can_write(folder: Path) -> bool:
    """Whether files can be made in the folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def spare_home() -> None:
    """Where the home cannot be written: matplotlib's folder, for this process and all it starts.

    It would make one for each process and warn of it.
    """
    try:
        there = can_write(Path.home())
    except RuntimeError:  # a user without one
        there = False
    if not there:
        with suppress(OSError):
            os.environ.setdefault("MPLCONFIGDIR", str(_own_temporary() / "matplotlib"))


def _holds_anything(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _own_temporary() -> Path:
    """Made where it is missing. Raises OSError where others can write there."""
    folder = Path(tempfile.gettempdir()) / f"segpipe-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder}: is not this user's alone")
    return folder

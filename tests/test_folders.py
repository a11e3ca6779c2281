"""What is kept between runs has a place, also without a home. Run: pytest tests/test_folders.py"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from segpipe.storage import folders

NO_HOME = Path("/proc/nohome")  # that not even root can make


@pytest.fixture
def temporary(monkeypatch, tmp_path) -> Path:
    """The temporary folder of a user whose home cannot be made."""
    for name in ("SEGPIPE_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(NO_HOME))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is looked up once
    return tmp_path


def test_a_cache_is_in_the_home_and_without_one_in_the_temporary_folder(monkeypatch, temporary):
    own = temporary / f"segpipe-{os.getuid()}"
    assert folders.cache_folder() == own / "segpipe"
    assert own.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("HOME", str(temporary / "home"))
    assert folders.cache_folder() == temporary / "home/.cache/segpipe"
    monkeypatch.setenv("SEGPIPE_CACHE", str(NO_HOME))  # the user's word
    assert folders.cache_folder() == NO_HOME


def test_what_a_cache_that_cannot_be_written_holds_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(folders, "can_write", lambda _: False)
    (tmp_path / "engines-cpu.json").write_text("")
    assert folders.kept(tmp_path) == tmp_path


@pytest.mark.parametrize("kind", ["open to all", "link"])
def test_a_folder_that_is_not_this_users_alone_keeps_nothing(temporary, kind):
    """Whoever can write there chooses the engine."""
    own = temporary / f"segpipe-{os.getuid()}"
    if kind == "link":
        (temporary / "others").mkdir()
        own.symlink_to(temporary / "others")
    else:
        own.mkdir()
        own.chmod(0o777)
    assert folders.cache_folder() == Path("/dev/null/segpipe")


def test_matplotlib_without_a_home_warns_of_nothing(temporary):
    program = (
        "from segpipe.storage import folders; folders.spare_home(); import matplotlib.font_manager"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert any((temporary / f"segpipe-{os.getuid()}" / "matplotlib").iterdir())

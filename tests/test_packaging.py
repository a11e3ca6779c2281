"""What `ray job submit --working-dir .` sends of a checkout, by Ray's own packaging; and a wheel.

Run: pytest tests/test_packaging.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package, get_uri_for_directory

from segpipe.kernels import build

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (
    "DRIVE/training/images/21_training.tif",
    "data/photographs/a.jpg",
    "photographs.zip",
    "model.safetensors",
    "runs/drive/model.safetensors",
    "results/LOG.md",
    "out/masks/a.png",
    ".venv/bin/python",
    "my env/lib/big.so",
    "notes.ipynb",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The files of the repository, with all that may lie in a checkout that is worked in."""
    folder = tmp_path_factory.mktemp("user") / "checkout"
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in (name for name in listed.stdout.splitlines() if (ROOT / name).is_file()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in LEFT_OUT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(100))
    (folder / "mine.py").write_text("print('a job of my own')\n")
    return folder


@pytest.fixture(scope="module")
def sent(checkout, tmp_path_factory) -> set[str]:
    package = tmp_path_factory.mktemp("package") / "package.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(checkout), package, include_gitignore=True, excludes=excludes)
    with ZipFile(package) as opened:
        return set(opened.namelist())


def test_what_is_sent_of_a_checkout_is_its_code(checkout, sent):
    code = {path for folder in ("segpipe", "jobs") for path in (checkout / folder).rglob("*")}
    names = {str(path.relative_to(checkout)) for path in code if path.is_file()}
    assert sent == names | {"mine.py", "pyproject.toml", "constraints.txt"}
    assert {"segpipe/models/weights/resunet.safetensors", "jobs/segment.py"} <= sent
    assert any(name.endswith(".cpp") for name in sent)


def test_a_data_set_in_a_checkout_changes_nothing_of_what_is_sent(checkout):
    """So that a package that a cluster has already is not sent again."""
    excludes = get_runtime_env_default_excludes()

    def uri() -> str:
        return get_uri_for_directory(str(checkout), include_gitignore=True, excludes=excludes)

    before = uri()
    (checkout / "new set").mkdir()
    (checkout / "new set" / "large.tif").write_bytes(os.urandom(1 << 20))
    assert uri() == before
    (checkout / "mine.py").write_text("print('changed')\n")
    assert uri() != before


def wheel_of(checkout: Path, folder: Path, compiler: str) -> ZipFile:
    """As `pip wheel .` makes it, with the setuptools that is installed."""
    copy = folder / "checkout"
    shutil.copytree(checkout, copy)
    words = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--quiet"]
    env = os.environ | {"CXX": compiler}
    words += ["--wheel-dir", str(folder / "wheels"), str(copy)]
    subprocess.run(words, check=True, env=env, capture_output=True, text=True)
    [wheel] = (folder / "wheels").iterdir()
    assert wheel.name.endswith("-linux_x86_64.whl")
    return ZipFile(wheel)


def test_a_wheel_brings_a_library_of_each_variant(checkout, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho "$*" > "$last"\n')
    compiler.chmod(0o755)
    folder = Path("segpipe", "kernels", "lib")
    with wheel_of(checkout, tmp_path, str(compiler)) as opened:
        found = {name for name in opened.namelist() if name.startswith(str(folder))}
        assert found == {str(build.library_path(folder, one)) for one in build.VARIANTS}
        for variant in build.VARIANTS:
            with opened.open(str(build.library_path(folder, variant))) as file:
                words = file.read().decode().split()
                wanted = [f"-march={variant.level}", *variant.flags]
                assert [word for word in words if word.startswith("-m")] == wanted


def test_without_a_compiler_a_wheel_is_made_that_says_why_it_has_no_library(checkout, tmp_path):
    folder = Path("segpipe", "kernels", "lib")
    with wheel_of(checkout, tmp_path, "no-such-compiler") as opened:
        [reason] = (name for name in opened.namelist() if name.startswith(str(folder)))
        assert reason == str(build.reason_path(folder))
        assert opened.read(reason).startswith(b"CXX no-such-compiler: No such file or directory; ")

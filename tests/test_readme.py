"""README.md tells the truth: its commands parse, its figures are measured, its layouts are read.

Run: pytest tests/test_readme.py
"""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image
from verbs import commands_of, parse

import segpipe
from segpipe.data import layouts
from segpipe.data.codecs import decode_image
from segpipe.storage import open_store

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = commands_of(README)


def test_the_readme_has_the_commands_of_every_verb():
    split = [shlex.split(command, comments=True) for command in COMMANDS]
    told = {words[1] for words in split if words[0] == ".venv/bin/segpipe"}
    assert told >= {"train", "segment", "evaluate", "status"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(".venv/bin/segpipe")])
def test_a_command_of_the_readme_parses(command):
    parse(command)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_a_make_target_of_the_readme_exists(command):
    target = shlex.split(command, comments=True)[1]
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/models.md", "docs/planning.md"])
def test_figures_in_a_page_come_from_result_files(page):
    text = (ROOT / page).read_text()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        assert import_module("readme").filled(text) == text
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_the_lines_for_python_run(labelled, tmp_path):
    """As they stand, on a photograph of that name; what they print is what the comments say."""
    [code] = re.findall(r"```python\n(.*?)```", README.split("## From Python")[1], re.DOTALL)
    photograph = decode_image(min((labelled / "test/images").iterdir()).read_bytes())
    Image.fromarray(photograph).save(tmp_path / "photo.jpg")
    sizes = "print(result.mask.shape, result.score.dtype, result.fov.dtype, fov.shape)\n"
    done = subprocess.run(
        [sys.executable, "-c", code + sizes], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    measured, told = done.stdout.splitlines()
    assert 0 < float(measured.split()[0]) < 0.5
    assert told == f"{photograph.shape[:2]} float32 bool {photograph.shape[:2]}"


TRAIN = README.split("## Train\n")[1].split("| `--model` |")[0]
LAYOUTS = re.findall(r"^\| (\w[\w -]*) \|(.*)\|$", TRAIN, re.MULTILINE)


def test_the_readme_has_every_layout_that_is_known():
    told = [name.replace("your own", "plain") for name, _ in LAYOUTS]
    assert told == list(dict.fromkeys(layout.name for layout in layouts.LAYOUTS))


@pytest.mark.parametrize(("name", "cells"), LAYOUTS, ids=[name for name, _ in LAYOUTS])
def test_files_as_the_readme_names_them_are_recognised(name, cells, tmp_path):
    keys = [re.search("`(.+)`", cell) for cell in cells.split("|")]
    image, manual, mask, second = (key and key[1] for key in keys)
    for key in filter(None, (image, manual, mask, second)):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).touch()
    found = layouts.open_labelled(open_store(str(tmp_path)))
    assert found.layout == name.replace("your own", "plain")
    (example,) = found.training + found.test
    example = replace(example, colours="")
    assert example == layouts.Example(Path(image).stem, image, manual, mask, second)
    known = next(layout for layout in layouts.LAYOUTS if layout.name == found.layout)
    assert (known.mask is None, known.second is None) == (mask is None, second is None)


def test_files_that_the_readme_and_the_map_of_modules_name_exist():
    tree = README.split("## Where things are")[1].split("```")[1] + segpipe.__doc__
    names = set(re.findall(r"\b(\w+\.py|\w+/)", tree)) - {"benchmarks/", "python"}
    found = {p.name for p in (ROOT / "segpipe").rglob("*.py")}
    found |= {f"{p.name}/" for p in [*ROOT.iterdir(), *(ROOT / "segpipe").rglob("*")] if p.is_dir()}
    assert names <= found, names - found


def test_the_map_of_modules_names_every_one():
    """That of the package, or of its folder where that has one."""
    for path in (ROOT / "segpipe").rglob("*.py"):
        own = (path.parent / "__init__.py").read_text()
        if not path.name.startswith("__"):
            assert re.search(rf"\b{path.name}\b", f"{segpipe.__doc__} {own}"), path

"""README.md tells the truth: its commands parse, its figures are those of the result files.

Run: pytest tests/test_readme.py
"""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tyro

from segpipe import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def test_the_readme_has_the_commands_of_every_verb():
    split = [shlex.split(command, comments=True) for command in COMMANDS]
    told = {words[1] for words in split if words[0] == ".venv/bin/segpipe"}
    assert told >= {"train", "segment", "evaluate", "status"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(".venv/bin/segpipe")])
def test_a_command_of_the_readme_parses(command):
    _, verb, *flags = shlex.split(command, comments=True)
    module, name, _ = cli.VERBS[verb]
    config = tyro.cli(getattr(import_module(module), name), args=flags)
    if hasattr(config, "check"):
        config.check()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_a_make_target_of_the_readme_exists(command):
    target = shlex.split(command, comments=True)[1]
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_figures_in_the_readme_come_from_result_files():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        assert import_module("readme").filled(README) == README
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_files_that_the_readme_names_exist():
    tree = README.split("## Where things are")[1].split("```")[1]
    names = set(re.findall(r"\b(\w+\.py|\w+/)", tree)) - {"benchmarks/", "python"}
    found = {p.name for p in (ROOT / "segpipe").rglob("*.py")}
    found |= {f"{p.name}/" for p in [*ROOT.iterdir(), *(ROOT / "segpipe").rglob("*")] if p.is_dir()}
    assert names <= found, names - found

"""README.md and the pages of docs/ match the code: commands, flags, links, figures, layouts, tree.

Run: pytest tests/test_readme.py
"""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image
from verbs import commands_of, parse

import segpipe
from segpipe import cli
from segpipe.data import layouts
from segpipe.data.codecs import decode_image
from segpipe.flags import flag
from segpipe.models import checkpoint
from segpipe.storage import open_store

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = commands_of(README)
MOST_BYTES = 10_000  # of the README
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "cluster").glob("*.md"),
    )
)
GENERATED = ["README.md", "docs/measurements.md", "docs/planning.md"]
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def test_the_readme_is_short():
    assert len(README.encode()) <= MOST_BYTES


def test_the_readme_has_the_commands_of_every_verb():
    shown = {shlex.split(command)[1] for command in COMMANDS if command.startswith("segpipe ")}
    assert shown >= {"check", "train", "segment", "evaluate", "status"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("segpipe ")])
def test_a_command_of_the_readme_parses(command):
    parse(command)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_a_make_target_of_the_readme_exists(command):
    target = shlex.split(command, comments=True)[1]
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- flags and links of all pages


OTHERS_FLAGS = {  # of pip, ray, tensorboard and a test
    "--constraint",
    "--help",
    "--logdir",
    "--no-deps",
    "--no-wait",
    "--num-cpus",
    "--runtime-env-json",
    "--working-dir",
    "--write",
}


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("cluster/")])
def test_a_page_names_only_flags_that_a_verb_has(page):
    configs = (getattr(import_module(module), name) for module, name, _ in cli.VERBS.values())
    known = {flag(field.name) for config in configs for field in fields(config)}
    prose = FENCED.sub("", (ROOT / page).read_text())
    spans = re.findall(r"`([^`]+)`", prose)
    named = {word for span in spans for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)}
    assert named <= known | OTHERS_FLAGS | set(cli.LOG_FLAGS), named - known - OTHERS_FLAGS


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text())
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_a_link_of_a_page_leads_somewhere(page):
    here = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", here.read_text())):
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        there = (here.parent / path).resolve() if path else here
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_of_docs_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/\w[\w-]*\.md)", README))
    assert linked == {page for page in PAGES if page.startswith("docs/")}


# ---- figures


@pytest.fixture
def generator(monkeypatch):
    """benchmarks/readme.py"""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("readme")


@pytest.mark.parametrize("page", GENERATED)
def test_figures_in_a_page_come_from_result_files(page, generator):
    text = (ROOT / page).read_text()
    assert generator.filled(text) == text


def test_only_generated_pages_have_tables_of_results(generator):
    marked = [page for page in PAGES if "<!-- begin results/" in (ROOT / page).read_text()]
    assert marked == [page for page in GENERATED if page != "README.md"]
    assert {str(page.relative_to(ROOT)) for page in generator.PAGES} == set(GENERATED)


# ---- lines for Python


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


def test_the_readmes_table_has_the_figures_that_evaluate_wrote():
    """The default's and the second observer's; each of them from another file than the others."""
    folder = ROOT / "results" / "networks" / checkpoint.DEFAULT
    for name in ("DRIVE", "STARE", "HRF"):
        result = json.loads((folder / f"{name}.json").read_text())
        assert f"| {result['pooled']['auc']:.4f} | {result['pooled']['dice']:.4f} |" in README
        if second := result.get("second_observer"):
            assert f"| – | {second['dice']:.4f} |" in README


@pytest.mark.parametrize(
    ("measured", "shown"),
    [
        ("resunet, eager bf16", "resunet, torch bf16"),
        ("segpipe, compiled fp32", "segpipe, native fp32"),
        ("`--flips 1` or `--flips 4`", "`--tta none` or `--tta flip4`"),
        ("--place field --average 0.9", "--crop-sampling fov --ema-decay 0.9"),
        ("segpipe train --epochs 3", "segpipe train --recipe lecture --epochs 3"),
        ("segpipe train --recipe resunet", "segpipe train --recipe resunet"),
        (
            "segpipe scale --job train --data A",
            "segpipe scale --job train --recipe lecture --data A",
        ),
        ("scale --job train --model wnet", "scale --job train --model wnet"),
        ("train --batch-size 4", "train --batch-size 4"),
    ],
)
def test_what_was_measured_under_older_names_is_shown_under_todays(measured, shown, generator):
    assert generator.renamed(measured) == shown
    assert generator.renamed(shown) == shown


# ---- layouts


TRAINING_DATA = (ROOT / "docs" / "training-data.md").read_text()
TABLE = TRAINING_DATA.split("## Layouts\n")[1].split("\n## ")[0]
LAYOUTS = re.findall(r"^\| (\w[\w -]*) \|(.*)\|$", TABLE, re.MULTILINE)


def test_the_page_has_every_layout_that_is_known():
    shown = [name.replace("your own", "plain") for name, _ in LAYOUTS]
    assert shown == list(dict.fromkeys(layout.name for layout in layouts.LAYOUTS))


def test_the_readme_names_every_layout():
    """As the help of --data says."""
    section = README.split("## Train on your labels")[1].split("\n## ")[0]
    assert {known.name for known in layouts.LAYOUTS if known.name not in section} == {"plain"}


@pytest.mark.parametrize(("name", "cells"), LAYOUTS, ids=[name for name, _ in LAYOUTS])
def test_files_as_the_page_names_them_are_recognised(name, cells, tmp_path):
    keys = [re.search("`(.+)`", cell) for cell in cells.split("|")]
    image, manual, mask, second = (key and key[1] for key in keys)
    for key in filter(None, (image, manual, mask, second)):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).touch()
    found = layouts.open_labelled(open_store(str(tmp_path)))
    assert found.layout == name.replace("your own", "plain")
    (example,) = found.training + found.test
    example = replace(example, colours="", kinds=None, kind_colours="")
    assert example == layouts.Example(Path(image).stem, image, manual, mask, second)
    known = next(layout for layout in layouts.LAYOUTS if layout.name == found.layout)
    assert (known.mask is None, known.second is None) == (mask is None, second is None)


# ---- folders and modules


def test_the_tree_of_the_readme_has_a_line_for_each_folder():
    tree = README.split("## Development")[1].split("```")[1]
    lines = re.findall(r"^( *)(\w+)/ ", tree, re.MULTILINE)
    words = ["git", "ls-files"]
    listed = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    parents = [Path(name).parent.parts for name in listed.splitlines()]
    top = {parts[0] for parts in parents if parts and not parts[0].startswith(".")}
    inside = {parts[1] for parts in parents if len(parts) > 1 and parts[0] == "segpipe"}
    assert {name for indent, name in lines if not indent} == top
    assert {name for indent, name in lines if indent} == inside


def test_files_that_the_map_of_modules_names_exist():
    names = set(re.findall(r"\b(\w+\.py|\w+/)", segpipe.__doc__))
    found = {p.name for p in (ROOT / "segpipe").rglob("*.py")}
    found |= {f"{p.name}/" for p in (ROOT / "segpipe").rglob("*") if p.is_dir()}
    assert names <= found, names - found


def test_the_map_of_modules_names_every_one():
    """That of the package, or of its folder where that has one."""
    for path in (ROOT / "segpipe").rglob("*.py"):
        own = (path.parent / "__init__.py").read_text()
        if not path.name.startswith("__"):
            assert re.search(rf"\b{path.name}\b", f"{segpipe.__doc__} {own}"), path

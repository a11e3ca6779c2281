"""The walk-throughs of docs/ do what they say, command after command.

Those of docs/clusters.md are run by test_submission.py, those of docs/scaling.md by test_scale.py.
Run: pytest tests/test_docs.py, and with -m cluster the walk-throughs themselves.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from processes import DEADLINE_S
from verbs import commands_of, parse

DOCS = Path(__file__).resolve().parent.parent / "docs"
BIN = Path(sys.executable).parent


ALL = [
    (page.name, line)
    for page in sorted(DOCS.glob("*.md"))
    for line in commands_of(page.read_text())
]
ARCHIVE = (DOCS / "archive.md").read_text()


@pytest.mark.parametrize(("page", "command"), [one for one in ALL if one[1].startswith("segpipe ")])
def test_a_command_of_a_page_parses(page, command):
    parse(command)


def shell(command: str, folder: Path) -> str:
    """What a command of a page prints, given in a folder with segpipe's environment."""
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_an_archive_is_screened_as_the_page_tells(labelled, photograph, tmp_path):
    archive = tmp_path / "ARCHIVE"  # as the page calls it
    shutil.copytree(labelled / "training/images", archive / "clinic-a")
    for number in range(20):
        photograph.rotate(number).save(archive / f"{number:03d}.jpg")
    (archive / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    smaller = [line.replace("--limit 100", "--limit 5") for line in commands_of(ARCHIVE)]
    told = [shell(command, tmp_path) for command in smaller]
    runs = tmp_path / "runs"
    assert (runs / "trial/report.html").exists()
    plan, masks = told[2], runs / "masks"
    assert "250,000 photographs" in plan
    assert "24 masks, 1 rejected" in told[3]
    assert "25" in told[4]
    assert "broken" not in (masks / "report.html").read_text()  # --report-images off
    (code,) = re.findall(r"```python\n(.*?)```", ARCHIVE, re.DOTALL)
    tail = "\nprint(rejected.to_pylist())\n"
    (runs / "read.py").write_text(code + tail)
    assert "broken.jpg" in shell(f"python {runs / 'read.py'}", tmp_path)
    rows = pq.read_table(masks / "results").to_pylist()
    good = [row["path"] for row in rows if (row["quality"] or 0) >= 0.5]
    assert good
    assert pq.read_table(runs / "good.parquet")["path"].to_pylist() == good

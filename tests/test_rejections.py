"""A rejection's code is the same for all inputs of one fault, known, and documented.

Run: pytest tests/test_rejections.py
"""

import ast
import pickle
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segpipe.data.fov import find_fov
from segpipe.errors import Fault, RejectedImage
from segpipe.segment import report
from segpipe.segment.compact import compact
from segpipe.segment.manifest import list_inputs
from segpipe.segment.parts import commit_part
from segpipe.storage import Entry, open_store

ROOT = Path(__file__).resolve().parents[1]


def faults_in(tree: ast.Module) -> list[str]:
    """The names that follow `Fault.`"""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [n.attr for n in nodes if isinstance(n.value, ast.Name) and n.value.id == "Fault"]


def test_every_rejection_in_the_code_has_a_known_code_and_every_code_is_used():
    used, num_rejections = set(), 0
    for path in (ROOT / "segpipe").rglob("*.py"):
        tree = ast.parse(path.read_text())
        used |= set(faults_in(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RejectedImage":
                num_rejections += 1
                assert len(node.args) == 2, f"{path}:{node.lineno}: a code and a sentence"
                assert not isinstance(node.args[0], ast.Constant | ast.JoinedStr), path
    assert num_rejections > 20
    assert used == set(Fault.__members__)


def test_the_documented_codes_are_those_of_the_code():
    page = (ROOT / "docs" / "results.md").read_text()
    table = page.partition("| `error_code` | |\n|---|---|\n")[2].partition("\n\n")[0]
    found = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)
    assert found == [(fault.value, fault.meaning) for fault in Fault]


def test_a_rejection_keeps_its_code_and_sentence_on_the_way_to_another_process():
    came = pickle.loads(pickle.dumps(RejectedImage(Fault.TOO_SMALL, "too small: 3 px")))
    assert (came.fault, str(came)) == (Fault.TOO_SMALL, "too small: 3 px")


def test_numbers_in_the_sentence_do_not_make_another_code():
    faults, sentences = set(), set()
    for radius in range(8, 24, 4):
        y, x = np.mgrid[-300:300, -300:300]
        image = np.zeros((600, 600, 3), np.uint8)
        image[np.hypot(x, y) < radius] = 200
        with pytest.raises(RejectedImage) as rejection:
            find_fov(Image.fromarray(image))
        faults.add(rejection.value.fault)
        sentences.add(str(rejection.value))
    assert len(sentences) > 1
    assert faults == {Fault.NO_FIELD_OF_VIEW}


def rejected(path: str, sentence: str, code: str | None) -> dict:
    why = {"status": "rejected", "error": sentence, "error_code": code}
    return {"path": path, "version": "1", "finished": datetime(2026, 1, 1, tzinfo=UTC)} | why


def test_summary_and_report_count_by_code_and_rows_of_0_1_0_by_their_sentence(tmp_path):
    rows = [
        rejected(f"{n}.jpg", f"no field of view found: 0.{n}% of the image is lit", "no_field")
        for n in range(50)
    ]
    rows += [rejected(f"old-{n}", "empty file", None) for n in range(3)]
    rows += [{"path": "fine", "version": "1", "status": "ok", "height": 50, "width": 60}]
    output = open_store(str(tmp_path / "out"))
    commit_part(output, rows)
    entries = [Entry(row["path"], 1, row["version"]) for row in rows]
    summary = compact(output, list_inputs(sorted(entries, key=lambda e: e.key)))
    assert summary["rejected_by_code"] == {"no_field": 50, "unknown": 3}
    more = {"skipped": {}, "seconds": 1.0, "images_per_second": None}
    model = {"model": {"model": "segnet-lite", "training_data": "DRIVE"}}
    source = open_store(str(tmp_path))
    page = report.archive_report(source, output, summary | more | model, overlays=1).decode()
    table = re.findall(r'number">([\d,]+)</td><th scope="row">(.*?)</th><td>(.*?)</td>', page)
    assert [(count, why) for count, why, _ in table] == [
        ("50", "<code>no_field</code> no field of view found: 0.0% of the image is lit"),
        ("3", "empty file"),
    ]
    assert [paths.count("<bdi>") for _, _, paths in table] == [5, 3]

"""Every error for the user names a flag, a variable, a file or a URI, and says what to do.

Read from the source: the text of each UserError(...), whatever raises it.

Run: pytest tests/test_messages.py
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from verbs import run

import segpipe
from segpipe.errors import StoreDown, Unfinished, UserError
from segpipe.segment.bulk import store_failures
from segpipe.storage.s3_errors import ROWS, Kind

ROOT = Path(segpipe.__file__).parent
ACTIONS = (
    r"choose|check|use |give |name |set |lower |raise |install|delete|wait |renew|wanted|must be|"
    r"needs|leave |draw it|replace it|save it|measure anew|take more|can be meant|allows it|unset|"
    r"change|restore it"
)
# placeholders that hold a file, a URI or the name of a flag
NAMES = r"uri|place|path|root|flag\(|source|name|list_uri|endpoint|existing"
NAMED = rf"--[a-z]|[A-Z]{{2,}}_[A-Z_]+|\{{[^}}]*({NAMES})"
EXCEPTIONS = {  # a part of the text: why it may lack a name or what to do
    "{errors[0]}": "a UserError of a worker",
    "{faults[0]}": "a UserError of a split",
    "{row['error']}": "a UserError of a worker",
    "--input {error}": "a UserError, with the flag before it",
    "--measured {error}": "a UserError, with the flag before it",
    "{flag(name)} {error}": "a UserError, with the flag before it",
    "{name} {error}": "a UserError, with the flag before it",
    "{flag} {told}": "a UserError, with the flag before it",
    "--checkpoint {error}": "a UserError, with the flag before it",
    "{line} (segpipe {verb} --help tells more)": "what the parser says names the flag",
    "{unknown} (segpipe {verb} --help tells all)": "names the flag, and the nearest one",
    "{misused}": "names the flag, its value and what was wanted",
    "{cause}, check the path": "os_error_text names the file",
    "{os_error_text(error)}, check the path": "os_error_text names the file",
    '"{text}": is no path': "the value itself",
    "{self.uri(key if found.of_key else '')}: {line}": "the table of s3_errors, below",
    "{self.uri()}: {line}": "the table of s3_errors, below",
    "{str(error)}": "NotNow names the URI; the table of s3_errors, below",
    "segpipe runs on": "of the machine, whatever the flags",
    "{error} (is the store up,": "StoreDown names the URI; a question says what to look at",
    "{flag(name)} {getattr(self, name)}: {wrong}": "it says to leave it out, or what to give",
    "missing {', '.join(missing)}": "the flags that are to be given",
}


@dataclass(frozen=True)
class Message:
    place: str
    text: str


def text_of(node: ast.expr, known: dict[str, ast.expr]) -> str:
    """The words of a string expression, with {source} for what is filled in.

    `known`: what the module's own constants are; they are put in.
    """
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return text_of(node.value, known)
    if isinstance(node, ast.BinOp):
        return text_of(node.left, known) + text_of(node.right, known)
    if isinstance(node, ast.Name) and isinstance(
        known.get(node.id), ast.Constant | ast.JoinedStr | ast.BinOp
    ):
        return text_of(known[node.id], known)
    return "{" + ast.unparse(node) + "}"


def constants(module: ast.Module) -> dict[str, ast.expr]:
    return {
        node.targets[0].id: node.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


@cache
def messages() -> list[Message]:
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        module = ast.parse(file.read_text())
        known = constants(module)
        for node in ast.walk(module):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if called and node.func.id == "UserError" and node.args:
                place = f"{file.relative_to(ROOT)}:{node.lineno}"
                found.append(Message(place, text_of(node.args[0], known)))
    return found


def test_all_of_them_are_found():
    lines = "".join(file.read_text() for file in ROOT.rglob("*.py"))
    assert len(messages()) == len(re.findall(r"(?<!class )\bUserError\((?!Exception)", lines))


@pytest.mark.parametrize(
    ("wanted", "told"),
    [(NAMED, "names no flag, variable, file or URI"), (ACTIONS, "does not say what to do")],
)
def test_each_message_names_what_is_wrong_and_says_what_to_do(wanted, told):
    checked = [one for one in messages() if not any(part in one.text for part in EXCEPTIONS)]
    wrong = [
        f"{one.place} {told}: {one.text}" for one in checked if not re.search(wanted, one.text)
    ]
    assert not wrong


TOLD_AT_ONCE = {Kind.USER, Kind.CREDENTIALS, Kind.CLOCK, Kind.NOT_NOW}


@pytest.mark.parametrize(
    "row",
    [one for one in ROWS if {one.kind, one.of_one} & TOLD_AT_ONCE],
    ids=lambda row: row.codes[0],
)
def test_each_error_of_s3_that_the_user_must_mend_says_how(row):
    """What is told of one has the URI before it."""
    assert re.search(ACTIONS, row.words)


def test_no_exception_outlives_its_message():
    texts = [message.text for message in messages()]
    assert [part for part in EXCEPTIONS if not any(part in text for text in texts)] == []


# ---- errors of file systems and stores


@pytest.mark.parametrize(
    ("error", "told", "again"),
    [
        (PermissionError("s3://photos/eye"), "s3://photos/eye: permission denied", False),
        (PermissionError(13, "Permission denied", "/x y"), "/x y: Permission denied", False),
        (IsADirectoryError(21, "Is a directory", "/x"), "/x: Is a directory", False),
        (NotADirectoryError(20, "Not a directory", "/x"), "/x: Not a directory", False),
        (OSError(30, "Read-only file system", "/x"), "/x: Read-only file system", False),
        (OSError(36, "File name too long", "/x"), "/x: File name too long", False),
        (FileNotFoundError("s3://photos/eye"), "s3://photos/eye: no such file", True),
        (StoreDown("s3://b: no good answer for 9 s"), "s3://b: no good answer for 9 s", True),
        (OSError(5, "Input/output error", "/x"), "/x: Input/output error", True),
    ],
)
def test_a_bare_error_is_told_whole_and_again_only_where_that_helps(error, told, again):
    """In bulk, also where Ray wraps it; and of every other verb."""
    wrapped = RuntimeError("of a library")
    wrapped.__cause__ = error
    for raised in (error, wrapped):
        with pytest.raises(Unfinished if again else UserError) as ended, store_failures():
            raise raised
        assert str(ended.value).startswith(f"{told}; run the same" if again else f"{told}, check")
        assert ("run the same command again" in str(ended.value)) == again


def test_an_error_of_a_file_ends_another_verb_with_its_name(tmp_path, monkeypatch, capsys):
    def fail(_: object) -> None:
        raise PermissionError("s3://photos/eye")

    monkeypatch.setattr("segpipe.segment.status.state_of", fail)
    assert run("status", "--output", tmp_path) == 2
    assert "segpipe status: s3://photos/eye: permission denied" in capsys.readouterr().err

"""Starts short-lived runs quickly: imports once, then forks. For tests that kill a run many times.

Reads a line of JSON `{"env": {...}, "verb": ..., "words": [...]}`, forks a child that does it,
answers with the child's pid, waits for it, and answers with its exit code (-9: it was killed).
"""

import json
import os
import sys
import traceback

from segmenting import job_of

from segpipe import cli
from segpipe.models import predict  # noqa: F401
from segpipe.models.checkpoint import read
from segpipe.models.engine import REFERENCE
from segpipe.segment import stages
from segpipe.storage import open_store

WEIGHTS = read(None)


def commit_group(source: str, output: str, page: str, rows: str) -> None:
    """What an actor does with one group, without the actor."""
    job = job_of(open_store(source), open_store(output), format="both")
    numbers = [int(row) for row in rows.split(",")]
    stages.Segmenter(job, WEIGHTS, None, REFERENCE, "cpu", 1)({"page": [page], "rows": [numbers]})


def child(order: dict) -> int:
    os.environ |= order["env"]
    sys.stdout = sys.stderr
    try:
        if order["verb"] == "group":
            commit_group(*order["words"])
        else:
            cli.run_verb(order["verb"], order["words"])
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            code = child(order)
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

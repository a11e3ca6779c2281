"""Look at a labelled set before anything is trained on it.

    python -m jobs.check --data DRIVE --output runs/check

Forty photographs take ten seconds on 2 cores. Result: layout, sizes, vessel shares and what cannot
be right, exit code 1 where anything is; check.json and contact sheets in the output.
"""

from segpipe.cli import run_verb

if __name__ == "__main__":
    run_verb("check")

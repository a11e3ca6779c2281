"""Measure a checkpoint on labelled sets, inside the field of view.

    python -m jobs.evaluate --data DRIVE STARE --output runs/evaluation

Twenty photographs take half a minute on 2 cores. Result: metrics.json, report.html and figures, of
several sets in a folder each beside table.md.
"""

from segpipe.cli import run_verb

if __name__ == "__main__":
    run_verb("evaluate")

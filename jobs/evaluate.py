"""Measure a checkpoint on a labelled set, inside the field of view.

    python -m jobs.evaluate --data DRIVE --output runs/evaluation --checkpoint segnet-lite

Twenty photographs take half a minute on 2 cores. Result: metrics.json and comparison.png.
"""

from segpipe.cli import run_verb

if __name__ == "__main__":
    run_verb("evaluate")

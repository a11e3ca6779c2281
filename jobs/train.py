"""Train a network on a labelled set.

    python -m jobs.train --recipe lecture --data DRIVE --output runs/drive --epochs 2 --workers 2

Two epochs of segnet-lite take a minute on 2 cores. Result: model.safetensors, history.csv,
curves.png and predictions.png in the output; mean loss about 0.6 and 0.4.
"""

from segpipe.cli import run_verb

if __name__ == "__main__":
    run_verb("train")

"""The whole of segpipe on photographs that it draws itself.

    python -m jobs.demo --output runs/demo

About two minutes on 2 cores. Result: a labelled set and an archive, a model trained on the one,
masks of the other, and segmented/report.html.
"""

from segpipe.cli import run_verb

if __name__ == "__main__":
    run_verb("demo")

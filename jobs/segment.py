"""Segment a folder, or a prefix on S3, of retinal photographs.

    python -m jobs.segment --input DRIVE/test/images --output runs/masks

Twenty photographs take half a minute on 2 cores, nearly all of it start-up. Result: masks/ with a
PNG for every input, results/ with a Parquet row for each, summary.json and report.html.
"""

from segpipe.cli import run_verb

if __name__ == "__main__":
    run_verb("segment")

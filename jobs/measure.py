"""Measure the vessels of masks that were made or corrected elsewhere.

    python -m jobs.measure --input corrected --photographs DRIVE/test/images --output runs/measured

Twenty masks take ten seconds on 2 cores, nearly all of it start-up. Result: results/ with a Parquet
row for each mask, and summary.json.
"""

from segpipe.cli import run_verb

if __name__ == "__main__":
    run_verb("measure")

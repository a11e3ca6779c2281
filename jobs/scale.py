"""Measure what more workers buy, each point on that many cores.

    python -m jobs.scale --job segment --workers 1 2 --input DRIVE/test/images --output runs/scale

Three repeats of two points take ten minutes on 2 cores. Result: results.jsonl with a line a
measurement, table.md with rates, efficiencies and ceilings, and scaling.png.
"""

from segpipe.cli import run_verb

if __name__ == "__main__":
    run_verb("scale")

"""How long an archive takes on a cluster, and what it costs.

    python -m jobs.plan --images 10000000 --mean-bytes 400000 --nodes 8 --cores-per-node 16

A second on any machine; no cluster is needed. Result: a table of measured and assumed costs, and a
forecast of rate, hours, memory, bottleneck and price.
"""

from segpipe.cli import run_verb

if __name__ == "__main__":
    run_verb("plan")

"""Put a checkpoint into the package with what was measured of it.

    python benchmarks/ship.py NAME CHECKPOINT DRIVE/metrics.json STARE/metrics.json

The metrics are those of `segpipe evaluate`; the speed comes from results/networks.json.
"""

TERMS = (
    "weights Apache-2.0; they hold no photograph; DRIVE's own terms allow research and education"
)

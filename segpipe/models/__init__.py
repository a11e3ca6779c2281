"""Networks, their checkpoints and the one path from a canvas to a score. Nothing here knows Ray."""

"""What a cluster runs: `python -m jobs.<verb>` takes the flags of `segpipe <verb>`."""

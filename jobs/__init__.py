"""What is sent to a cluster: `python -m jobs.<verb>` takes the flags of `segpipe <verb>`.

Run from a checkout; a wheel leaves this folder out.
"""

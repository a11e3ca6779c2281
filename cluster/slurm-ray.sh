#!/bin/bash
# Runs a command on a Ray cluster over all nodes of a Slurm job, which ends with the command.
#
# Run, Watch, Delete: see slurm-train.sh and slurm-segment.sh, which call it.
#
# In a checkout after `make setup`, on a file system that all nodes share.
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"

# A batch script runs on the first node of its job: the head. Its address, not its name, which on
# some systems is 127.0.1.1 to itself. SEGPIPE_HEAD is another, where it has several networks.
address=${SEGPIPE_HEAD:-$(hostname -I | cut -d ' ' -f 1)}:6379

# The token lives as long as the job, in a folder that its owner alone can open.
private=$(mktemp --directory "$HOME/.segpipe-$SLURM_JOB_ID-XXXXXX")
trap 'rm -rf "$private"' EXIT
head -c 32 /dev/urandom | base64 > "$private/auth_token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/auth_token"
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600  # seconds; nodes begin at different times

# symmetric-run does not tell its command where Ray is, and without RAY_ADDRESS segpipe starts one of
# its own. It ends with 0 where Ray did not start, so the command leaves a sign that it began.
# shellcheck disable=SC2016
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    --metrics-export-port 8080 --disable-usage-stats -- \
    env RAY_ADDRESS="$address" sh -c 'touch "$0" && exec "$@"' "$private/began" "$@"
if [ ! -e "$private/began" ]; then
    echo "slurm-ray.sh: Ray did not start on $address, see above" >&2
    exit 1
fi

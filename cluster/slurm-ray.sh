#!/bin/bash
# Runs a command on a Ray cluster over all nodes of a Slurm job, which ends with the command.
#
# Run, Watch, Delete: see slurm-train.sh and slurm-segment.sh, which call it.
#
# In a checkout after `make setup`, on a file system that all nodes share. The exit code is the
# command's; where that did not run to its end another one than 0, with a line that says why.
set -euo pipefail
export PATH="$PWD/.venv/bin:$PATH"

# Two ports for each job, by its number: Ray's, and that of its metrics, between the ports of Ray's
# workers (up to 19999) and those that Linux gives out (from 32768). Either one, if taken, keeps Ray
# from starting, so the next free pair is used.
sockets=$(cat /proc/net/tcp /proc/net/tcp6 2> /dev/null || true)  # ports are in hex there
is_free() {
    [[ $sockets != *":$(printf '%04X' "$1") "* ]]
}
port=$((20000 + SLURM_JOB_ID % 5000 * 2))
for ((tries = 1; tries < 5000; tries++)); do
    if is_free "$port" && is_free "$((port + 1))"; then break; fi
    port=$((20000 + (port - 20000 + 2) % 10000))
done

# A batch script runs on the first node of its job: the head. Its address, not its name, which on
# some systems is 127.0.1.1 to itself. SEGPIPE_HEAD is another, where it has several networks.
address=${SEGPIPE_HEAD:-$(hostname -I | cut -d ' ' -f 1)}:$port
echo "slurm-ray.sh: Ray on $address, metrics on port $((port + 1))"

# The token and the command's exit code live as long as the job, or a step of it, in a folder that
# its owner alone can open.
private=$(mktemp --directory "$HOME/.segpipe-$SLURM_JOB_ID-XXXXXX")
trap 'rm -rf "$private"' EXIT
head -c 32 /dev/urandom | base64 > "$private/auth_token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/auth_token"
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600  # seconds; nodes begin at different times

# symmetric-run ends with 0 where Ray did not start (2.60.0), so the command leaves its exit code in
# a file. The shell that writes it outlives a signal to the whole step, as the command may.
# shellcheck disable=SC2016
and_tell='
    trap : INT TERM
    echo running > "$0" || exit
    "$@"
    code=$?
    echo "$code" > "$0"
    exit "$code"'

# symmetric-run does not tell its command where Ray is, and without RAY_ADDRESS segpipe starts one
# of its own.
status=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
    --metrics-export-port "$((port + 1))" --disable-usage-stats -- \
    env RAY_ADDRESS="$address" sh -c "$and_tell" "$private/exit_code" "$@" || status=$?

code=$(cat "$private/exit_code" 2> /dev/null || echo none)
case $code in
    none) told="Ray did not start on $address, the command was not run" ;;
    running | "") told="the command did not end by itself" ;;
    *) exit "$code" ;;
esac
echo "slurm-ray.sh: $told, see above (srun ended with $status)" >&2
exit "$((status > 0 ? status : 1))"

#!/bin/bash
# Train on the GPUs of two nodes of a Slurm cluster.
#
# Run:    sbatch cluster/slurm-train.sh /shared/DRIVE /shared/runs/fineunet
#         sbatch --nodes=4 cluster/slurm-train.sh s3://B/DRIVE s3://B/runs/fineunet
# Watch:  squeue --me; tail -f segpipe-train-JOB.out
# Delete: scancel JOB
#
# In a checkout after `make setup`, on a file system that all nodes share; data and output there or
# on S3, whose keys sbatch takes along from your environment. Flags behind the output go to
# `segpipe train`. A job that is preempted or whose node dies starts again by itself, one that ran
# out of time when it is submitted again; either resumes after the last finished epoch. The recipe's
# steps are of four crops: more than four GPUs want --batch-size.
#SBATCH --job-name=segpipe-train
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail
data=$1 output=$2
shift 2
exec cluster/slurm-ray.sh python -m jobs.train --data "$data" --output "$output" \
    --recipe fineunet --device gpu --resource-wait 300 \
    --workers "$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE))" "$@"

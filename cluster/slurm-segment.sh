#!/bin/bash
# Segment an archive on the cores of four nodes of a Slurm cluster.
#
# Run:    sbatch cluster/slurm-segment.sh /shared/archive /shared/masks
#         sbatch --gpus-per-node=1 cluster/slurm-segment.sh s3://BUCKET/archive s3://BUCKET/masks
# Watch:  squeue --me; tail -f segpipe-segment-JOB.out
#         .venv/bin/segpipe status --output /shared/masks
# Delete: scancel JOB
#
# In a checkout after `make setup`, on a file system that all nodes share; archive and masks there
# or on S3, whose keys sbatch takes along from your environment. Flags behind the output go to
# `segpipe segment`. A job that is preempted or whose node dies starts again by itself, one that ran
# out of time when it is submitted again; either does what is left.
#SBATCH --job-name=segpipe-segment
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=16
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
input=$1 output=$2
shift 2
exec cluster/slurm-ray.sh python -m jobs.segment --input "$input" --output "$output" "$@"

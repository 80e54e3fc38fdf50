#!/usr/bin/env bash
# A run as a Slurm job, which goes on after its time limit or a preemption:
#   sbatch docs/deploy/slurm.sh RECIPE [OVERRIDES]
#SBATCH --job-name=optkit
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=optkit-%j.log
set -euo pipefail

recipe="${1:-quickstart}"
shift || true
# a folder that all nodes see: the run, and the stages that runs share
shared="${OPTKIT_SHARED:-$PWD}"
export OMP_WAIT_POLICY=passive

# $SLURM_CPUS_PER_TASK is in no environment of a step unless it is asked for
code=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-4}" \
  optkit run "$recipe" "out=$shared/runs" "store=$shared/store" "threads=${SLURM_CPUS_PER_TASK:-4}" "$@" || code=$?

# 143: stopped by SIGTERM; the same command goes on from the last checkpoint
if [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

#!/bin/bash
# Trains on the nodes of a SLURM allocation, one task a node, all its GPUs each.
# Not yet run on such nodes: see docs/pods.md.
#
#   sbatch --nodes=4 scripts/slurm.sh configs/jft4b.py:soft-b16 /shared/runs/b16 \
#     --config.data.source=tfds:NAME
#
# The arguments are the config, the directory of the run (on a file system that
# all nodes share) and further flags of train.py. The tasks find each other by
# what srun tells them. Ten minutes before its time is up the job is told to
# stop; it then saves, ends with code 75, and is put in the queue again. So is one
# of several nodes that lost a process; after three such starts without a new
# checkpoint it gives up with code 1, and stays out.

#SBATCH --job-name=softmoe
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail

config=${1:?the config, FILE or FILE:ARGUMENT}
workdir=${2:?the directory of the run, shared by all nodes}
shift 2

# A task that ends tells the others, which then end by themselves: srun kills
# only those that have not heard of it in time.
srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  "${PYTHON:-.venv/bin/python}" train.py \
  --config="$config" --workdir="$workdir" "$@"
code=$?
# The highest code of all tasks; that of one that was killed is 128 plus the
# signal, or 253 where memory ran out. A task that has no others does not count
# its starts: it might be killed again and again.
if [ "$code" -eq 75 ] ||
  { [ "$code" -ge 128 ] && [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; }; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

#!/bin/bash
# Trains on one Slurm allocation, one JAX process per task:
#
#   sbatch --nodes=2 --ntasks-per-node=1 tools/launch/slurm.sh \
#     --config=configs/lm.py:size=small,moe=top_p --config.mesh.fsdp=-1 --workdir=runs/slurm
#
# The processes find each other through Slurm's variables. When one dies, srun ends the others (none
# can go on alone) and the loop starts them again from the newest checkpoint. Before the time limit,
# and when the job is preempted, the processes get SIGTERM, save, and the job goes back in the queue.
#SBATCH --job-name=moejax
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -u
python=${PYTHON:-.venv/bin/python}
retries=${RETRIES:-10}

for attempt in $(seq 1 "$retries"); do
  srun --kill-on-bad-exit=1 "$python" -m experiments.train "$@"
  code=$?
  case $code in
    0) exit 0 ;;
    2 | 3) exit "$code" ;;  # wrong use, or a loss that is not finite: again would end the same way
    130 | 143)
      echo "attempt $attempt was stopped with its state saved: back in the queue"
      exec scontrol requeue "$SLURM_JOB_ID" ;;
    *) echo "attempt $attempt of $retries ended with code $code: starting again" ;;
  esac
done
exit "$code"

#!/bin/bash
# sbatch --nodes 4 docs/launch/slurm.sh grpo_math hardware=gpu8
# One task a node; torchrun starts a rank for each GPU. The run folder and the model cache must be on a shared disk.
#SBATCH --job-name=assay
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
# ^ two minutes before the time limit: the run saves, and the requeued job resumes
set -euo pipefail

recipe=$1
shift
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# the address on the network that the nodes share, not a name that may resolve to a loopback
address=$(srun --nodes=1 --ntasks=1 -w "$first" hostname -I | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000))

srun --kill-on-bad-exit=1 bash -c '
  exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$0" \
    --master-addr "$1" --master-port "$2" -m trainer.train "${@:3}"
' "${GPUS_PER_NODE:-8}" "$address" "$port" "recipe=$recipe" "$@" &
wait $!  # in the background, so that this shell gets the signal and hands it on

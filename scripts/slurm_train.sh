#!/bin/bash
# Training on two nodes:
#   sbatch scripts/slurm_train.sh --config configs/score/cifar10_score_configs.py --workdir score_cifar10
# Submitted from the repository's root, with its environment active. See docs/slurm.md.
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
# Since Slurm 22.05 srun asks for one CPU unless told otherwise.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv_backend=c10d --rdzv_endpoint="$host:${PORT:-29400}" --rdzv_id="$SLURM_JOB_ID" \
    main.py "$@"

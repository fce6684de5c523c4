#!/bin/bash
# Samples, an array task for each division:
#   sbatch scripts/slurm_sample.sh --config configs/qc_ncsn/evaluation/eval_cifar10_config.py --workdir W
# Submitted from the repository's root, with its environment active. See docs/slurm.md.
#SBATCH --job-name=sample
#SBATCH --array=0-9
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A-%a.out
set -euo pipefail
# Since Slurm 22.05 srun asks for one CPU unless told otherwise.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

srun torchrun --standalone --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" \
    run_lib_sampling.py --num_divisions "$SLURM_ARRAY_TASK_COUNT" \
    --division_idx "$((SLURM_ARRAY_TASK_ID - ${SLURM_ARRAY_TASK_MIN:-0}))" "$@"

#!/usr/bin/env bash
# Train a small NCSN++ on scikit-learn's digits, draw samples, and have them recognised.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
config=configs/demo/digits.py

$python main.py --config $config --workdir demo
$python run_lib_sampling.py --config $config --workdir demo
$python run_lib_sampling.py --config $config --workdir demo --ode
$python demo/recognise.py results/demo/eval_sampling
$python demo/recognise.py results/demo/eval_sampling_ode

evaluate="run_lib_evaluation_fidis.py --config $config --workdir demo"
$python $evaluate --encode --encode_dataset --fidis --prdc
$python $evaluate --ode --encode --fidis --prdc
$python report.py --workdir demo

#!/usr/bin/env bash
# Train a small NCSN++ on scikit-learn's digits, draw samples, have them recognised and evaluated;
# then fine-tune it (qc.sh), guide it by classifiers (dlsm.sh), and put all of it on one page.
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

bash demo/qc.sh
bash demo/dlsm.sh
$python report.py --workdir demo --workdir demo_u --workdir demo_qc_paper --workdir demo_qc_skew

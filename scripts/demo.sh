#!/usr/bin/env bash
# Train a small NCSN++ on scikit-learn's digits, draw samples, have them recognised, evaluate them,
# and put all of it on one page: within five minutes on two cores. The other demos train it on.
source "$(dirname "$0")/stages.sh"
stages=5
config=configs/demo/digits.py

stage "Train a small NCSN++ on 8×8 digits"
train_score --config.training.n_iters=1000
stage "Draw 500 samples, $steps evaluations of the network each"
draw_anew $sampler
$python run_lib_sampling.py --config $config --workdir demo --sampler $sampler --steps $steps
stage "Have an independent classifier recognise the samples"
$python scripts/recognise.py results/demo/eval_sampling_$sampler
stage "Compare the samples with the training images"
$python run_lib_evaluation_fidis.py --config $config --workdir demo --sampler $sampler \
    --encode --encode_dataset --fidis --prdc --nfe
stage "Write the report"
$python report.py --workdir demo

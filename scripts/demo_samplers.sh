#!/usr/bin/env bash
# Draw from the demo's model, trained to its end, with a fast sampler and the two published ones.
source "$(dirname "$0")/stages.sh"
stages=7
config=configs/demo/digits.py
evaluate="run_lib_evaluation_fidis.py --config $config --workdir demo"

train_on
stage "Draw 500 samples with a fast sampler, $steps evaluations of the network each"
draw_anew $sampler
$python run_lib_sampling.py --config $config --workdir demo --sampler $sampler --steps $steps
stage "Draw 500 samples with predictor and corrector (PC), 200 evaluations each"
$python run_lib_sampling.py --config $config --workdir demo
stage "Draw 500 samples along the probability flow (ODE)"
$python run_lib_sampling.py --config $config --workdir demo --ode
stage "Have an independent classifier recognise the samples"
$python scripts/recognise.py results/demo/eval_sampling_$sampler results/demo/eval_sampling \
    results/demo/eval_sampling_ode
stage "Compare the samples with the training images"
$python $evaluate --encode --encode_dataset --fidis --prdc
$python $evaluate --sampler $sampler --encode --fidis --prdc
$python $evaluate --ode --encode --fidis --prdc
stage "Write the report"
$python report.py --workdir demo

#!/usr/bin/env bash
# Fine-tune the score model of results/demo: without the QC regulariser (U), with the paper's
# estimator of it and with the skew one, for equal steps; then measure NLL and asymmetry of each.
source "$(dirname "$0")/stages.sh"
stages=7
config=configs/demo/digits_qc.py
restore=results/demo/checkpoints/checkpoint.pth
workdirs=(demo_u demo_qc_paper demo_qc_skew)

train_on
stage "Fine-tune without the regulariser (U)"
$python main.py --config $config --workdir demo_u --restore $restore --balancing_fac 0
stage "Fine-tune with the regulariser, the paper's estimator"
$python main.py --config $config --workdir demo_qc_paper --restore $restore
stage "Fine-tune with the regulariser, the skew estimator"
$python main.py --config $config --workdir demo_qc_skew --restore $restore --config.loss.estimator=skew
stage "Measure the likelihood of the three"
for workdir in "${workdirs[@]}"; do
    $python run_lib_evaluation_nll.py --config $config --workdir $workdir --ema --calculate --read
done
stage "Measure the asymmetry of the three"
for workdir in "${workdirs[@]}"; do
    # One and the same estimator for all, the one with the smaller variance.
    $python run_lib_evaluation_asym.py --config $config --workdir $workdir --ema \
        --config.loss.estimator=skew --calculate --read
done
stage "Write the report"
$python report.py --workdir demo --workdir demo_u --workdir demo_qc_paper --workdir demo_qc_skew

#!/usr/bin/env bash
# Fine-tune the score model of results/demo: without the QC regulariser (U), with the paper's
# estimator of it and with the skew one, for equal steps; then measure NLL and asymmetry of each.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
config=configs/demo/digits_qc.py
restore=results/demo/checkpoints/checkpoint.pth

$python main.py --config $config --workdir demo_u --restore $restore --balancing_fac 0
$python main.py --config $config --workdir demo_qc_paper --restore $restore
$python main.py --config $config --workdir demo_qc_skew --restore $restore --config.loss.estimator=skew
for workdir in demo_u demo_qc_paper demo_qc_skew; do
    $python run_lib_evaluation_nll.py --config $config --workdir $workdir --ema --calculate --read
    # One and the same estimator for all, the one with the smaller variance.
    $python run_lib_evaluation_asym.py --config $config --workdir $workdir --ema \
        --config.loss.estimator=skew --calculate --read
done
$python demo/qc_table.py demo_u demo_qc_paper demo_qc_skew

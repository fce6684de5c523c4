#!/usr/bin/env bash
# Class-conditional digits with the score model of results/demo: a classifier trained with
# cross-entropy (base), the same at scale 10 (scale), and one trained with DLSM (ours). Do an
# independent classifier, and one trained on the samples alone (CAS), see the classes in them?
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
train="main.py --config configs/demo/digits_classifier.py --model classifier"
draw="run_lib_sampling.py --config configs/demo/digits_guided.py --mode full"
measure="run_lib_evaluation.py --config configs/demo/digits_guided.py --stat --latent --fidis --prdc"
cas="run_lib_evaluation_cas.py --config configs/demo/digits_cas.py"
base=classifier_digits_base_resnet_small_cond
scale=classifier_digits_scale_resnet_small_cond
ours=classifier_digits_ours_resnet_small_cond

$python $train --workdir $base --config.model.loss_type=ce
$python $train --workdir $ours
$python $draw --workdir $base
$python $draw --workdir $scale --restore_classifier results/$base/checkpoints/checkpoint.pth --scale 10
$python $draw --workdir $ours
$python demo/recognise_classes.py $base $scale $ours
for setup in real base scale ours; do
    $python $cas --workdir $ours --setup $setup
done
for workdir in $base $scale $ours; do
    $python $measure --workdir $workdir --mode full
    $python $measure --workdir $workdir --mode class
done
$python report.py --workdir $ours --workdir $base --workdir $scale

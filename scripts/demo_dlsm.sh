#!/usr/bin/env bash
# Class-conditional digits with the score model of results/demo: a classifier trained with
# cross-entropy (base), the same at scale 10 (scale), and one trained with DLSM (ours). Do an
# independent classifier, and one trained on the samples alone (CAS), see the classes in them?
source "$(dirname "$0")/stages.sh"
stages=10
train="main.py --config configs/demo/digits_classifier.py --model classifier"
draw="run_lib_sampling.py --config configs/demo/digits_guided.py --mode full"
measure="run_lib_evaluation.py --config configs/demo/digits_guided.py --stat --latent --fidis --prdc"
cas="run_lib_evaluation_cas.py --config configs/demo/digits_cas.py"
base=classifier_digits_base_resnet_small_cond
scale=classifier_digits_scale_resnet_small_cond
ours=classifier_digits_ours_resnet_small_cond

train_on
stage "Train a classifier with cross-entropy (base)"
$python $train --workdir $base --config.model.loss_type=ce
stage "Train a classifier with DLSM (ours)"
$python $train --workdir $ours
stage "Draw 30 samples of each digit, guided by base"
$python $draw --workdir $base
stage "Draw 30 samples of each digit, guided by base at scale 10 (scale)"
$python $draw --workdir $scale --restore_classifier results/$base/checkpoints/checkpoint.pth --scale 10
stage "Draw 30 samples of each digit, guided by ours"
$python $draw --workdir $ours
stage "Have an independent classifier recognise the digits that were asked for"
$python scripts/recognise.py results/{$base,$scale,$ours}/eval_samples*
stage "Train on the samples alone, test on real digits (CAS)"
for setup in real base scale ours; do
    $python $cas --workdir $ours --setup $setup
done
stage "Compare the samples with the training images, together and class by class"
for workdir in $base $scale $ours; do
    $python $measure --workdir $workdir --mode full
    $python $measure --workdir $workdir --mode class
done
stage "Write the report"
$python report.py --workdir $ours --workdir $base --workdir $scale

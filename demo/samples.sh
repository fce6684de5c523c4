#!/usr/bin/env bash
# Draw 64 pictures of clothes from the model that ships in pretrained/.
source "$(dirname "$0")/stages.sh"
stages=1
place=results/pretrained
mkdir -p $place/checkpoints
cp pretrained/fashion_mnist.pth $place/checkpoints/checkpoint.pth

stage "Draw 64 pictures with 20 evaluations each: $place/eval_sampling_dpmpp_2m/division_0/samples_0.png"
$python run_lib_sampling.py --config configs/fashion_mnist/score.py --workdir pretrained \
    --sampler dpmpp_2m --steps 20 --num_samples 64 --bs 64

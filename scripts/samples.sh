#!/usr/bin/env bash
# Draw 64 pictures of clothes from the model that ships in pretrained/.
source "$(dirname "$0")/stages.sh"
stages=1
place=results/pretrained
sampler=dpmpp_2m_sde
mkdir -p $place/checkpoints
cp pretrained/fashion_mnist.pth $place/checkpoints/checkpoint.pth

stage "Draw 64 pictures, 40 evaluations of the network each"
$python run_lib_sampling.py --config configs/fashion_mnist/score.py --workdir pretrained \
    --sampler $sampler --steps 40 --num_samples 64 --bs 64
echo "The picture is $place/eval_sampling_$sampler/0/samples_0.png."

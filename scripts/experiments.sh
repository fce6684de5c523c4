#!/usr/bin/env bash
# The papers' small experiments, one after the other. Run again, it continues.
source "$(dirname "$0")/stages.sh"
stages=6

stage "Gaussian with a rotating error"
$python -m studies.gaussian
stage "Autoencoder"
$python -m studies.autoencoder
stage "Moons"
$python -m studies.moons
stage "Plane"
$python -m studies.plane
stage "Parts of the score's error"
$python -m studies.helmholtz
stage "Samplers with exact scores"
$python -m studies.exact_samplers

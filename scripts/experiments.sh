#!/usr/bin/env bash
# The papers' small experiments, one after the other, and a report on each. Run again, it continues.
source "$(dirname "$0")/../demo/stages.sh"
stages=5

# List "--workdir NAME" for every run in the directory results/NAME of an experiment.
runs() {
    for run in results/experiments/"$1"/*/; do
        printf -- '--workdir experiments/%s/%s ' "$1" "$(basename "$run")"
    done
}

stage "Gaussian with a rotating error"
$python -m experiments.gaussian
stage "Autoencoder"
$python -m experiments.autoencoder
stage "Moons"
$python -m experiments.moons
stage "Plane"
$python -m experiments.plane
stage "Write the reports"
$python report.py --workdir experiments/gaussian
$python report.py --workdir experiments/autoencoder
# shellcheck disable=SC2046  # no name has a space
$python report.py $(runs moons)
$python report.py $(runs plane)

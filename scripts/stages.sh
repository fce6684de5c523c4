# Sourced by the demos: where to run, which Python, and stages that are numbered as they start.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
sampler=dpmpp_2m_sde_eta2 # the fast one
steps=25
number=0

# stage TEXT: print "[2/6] TEXT"; `stages` is how many there are.
stage() {
    number=$((number + 1))
    echo
    echo "[$number/$stages] $1"
}

# Draw and compare anew with the sampler $1: the model may have been trained on since.
draw_anew() {
    rm -rf "results/demo/eval_sampling_$1" "results/demo/stat_$1"
}

# Train the score model with the options $@, drawing its grids by the fast sampler.
train_score() {
    $python main.py --config configs/demo/digits.py --workdir demo \
        --config.sampling.method=$sampler --config.sampling.steps=$steps "$@"
}

# The score model of `make demo` has had 1,000 steps; the other demos' numbers are of 2,500.
train_on() {
    stage "Train the score model to 2,500 steps, from where it is"
    train_score
}

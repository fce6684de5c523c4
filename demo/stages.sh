# Sourced by the demos: where to run, which Python, and stages that are numbered as they start.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
number=0

# stage TEXT: print "[2/6] TEXT"; `stages` is how many there are.
stage() {
    number=$((number + 1))
    echo
    echo "[$number/$stages] $1"
}

# Stop with a sentence unless the score model that `make demo` trains is there.
need_score_model() {
    if [ ! -e results/demo/checkpoints/checkpoint.pth ]; then
        echo "Error: results/demo/checkpoints/checkpoint.pth is missing. This demo goes on from" \
            "the score model that make demo trains; run make demo first." >&2
        exit 1
    fi
}

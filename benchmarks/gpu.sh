#!/usr/bin/env bash
# Measures what docs/performance.md leaves empty for a GPU, then trains CIFAR-10 there:
#
#   bash benchmarks/gpu.sh [--small] [PIECE ...]
#
# A PIECE takes nine minutes at most; without one all of them run. Each row stands in
# results/gpu/rows.md as soon as it is measured, and `train` goes on where it was cut: give it several
# times. Compilations are kept, so that a piece that ran out of time gets further in the next run.
# --small runs everything on a CPU, tiny, to see that it runs.
#
# PYTHON is the interpreter, OUT another folder for the rows, LIMIT the seconds of a piece, and
# CIFAR10 a folder with train/<class>/* and test/<class>/* in place of the downloaded set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-results/gpu}
limit=${LIMIT:-540}
known=(rates dsm qc dlsm sampling nll train samples)
pieces=(rates dsm qc dlsm sampling nll train train train samples)
ways=(fp32 "tf32 compiled" bf16 "bf16 compiled" "bf16 compiled, channels first")
bench=(--device cuda --size published)
half=(--images 64) # where there are QC steps: double backward keeps several times as much
workdir=gpu_cifar10
model=(--config configs/demo/cifar10_gpu.py)
if [ "${1:-}" = --small ]; then
    shift
    pieces=("${known[@]}")
    ways=(fp32)
    bench=(--device cpu --size tiny)
    half=(--images 2)
    workdir=gpu_small
    model+=(--config.device=cpu
        --config.compute.precision=fp32 --config.compute.compile=False
        --config.data.dataset=digits --config.data.image_size=8 --config.data.num_channels=1
        --config.model.nf=8 "--config.model.ch_mult=(1,2)" --config.model.num_res_blocks=1
        "--config.model.attn_resolutions=()" --config.training.batch_size=8
        --config.training.n_iters=4 --config.training.snapshot_freq=2
        --config.eval.num_samples=20 --config.eval.batch_size=10 --config.sampling.steps=3)
elif [ -n "${CIFAR10:-}" ]; then
    model+=(--config.data.dataset=folder "--config.data.root=$CIFAR10")
fi
model+=(--workdir "$workdir")
if [ $# -gt 0 ]; then pieces=("$@"); fi
for piece in "${pieces[@]}"; do
    if [[ " ${known[*]} " != *" $piece "* ]]; then
        echo "Error: there is no piece $piece; expected some of: ${known[*]}." >&2
        exit 1
    fi
done
mkdir -p "$out"

# run COMMAND...: add what it prints to the rows, within what is left of the piece's time.
run() {
    local left=$((started + limit - SECONDS)) status=0
    if [ "$left" -lt 1 ]; then
        echo "| $piece | no time was left for: $* |" | tee -a "$out/rows.md"
        return
    fi
    timeout --preserve-status --signal=TERM --kill-after=30 "$left" $python "$@" 2>>"$out/log.txt" |
        tee -a "$out/rows.md" || status=$?
    # 143: training that was stopped, and saved; whatever else is stopped has run out of time.
    if [ "$status" -ne 0 ] && ! { [ "$status" -eq 143 ] && [ "$piece" = train ]; }; then
        echo "| $piece | status $status of: $* |" | tee -a "$out/rows.md"
        failed=1
    fi
}

# job NAME OPTIONS...: one of benchmarks.speed, in every way, each in a process of its own.
job() {
    local name=$1 way
    shift
    for way in "${ways[@]}"; do
        run -m benchmarks.speed --only "$name" --ways "$way" "${bench[@]}" "$@"
    done
}

rates() {
    local way
    for way in "${ways[@]}"; do
        run -m benchmarks.rates --only "DSM step" "QC step" "DLSM step" "PC sampling" \
            --ways "$way" "${bench[@]}" "${half[@]}"
    done
}
dsm() { job "DSM step"; }
qc() { job "QC step" "${half[@]}"; }
dlsm() { job "DLSM step"; }
sampling() { job "PC sampling"; }
nll() { job NLL; }
train() { run main.py "${model[@]}"; }
samples() {
    # Anew: the model may have been trained on since.
    rm -rf "results/$workdir/eval_sampling_heun" "results/$workdir/stat_heun"
    run run_lib_sampling.py "${model[@]}" --sampler heun
    run run_lib_evaluation_fidis.py "${model[@]}" --sampler heun \
        --encode --encode_dataset --fidis --prdc --nfe
    local picture=results/$workdir/eval_sampling_heun/0/samples_0.png
    if [ -e "$picture" ]; then cp "$picture" "$out/samples.png"; fi
}

failed=0
for piece in "${pieces[@]}"; do
    started=$SECONDS
    echo "# $piece" | tee -a "$out/rows.md"
    "$piece"
done
exit $failed

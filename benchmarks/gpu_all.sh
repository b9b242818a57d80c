#!/usr/bin/env bash
# Everything that wants a GPU, in order of importance and in under nine minutes: whether each part works at all, the GPU tests,
# the comparison of devices, kernels, training steps beside PyTorch and JAX, memory, the benchmark of the recipes.
#
#   bash benchmarks/gpu_all.sh OUTDIR [--wheels DIR | --no-wheels] [--data DIR] [--python PYTHON] [--budget SECONDS] [--scale FACTOR] [--keep]
#
# OUTDIR gets a log for each part, the results (JSON, JUnit XML, a chart), summary.txt and parts.tsv (part, outcome, seconds,
# last words) and environment.txt and .json (date, commit, GPU, versions, what is missing). A part that fails or takes too long
# ends nothing but itself. `python -m benchmarks.ledger OUTDIR` writes the rows of benchmarks/results/GPU-STATUS.md from it.
#
# Nothing is installed and no network is needed. The package runs from this checkout on NumPy and CuPy alone; further:
#   ml_dtypes          bfloat16 (mixed precision; without it those parts say so)
#   safetensors, tqdm  checkpoints and the progress bar (some tests)
#   pytest, hypothesis the tests; pytest-timeout and pytest-xdist are used where they are there
#   torch, jax         the other libraries (absent ones are named)
# What the machine lacks of it comes as wheels, which `bash benchmarks/gpu_wheels.sh` fetches on a machine with a network into
# the folder wheels/ (git ignores it: carry it along). --wheels DIR (default: that folder, where it is there) unpacks each
# *.whl into OUTDIR/work (a plain zip, so no pip is needed) and puts that behind the machine's own packages.
#
# --data    the folder that holds mnist/ and tinyshakespeare/ (default: GPUBACKPROP_DATA, else ../shared/data)
# --budget  seconds for all of it (default 525); --scale multiplies every part's own limit (for a trial)
# --keep    leave OUTDIR/work (wheels, compiled kernels), which is removed otherwise
set -u

usage() {
    sed -n '2,/^set -u/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
    exit 2
}

out= wheels= carried=yes keep=no data=${GPUBACKPROP_DATA:-} python=python3 budget=525 scale=1
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) wheels=${2:?} && shift ;;
        --no-wheels) carried=no ;;
        --keep) keep=yes ;;
        --data) data=${2:?} && shift ;;
        --python) python=${2:?} && shift ;;
        --budget) budget=${2:?} && shift ;;
        --scale) scale=${2:?} && shift ;;
        -*) usage ;;
        *) [ -z "$out" ] && out=$1 || usage ;;
    esac
    shift
done
[ -n "$out" ] || usage

absolute() { (cd "$1" 2>/dev/null && pwd) || { echo "gpu_all.sh: there is no folder $1" >&2 && exit 2; }; }
mkdir -p "$out" || exit 2
out=$(absolute "$out") || exit 2
root=$(absolute "$(dirname "$0")/..") || exit 2
[ -n "$wheels" ] || [ $carried = no ] || ! ls "$root"/wheels/*.whl >/dev/null 2>&1 || wheels=$root/wheels
[ -z "$wheels" ] || wheels=$(absolute "$wheels") || exit 2
data=${data:-$root/../shared/data}
[ ! -d "$data" ] || data=$(absolute "$data")
cd "$root" || exit 2

# What is of no use afterwards, and large, lies in a folder that is removed in the end.
work=$out/work site=$out/work/site
export PYTHONPATH=$root CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$work/cupy-cache} GPUBACKPROP_DATA=$data
export PYTHONDONTWRITEBYTECODE=1 PYTHONFAULTHANDLER=1 HYPOTHESIS_STORAGE_DIRECTORY=$work/hypothesis
mkdir -p "$CUPY_CACHE_DIR"

# Parts. Each is one line of $out/.parts, in the order in which it was started.
: >"$out/.parts"

left() { echo $((budget - SECONDS)); }

# part NAME LIMIT COMMAND...: run it within its limit and what is left of the budget, and note the outcome.
part() {
    local name=$1 limit=$2 status began=$SECONDS outcome
    shift 2
    limit=$(awk -v a="$limit" -v s="$scale" -v b="$(left)" 'BEGIN { n = a * s; if (n > b) n = b; printf "%.1f", n }')
    if awk -v n="$limit" 'BEGIN { exit !(n < 0.5) }'; then
        echo "no time was left" >"$out/$name.log"
        printf '%s\tnot started\t0\n' "$name" >"$out/.$name"
        return
    fi
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1 </dev/null
    status=$?
    case $status in
        0) outcome=done ;;
        124 | 137 | 143) outcome="time limit" ;;
        *) outcome="failed ($status)" ;;
    esac
    printf '%s\t%s\t%s\n' "$name" "$outcome" "$((SECONDS - began))" >"$out/.$name"
}

# in_order NAME...: the names as they shall stand in the summary.
in_order() { printf '%s\n' "$@" >>"$out/.parts"; }

summary() {
    local name line words
    : >"$out/parts.tsv"
    printf '%-26s %-14s %8s  %s\n' part outcome seconds "last words"
    while read -r name; do
        [ -f "$out/.$name" ] && line=$(cat "$out/.$name") || line="$name	ended early	-"
        words=$(grep -av '^[[:space:]]*$' "$out/$name.log" 2>/dev/null | tail -n 1 | tr -d '\r' | cut -c 1-150)
        printf '%s\t%s\n' "$line" "$words" >>"$out/parts.tsv"
        printf '%s\t%s\n' "$line" "$words" | awk -F '\t' '{ printf "%-26s %-14s %8s  %s\n", $1, $2, $3, $4 }'
    done <"$out/.parts"
    echo "in all: $SECONDS s of $budget"
}
finish() {
    summary >"$out/summary.txt"
    [ $keep = yes ] || rm -rf "$work"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

unpack() {
    mkdir -p "$site"
    for wheel in "$wheels"/*.whl; do
        [ -f "$wheel" ] || { echo "no wheel is in $wheels"; return 1; }
        echo "$wheel"
        "$python" -m zipfile -e "$wheel" "$site" || return 1
    done
}

# The machine's own packages come first: what is unpacked must not stand in for a library that was built for its GPU.
if [ -n "$wheels" ]; then
    in_order wheels
    part wheels 30 bash -c "$(declare -f unpack); site='$site' wheels='$wheels' python='$python'; unpack"
    mkdir -p "$site"
    printf 'import site, sys\nsys.path.append("%s")\n' "$site" >"$work/sitecustomize"
    mkdir -p "$work/start" && mv "$work/sitecustomize" "$work/start/sitecustomize.py"
    export PYTHONPATH=$root:$work/start
fi

in_order environment
part environment 40 "$python" -m benchmarks.gpu.surroundings "$out/environment.json"
cp "$out/environment.log" "$out/environment.txt"

# 0. Does each part work at all? One line for each, so that what fails first shows in the first minute.
in_order smoke
part smoke 60 "$python" -m benchmarks.gpu.smoke
cat "$out/smoke.log"

# 1. The GPU tests, in three parts at once, each in several processes where there are cores for them: what takes time is to
# compile kernels for the first time. Files that have GPU tests say so, or take their places from one that does.
tests="$python -m benchmarks.gpu.suite -m gpu --require gpu -q --tb=short -p no:cacheprovider"
if "$python" -c 'import pytest_timeout' 2>/dev/null; then
    tests="$tests --timeout=60"
else # an option that nobody knows would be an error
    tests="$tests -o addopts= -ra --strict-markers --import-mode=importlib"
fi
jobs=$(($(nproc) / 3))
[ "$jobs" -le 5 ] || jobs=5
if [ "$jobs" -ge 2 ] && "$python" -c 'import xdist' 2>/dev/null; then
    tests="$tests -n $jobs --dist worksteal"
fi
others=$(grep -rlE 'mark\.gpu|tests\.(places|backends\.test_cuda_training) import PLACES' tests --include='test_*.py' | sort |
    grep -v -e tests/ops/test_operations.py -e tests/backends/test_composites.py)
in_order tests tests-operations tests-composites
# shellcheck disable=SC2086
{
    part tests 130 $tests --junitxml="$out/tests.xml" $others &
    part tests-operations 130 $tests --junitxml="$out/tests-operations.xml" tests/ops/test_operations.py &
    part tests-composites 130 $tests --junitxml="$out/tests-composites.xml" tests/backends/test_composites.py &
    wait
}

# 2. The same run on both devices.
compare() {
    local recipe=$1
    shift
    part "compare-$recipe" 50 "$python" -m gpubackprop compare "$recipe" --devices cpu,cuda "$@"
}
in_order compare-digits-mlp compare-digits-cnn compare-mnist-mlp compare-mnist-nielsen compare-mnist-cnn
compare digits-mlp &
compare digits-cnn &
compare mnist-mlp --data-dir "$data/mnist" &
compare mnist-nielsen --data-dir "$data/mnist" &
compare mnist-cnn --data-dir "$data/mnist" &
wait

# 3. Training steps beside the other libraries, 4. kernels at 1 GiB, 5. the most memory that each recipe needs. Each contender
# has a limit of its own, and each of these programs knows what is left to it: one that is slow to compile costs itself alone.
# The search for the fastest kernels that max-autotune makes takes minutes, so it comes by itself, and last.
# less SECONDS: that share of a part's limit which its program may plan with; the rest is for starting and writing.
less() { awk -v a="$1" -v s="$scale" -v b="$(left)" 'BEGIN { n = a * s; if (n > b) n = b; printf "%.1f", n * 0.93 }'; }
in_order steps kernels memory steps-max-autotune
part steps 150 "$python" -m benchmarks.gpu --only W2,G1,W3-tf32,G2,W5,W1,W4,W3 --rounds 5 --seconds 0.2 --patience 45 \
    --contenders torch,torch-compile,jax,gb-eager,gb-compiled --limit "$(less 150)" --json "$out/steps.json"
part kernels 45 "$python" -m benchmarks.gpu --only kernels --contenders torch,jax,gb-compiled --rounds 5 --patience 30 \
    --limit "$(less 45)" --json "$out/kernels.json"
part memory 45 "$python" -m benchmarks.gpu --only memory --contenders torch,gb-eager,gb-compiled --patience 30 \
    --json "$out/memory.json"
part steps-max-autotune 75 "$python" -m benchmarks.gpu --only W2,G1,W5,W1 --rounds 5 --seconds 0.2 --patience 60 \
    --contenders torch,torch-max-autotune,gb-compiled --limit "$(less 75)" --json "$out/steps-max-autotune.json"

# 6. All recipes and kernels as `gpubackprop bench` has them, what repeatable bits cost, and the CPU beside the GPU.
in_order bench determinism bench-devices
chart=
"$python" -c 'import matplotlib' 2>/dev/null && chart="--chart $out/bench.png"
# shellcheck disable=SC2086
part bench 45 "$python" -m gpubackprop bench --devices cuda --vs torch,jax --rounds 3 --json "$out/bench.json" $chart
part determinism 30 "$python" -m gpubackprop bench --devices cuda --only determinism --rounds 3 --json "$out/determinism.json"
part bench-devices 60 bash -c "'$python' -m gpubackprop devices --device cuda &&
    '$python' -m gpubackprop bench --devices cpu,cuda --only recipes --rounds 2 --json '$out/bench-devices.json'"

trap - EXIT
finish
cat "$out/summary.txt"
exit 0

#!/usr/bin/env bash
# Fetches what benchmarks/gpu_all.sh needs beyond CuPy, NumPy and PyTorch, as wheels for a GPU machine without a network.
#
#   bash benchmarks/gpu_wheels.sh [FOLDER] [--for 3.12] [--python PYTHON]
#
# FOLDER (default: wheels/ of this checkout, which git ignores) is where gpu_all.sh looks. --for is the other machine's Python,
# PYTHON one of this machine that has pip. Each wheel is fetched by itself: what a library asks for beside those of the list
# (NumPy) is there already, and must not be doubled. They are few megabytes; JAX for CUDA takes hundreds and is left out, so
# that it shows as absent in the tables.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
folder=$root/wheels version=3.12 python=python3
while [ $# -gt 0 ]; do
    case $1 in
        --for) version=${2:?} && shift ;;
        --python) python=${2:?} && shift ;;
        -*) sed -n '2,/^set -eu/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2 && exit 2 ;;
        *) folder=$1 ;;
    esac
    shift
done

# bfloat16; checkpoints and the progress bar; the tests and what pytest and hypothesis ask for; the front end of the cuDNN
# that PyTorch brings.
packages='ml_dtypes>=0.4
safetensors>=0.4
tqdm>=4.60
pytest>=8
iniconfig
packaging
pluggy
pygments
hypothesis>=6.100
sortedcontainers
pytest-timeout
pytest-xdist>=3.6
execnet
nvidia-cudnn-frontend>=1.18,<1.29'

mkdir -p "$folder"
rm -f "$folder"/*.whl
printf '%s\n' "$packages" | while read -r package; do
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --python-version "$version" \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest "$folder" "$package"
done
ls -l "$folder"
echo "$(du -sk "$folder" | cut -f 1) KiB in $folder"

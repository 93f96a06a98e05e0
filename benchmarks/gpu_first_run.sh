#!/usr/bin/env bash
# A GPU's first run: builds the kernels for it, checks them, measures them; nothing is downloaded.
#
#   benchmarks/gpu_first_run.sh                              # on a machine with a GPU, nvcc and a PyTorch for it
#   WHEELS=wheels OUT=out benchmarks/gpu_first_run.sh        # zennit's and captum's wheels, for the peers, lie in wheels/
#   DEVICE=cpu benchmarks/gpu_first_run.sh --stages config networks   # the logic alone, tiny networks on the processor
#
# OUT (build/gpu): results. BUDGET (540): seconds in all; stages that do not fit are dropped, and named. ARCH (9.0): what is compiled for.
# PYTHON (python3). Further arguments go to `python -m benchmarks.gpu_first_run`. It leaves the card's settings alone.
set -u
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
WHEELS=${WHEELS:+$(cd "$WHEELS" && pwd)}
cd "$(dirname "$0")/.." || exit 2
export PYTHONUNBUFFERED=1
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "$WHEELS" ]; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl ||
    echo "the wheels in $WHEELS were not installed; peers that are missing will be named"
fi
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}:$site"
"$PYTHON" -m benchmarks.gpu_first_run --out "$OUT" --device "${DEVICE:-cuda}" --arch "${ARCH:-9.0}" \
  --budget "$((${BUDGET:-540} - SECONDS))" "$@"

#!/usr/bin/env bash
# Every test of the CUDA kernels on what nvcc makes of them, translated for the host: each architecture, each order of the threads,
# in the environment VENV (default .venv). Arguments go to pytest. scripts/test.sh runs each test with one of these programs.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[ -n "${VENV:-}" ] || scripts/setup.sh "$venv" cpu,rtx,openvino,embed,ray,triton,dev
export PATH="$(cd "$venv" && pwd)/bin:$PATH"

OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal -q --show-capture=no --full-sweep tests/kernels/cuda_host/ptx "$@"

#!/usr/bin/env bash
# The daily loop: lint, types, contracts and the tests that need no compiler, no TensorRT-RTX, no real model and little time.
# Arguments go to pytest. scripts/test.sh runs everything.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[ -n "${VENV:-}" ] || scripts/setup.sh "$venv" cpu,rtx,openvino,embed,ray,triton,dev
export PATH="$(cd "$venv" && pwd)/bin:$PATH"

ruff check .
ruff format --check .
mypy
lint-imports
OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal -q --show-capture=no -m "not native and not engine and not slow" "$@"

#!/usr/bin/env bash
# Lint, types and tests in a virtual environment of their own; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[ -n "${VENV:-}" ] || scripts/setup.sh "$venv" cpu,rtx,openvino,embed,ray,triton,dev
command -v c++ >/dev/null || { echo "test: the tests compile the native code: as root, apt-get install g++" >&2; exit 4; }
# The server of Triton is installed while the code is linted.
server=""
if [ -z "${VENV:-}" ]; then scripts/triton_server.sh "$venv/triton-server" & server=$!; fi
export PATH="$(cd "$venv" && pwd)/bin:$PATH"
VENV=$venv scripts/lint.sh
[ -z "$server" ] || wait "$server" || echo "test: no tritonserver, so its tests are skipped" >&2

# Two test processes share the cores, so each gets one thread for its matrix products.
OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal -q --show-capture=no "$@"

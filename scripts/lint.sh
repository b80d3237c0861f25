#!/usr/bin/env bash
# Format, lint, types, the floors of the package, and whether generated files are up to date, in the environment VENV (default .venv).
# With --fix it mends what can be mended first, and writes the generated files again.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
for tool in ruff clang-format mypy lint-imports; do
  [ -x "$venv/bin/$tool" ] || { echo "lint: $venv has no $tool: run make setup, or $venv/bin/pip install '.[dev]'" >&2; exit 4; }
done
export PATH="$(cd "$venv" && pwd)/bin:$PATH"

fix=""
[ "${1:-}" != --fix ] || fix=yes
cpp() { find kernels plugins examples scripts tests -regex '.*\.\(h\|inc\|cc\|cu\|cuh\)' -print0 | xargs -0 clang-format "$@"; }

if [ -n "$fix" ]; then
  for generator in scripts/generate_*.py; do python "$generator"; done
  ruff check -q --fix . || true  # what is left is said below
  ruff format -q .
  cpp -i
fi
mypy &  # the longest of them, beside the others
typing=$!
trap 'kill "$typing" 2>/dev/null || true' EXIT
ruff check .
ruff format --check .
cpp --dry-run -Werror
lint-imports
for generator in scripts/generate_*.py; do python "$generator" --check; done
wait "$typing"

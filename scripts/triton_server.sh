#!/usr/bin/env bash
# Makes the virtual environment DIR (default .venv/triton-server) with the tritonserver that PyPI has, for tests/triton/test_tritonserver.py.
# About 100 MB. It has the python backend and ensembles, no onnxruntime and no tensorrt backend; NVIDIA's image has those.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-.venv/triton-server}
python=${PYTHON:-$(dirname "$dir")/bin/python}

stamp="$dir/.mra-export-$(sha256sum scripts/triton_server.sh | cut -c1-16)"
[ ! -e "$stamp" ] || exit 0
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
echo "triton_server: installing tritonserver into $dir" >&2
"$python" -m venv "$dir"
# Its python backend takes arrays of NumPy 1 only. What pytriton itself depends on is not used. onnxruntime stands in for the backend.
"$dir/bin/pip" install -q --no-deps "nvidia-pytriton==0.7.0" "numpy<2" tokenizers onnxruntime
triton=$("$dir/bin/python" -c 'import importlib.util; print(importlib.util.find_spec("pytriton").submodule_search_locations[0])')/tritonserver
stub="$triton/python_backend_stubs/$version/triton_python_backend_stub"
[ -e "$stub" ] || { echo "triton_server: its python backend is not built for Python $version" >&2; exit 4; }
if ldd "$stub" | grep -q 'libpython.*not found'; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "libpython$version" >/dev/null
  else
    echo "triton_server: libpython$version.so is missing; as root: apt-get install libpython$version" >&2
    exit 4
  fi
fi
# The server looks for the stub beside the backend, and expects both to be executable.
install -m 755 "$stub" "$triton/backends/python/"
chmod 755 "$triton/bin/tritonserver"
touch "$stamp"

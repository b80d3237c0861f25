"""The name of TensorRT-RTX's library that its parser looks for."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def test_the_bare_name_needs_no_compiler(tmp_path: Path) -> None:
    """TensorRT-RTX's parser looks for a name that the wheel lacks; the empty library is one the loader takes."""
    program = (
        "import ctypes, sys; from mra_export.engine import rtx_loader as b\n"
        "ctypes.CDLL('libm.so.6')\n"
        "text = b._empty_library('libmra_alias.so', 'libm.so.6')\n"
        "open(sys.argv[1], 'wb').write(text)\n"
        "ctypes.CDLL(sys.argv[1])\n"
        "f = ctypes.CDLL('libmra_alias.so').cos; f.restype = ctypes.c_double; f.argtypes = [ctypes.c_double]\n"
        "assert f(0.0) == 1.0\n"
        "try: b.provide_bare_name('libmra_none.so')\n"
        "except Exception as e: print(type(e).__name__, e)\n"
    )
    library = tmp_path / "alias.so"
    done = subprocess.run(
        [sys.executable, "-c", program, str(library)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DependencyError libmra_none.so cannot be loaded: libmra_none.so.1")
    if shutil.which("readelf"):
        shown = subprocess.run(["readelf", "-dW", str(library)], capture_output=True, text=True, check=True).stdout
        assert "[libmra_alias.so]" in shown
        assert "[libm.so.6]" in shown


def test_the_parser_needs_the_bare_name(rtx: Any) -> None:
    assert ctypes.CDLL("libtensorrt_rtx.so").getInferLibVersion() >= 10000

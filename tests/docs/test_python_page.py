"""The code of docs/python.md runs, in order, as it stands, and prints what its comments say."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mra_export
from mra_export.native.libraries import find_library

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

END = "-- end of a block --"
RUN = f"""
import json, sys
for block in json.loads(sys.argv[1]):
    exec(compile(block, "docs/python.md", "exec"), {{"__name__": "__main__"}})
    print("{END}")
"""


def missing(block: str) -> str:
    """Why a block cannot run here; nothing where it can."""
    if "build_engine" in block and importlib.util.find_spec("tensorrt_rtx") is None:
        return "tensorrt_rtx is not installed (pip install 'mra-export[rtx]')"
    for name, kind in (("build_engine", "tensorrt"), ("onnxruntime_library", "onnxruntime")):
        if name in block and find_library(kind) is None:
            return f"the library for {kind} is not built: run mra-export build {kind}"
    return ""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, minilm_dense: Path) -> Path:
    folder = tmp_path_factory.mktemp("python")
    shutil.copytree(minilm_dense, folder / "all-MiniLM-L6-v2")
    return folder


def test_the_code_runs(workplace: Path) -> None:
    runs = [block for block in BLOCKS if not missing(block)]
    # A process of its own, as a process can load one TensorRT plugin only.
    command = [sys.executable, "-c", RUN, json.dumps(runs)]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for block, printed in zip(runs, done.stdout.split(END)[:-1], strict=True):
        for comment in re.findall(r"print\(.*\)  # (.+)$", block, re.MULTILINE):
            for part in comment.split("..."):
                assert part.strip() in printed, f"{comment}\nis not what was printed:\n{printed}"
    if left_out := sorted({missing(block) for block in BLOCKS} - {""}):
        pytest.skip(f"{len(BLOCKS) - len(runs)} of {len(BLOCKS)} blocks did not run: {'; '.join(left_out)}")


def test_every_public_name_has_an_example() -> None:
    code = "".join(BLOCKS)
    for name in set(mra_export.__all__) - {"__version__", "DependencyError", "InputError"}:
        assert re.search(rf"^from mra_export import .*\b{name}\b", code, re.MULTILINE), f"{name} is in no example"
    for name in mra_export.__all__:
        assert name in PAGE or name == "__version__", f"{name} is not on the page"

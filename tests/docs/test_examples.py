"""The examples run by the commands of their page; two run elsewhere, with the pages of serving and the server of Triton."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mra_export.native.headers import find_headers
from mra_export.native.libraries import find_library

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, embed_bundle: Path) -> Path:
    """With a small bundle, the examples, and the texts of the page's first commands."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(embed_bundle, folder / "minilm-bundle")
    (folder / "examples").symlink_to(ROOT / "examples")
    run("texts", folder)
    return folder


def run(word: str, folder: Path) -> str:
    """Runs the first block of the page that has the word; what it prints."""
    block = next(b for b in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if word in b)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_python(workplace: Path) -> None:
    printed = run("embed.py", workplace).splitlines()
    assert printed[1] == "3 vectors of 64 numbers, 0 texts were cut"
    assert len(printed) == 5
    assert np.load(workplace / "vectors.npy").shape == (3, 64)


@pytest.mark.slow
def test_python_says_what_is_wrong(workplace: Path) -> None:
    command = [sys.executable, "examples/python/embed.py", "./examples", "./texts", "./none.npy"]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("examples/manifest.json does not exist")


@pytest.mark.native
def test_onnxruntime_alone(workplace: Path) -> None:
    if find_headers("onnxruntime") is None or find_library("onnxruntime") is None:
        pytest.skip("the native library is not built: run mra-export build onnxruntime")
    rows = [np.array(line.split(), np.float32) for line in run("cpp/onnxruntime", workplace).splitlines()[-3:]]
    run("embed.py", workplace)
    np.testing.assert_allclose(rows, np.load(workplace / "vectors.npy"), atol=1e-5)


def test_every_example_is_on_the_page() -> None:
    for path in sorted((ROOT / "examples").rglob("*.*")):
        if path.name in ("README.md", "CMakeLists.txt") or path.suffix not in (".py", ".cc", ".md"):
            continue
        folder = path.relative_to(ROOT / "examples").parent.as_posix()
        assert re.search(rf"\]\({folder}[/)]", PAGE), f"{path} is not on the page"

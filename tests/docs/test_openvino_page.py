"""The commands and the code of docs/openvino.md run, in order, as they stand, on all-MiniLM-L6-v2."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPO

PAGE = (REPO / "docs" / "openvino.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(extension: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's commands leave there."""
    from mra_export.checkpoint.load import load_checkpoint
    from mra_export.export.exporter import export_onnx

    folder = tmp_path_factory.mktemp("openvino-page")
    (folder / "minilm-mra").symlink_to(minilm)
    export_onnx(load_checkpoint(minilm), folder / "minilm-onnx")
    return folder


def test_the_page_runs(workplace: Path) -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    has_optimum = importlib.util.find_spec("optimum") is not None
    left_out = 0
    for language, block in BLOCKS:
        if 'backend="openvino"' in block and not has_optimum:
            left_out += 1
            continue
        command = ["bash", "-ec", block] if language == "bash" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=workplace, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr[-3000:]}"
        for comment in re.findall(r"print\(.*\)  # (.+)$", block, re.MULTILINE):
            assert comment in done.stdout, f"{comment}\nis not what was printed:\n{done.stdout}"
    assert left_out < len(BLOCKS) - 2
    for name in ("minilm-openvino", "minilm-openvino-int8", "minilm-openvino-stock"):
        assert (workplace / name / "openvino" / "openvino_model.xml").is_file()
    if left_out:
        pytest.skip(f"{left_out} of {len(BLOCKS)} blocks did not run: optimum-intel is not installed")

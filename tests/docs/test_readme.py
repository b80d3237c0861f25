"""The README's commands and code run, in order, as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPO
from sentence_support import edit_json, sentence_directory

README = (REPO / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Of the shell blocks and of the tables."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    lines += re.findall(r"^\|[^|]*\| `(mra-export [^`]*)`", README, re.MULTILINE)
    return lines


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a small model in the place of all-MiniLM-L6-v2, as long as that; the quick start below has the real one."""
    folder = tmp_path_factory.mktemp("readme")
    longest = {"max_seq_length": 512, "do_lower_case": False}
    files = {"sentence_bert_config.json": longest}
    model = sentence_directory(folder / "all-MiniLM-L6-v2", files=files, max_position_embeddings=512)
    edit_json(model / "tokenizer_config.json", model_max_length=512)
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_the_commands_run(workplace: Path) -> None:
    assert len(commands()) >= 5
    for command in commands():
        result = subprocess.run(
            ["bash", "-ec", command], cwd=workplace, env=environment(), capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert (workplace / "parity.html").is_file()
    code = next(block for block in blocks("python") if "onnxruntime_library" in block)
    if "libmra_onnxruntime" not in " ".join(str(p) for p in _libraries()):
        pytest.skip("the native library is not built, so the README's last example cannot run")
    subprocess.run([sys.executable, "-c", code], cwd=workplace, env=environment(), check=True)


def _libraries() -> list[Path]:
    from mra_export.native.libraries import find_library

    found = find_library("onnxruntime")
    return [found] if found else []


@pytest.mark.slow
def test_the_quick_start_runs(tmp_path: Path) -> None:
    env = {**environment(), "VENV": str(Path(sys.executable).parent.parent)}
    assert "bash scripts/quickstart.sh" in README
    result = subprocess.run(
        ["bash", str(REPO / "scripts" / "quickstart.sh"), str(tmp_path / "out")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "100% of 32 sentences found their paraphrase." in result.stdout
    assert (tmp_path / "out" / "minilm-onnx" / "onnx" / "model.onnx").is_file()


def test_every_link_leads_somewhere() -> None:
    for page in (*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md"), *(REPO / "examples").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"

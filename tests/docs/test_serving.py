"""The commands of docs/serving.md run, in order, as they stand, on a fresh machine; and the examples that use what they install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPO

from mra_export.native.build import has_gpu

pytestmark = pytest.mark.native
PAGE = (REPO / "docs" / "serving.md").read_text()
EXAMPLES = (REPO / "examples" / "README.md").read_text()


def commands(page: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def fresh_machine(folder: Path) -> dict[str, str]:
    """The environment of a user who has just installed the package: an empty home, no cache, and no native library anywhere."""
    checkout = folder / "checkout"
    for name in ("mra_export", "kernels", "plugins"):
        shutil.copytree(REPO / name, checkout / name, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    shutil.copyfile(REPO / "CMakeLists.txt", checkout / "CMakeLists.txt")
    (folder / "home").mkdir()
    (folder / "bin").mkdir()
    program = folder / "bin" / "mra-export"
    program.write_text(f"#!{sys.executable}\nfrom mra_export.cli import main\nmain()\n")
    program.chmod(0o755)
    ours = ("MRA_", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "HOME": str(folder / "home"),
        "PYTHONPATH": str(checkout),
        "PATH": os.pathsep.join((str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])),
        # Not optimized: this is about the commands, and the compiler takes longest of them.
        "CMAKE_BUILD_TYPE": "None",
    }


def run(script: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_from_the_package_to_a_vector_out_of_a_program(minilm_dense: Path, tmp_path: Path) -> None:
    shutil.copytree(minilm_dense, tmp_path / "all-MiniLM-L6-v2")
    blocks = commands(PAGE)
    assert len(blocks) == 3
    env = fresh_machine(tmp_path)
    said = run("mra-export doctor", tmp_path, env).stdout
    assert "libmra_onnxruntime.so is not built" in " ".join(said.split())
    done = run("".join(blocks), tmp_path, env)
    if "Download the release archive" in done.stderr:
        pytest.skip("ONNX Runtime's headers cannot be fetched here")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "(native operator)" in done.stdout  # what `build` compiled is in the bundle
    assert "tensorrt: left out" in done.stdout or has_gpu()
    assert done.stdout.splitlines()[-1].startswith("2 vectors of 384 numbers: ")
    assert len((tmp_path / "vectors.jsonl").read_text().splitlines()) == 2
    # The examples build against it; one embeds what the page has tokenized, one replaces the bundle while threads use it.
    (tmp_path / "examples").symlink_to(REPO / "examples")
    (example,) = (block for block in commands(EXAMPLES) if "cpp/serving" in block)
    done = run(example, tmp_path, env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"^0 1\.000000\n1 0\.\d{6}$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^2 texts in [12] batches, ids by tables of WordPiece$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^[1-9]\d* requests answered, 0 failed$", done.stdout, re.MULTILINE), done.stdout
    # The folder works where it is copied to.
    moved = shutil.move(tmp_path / "serving", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "serving-build")
    command = [str(moved / "bin" / "mra-embed"), "./minilm-bundle"]
    again = subprocess.run(
        command, cwd=tmp_path, env=env, stdin=(tmp_path / "ids").open(), capture_output=True, text=True, check=True
    )
    assert again.stdout == (tmp_path / "vectors.jsonl").read_text()
    assert not [path for path in (tmp_path / "home").rglob("*") if "icrosoft" in path.name]  # no telemetry

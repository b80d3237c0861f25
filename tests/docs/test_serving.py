"""The commands of docs/serving.md run, in order, as they stand; and the example that uses what they install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPO

pytestmark = pytest.mark.native
PAGE = (REPO / "docs" / "serving.md").read_text()
EXAMPLES = (REPO / "examples" / "README.md").read_text()


def commands(page: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_from_the_package_to_a_vector_out_of_a_program(minilm_dense: Path, tmp_path: Path) -> None:
    shutil.copytree(minilm_dense, tmp_path / "all-MiniLM-L6-v2")
    blocks = commands(PAGE)
    assert len(blocks) == 3
    # Not optimized: this is about the commands, and the compiler takes longest of them.
    env = {
        **os.environ,
        "CMAKE_BUILD_TYPE": "None",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(blocks)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("2 vectors of 384 numbers: ")
    assert len((tmp_path / "vectors.jsonl").read_text().splitlines()) == 2
    # The example builds against it, and embeds what the page has tokenized.
    (tmp_path / "examples").symlink_to(REPO / "examples")
    (example,) = (block for block in commands(EXAMPLES) if "cpp/serving" in block)
    run = ["bash", "-euo", "pipefail", "-c", example]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"^0 1\.000000\n1 0\.\d{6}$", done.stdout, re.MULTILINE), done.stdout
    # The folder works where it is copied to.
    moved = shutil.move(tmp_path / "serving", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "serving-build")
    command = [str(moved / "bin" / "mra-embed"), "./minilm-bundle"]
    again = subprocess.run(
        command, cwd=tmp_path, stdin=(tmp_path / "ids").open(), capture_output=True, text=True, check=True
    )
    assert again.stdout == (tmp_path / "vectors.jsonl").read_text()

"""The package itself works with transformers 4.57: its core tests pass in the clients' environment, which has that."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from interop import clients_python
from paths import REPO

pytestmark = pytest.mark.slow  # processes of an environment of their own
# What meets transformers' models. The published configurations at full size run the same code, only for longer.
MODULES = [
    "export/test_exporter.py",
    "checkpoint/from_dense",
    "checkpoint/test_text_ids.py",
    "families/test_mra_kernels.py",
    "parity/test_compare.py",
]
TOO_LARGE = "published_configurations"
# An encoder and a decoder: the other classes of the family are these with another head.
OTHER_FAMILIES = {
    "families/test_roberta_prelayernorm.py": "every_class and (feature-extraction or text-generation)",
    "families/test_yoso.py": "(every_head and (settings0 or settings1 or MaskedLM)) or transformers_is_measured",
}


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {
        **os.environ,
        "PYTHONPATH": str(REPO),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # tiny models: threads that wait for each other cost more than they do
        "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path),
    }
    return subprocess.run(
        [clients_python(), *arguments], cwd=REPO, env=settings, capture_output=True, text=True, check=False
    )


def test_the_environment_has_transformers_457_and_this_source(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", "import mra_export, transformers; print(transformers.__version__, mra_export.__file__)")
    version, file = done.stdout.split()
    assert version.startswith("4.57."), version
    assert Path(file).resolve().is_relative_to(REPO)


@pytest.mark.parametrize("module", MODULES)
def test_core_tests_pass(tmp_path: Path, module: str) -> None:
    done = run(
        tmp_path,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "-k",
        f"not {TOO_LARGE}",
        f"tests/{module}",
    )
    assert_passed(done, at_least=10)


@pytest.mark.parametrize("module", OTHER_FAMILIES)
def test_other_families_pass(tmp_path: Path, module: str) -> None:
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--show-capture=no"]
    assert_passed(run(tmp_path, *arguments, "-k", OTHER_FAMILIES[module], f"tests/{module}"), at_least=4)


def assert_passed(done: subprocess.CompletedProcess[str], *, at_least: int) -> None:
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr]
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", last[0])
    assert passed, last
    assert int(passed[1]) >= at_least, last
    assert "failed" not in last[0]
    assert "is not installed" not in done.stdout, "something to test with is missing from the environment"

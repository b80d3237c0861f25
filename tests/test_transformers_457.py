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
# What meets transformers' models, and how many tests pass at least. The published configurations at full size run the same code,
# only for longer.
MODULES = {
    "export/test_exporter.py": 10,
    "checkpoint/from_dense/": 10,
    "checkpoint/test_text_ids.py": 10,
    "families/test_mra_budgets.py": 10,
    "families/test_mra_kernels.py": 10,
    "parity/test_compare.py": 10,
    "families/test_roberta_prelayernorm.py": 4,
    "families/test_yoso.py": 4,
}
# An encoder and a decoder: the other classes of the family are these with another head.
OTHER_FAMILIES = {
    "test_roberta_prelayernorm.py": "every_class and (feature-extraction or text-generation)",
    "test_yoso.py": "(every_head and (settings0 or settings1 or MaskedLM)) or transformers_is_measured",
}
CHOSEN = " or ".join(
    [
        f"not ({' or '.join(OTHER_FAMILIES)} or published_configurations)",
        *(f"({module} and ({some}))" for module, some in OTHER_FAMILIES.items()),
    ]
)


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {
        **os.environ,
        "PYTHONPATH": str(REPO),
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


@pytest.fixture(scope="module")
def core_tests(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """All of them in one process, which imports torch and transformers once, with a line for each that passed."""
    modules = [f"tests/{module}" for module in MODULES]
    arguments = ["-q", "-rpfE", "-p", "no:cacheprovider", "--tb=short", "--show-capture=no", "-k", CHOSEN]
    return run(tmp_path_factory.mktemp("core"), "-m", "pytest", *arguments, *modules)


def test_nothing_fails(core_tests: subprocess.CompletedProcess[str]) -> None:
    last = core_tests.stdout.strip().splitlines()[-1:] or [core_tests.stderr]
    told = "\n".join(line for line in core_tests.stdout.splitlines() if not line.startswith("PASSED "))
    assert core_tests.returncode == 0, told[-6000:] + core_tests.stderr[-2000:]
    assert "failed" not in last[0]
    assert "is not installed" not in core_tests.stdout, "something to test with is missing from the environment"


@pytest.mark.parametrize("module", MODULES)
def test_core_tests_pass(core_tests: subprocess.CompletedProcess[str], module: str) -> None:
    passed = re.findall(rf"^PASSED tests/{re.escape(module)}", core_tests.stdout, re.MULTILINE)
    assert len(passed) >= MODULES[module], core_tests.stdout[-6000:] + core_tests.stderr[-2000:]

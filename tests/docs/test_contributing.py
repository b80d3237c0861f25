"""What CONTRIBUTING.md, the Makefile and the hooks say of the project is so."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = re.findall(r"^([a-z-]+):  ## ", MAKEFILE, re.MULTILINE)


def test_the_files_are_there() -> None:
    """Paths in backticks but those of the tests, which mirror the sources; * and NAME stand for many."""
    quoted = re.findall(r"`([^`\s]+/[^`\s]+)`", PAGE)
    paths = [path for path in quoted if "NAME" not in path and not path.startswith("tests/")]
    assert len(paths) > 20
    for path in paths:
        assert list(ROOT.glob(path)), path


def test_the_floors_are_those_of_the_contract() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*?) \| .*\|$", PAGE, re.MULTILINE)
    (floors,) = (c["layers"] for c in PROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    assert [int(number) for number, _ in rows] == list(range(len(floors), 0, -1))
    assert [set(re.findall(r"`(\w+)`", rooms)) for _, rooms in rows] == [set(floor.split(" | ")) for floor in floors]


def test_every_generated_file_is_named() -> None:
    for generator in (ROOT / "scripts").glob("generate_*.py"):
        assert f"| `scripts/{generator.name}` |" in PAGE


def test_the_presets_are_there() -> None:
    presets = json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))["configurePresets"]
    names = {preset["name"] for preset in presets if not preset.get("hidden")}
    assert names <= set(re.findall(r"\w+", PAGE.partition("## C++ by hand")[2]))


def test_the_makefile_calls_scripts() -> None:
    assert {"setup", "test-fast", "test", "lint", "fix", "build", "docs", "quickstart"} < set(TARGETS)
    (extras,) = re.findall(r"setup\.sh .* (\S+,dev)$", MAKEFILE, re.MULTILINE)
    assert f' "$venv" {extras}\n' in (ROOT / "scripts" / "test.sh").read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([a-z-]+)", PAGE)) <= set(TARGETS)
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed, so its targets were only read")
    for target in TARGETS:
        subprocess.run([make, "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_hooks_have_the_tools_of_the_project() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    tools = re.findall(r"additional_dependencies: \[\"(.+)\"\]", hooks)
    assert set(tools) <= {*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]}
    (version,) = re.findall(r"with clang-format ([\d.]+)", (ROOT / ".clang-format").read_text(encoding="utf-8"))
    assert f"clang-format=={version}" in tools

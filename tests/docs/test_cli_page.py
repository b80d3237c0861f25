"""docs/cli.md is what the commands say of themselves, and names the keys of their JSON."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mra_export.cli.app import cli

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
COMMON = {"ok", "command", "outputs"}


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate_cli_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(cli.commands))
def test_every_json_key_is_described(name: str) -> None:
    """As the command's source has them: the keywords of what prints its result."""
    source = (ROOT / "mra_export" / "cli" / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    keys = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("print_json", "print_result")
        ):
            keys |= {keyword.arg for keyword in node.keywords if keyword.arg is not None}
    assert "outputs" in keys
    (described,) = re.findall(rf"^## mra-export {name}\n.*?^JSON: ([^\n]*)", PAGE, re.MULTILINE | re.DOTALL)
    for key in sorted(keys - COMMON):
        assert f"`{key}`" in described, f"{name}: {key} is not on the page"

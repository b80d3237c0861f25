"""The public face: what `import mra_export` offers, lazily, and what its type checkers see."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mra_export

COMMANDS = (
    "from_dense", "load_checkpoint", "export_onnx", "check", "build_engine", "create_bundle", "verify_bundle", "embed",
    "export_openvino", "onnxruntime_library",
)  # fmt: skip
"""What the README's commands do."""


def test_every_public_name_is_there() -> None:
    assert set(mra_export.__all__) == {"__version__", *mra_export._HOMES}
    assert set(COMMANDS) < set(mra_export.__all__)
    for name, home in mra_export._HOMES.items():
        found = getattr(mra_export, name)
        assert found.__name__ == name
        assert found.__module__ == f"mra_export.{home}"
        assert found.__doc__
    assert set(mra_export.__all__) <= set(dir(mra_export))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        mra_export.nothing  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    source = Path(mra_export.__file__)
    typed = {}
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mra_export."):
            typed |= {alias.name: str(node.module).removeprefix("mra_export.") for alias in node.names}
    assert typed == {"__version__": "version", **mra_export._HOMES}
    assert (source.parent / "py.typed").is_file()


def test_a_name_is_a_function_whatever_was_imported_before() -> None:
    code = (
        "import importlib, sys, mra_export\n"
        "heavy = [m for m in ('torch', 'transformers', 'onnx', 'numpy') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
        "for home in set(mra_export._HOMES.values()):\n"
        "    importlib.import_module(f'mra_export.{home}')\n"
        "from mra_export import build_engine, check, create_bundle, embed, export_onnx, from_dense, verify_bundle\n"
        "assert all(callable(f) for f in (build_engine, check, create_bundle, embed, export_onnx, from_dense, verify_bundle))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_and_cmake_have_one_version() -> None:
    """Also what a server's build asks `find_package` for."""
    root = Path(mra_export.__file__).parents[1]
    stated = re.findall(
        r"project\(\s*\w+\s+VERSION\s+([\d.]+)", (root / "plugins" / "serving" / "CMakeLists.txt").read_text()
    )
    assert stated == [mra_export.__version__]

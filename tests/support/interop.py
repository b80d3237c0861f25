"""The clients' environment for the tests that need it: made once by scripts/interop_check.py, or a skip with the reason."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import REPO

from mra_export.errors import DependencyError

SCRIPT = REPO / "scripts" / "interop_check.py"


@functools.cache
def load_script() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("interop_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["interop_check"] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def _environment() -> Path | str:
    try:
        return load_script().environment()
    except DependencyError as error:
        return str(error)


def clients_python() -> Path:
    """Python of the clients' environment; skips the test where it cannot be made."""
    found = _environment()
    if isinstance(found, str):
        pytest.skip(found)
    return found

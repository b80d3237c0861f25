"""The command line in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mra_export.cli import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = run(*arguments, "--json", "-q")
    out = capsys.readouterr().out
    assert out.count("\n") == 1, out
    return code, json.loads(out)

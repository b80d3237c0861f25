"""The options of a model repository."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from mra_export.errors import DependencyError, InputError
from mra_export.triton.settings import triton_settings

pytest.importorskip(
    "tritonclient.grpc", reason="tritonclient[grpc] is not installed (pip install 'mra-export[triton]')"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enabled": False, "tokenizer": True, "batch": "1"}, r"--triton-tokenizer, --batch is for .*: add --triton"),
        ({"enabled": False, "queue_delay": 0}, r"--triton-queue-delay is for .*: add --triton"),
        ({"batch": "2:8:32"}, r"--batch=2:8:32: .* least size must be 1"),
        ({"batch": "1:8"}, r"--batch=1:8 must be MIN:OPT:MAX"),
        ({"name": "a/b"}, r"--triton-name='a/b' must be letters"),
        ({"name": ".."}, r"--triton-name='..' must be letters"),
        ({"instances": 0}, r"--triton-instances=0 must be between 1"),
        ({"queue_delay": -1}, r"--triton-queue-delay=-1 must be between 0"),
        ({"normalize": True}, r"add --triton-pooling"),
        ({"pooling": "cls"}, r"add --triton-tokenizer"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        triton_settings(**{"enabled": True, **options})


def test_without_the_schema_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(DependencyError, match=r"pip install 'tritonclient\[grpc\]'") as error:
        triton_settings(True)
    assert error.value.exit_code == 4

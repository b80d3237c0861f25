"""The instruction sets of this machine."""

from __future__ import annotations

import pytest
from cpu_kernels import machine_isas


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest) -> str:
    if request.param not in machine_isas():
        pytest.skip(f"this machine has no {request.param}")
    return request.param

"""The tests of ../test_yoso_attention.py, run on what nvcc makes of the kernels."""

from __future__ import annotations

import cuda_host
import pytest
from cuda_ptx import compiled_tests

pytestmark = [
    pytest.mark.usefixtures("program"),
    pytest.mark.skipif(cuda_host.ON_DEVICE, reason="a GPU runs the compiled kernels anyway"),
]
globals().update(compiled_tests("test_yoso_attention"))

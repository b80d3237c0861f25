"""Faults that are planted in the PTX: the tests of the kernels find each of them."""

from __future__ import annotations

import os

import cuda_host
import pytest
import torch
from child import Outcome, in_child
from cuda_ptx import FAULTS, kernel_tests, translated

pytestmark = pytest.mark.skipif(cuda_host.ON_DEVICE, reason="faults are planted in what runs on the host")


def run_test(fault: str) -> Outcome:
    """A test with padding and three heads, on compute_90."""
    test = kernel_tests("test_mra2_attention").test_head_dims

    def run() -> None:
        os.environ["MRA_HOST_ORDER"] = "forward"
        with translated(90, fault):
            test(torch.float16, 32)

    return in_child(run)


@pytest.mark.parametrize("fault", FAULTS)
def test_found(fault: str) -> None:
    """By a wrong result, or an access that the process does not survive; not by PTX that is not understood."""
    outcome = run_test(fault)
    assert outcome.status < 0 or (outcome.status == 1 and "AssertionError: error" in outcome.errors), outcome.errors


def test_without_a_fault_it_passes() -> None:
    assert run_test("") == (0, "")

"""Faults that are planted in the PTX: the tests of the kernels find each of them."""

from __future__ import annotations

import os

import cuda_host
import pytest
import torch
from child import Outcome, in_child
from cuda_ptx import FAULTS, ORDERS, kernel_tests, translated

pytestmark = pytest.mark.skipif(cuda_host.ON_DEVICE, reason="faults are planted in what runs on the host")


def run_tests(fault: str, order: str) -> Outcome:
    """A test with padding and three heads, on compute_90."""
    test = kernel_tests("test_mra2_attention").test_head_dims

    def run() -> None:
        os.environ["MRA_HOST_ORDER"] = order
        with translated(90, fault):
            test(torch.float16, 32)

    return in_child(run)


@pytest.mark.parametrize("fault", FAULTS)
def test_found(fault: str) -> None:
    outcomes = [run_tests(fault, order) for order in ORDERS]
    # A wrong result, or an access that this process does not survive; but not PTX that is not understood.
    for outcome in outcomes:
        assert outcome.status <= 0 or "AssertionError: error" in outcome.errors, outcome.errors
    assert any(outcome.status != 0 for outcome in outcomes)


def test_without_a_fault_they_pass() -> None:
    for order in ORDERS:
        assert run_tests("", order) == (0, "")

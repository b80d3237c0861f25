"""The CPU kernel that multiplies in bfloat16, for callers that ask for it."""

from __future__ import annotations

import pytest
import torch
from cpu_kernels import choose_isa, machine_isas, run_kernel
from kernel_cases import MASKS, error, make_mask
from mra2_cases import attributes_of, make_inputs

from mra_export.operators.mra2_attention.reference import mra2_attention

ISA = "avx512_bf16"


def has_bfloat16() -> bool:
    try:
        return choose_isa(ISA) == 3
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def _needs_bfloat16() -> None:
    if not has_bfloat16():
        pytest.skip("this machine has no AVX512-BF16")


@pytest.mark.sweep(
    seq_len=[1, 31, 32, 33, 96, 512],
    head_dim=[8, 16, 32, 64, 80, 128, 256],
    mode=[0, 1],
    mask_kind=MASKS,
)
def test_against_the_reference(seq_len: int, head_dim: int, mode: int, mask_kind: str) -> None:
    """Inputs that bfloat16 holds: what is rounded are the weights alone."""
    blocks = -(-seq_len // 32)
    for num_blocks in sorted({1, min(3 * blocks, blocks * blocks), blocks * blocks}):
        attributes = attributes_of(head_dim, num_blocks=num_blocks, approx_mode=mode, initial_prior_diagonal_n_blocks=1)
        query, key, value, mask = make_inputs(attributes, 2, seq_len, head_dim, mask_kind, torch.bfloat16)
        truth = mra2_attention(query.double(), key.double(), value.double(), mask, attributes)
        context = run_kernel(query.float(), key.float(), value.float(), mask, attributes, isa=ISA)
        assert torch.isfinite(context).all()
        assert error(context, truth) <= 2e-3 or not bool(truth.any())
        assert bool((context[mask == 0] == 0).all())


@pytest.mark.parametrize("head_dim", [32, 64])
def test_any_inputs(head_dim: int) -> None:
    """Rounding query, key and value counts too; at most 3.2e-3 was seen here, and 2.6e-7 without bfloat16."""
    attributes = attributes_of(head_dim, num_blocks=64)
    query, key, value, mask = make_inputs(attributes, 1, 512, head_dim, "right", torch.float32)
    truth = mra2_attention(query.double(), key.double(), value.double(), mask, attributes)
    errors = {isa: error(run_kernel(query, key, value, mask, attributes, isa=isa), truth) for isa in (ISA, "avx512")}
    assert errors["avx512"] <= 1e-6
    assert 1e-4 <= errors[ISA] <= 4e-3


@pytest.mark.parametrize("scale", [-0.1, 0.0])
def test_a_scale_that_is_not_positive(scale: float) -> None:
    attributes = attributes_of(32, num_blocks=9, scale=scale)
    query, key, value, mask = make_inputs(attributes, 1, 96, 32, "holes", torch.bfloat16)
    truth = mra2_attention(query.double(), key.double(), value.double(), mask, attributes)
    assert error(run_kernel(query.float(), key.float(), value.float(), mask, attributes, isa=ISA), truth) <= 4e-3


def test_nan_stays_where_it_belongs() -> None:
    attributes = attributes_of(32, num_heads=2, num_blocks=16)
    query, key, value, mask = make_inputs(attributes, 1, 128, 32, "full", torch.float32)
    value[0, 5, 3] = float("nan")  # of the first head
    context = run_kernel(query, key, value, mask, attributes, isa=ISA)
    assert context[..., 3].isnan().all()
    assert context[..., 32:].isfinite().all()


def test_same_bits_for_any_number_of_threads_and_no_half_type_is_refused() -> None:
    attributes = attributes_of(16, num_heads=3, num_blocks=64)
    generator = torch.Generator().manual_seed(3)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        query, key, value = (torch.randn(2, 512, 48, generator=generator).to(dtype) for _ in range(3))
        mask = make_mask("holes", 2, 512, generator)
        results = [run_kernel(query, key, value, mask, attributes, isa=ISA, threads=n) for n in (1, 2, 3)]
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


def test_nobody_gets_it_who_did_not_ask() -> None:
    assert choose_isa("") == 2
    assert ISA not in machine_isas()

"""The CPU kernels that multiply in bfloat16 or float16, for callers that ask for it."""

from __future__ import annotations

import pytest
import torch
from cpu_kernels import choose_isa, machine_isas, reduced_isas, run_kernel
from kernel_cases import MASKS, error, make_mask
from mra2_cases import attributes_of, make_inputs

from mra_export.operators.mra2_attention.reference import mra2_attention
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

LIMIT = 3e-3


@pytest.fixture(params=["avx512_bf16", "avx512_fp16"])
def isa(request: pytest.FixtureRequest) -> str:
    if request.param not in reduced_isas():
        pytest.skip(f"this machine has no {request.param}")
    return request.param


@pytest.mark.sweep(
    seq_len=[1, 31, 32, 33, 96, 512],
    head_dim=[8, 16, 32, 64, 80, 128, 256],
    mode=[0, 1],
    mask_kind=MASKS,
)
def test_against_the_reference(isa: str, seq_len: int, head_dim: int, mode: int, mask_kind: str) -> None:
    blocks = -(-seq_len // 32)
    for num_blocks in sorted({1, min(3 * blocks, blocks * blocks), blocks * blocks}):
        attributes = attributes_of(head_dim, num_blocks=num_blocks, approx_mode=mode, initial_prior_diagonal_n_blocks=1)
        query, key, value, mask = make_inputs(attributes, 2, seq_len, head_dim, mask_kind, torch.bfloat16)
        truth = mra2_attention(query.double(), key.double(), value.double(), mask, attributes)
        context = run_kernel(query.float(), key.float(), value.float(), mask, attributes, isa=isa)
        assert torch.isfinite(context).all()
        assert error(context, truth) <= LIMIT or not bool(truth.any())
        assert bool((context[mask == 0] == 0).all())


@pytest.mark.parametrize("head_dim", [32, 64])
def test_any_inputs(isa: str, head_dim: int) -> None:
    """Inputs that no narrow type holds; 2.6e-7 is seen in float32."""
    attributes = attributes_of(head_dim, num_blocks=64)
    query, key, value, mask = make_inputs(attributes, 1, 512, head_dim, "right", torch.float32)
    truth = mra2_attention(query.double(), key.double(), value.double(), mask, attributes)
    errors = {name: error(run_kernel(query, key, value, mask, attributes, isa=name), truth) for name in (isa, "avx512")}
    assert errors["avx512"] <= 1e-6
    assert 1e-4 <= errors[isa] <= LIMIT


@pytest.mark.parametrize("scale", [-0.1, 0.0])
def test_a_scale_that_is_not_positive(isa: str, scale: float) -> None:
    attributes = attributes_of(32, num_blocks=9, scale=scale)
    query, key, value, mask = make_inputs(attributes, 1, 96, 32, "holes", torch.bfloat16)
    truth = mra2_attention(query.double(), key.double(), value.double(), mask, attributes)
    assert error(run_kernel(query.float(), key.float(), value.float(), mask, attributes, isa=isa), truth) <= LIMIT


@pytest.mark.parametrize(
    ("of_query", "of_key", "of_value"), [(2.0**20, 2.0**-20, 1.0), (1e-6, 1e6, 3e9), (1.0, 1.0, 1e-9)]
)
def test_inputs_of_any_size(isa: str, of_query: float, of_key: float, of_value: float) -> None:
    """Beyond what float16 holds; one block is a thousandth of the others besides."""
    attributes = attributes_of(64, num_blocks=5)
    query, key, value, mask = make_inputs(attributes, 1, 160, 64, "holes", torch.float32)
    key[:, 32:64] *= 1e-3
    value[:, 64:96] *= 1e-3
    query, key, value = query * of_query, key * of_key, value * of_value
    truth = mra2_attention(query.double(), key.double(), value.double(), mask, attributes)
    assert error(run_kernel(query, key, value, mask, attributes, isa=isa), truth) <= LIMIT


def test_the_selection_is_that_of_float32(isa: str) -> None:
    """In mode 1 the context holds values of selected blocks alone: here each block has a column of its own."""
    blocks = 16
    attributes = Mra2AttentionAttributes(1, 3 * blocks, 1, 0, 1, 0.05)
    generator = torch.Generator().manual_seed(5)
    query, key = (torch.randn(1, 32 * blocks, 16, generator=generator) for _ in range(2))
    value = torch.eye(blocks).repeat_interleave(32, dim=0)[None].contiguous()
    mask = torch.ones(1, 32 * blocks, dtype=torch.int32)
    selected = [run_kernel(query, key, value, mask, attributes, isa=name) > 1e-6 for name in (isa, "avx512")]
    assert torch.equal(*selected)
    assert selected[0][0, ::32].sum() == 3 * blocks


def test_nan_stays_where_it_belongs(isa: str) -> None:
    attributes = attributes_of(32, num_heads=2, num_blocks=16)
    query, key, value, mask = make_inputs(attributes, 1, 128, 32, "full", torch.float32)
    value[0, 5, 3] = float("nan")  # of the first head
    context = run_kernel(query, key, value, mask, attributes, isa=isa)
    assert context[..., 3].isnan().all()
    assert context[..., :3].isfinite().all()
    assert context[..., 4:].isfinite().all()


def test_same_bits_for_any_number_of_threads_and_no_half_type_is_refused(isa: str) -> None:
    attributes = attributes_of(16, num_heads=3, num_blocks=64)
    generator = torch.Generator().manual_seed(3)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        query, key, value = (torch.randn(2, 512, 48, generator=generator).to(dtype) for _ in range(3))
        mask = make_mask("holes", 2, 512, generator)
        results = [run_kernel(query, key, value, mask, attributes, isa=isa, threads=n) for n in (1, 2, 3)]
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


def test_nobody_gets_it_who_did_not_ask(isa: str) -> None:
    assert choose_isa("") == choose_isa("avx512")
    assert isa not in machine_isas()
    assert choose_isa("avx2", "bf16") == choose_isa("avx2")  # who names one gets that
    assert choose_isa("", "bf16") in {choose_isa("avx512"), *map(choose_isa, reduced_isas())}


def test_half_precision_is_chosen_where_the_processor_has_it() -> None:
    if "avx512_fp16" not in reduced_isas():
        pytest.skip("this machine has no avx512_fp16")
    assert choose_isa("", "bf16") == choose_isa("avx512_fp16")

"""The CPU kernel, called directly: golden vectors, a sweep against the reference, and what must never happen."""

from __future__ import annotations

import ctypes
import re
import subprocess

import numpy as np
import pytest
import torch
from cpu_kernels import build, choose_isa, kernel, machine_isas, make_params, run_kernel
from goldens import Golden
from kernel_cases import MASKS, error, make_mask
from measures import relative_error
from mra2_cases import attributes_of, make_inputs
from paths import REPO

from mra_export.operators.limits import MAX_SEQ_LEN
from mra_export.operators.mra2_attention.reference import mra2_attention

FLOAT32_TOLERANCE = 2e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PRIORS = ((0, 0), (1, 3))  # first_n, diagonal_n


def test_golden_vectors(golden: Golden, isa: str) -> None:
    tensors = (torch.from_numpy(x) for x in (golden.query, golden.key, golden.value, golden.attention_mask))
    context = run_kernel(*tensors, golden.attributes, isa=isa)
    assert relative_error(context.numpy(), golden.expected) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_golden_vectors_in_half_precision(golden: Golden, isa: str, dtype: torch.dtype) -> None:
    query, key, value = (torch.from_numpy(x).to(dtype) for x in (golden.query, golden.key, golden.value))
    mask = torch.from_numpy(golden.attention_mask)
    context = run_kernel(query, key, value, mask, golden.attributes, isa=isa)
    # The rounding of bfloat16 inputs may change the selection: the truth is that of the rounded inputs.
    truth = mra2_attention(query.double(), key.double(), value.double(), mask, golden.attributes)
    bound = 2 * error(mra2_attention(query, key, value, mask, golden.attributes), truth)
    assert error(context, truth) <= bound


@pytest.mark.sweep(
    dtype=DTYPES, seq_len=[1, 31, 32, 33, 96, 512], head_dim=[8, 16, 32, 64, 80, 128, 256], mode=[0, 1], mask_kind=MASKS
)
def test_against_the_reference(dtype: torch.dtype, seq_len: int, head_dim: int, mode: int, mask_kind: str) -> None:
    blocks = -(-seq_len // 32)
    budgets = sorted({1, min(3 * blocks, blocks * blocks), blocks * blocks})
    for number, num_blocks in enumerate(budgets):
        first_n, diagonal_n = PRIORS[(number + head_dim // 8) % len(PRIORS)]
        attributes = attributes_of(
            head_dim,
            num_blocks=num_blocks,
            approx_mode=mode,
            initial_prior_first_n_blocks=first_n,
            initial_prior_diagonal_n_blocks=diagonal_n,
        )
        query, key, value, mask = make_inputs(attributes, 2, seq_len, head_dim, mask_kind, dtype)
        truth = mra2_attention(query.double(), key.double(), value.double(), mask, attributes)
        if dtype == torch.float32:
            bound = FLOAT32_TOLERANCE
        else:
            bound = 2 * error(mra2_attention(query, key, value, mask, attributes), truth)
        for isa in machine_isas():
            context = run_kernel(query, key, value, mask, attributes, isa=isa)
            assert error(context, truth) <= bound, (isa, attributes)
            assert bool((context[mask == 0] == 0).all()), (isa, attributes)


@pytest.mark.parametrize("seq_len", [512, 4160])  # 4160: 130 blocks, more than one task per head in each step
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"]
)
def test_same_bits_for_any_number_of_threads(isa: str, dtype: torch.dtype, seq_len: int) -> None:
    attributes = attributes_of(16, num_heads=3, num_blocks=seq_len // 8, initial_prior_first_n_blocks=1)
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, seq_len, 48, generator=generator).to(dtype) for _ in range(3))
    mask = make_mask("holes", 2, seq_len, generator)
    results = [run_kernel(query, key, value, mask, attributes, isa=isa, threads=n) for n in (1, 2, 3)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_long_sequences_agree_with_the_reference(isa: str) -> None:
    attributes = attributes_of(16, num_heads=1, num_blocks=520)
    query, key, value, mask = make_inputs(attributes, 1, 4160, 16, "right", torch.float32)
    truth = mra2_attention(query.double(), key.double(), value.double(), mask, attributes)
    assert error(run_kernel(query, key, value, mask, attributes, isa=isa), truth) <= FLOAT32_TOLERANCE


@pytest.mark.sweep(dtype=[torch.float32, torch.bfloat16], head_dim=[8, 64, 80], mask_kind=MASKS)
def test_large_heads_whose_keys_and_values_are_copied(
    dtype: torch.dtype, head_dim: int, mask_kind: str, isa: str
) -> None:
    seq_len = 3090  # 97 blocks, the last one a part
    attributes = attributes_of(head_dim, num_blocks=400, initial_prior_diagonal_n_blocks=3)
    query, key, value, mask = make_inputs(attributes, 2, seq_len, head_dim, mask_kind, dtype)
    truth = mra2_attention(query.double(), key.double(), value.double(), mask, attributes)
    bound = FLOAT32_TOLERANCE
    if dtype != torch.float32:
        bound = 2 * error(mra2_attention(query, key, value, mask, attributes), truth)
    padded = (mask == 0)[..., None]
    query, key, value = (torch.where(padded, torch.tensor(float("nan"), dtype=dtype), x) for x in (query, key, value))
    context = run_kernel(query, key, value, mask, attributes, isa=isa)
    assert error(context, truth) <= bound
    assert bool((context[mask == 0] == 0).all())


def test_heads_that_do_not_fit_at_once() -> None:
    """20 heads of 1024 x 1024 scores are 80 MiB: they are computed in two groups, and each is as it is alone."""
    seq_len, heads = 32768, 20
    attributes = attributes_of(8, num_heads=heads, num_blocks=2048)
    generator = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(1, seq_len, heads * 8, generator=generator) for _ in range(3))
    mask = torch.ones(1, seq_len, dtype=torch.int32)
    together = run_kernel(query, key, value, mask, attributes)
    for head in (0, 9, 10, 19):
        part = slice(head * 8, head * 8 + 8)
        alone = run_kernel(
            query[..., part], key[..., part], value[..., part], mask, attributes_of(8, num_heads=1, num_blocks=2048)
        )
        assert torch.equal(together[..., part], alone)


@pytest.mark.sweep(
    dtype=DTYPES, mask_kind=["right", "holes", "empty example"], poison=[float("nan"), float("inf"), float("-inf")]
)
def test_padding_does_not_reach_the_output(poison: float, mask_kind: str, dtype: torch.dtype, isa: str) -> None:
    attributes = attributes_of(16, num_blocks=12)
    generator = torch.Generator().manual_seed(7)
    mask = make_mask(mask_kind, 2, 200, generator)
    clean = [torch.randn(2, 200, 32, generator=generator).to(dtype) for _ in range(3)]
    poisoned = [torch.where((mask == 0)[..., None], torch.tensor(poison, dtype=dtype), tensor) for tensor in clean]
    expected = run_kernel(*clean, mask, attributes, isa=isa)
    assert bool(torch.isfinite(expected).all())
    assert torch.equal(run_kernel(*poisoned, mask, attributes, isa=isa, fill=0x7F), expected)


@pytest.mark.sweep(
    mode=[0, 1],
    poison=[float("nan"), float("inf"), float("-inf"), 3e38],
    where=["query", "key", "value", "all"],
)
def test_special_values_in_tokens_stay_in_their_example(where: str, poison: float, mode: int, isa: str) -> None:
    attributes = attributes_of(16, num_blocks=12, approx_mode=mode, initial_prior_diagonal_n_blocks=1)
    generator = torch.Generator().manual_seed(8)
    tensors = {name: torch.randn(2, 200, 32, generator=generator) for name in ("query", "key", "value")}
    mask = make_mask("right", 2, 200, generator)
    clean = run_kernel(*tensors.values(), mask, attributes, isa=isa)
    for name, tensor in tensors.items():
        if where in (name, "all"):
            tensor[0, 40:50, :] = poison
    context = run_kernel(*tensors.values(), mask, attributes, isa=isa)
    assert torch.equal(context[1], clean[1])
    assert bool((context[mask == 0] == 0).all())
    if where == "value" and not np.isfinite(poison):
        assert not bool(torch.isfinite(context[0]).all()), "a value that is no number must not vanish"


@pytest.mark.parametrize("num_blocks", [1, 5, 16, 17, 40, 99])
def test_equal_scores_go_to_the_lowest_index(num_blocks: int, isa: str) -> None:
    """Queries and keys that are all alike make every score 0; values tell which blocks were chosen."""
    attributes = attributes_of(32, num_heads=1, num_blocks=num_blocks, approx_mode=1)
    generator = torch.Generator().manual_seed(9)
    query = key = torch.ones(1, 320, 32)
    value = torch.randn(1, 320, 32, generator=generator)
    mask = torch.ones(1, 320, dtype=torch.int32)
    expected = torch.zeros(320, 32, dtype=torch.float64)
    for row in range(10):
        chosen = max(0, min(10, num_blocks - row * 10))
        if chosen:
            expected[row * 32 : row * 32 + 32] = value[0, : chosen * 32].double().mean(0)
    context = run_kernel(query, key, value, mask, attributes, isa=isa)
    assert error(context[0], expected) <= FLOAT32_TOLERANCE


def test_negative_zero_scores_tie_with_positive_ones(isa: str) -> None:
    attributes = attributes_of(32, num_heads=1, num_blocks=3, approx_mode=1)
    query = torch.ones(1, 128, 32)
    query[0, 32:] = -1
    key = torch.zeros(1, 128, 32)
    value = torch.randn(1, 128, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 128, dtype=torch.int32)
    context = run_kernel(query, key, value, mask, attributes, isa=isa)
    assert error(context[0, :32], value[0, :96].double().mean(0).expand(32, -1)) <= FLOAT32_TOLERANCE
    assert bool((context[0, 32:] == 0).all())


def test_an_example_is_the_same_in_any_batch(isa: str) -> None:
    attributes = attributes_of(64, num_blocks=24)
    generator = torch.Generator().manual_seed(10)
    query, key, value = (torch.randn(3, 300, 128, generator=generator) for _ in range(3))
    mask = make_mask("right", 3, 300, generator)
    together = run_kernel(query, key, value, mask, attributes, isa=isa)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(run_kernel(query[one], key[one], value[one], mask[one], attributes, isa=isa), together[one])


def test_the_full_budget_is_dense_attention(isa: str) -> None:
    attributes = attributes_of(64, num_blocks=10**9)
    generator = torch.Generator().manual_seed(11)
    query, key, value = (torch.randn(1, 256, 128, generator=generator) for _ in range(3))
    context = run_kernel(query, key, value, torch.ones(1, 256), attributes, isa=isa)
    heads = [tensor.double().view(1, 256, 2, 64).transpose(1, 2) for tensor in (query, key, value)]
    dense = torch.nn.functional.scaled_dot_product_attention(*heads, scale=attributes.scale)
    assert error(context, dense.transpose(1, 2).reshape(1, 256, 128)) <= FLOAT32_TOLERANCE


def test_an_empty_batch_is_left_alone(isa: str) -> None:
    attributes = attributes_of(16)
    empty = torch.empty(0, 64, 32)
    assert run_kernel(empty, empty, empty, torch.empty(0, 64), attributes, isa=isa).shape == (0, 64, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_conversions_of_every_half_number(dtype: torch.dtype, isa: str) -> None:
    """One token alone attends to itself, so the context is the value, through float32 and back."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    value = bits.view(dtype)
    value = torch.where(torch.isfinite(value), value, torch.zeros_like(value)).view(256, 1, 256)
    zeros = torch.zeros_like(value)
    attributes = attributes_of(256, num_heads=1, approx_mode=1, num_blocks=1)
    context = run_kernel(zeros, zeros, value, torch.ones(256, 1), attributes, isa=isa)
    # The denominator is 1 + 1e-6, in float32, and so is every quotient, rounded to the type.
    expected = (value.float() * (1.0 / torch.tensor(1.0 + 1e-6, dtype=torch.float32))).to(dtype)
    assert torch.equal(context, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads=0 must be at least 1"),
        ({"num_heads": 5}, "hidden_size=32 must be a positive multiple of num_heads=5"),
        ({"num_heads": 8}, r"head_dim=4 \(hidden_size=32 / num_heads=8\) must be a multiple of 8"),
        ({"num_blocks": 0}, r"num_blocks=0 must be at least 1. Check block_per_row in config.json"),
        ({"approx_mode": 2}, r"approx_mode=2 must be 0 \(full\) or 1 \(sparse\)"),
        ({"initial_prior_first_n_blocks": -1}, "initial_prior_first_n_blocks=-1 must not be negative"),
        ({"initial_prior_diagonal_n_blocks": -1}, "initial_prior_diagonal_n_blocks=-1 must not be negative"),
        ({"scale": float("nan")}, "scale=-?nan must be finite"),
    ],
)
def test_bad_attributes_are_refused(changes: dict[str, object], message: str) -> None:
    tensor = torch.zeros(1, 32, 32)
    with pytest.raises(ValueError, match=message):
        run_kernel(tensor, tensor, tensor, torch.ones(1, 32), attributes_of(16, **changes))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch", -1, "batch=-1 must not be negative"),
        ("seq_len", 0, f"seq_len=0 must be between 1 and {MAX_SEQ_LEN}"),
        ("seq_len", MAX_SEQ_LEN + 1, f"seq_len={MAX_SEQ_LEN + 1} must be between 1 and {MAX_SEQ_LEN}"),
        ("hidden_size", 2 * 264, r"head_dim=264 .* at most 256"),
        ("dtype", 7, "dtype=7 must be"),
    ],
)
def test_bad_sizes_are_refused(field: str, value: int, message: str) -> None:
    tensor = torch.zeros(1, 32, 32)
    params = make_params(tensor, tensor, tensor, torch.ones(1, 32, dtype=torch.int32), 0, attributes_of(16))
    setattr(params, field, value)
    text = ctypes.create_string_buffer(512)
    assert not kernel().mra_test_validate(ctypes.byref(params), text, len(text))
    assert re.search(message, text.value.decode())


def test_instruction_sets_are_chosen_by_name() -> None:
    with pytest.raises(ValueError, match="MRA_CPU_ISA=sse9 must be avx512_bf16, avx512_fp16, avx512, avx2 or portable"):
        choose_isa("sse9")
    assert choose_isa("") == choose_isa(machine_isas()[0])
    assert choose_isa("portable") == 0


def test_no_code_of_one_instruction_set_is_shared_with_the_program() -> None:
    """A weak symbol compiled for AVX-512 could replace the same function of the rest of the program."""
    objects = list((build() / "kernels").rglob("mra2_attention_cpu_kernels.cc.o"))
    assert objects
    for path in objects:
        symbols = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        shared = [line for line in symbols.splitlines() if re.search(r" [WVu] ", line)]
        assert not shared, f"{path}: {shared}"
        assert re.findall(r" T (.*)", symbols) == [s for s in re.findall(r" T (.*)", symbols) if "::run_mra2(" in s]


def test_kernels_include_the_standard_library_alone() -> None:
    allowed = re.compile(
        r"<(c?[a-z_]+|immintrin\.h)>|\"(op_spec|common/[a-z_]+|((mra2|yoso)_attention)/\3(_cpu(_half(_attend)?)?)?)\.h\""
    )
    sources = [path for pattern in ("*.h", "*/*.h", "*/*.cc") for path in (REPO / "kernels").glob(pattern)]
    assert len(sources) >= 14
    for path in sources:
        for header in re.findall(r"^\s*#\s*include\s+(\S+)", path.read_text(), re.MULTILINE):
            assert allowed.fullmatch(header), f"{path.name} includes {header}"

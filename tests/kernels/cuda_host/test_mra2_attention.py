"""The CUDA kernels, run on the host thread by thread (on a GPU where MRA_CUDA_TEST_LIBRARY is set): every size, type and mask."""

from __future__ import annotations

import ctypes
import math
import re
import subprocess
from pathlib import Path

import cuda_host
import numpy as np
import pytest
import torch
from cuda_host_cases import DTYPES, FLOAT32_TOLERANCE, MASKS, make_mask, poison_padding
from goldens import Golden
from measures import relative_error
from torch import Tensor

from mra_export.operators.mra2_attention.reference import mra2_attention, select_blocks
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes


def attributes(num_heads: int, num_blocks: int, **changes: object) -> Mra2AttentionAttributes:
    values: dict[str, object] = {
        "num_heads": num_heads,
        "num_blocks": num_blocks,
        "approx_mode": 0,
        "initial_prior_first_n_blocks": 0,
        "initial_prior_diagonal_n_blocks": 0,
        "scale": 0.125,
    }
    return Mra2AttentionAttributes(**(values | changes))  # type: ignore[arg-type]


def random_inputs(
    batch: int, seq_len: int, hidden: int, dtype: torch.dtype, seed: int, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # A mean per block, so that blocks differ and the selection is not all noise.
    blocks = -(-seq_len // 32)
    tensors = []
    for _ in range(3):
        mean = torch.randn(batch, blocks, 1, hidden, generator=generator).expand(-1, -1, 32, -1)
        noise = torch.randn(batch, seq_len, hidden, generator=generator)
        tensors.append(((mean.reshape(batch, -1, hidden)[:, :seq_len] + noise) * spread).to(dtype))
    return tensors[0], tensors[1], tensors[2]


def same_maths(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, attrs: Mra2AttentionAttributes, selected: Tensor
) -> Tensor:
    """The operator in torch with half-type matrix products: what the error of a half-type kernel is measured against.

    Products of queries and keys, and of weights and values, are torch's at the type of the inputs; pooling, the softmax and the
    sums are float32. S x S tensors: for small sizes.
    """
    dtype = query.dtype
    batch, seq_len, hidden = query.shape
    heads, blocks = attrs.num_heads, -(-seq_len // 32)
    keep = torch.zeros(batch, blocks * 32, dtype=torch.bool)
    keep[:, :seq_len] = mask != 0

    def cut(x: Tensor) -> Tensor:  # [batch, heads, blocks * 32, head_dim]
        full = torch.zeros(batch, blocks * 32, hidden, dtype=dtype)
        full[:, :seq_len] = torch.where(mask[:, :, None] != 0, x, torch.zeros((), dtype=dtype))
        return full.reshape(batch, blocks * 32, heads, -1).transpose(1, 2)

    q, k, v = cut(query), cut(key), cut(value)
    count = keep.reshape(batch, 1, blocks, 32).sum(3).float()
    pooled = [x.float().reshape(batch, heads, blocks, 32, -1).sum(3) / (count + 1e-6)[..., None] for x in (q, k, v)]
    low = attrs.scale * pooled[0] @ pooled[1].transpose(2, 3)
    row_max = low.amax(3)
    weight = torch.where(
        selected | (count == 0)[:, :, None], torch.zeros(()), count[:, :, None] * torch.exp(low - row_max[..., None])
    )

    fine = selected.repeat_interleave(32, 2).repeat_interleave(32, 3)
    logit = torch.where(fine, (q @ k.transpose(2, 3)).float() * attrs.scale, torch.tensor(-math.inf))
    high = torch.where(fine.any(3), logit.amax(3), torch.tensor(-1e5))
    row = row_max.repeat_interleave(32, 2)
    shift = torch.maximum(row, high) if attrs.approx_mode == 0 else high
    # Weights relative to the largest that counts, as any implementation that rounds them must have it.
    counted = fine & keep[:, None, None]
    own = torch.where(counted, logit, torch.tensor(-math.inf)).amax(3).clamp(min=-1e30)
    e = torch.where(counted, torch.exp(logit - own[..., None]), torch.zeros(()))
    factor = torch.exp(own - shift)[..., None]
    total = (e.to(dtype) @ v).float() * factor
    normalizer = e.sum(3, keepdim=True) * factor
    if attrs.approx_mode == 0:
        scale = torch.exp(row - shift)[..., None]
        total = total + (weight @ pooled[2]).repeat_interleave(32, 2) * scale
        normalizer = normalizer + weight.sum(3, keepdim=True).repeat_interleave(32, 2) * scale
    out = torch.where(keep[:, None, :, None], total / (normalizer + 1e-6), torch.zeros(()))
    return out.transpose(1, 2).reshape(batch, blocks * 32, hidden)[:, :seq_len].to(dtype)


def check(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, attrs: Mra2AttentionAttributes, *, fill: int = 0xFF
) -> cuda_host.Result:
    """Runs the kernels on poisoned padding and compares with the reference in float64: first the selection, then the arithmetic."""
    poisoned = poison_padding((query, key, value), mask)
    result = cuda_host.run(poisoned[0], poisoned[1], poisoned[2], mask, attrs, fill=fill)

    wanted = select_blocks(query.double(), key.double(), mask, attrs)
    per_head = result.selected.flatten(2).sum(2)
    assert bool((per_head == min(attrs.num_blocks, result.selected.shape[-1] ** 2)).all())
    real = wanted.score.abs()[wanted.score.abs() < 4e3]
    slack = 5e-7 * wanted.score.abs() + 1e-5 * (float(real.max()) if real.numel() else 0.0)
    lowest = torch.where(result.selected, wanted.score + slack, torch.tensor(math.inf)).flatten(2).amin(2)
    highest = torch.where(result.selected, torch.tensor(-math.inf), wanted.score - slack).flatten(2).amax(2)
    assert bool((lowest >= highest).all()), "a pair was selected before one that scores higher"

    expected = mra2_attention(query.double(), key.double(), value.double(), mask, attrs, selected=result.selected)
    error = relative_error(result.context.double().numpy(), expected.numpy())
    if query.dtype == torch.float32:
        assert error <= FLOAT32_TOLERANCE
    else:
        baseline = same_maths(query, key, value, mask, attrs, result.selected)
        measured = relative_error(baseline.double().numpy(), expected.numpy())
        assert error <= 2 * measured, f"error {error:.2e}, torch's at {query.dtype} {measured:.2e}"
    assert bool((result.context[mask == 0] == 0).all()), "padded tokens must be 0"
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden(golden: Golden, dtype: torch.dtype) -> None:
    tensors = [torch.from_numpy(x).to(dtype) for x in (golden.query, golden.key, golden.value)]
    mask = torch.from_numpy(golden.attention_mask)
    poisoned = poison_padding(tuple(tensors), mask)
    result = cuda_host.run(poisoned[0], poisoned[1], poisoned[2], mask, golden.attributes)
    if dtype == torch.float32:
        assert np.array_equal(result.selected.numpy(), golden.selected)
        assert relative_error(result.context.numpy(), golden.expected) <= FLOAT32_TOLERANCE
        return
    doubles = [tensor.double() for tensor in tensors]
    expected = mra2_attention(*doubles, mask, golden.attributes, selected=result.selected).numpy()
    baseline = same_maths(*tensors, mask, golden.attributes, result.selected)
    measured = relative_error(baseline.double().numpy(), expected)
    assert relative_error(result.context.double().numpy(), expected) <= 2 * measured


@pytest.mark.sweep(
    "head_dim",
    "priors",
    dtype=DTYPES,
    mode=[0, 1],
    mask=MASKS,
    seq_len=[1, 31, 32, 96, 300],
    budget=["one", "some", "all"],
    head_dim=[8, 32, 64, 80, 128],
    priors=[(0, 0), (1, 0), (0, 3), (2, 4)],
)
def test_sweep(
    dtype: torch.dtype, mode: int, mask: str, seq_len: int, budget: str, head_dim: int, priors: tuple[int, int]
) -> None:
    blocks = -(-seq_len // 32)
    num_blocks = {"one": 1, "some": max(1, 3 * blocks), "all": 10**6}[budget]
    seed = seq_len * 7 + head_dim + num_blocks
    tensors = random_inputs(2, seq_len, 2 * head_dim, dtype, seed)
    attrs = attributes(
        2,
        num_blocks,
        approx_mode=mode,
        initial_prior_first_n_blocks=priors[0],
        initial_prior_diagonal_n_blocks=priors[1],
        scale=1 / math.sqrt(max(head_dim, 32)),
    )
    check(*tensors, make_mask(mask, 2, seq_len, seed), attrs, fill=0x7F if seed % 2 else 0xFF)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [8, 16, 24, 32, 40, 64, 72, 96, 120, 128, 136, 200, 256])
def test_head_dims(dtype: torch.dtype, head_dim: int) -> None:
    tensors = random_inputs(1, 160, 3 * head_dim, dtype, head_dim)
    check(*tensors, make_mask("right", 1, 160, 0), attributes(3, 9, scale=head_dim**-0.5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, -0.2, 3.0])
def test_scale(dtype: torch.dtype, scale: float) -> None:
    tensors = random_inputs(1, 128, 64, dtype, 5)
    check(*tensors, make_mask("holes", 1, 128, 3), attributes(2, 6, scale=scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", [0, 1])
def test_long_lists_are_split(dtype: torch.dtype, mode: int) -> None:
    """Priors give the first row and column everything: one list of 40, many of 1 and 2, some rows combined from five chunks."""
    tensors = random_inputs(1, 40 * 32, 64, dtype, 11)
    attrs = attributes(1, 100, approx_mode=mode, initial_prior_first_n_blocks=1)
    result = check(*tensors, make_mask("holes", 1, 40 * 32, 5), attrs)
    assert result.most_parts == 5
    assert result.selected[0, 0, 0].sum() == 40


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("mask", ["right", "holes"])
def test_every_block_is_selected(mask: str, mode: int, dtype: torch.dtype) -> None:
    """Dense attention over more than 32 tiles, with what is in the shift and not in the sums.

    One query of each block is long: the others' own logits are far below the row's low-resolution maximum, and they get next to
    nothing. Another one is far from all keys: its own logits are far below the 0 of padding.
    """
    tensors = random_inputs(1, 33 * 32 + 5, 32, dtype, 17)
    direction = torch.full((32,), 32**-0.5)
    tensors[1].sub_(8 * direction)
    tensors[0][0, ::64] *= 600
    tensors[0][0, 52::64] *= 600
    tensors[0][0, 7::32] = (40 * direction).to(dtype)
    given = make_mask(mask, 1, 33 * 32 + 5, 2)
    result = check(*tensors, given, attributes(1, 10**6, approx_mode=mode))
    assert bool(result.selected.all())
    assert result.chunks == 0
    size = result.context[0].float().norm(dim=1)
    small = (size < 0.1 * size.max())[given[0] != 0].float().mean()
    assert small > (0.2 if mode == 0 else 0.02), "the case must have rows that the shift makes small"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_4096_tokens(dtype: torch.dtype) -> None:
    """Two row tiles of logits share one selection; 64 blocks of 128 tokens to spare for the default budget."""
    tensors = random_inputs(1, 4096 - 7, 32, dtype, 4)
    expected_chunks = 128  # at least one for each row
    attrs = attributes(1, 512, scale=1 / math.sqrt(32))
    poisoned = poison_padding(tensors, make_mask("right", 1, 4096 - 7, 0))
    mask = make_mask("right", 1, 4096 - 7, 0)
    result = cuda_host.run(poisoned[0], poisoned[1], poisoned[2], mask, attrs)
    doubles = [tensor.double() for tensor in tensors]
    expected = mra2_attention(*doubles, mask, attrs, selected=result.selected).numpy()
    tolerance = {torch.float32: FLOAT32_TOLERANCE, torch.float16: 6e-4, torch.bfloat16: 5e-3}[dtype]
    assert relative_error(result.context.double().numpy(), expected) <= tolerance
    wanted = select_blocks(tensors[0].float(), tensors[1].float(), mask, attrs).selected
    assert (result.selected & wanted).sum() >= 510
    assert result.chunks >= expected_chunks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("head_dim", "mode", "num_blocks"), [(24, 1, 90), (24, 0, 90), (136, 0, 2)])
def test_rows_in_two_thread_blocks(head_dim: int, mode: int, num_blocks: int, dtype: torch.dtype) -> None:
    """The selection's rows 0 to 63 and 64 to 69 of each of two heads; priors, padding, a head's channels in one step or more."""
    tensors = random_inputs(1, 70 * 32 - 9, 2 * head_dim, dtype, head_dim)
    attrs = attributes(2, num_blocks, approx_mode=mode, initial_prior_diagonal_n_blocks=1, scale=head_dim**-0.5)
    check(*tensors, make_mask("holes", 1, 70 * 32 - 9, 6), attrs)


def test_16384_tokens() -> None:
    """The selection among 512 x 512 pairs, by eight thread blocks; float16, as the smaller tensors."""
    tensors = random_inputs(1, 16384, 8, torch.float16, 6)
    mask = make_mask("none", 1, 16384, 0)
    attrs = attributes(1, 2048, scale=1 / math.sqrt(32), initial_prior_diagonal_n_blocks=3)
    result = cuda_host.run(*tensors, mask, attrs)
    doubles = [tensor.double() for tensor in tensors]
    expected = mra2_attention(*doubles, mask, attrs, selected=result.selected).numpy()
    assert relative_error(result.context.double().numpy(), expected) <= 6e-4
    wanted = select_blocks(tensors[0].float(), tensors[1].float(), mask, attrs).selected
    assert (result.selected & wanted).sum() >= 2040


@pytest.mark.parametrize("num_blocks", [1, 5, 40, 77, 143, 144])
@pytest.mark.parametrize("priors", [(0, 0), (2, 0), (1, 5)])
def test_ties_go_to_the_lowest_index(num_blocks: int, priors: tuple[int, int]) -> None:
    """Scores that are exact in float32, so that ties are: the selection must be the reference's, pair for pair."""
    generator = torch.Generator().manual_seed(num_blocks)
    blocks, head_dim = 12, 8
    means = [torch.randint(-1, 2, (2, blocks, 1, head_dim), generator=generator).float() for _ in range(2)]
    query, key = (mean.expand(-1, -1, 32, -1).reshape(2, blocks * 32, head_dim) for mean in means)
    mask = torch.ones(2, blocks * 32, dtype=torch.int32)
    mask[1, 7 * 32 : 9 * 32] = 0
    attrs = attributes(
        1, num_blocks, scale=0.5, initial_prior_first_n_blocks=priors[0], initial_prior_diagonal_n_blocks=priors[1]
    )
    result = cuda_host.run(query, key, query, mask, attrs)
    wanted = select_blocks(query, key, mask, attrs)
    assert torch.equal(result.selected, wanted.selected)
    if num_blocks == 40 and priors == (0, 0):
        assert bool((wanted.gap == 0).any()), "the case must have a tie at the cut"


def test_many_ties_over_several_row_tiles() -> None:
    """Every score equal: the first T pairs in row-major order, over 70 rows."""
    zeros = torch.zeros(1, 70 * 32, 8)
    result = cuda_host.run(zeros, zeros, zeros, torch.ones(1, 70 * 32, dtype=torch.int32), attributes(1, 333))
    assert result.selected.flatten().nonzero().flatten().tolist() == list(range(333))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_example_stands_alone(dtype: torch.dtype) -> None:
    tensors = random_inputs(3, 192, 64, dtype, 9)
    mask = make_mask("right", 3, 192, 0)
    attrs = attributes(2, 10)
    together = cuda_host.run(*tensors, mask, attrs).context
    for example in range(3):
        one = slice(example, example + 1)
        alone = cuda_host.run(*(tensor[one] for tensor in tensors), mask[one], attrs).context
        assert torch.equal(alone[0], together[example])


@pytest.mark.skipif(cuda_host.ON_DEVICE, reason="the order of execution is the shim's to choose")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_order_of_execution_changes_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitwise, whichever thread runs first and whether asynchronous copies happen at once or as late as they may."""
    tensors = random_inputs(1, 20 * 32, 2 * 64, dtype, 13)
    mask = make_mask("holes", 1, 20 * 32, 1)
    attrs = attributes(2, 70, initial_prior_first_n_blocks=1)
    results = []
    for order, copies in [("forward", "late"), ("reverse", "early"), ("random:1", "late"), ("random:2", "early")]:
        monkeypatch.setenv("MRA_HOST_ORDER", order)
        monkeypatch.setenv("MRA_HOST_COPIES", copies)
        results.append(cuda_host.run(*tensors, mask, attrs))
    assert results[0].most_parts > 1
    for other in results[1:]:
        assert torch.equal(other.context, results[0].context)
        assert torch.equal(other.selected, results[0].selected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    tensors = random_inputs(2, 700, 128, dtype, 21)
    mask = make_mask("right", 2, 700, 0)
    attrs = attributes(2, 60, initial_prior_first_n_blocks=1)
    first = cuda_host.run(*tensors, mask, attrs).context
    for fill in (0x00, 0x7F):
        assert torch.equal(cuda_host.run(*tensors, mask, attrs, fill=fill).context, first)


@pytest.mark.sweep(dtype=DTYPES, bad=[math.nan, math.inf, -math.inf], where=[0, 1, 2])
def test_bad_numbers_stay_in_their_example(dtype: torch.dtype, bad: float, where: int) -> None:
    """A NaN or infinity at a real token: no hang, nothing out of bounds, and the other example and head do not change."""
    tensors = random_inputs(2, 256, 64, dtype, 3)
    mask = make_mask("none", 2, 256, 0)
    attrs = attributes(2, 20, initial_prior_diagonal_n_blocks=2)
    clean = cuda_host.run(*tensors, mask, attrs).context
    spoilt = [tensor.clone() for tensor in tensors]
    spoilt[where][0, 37, :32] = bad
    result = cuda_host.run(*spoilt, mask, attrs)
    assert bool((result.selected.flatten(2).sum(2) == 20).all())
    assert torch.equal(result.context[1], clean[1])
    assert torch.equal(result.context[0, :, 32:], clean[0, :, 32:])
    if math.isnan(bad):
        assert bool(result.context[0, :, :32].isnan().any()), "a NaN that counts must show"


def test_empty_batch() -> None:
    empty = torch.zeros(0, 64, 32)
    result = cuda_host.run(empty, empty, empty, torch.zeros(0, 64, dtype=torch.int32), attributes(1, 4))
    assert result.context.shape == (0, 64, 32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_blocks", 0),
        ("num_heads", 3),
        ("hidden_size", 20),
        ("seq_len", 0),
        ("seq_len", 131073),
        ("approx_mode", 2),
        ("dtype", 7),
        ("query", None),
        ("key", 2),
        ("value", 8),
        ("context", 4),
        ("attention_mask", None),
        ("workspace", 8),
        ("workspace_bytes", -1),
    ],
)
def test_refuses(field: str, value: int | None) -> None:
    """cudaErrorInvalidValue, and nothing is written; a number for a pointer is how far it is off its alignment."""
    query = torch.randn(1, 64, 64)
    mask = torch.ones(1, 64, dtype=torch.int32)
    context, at = cuda_host.guarded(query.numel() * 4, 0xFF)
    call = cuda_host.make_call(query, query, query, mask, context.data_ptr() + at, attributes(1, 2))
    needed = cuda_host.library().mra_cuda_workspace_size(ctypes.byref(call))
    workspace, workspace_at = cuda_host.guarded(needed, 0xFF)
    pointer = workspace.data_ptr() + workspace_at
    if field == "workspace":
        pointer += value or 0
    elif field == "workspace_bytes":
        needed += value or 0
    elif field in ("query", "key", "value", "context", "attention_mask"):
        setattr(call, field, None if value is None else getattr(call, field) + value)
    else:
        setattr(call, field, value)
        assert cuda_host.library().mra_cuda_workspace_size(ctypes.byref(call)) == 0
    error = cuda_host.library().mra_cuda_run(ctypes.byref(call), pointer, needed)
    assert error == cuda_host.INVALID_VALUE
    assert bool((context == 0xFF).all())
    assert bool((workspace == 0xFF).all())


def test_workspace_never_shrinks_with_size() -> None:
    """So that the size for a profile's maximum serves the whole profile."""

    def size(batch: int, seq_len: int, num_blocks: int) -> int:
        call = cuda_host.Call(None, None, None, None, None, batch, seq_len, 128, 1, 2, num_blocks, 0, 0, 0, 0.125)
        return int(cuda_host.library().mra_cuda_workspace_size(ctypes.byref(call)))

    for num_blocks in (1, 7, 64, 500, 10**9):
        sizes = [size(2, 32 * blocks, num_blocks) for blocks in range(1, 200)]
        assert sizes == sorted(sizes)
        assert size(3, 320, num_blocks) > size(2, 320, num_blocks)
    sizes = [size(1, 1024, num_blocks) for num_blocks in range(1, 1100)]
    assert sizes == sorted(sizes)
    assert size(8, 4096, 512) > 0


def test_workspace_stays_linear_in_the_budget() -> None:
    """At 4 blocks per row and 4096 tokens: at most 8 float32 contexts, logits included."""
    call = cuda_host.Call(None, None, None, None, None, 8, 4096, 768, 1, 12, 512, 0, 0, 0, 0.125)
    size = int(cuda_host.library().mra_cuda_workspace_size(ctypes.byref(call)))
    assert size <= 2 * 8 * 4096 * 768 * 4


def test_workspace_of_the_longest_sequence() -> None:
    """The length is limited so that one example of a base-sized model, 4 blocks per row, takes at most 2 GB."""
    call = cuda_host.Call(None, None, None, None, None, 1, 131072, 768, 1, 12, 16384, 0, 0, 0, 0.125)
    assert 0 < int(cuda_host.library().mra_cuda_workspace_size(ctypes.byref(call))) <= 2_000_000_000


@pytest.mark.skipif(cuda_host.ON_DEVICE, reason="the shim counts the launches")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("blocks", "num_blocks", "launches"), [(4, 5, 3), (4, 15, 3), (4, 16, 1), (4, 1000, 1), (64, 9, 3), (65, 9, 6)]
)
def test_launches(blocks: int, num_blocks: int, launches: int, dtype: torch.dtype) -> None:
    """Of the pairs of blocks some or all; and more rows than a thread block of the selection has."""
    library = cuda_host.library()
    library.mra_host_launches.restype = ctypes.c_long
    before = library.mra_host_launches()
    tensors = random_inputs(1, 32 * blocks - 3, 16, dtype, 1)
    cuda_host.run(*tensors, make_mask("right", 1, 32 * blocks - 3, 0), attributes(2, num_blocks))
    assert library.mra_host_launches() - before == launches


def test_launch_bounds_claim_what_shared_memory_allows() -> None:
    """On an H100: as many blocks per multiprocessor as the calculator says, or fewer where that many would have no registers."""
    program = cuda_host.compile_host(
        "occupancy", (cuda_host.HERE / "occupancy.cc", cuda_host.HERE / "cuda_host_runtime.cc"), kernels=False
    )
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    found = {
        (kernel, int(dim)): (int(allowed), int(claimed))
        for kernel, dim, allowed, claimed in map(str.split, printed.splitlines())
    }
    assert {dim: found["selected", dim] for dim in (32, 64, 128, 256)} == {
        32: (12, 7),
        64: (7, 7),
        128: (5, 5),
        256: (2, 2),
    }


def test_kernels_include_no_framework() -> None:
    """The standard library, CUDA and each other: nothing else."""
    own = {path.name for path in cuda_host.KERNELS.rglob("*.*")}
    allowed = re.compile(r"<(cuda_runtime_api\.h|cuda_fp16\.h|cuda_bf16\.h|[a-z_]+)>")
    files = [path for path in cuda_host.KERNELS.glob("*/cuda/*") if path.suffix in (".cu", ".cuh", ".h")]
    assert len(files) >= 16
    for path in files:
        for include in re.findall(r"(?m)^\s*#\s*include\s+(\S+)", path.read_text()):
            if include == '"cuda_host_shim.h"':
                assert path.name == "device.cuh"
            elif include.startswith('"'):
                assert Path(include.strip('"')).name in own, f"{path.name} includes {include}"
            else:
                assert allowed.fullmatch(include), f"{path.name} includes {include}"

"""The CUDA kernels of mra::YosoAttention, run on the host thread by thread (on a GPU where MRA_CUDA_TEST_LIBRARY is set)."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
from pathlib import Path

import cuda_host
import numpy as np
import pytest
import torch
from cuda_host_cases import DTYPES, FLOAT32_TOLERANCE, MASKS, poison_padding
from measures import relative_error
from torch import Tensor
from yoso_cuda_host_cases import Case, expectation, lsh, make_case, sanitized_cases

from mra_export.operators.yoso_attention.reference import hash_codes, yoso_attention
from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes

SEQ_LENS = [1, 31, 32, 33, 96, 512]
WEIGHT_SCALES = {torch.float16: 2.0**15, torch.bfloat16: 1.0}  # so that rounding weights to float16 meets no underflow


def run(case: Case, *, fill: int = 0xFF) -> cuda_host.YosoResult:
    """NaN and infinity at padding; context and workspace filled with `fill` before."""
    (query, key, value, mask), constants, attributes = case
    poisoned = poison_padding((query, key, value), mask)
    return cuda_host.run_yoso(
        cuda_host.yoso_inputs(*poisoned, mask, *constants, attributes=attributes), attributes, fill=fill
    )


def reference_codes(case: Case) -> Tensor:
    """[2, batch, num_heads, num_hash, seq_len]; 0 at padding."""
    (query, key, _, mask), constants, attributes = case
    rows = [torch.where(mask[:, :, None] != 0, x, torch.zeros_like(x)) for x in (query, key)]
    return torch.stack([hash_codes(x, attributes, constants[0]) for x in rows])


def rounded(case: Case) -> Tensor:
    """What a half type costs at least: float64 arithmetic, with the weights and the context rounded to the type."""
    (query, key, value, mask), constants, attributes = case
    dtype = query.dtype
    doubles = [x.double() for x in (query, key, value)]
    exact = yoso_attention(*doubles, mask, attributes, *constants)
    if attributes.mode:
        return exact.to(dtype)
    plain = YosoAttentionAttributes(attributes.num_heads, 0, attributes.hash_code_len, 0, 0, 0)
    convolved = exact - yoso_attention(*doubles, mask, plain)
    keep = mask != 0
    q, k, v = (
        torch.where(keep[:, :, None], x, 0.0).unflatten(-1, (attributes.num_heads, -1)).transpose(1, 2) for x in doubles
    )
    q, k = (torch.nn.functional.normalize(x, dim=-1, eps=1e-12) for x in (q, k))
    weight = (1 - torch.acos((q @ k.transpose(2, 3)).clamp(-1, 1)) / math.pi) ** attributes.hash_code_len
    weight = torch.where(keep[:, None, None], weight, 0.0)
    total = (weight * WEIGHT_SCALES[dtype]).to(dtype).double() / WEIGHT_SCALES[dtype] @ v
    context = torch.nn.functional.normalize(total, dim=-1, eps=1e-12).transpose(1, 2).reshape(query.shape)
    return (torch.where(keep[:, :, None], context, 0.0) + convolved).to(dtype)


def check(case: Case, *, fill: int = 0xFF) -> cuda_host.YosoResult:
    """Runs the kernels on poisoned padding and compares with the reference in float64: first the codes, then the arithmetic."""
    (query, key, value, mask), constants, attributes = case
    result = run(case, fill=fill)
    if attributes.mode:
        assert result.codes is not None
        assert torch.equal(result.codes, reference_codes(case))
    expected = yoso_attention(query.double(), key.double(), value.double(), mask, attributes, *constants)
    error = relative_error(result.context.double().numpy(), expected.numpy())
    if query.dtype == torch.float32:
        assert error <= FLOAT32_TOLERANCE
    else:
        least = relative_error(rounded(case).double().numpy(), expected.numpy())
        assert error <= 2 * least, f"error {error:.2e}, rounding to {query.dtype} alone {least:.2e}"
    assert bool((result.context[mask == 0] == 0).all()), "padded tokens must be 0"
    return result


HEAD_DIMS = [8, 32, 64, 80, 128]
WINDOWS = [0, 1, 5, 35]


@pytest.mark.sweep("head_dim", "window", dtype=DTYPES, mask=MASKS, seq_len=SEQ_LENS, head_dim=HEAD_DIMS, window=WINDOWS)
def test_expectation(dtype: torch.dtype, mask: str, seq_len: int, head_dim: int, window: int) -> None:
    seed = seq_len + head_dim + window
    case = make_case(expectation(2, conv_window=window), 2, seq_len, head_dim, dtype, mask, seed)
    check(case, fill=0x7F if seed % 2 else 0xFF)


@pytest.mark.sweep(
    "head_dim",
    "hashes",
    "window",
    dtype=DTYPES,
    fast=[1, 0],
    mask=MASKS,
    seq_len=SEQ_LENS,
    head_dim=HEAD_DIMS,
    hashes=[(9, 8), (3, 17), (12, 5), (1, 64)],
    window=WINDOWS,
)
def test_lsh(
    dtype: torch.dtype, fast: int, mask: str, seq_len: int, head_dim: int, hashes: tuple[int, int], window: int
) -> None:
    seed = seq_len + head_dim + window
    case = make_case(lsh(2, *hashes, fast, window), 2, seq_len, head_dim, dtype, mask, seed)
    check(case, fill=0x7F if seed % 2 else 0xFF)


@pytest.mark.sweep(
    dtype=DTYPES,
    head_dim=[8, 16, 24, 40, 64, 72, 96, 120, 128, 136, 200, 256],
    mode=["expectation", "fast", "projection"],
)
def test_head_dims(dtype: torch.dtype, head_dim: int, mode: str) -> None:
    attributes = expectation(3) if mode == "expectation" else lsh(3, fast_hash=int(mode == "fast"))
    check(make_case(attributes, 1, 70, head_dim, dtype, "right", head_dim))


@pytest.mark.parametrize("hash_code_len", [2, 9, 11, 13])
def test_tokens_that_several_warps_sort(hash_code_len: int) -> None:
    """700 tokens in six, six, three and one run; padding in between, buckets with tokens of several runs and with none."""
    check(make_case(lsh(2, hash_code_len, 2), 1, 700, 8, torch.float32, "holes", hash_code_len))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hash_code_len", range(1, 17))
def test_every_hash_code_len(dtype: torch.dtype, hash_code_len: int) -> None:
    """As an exponent, and as bits of a code: with 16 there are more buckets than the sort counts in shared memory."""
    check(make_case(expectation(1, hash_code_len), 1, 96, 64, dtype, "holes", hash_code_len))
    check(make_case(lsh(1, hash_code_len, 3), 1, 70, 32, dtype, "holes", hash_code_len))


@pytest.mark.parametrize("fast", [1, 0])
def test_the_most_bits(fast: int) -> None:
    """1024 hashes of 9 bits: shared memory holds the signs of 16 rows at a time."""
    check(make_case(lsh(1, 9, 1024, fast), 1, 18, 8, torch.float32, "right"))


def test_heads_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three heads of 68 MB of tables each, computed one after the other."""
    case = make_case(lsh(3, 8, 256), 1, 257, 256, torch.float32, "right")
    before = launches()
    result = run(case)
    if not cuda_host.ON_DEVICE:
        assert launches() - before == 3 * 4
    assert result.codes is None
    (query, key, value, mask), constants, attributes = case
    expected = yoso_attention(query.double(), key.double(), value.double(), mask, attributes, *constants)
    assert relative_error(result.context.double().numpy(), expected.numpy()) <= FLOAT32_TOLERANCE


def launches() -> int:
    if cuda_host.ON_DEVICE:
        return 0
    count = cuda_host.library().mra_host_launches
    count.restype = ctypes.c_long
    return int(count())


@pytest.mark.skipif(cuda_host.ON_DEVICE, reason="the shim counts the launches")
def test_launches() -> None:
    for attributes, expected in ((expectation(2), 2), (lsh(2), 4)):
        before = launches()
        run(make_case(attributes, 1, 40, 32, torch.float32))
        assert launches() - before == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fast", [1, 0])
def test_codes_of_odd_rows(dtype: torch.dtype, fast: int) -> None:
    """Rows of zeros, tiny and huge ones, one direction at many lengths, ties, NaN and infinity: bit for bit."""
    (query, key, value, mask), constants, attributes = make_case(lsh(1, 9, 16, fast), 1, 64, 64, dtype, seed=5)
    info = torch.finfo(dtype)
    query[0, 1] = 0
    query[0, 2] = info.smallest_normal * torch.sign(query[0, 2].float()).to(dtype)
    query[0, 3] *= info.smallest_normal * 8  # also numbers below the normal ones
    query[0, 4] = info.max * torch.sign(query[0, 4].float()).to(
        dtype
    )  # the fast hash overflows float32 where T is as wide
    query[0, 5:13] = query[0, 13] * 2.0 ** torch.arange(-4, 4, dtype=dtype)[:, None]
    query[0, 14] = torch.sign(query[0, 14].float()).to(dtype)  # many sums of exactly 0
    query[0, 15, 7], query[0, 16, 9], query[0, 17, 63] = math.nan, math.inf, -math.inf
    query[0, 18] = torch.arange(64) - 31.5
    result = run(([query, key, value, mask], constants, attributes))
    assert result.codes is not None
    assert torch.equal(result.codes, reference_codes(([query, key, value, mask], constants, attributes)))
    assert bool((result.codes[0, 0, 0, :, 15:18] == 0).all())
    assert bool((result.codes[0, 0, 0, :, 5:13] == result.codes[0, 0, 0, :, 13:14]).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bucket_for_all(dtype: torch.dtype) -> None:
    """All keys alike: one bucket holds every token, and a query either meets all or none."""
    (query, key, value, mask), constants, attributes = make_case(lsh(2), 1, 200, 64, dtype, "holes")
    key[:] = key[:, :1]
    query[:, ::2] = key[:, ::2]
    query[:, 1::2] = -key[:, 1::2]
    result = check(([query, key, value, mask], constants, attributes))
    tokens = mask[0] != 0
    assert bool((result.context[0, tokens][:, :1][0::2].isfinite()).all())
    odd = tokens.clone()
    odd[::2] = False
    # Opposite directions share no bit: nothing is met, and nothing is divided by 0.
    assert bool((result.context[0, odd] == 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_cosines_at_the_ends(dtype: torch.dtype, sign: int) -> None:
    """Keys that are the queries, or their opposites: the cosine rounds past 1, and the result has no NaN."""
    (query, _, value, mask), _, attributes = make_case(expectation(2), 1, 96, 64, dtype, seed=2)
    query[0, 10] = 0  # no direction
    result = run(([query, sign * query, value, mask], [], attributes)).context
    assert bool(result.isfinite().all())
    expected = yoso_attention(query.double(), sign * query.double(), value.double(), mask, attributes)
    plain = yoso_attention(query.float(), sign * query.float(), value.float(), mask, attributes)
    allowed = max(FLOAT32_TOLERANCE, 2 * relative_error(plain.double().numpy(), expected.numpy()))
    if dtype != torch.float32:
        allowed = 2 * relative_error(
            rounded(([query, sign * query, value, mask], [], attributes)).double().numpy(), expected.numpy()
        )
    assert relative_error(result.double().numpy(), expected.numpy()) <= allowed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attributes", [expectation(2, conv_window=5), lsh(2, 7, 9, 0, 5)], ids=["e", "lsh"])
def test_each_example_stands_alone(dtype: torch.dtype, attributes: YosoAttentionAttributes) -> None:
    """Neither the rows beside it nor what fills it up changes a bit of a row."""
    tensors, constants, _ = make_case(attributes, 3, 150, 64, dtype, "right", 9)
    together = run((tensors, constants, attributes)).context
    for example in range(3):
        length = int((tensors[3][example] != 0).sum())
        alone = run(([x[example : example + 1, :length] for x in tensors], constants, attributes)).context
        assert torch.equal(alone[0], together[example, :length])


@pytest.mark.skipif(cuda_host.ON_DEVICE, reason="the order of execution is the shim's to choose")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attributes", [expectation(1, conv_window=3), lsh(1, 6, 9, 1), lsh(1, 6, 9, 0)], ids=str)
def test_order_of_execution_changes_nothing(
    dtype: torch.dtype, attributes: YosoAttentionAttributes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwise, whichever thread runs first and whether asynchronous copies happen at once or as late as they may."""
    case = make_case(attributes, 1, 170, 64, dtype, "holes", 13)
    results = []
    for order, copies in [("forward", "late"), ("reverse", "early"), ("random:1", "late"), ("random:2", "early")]:
        monkeypatch.setenv("MRA_HOST_ORDER", order)
        monkeypatch.setenv("MRA_HOST_COPIES", copies)
        results.append(run(case, fill=len(results)).context)
    for other in results[1:]:
        assert torch.equal(other, results[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("attributes", [expectation(2), lsh(2)], ids=["e", "lsh"])
def test_bad_numbers_stay_in_their_head(attributes: YosoAttentionAttributes, where: int, bad: float) -> None:
    """A NaN or infinity at a real token: nothing out of bounds, and the other example and head do not change."""
    for dtype in (torch.float32, torch.float16):
        tensors, constants, _ = make_case(attributes, 2, 96, 32, dtype, seed=3)
        clean = run((tensors, constants, attributes)).context
        tensors[where][0, 37, :32] = bad
        spoilt = run((tensors, constants, attributes)).context
        assert torch.equal(spoilt[1], clean[1])
        assert torch.equal(spoilt[0, :, 32:], clean[0, :, 32:])
        if where == 2 or attributes.mode == 0:
            assert bool(spoilt[0, :, :32].isnan().any()), "a NaN that counts must show"


def test_empty_batch() -> None:
    for attributes in (expectation(1), lsh(1)):
        tensors, constants, _ = make_case(attributes, 1, 64, 32, torch.float32)
        assert run(([x[:0] for x in tensors], constants, attributes)).context.shape == (0, 64, 32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_heads", 3),
        ("mode", 2),
        ("hash_code_len", 17),
        ("num_hash", 0),
        ("num_hash", 1025),
        ("fast_hash", 2),
        ("conv_window", 4),
        ("dtype", 7),
        ("seq_len", 0),
        ("query", None),
        ("key", 8),
        ("context", 4),
        ("attention_mask", None),
        ("hash_constants", None),
        ("conv_weight", None),
        ("workspace", 8),
        ("workspace_bytes", -1),
    ],
)
def test_refuses(field: str, value: int | None) -> None:
    """cudaErrorInvalidValue, and nothing is written; a number for a pointer is how far it is off its alignment."""
    tensors, constants, attributes = make_case(lsh(1, conv_window=3), 1, 64, 64, torch.float32)
    inputs = cuda_host.yoso_inputs(*tensors, *constants, attributes=attributes)
    context, at = cuda_host.guarded(tensors[0].numel() * 4, 0xFF)
    call = cuda_host.make_yoso_call(inputs, context.data_ptr() + at, attributes)
    needed = cuda_host.library().mra_yoso_workspace_size(ctypes.byref(call))
    workspace, workspace_at = cuda_host.guarded(needed, 0xFF)
    pointer = workspace.data_ptr() + workspace_at
    names = ["query", "key", "value", "attention_mask", "hash_constants", "conv_weight"]
    if field == "workspace":
        pointer += value or 0
    elif field == "workspace_bytes":
        needed += value or 0
    elif field == "context":
        call.context += value or 0
    elif field in names:
        index = names.index(field)
        call.inputs[index] = None if value is None else call.inputs[index] + value
    else:
        setattr(call, field, value)
        assert cuda_host.library().mra_yoso_workspace_size(ctypes.byref(call)) == 0
    assert cuda_host.library().mra_yoso_run(ctypes.byref(call), pointer, needed) == cuda_host.INVALID_VALUE
    assert bool((context == 0xFF).all())
    assert bool((workspace == 0xFF).all())


def workspace_size(attributes: YosoAttentionAttributes, batch: int, seq_len: int, hidden: int, dtype: int = 1) -> int:
    call = cuda_host.YosoCall(
        (ctypes.c_void_p * 6)(), None, batch, seq_len, hidden, dtype, *attributes.as_dict().values()
    )
    return int(cuda_host.library().mra_yoso_workspace_size(ctypes.byref(call)))


@pytest.mark.parametrize("attributes", [expectation(12), lsh(12, 9, 32), lsh(12, 16, 64, 0)], ids=str)
def test_workspace_never_shrinks_with_size(attributes: YosoAttentionAttributes) -> None:
    """So that the size for a profile's maximum serves the whole profile."""
    for batch in (1, 7):
        sizes = [workspace_size(attributes, batch, seq_len, 768) for seq_len in range(1, 5000, 13)]
        assert sizes == sorted(sizes)
        assert sizes[0] > 0
    sizes = [workspace_size(attributes, batch, 900, 768) for batch in range(1, 60)]
    assert sizes == sorted(sizes)


def test_workspace_is_linear_in_the_length() -> None:
    """Mode expectation: two floats per row. Mode lsh: as much as the tables of a few heads, whatever the batch."""
    assert workspace_size(expectation(12), 8, 4096, 768) <= 8 * 4096 * 12 * 2.2 * 4
    assert workspace_size(lsh(12, 9, 32), 8, 4096, 768) <= 64 << 20
    long, longer = (workspace_size(lsh(1, 9, 32), 1, seq_len, 64) for seq_len in (1 << 19, 1 << 20))
    assert longer <= 2.1 * long


# ThreadSanitizer gets new threads for every thread block, which takes its time: each kernel and each way through it, once.
THREADED = ["float32-e", "float16-e", "float16-fast", "float32-projection", "float16-sparse"]


@pytest.mark.skipif(cuda_host.ON_DEVICE, reason="sanitizers of the host")
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_under_sanitizer(sanitizer: str, tmp_path: Path) -> None:
    """No report, and the same bits as without a sanitizer."""
    names = THREADED if sanitizer == "thread" else list(sanitized_cases())
    expected, packed = [], []
    for name in names:
        tensors, constants, attributes = sanitized_cases()[name]
        inputs = cuda_host.yoso_inputs(*tensors, *constants, attributes=attributes)
        expected.append(cuda_host.run_yoso(inputs, attributes).context)
        packed.append(cuda_host.pack_yoso_case(inputs, attributes))
    (tmp_path / "cases").write_bytes(b"".join(packed))
    for order, copies in (("forward", "early"), ("reverse", "late")):
        environment = {"MRA_HOST_ORDER": order, "MRA_HOST_COPIES": copies, "TSAN_OPTIONS": "halt_on_error=1"}
        done = subprocess.run(
            [str(cuda_host.build(sanitizer)), "yoso", str(tmp_path / "cases"), str(tmp_path / "results")],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | environment,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        assert done.stdout == f"{len(names)} cases\n"
        results, at = np.fromfile(tmp_path / "results", dtype=np.uint8), 0
        for name, context in zip(names, expected, strict=True):
            size = context.numel() * context.element_size()
            actual = torch.from_numpy(results[at : at + size].copy()).view(context.dtype).view(context.shape)
            assert torch.equal(actual, context), name
            at += size
        assert at == results.size

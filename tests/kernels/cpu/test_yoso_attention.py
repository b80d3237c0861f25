"""YOSO's CPU kernel, called directly: a sweep against the reference, and what must never happen."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import subprocess

import numpy as np
import pytest
import torch
from cpu_kernels import build, kernel, machine_isas
from kernel_cases import MASKS, error, make_mask
from torch import Tensor
from yoso_cpu_kernels import YosoParams, run_yoso

from mra_export.operators.limits import MAX_SEQ_LEN
from mra_export.operators.yoso_attention.reference import HashCodes, draw_hash_constants, hash_codes, yoso_attention
from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes

FLOAT32_TOLERANCE = 2e-5
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"]
)
EXPECTATION = YosoAttentionAttributes(2, 0, 9)
FAST = YosoAttentionAttributes(2, 1, 9, 16, 1)
PROJECTION = YosoAttentionAttributes(2, 1, 9, 16, 0)
ALL_MODES = {"expectation": EXPECTATION, "fast": FAST, "projection": PROJECTION}
MODES = pytest.mark.parametrize("attributes", ALL_MODES.values(), ids=ALL_MODES)


def make_inputs(
    attributes: YosoAttentionAttributes, batch: int, seq_len: int, head_dim: int, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    """Query, key and value [batch, seq_len, hidden_size] of `dtype`, with a common direction; and the constants."""
    generator = torch.Generator().manual_seed(seq_len * 1000 + head_dim)
    shape = (batch, seq_len, attributes.num_heads * head_dim)
    common = torch.randn(shape[2], generator=generator)
    tensors = [(torch.randn(shape, generator=generator) + common).to(dtype) for _ in range(3)]
    constants = []
    if attributes.mode:
        constants.append(draw_hash_constants(attributes, head_dim, seq_len))
    if attributes.conv_window:
        constants.append(torch.randn(attributes.num_heads, attributes.conv_window, generator=generator).to(dtype))
    return tensors, constants


def doubled(tensors: list[Tensor]) -> list[Tensor]:
    return [x.double() for x in tensors]


# hash_code_len, num_hash, conv_window: the powers and the numbers of tables that the kernel has code of its own for, and others.
@pytest.mark.sweep(
    "mask_kind",
    sizes=[(9, 8, 0), (8, 15, 5), (1, 1, 1), (5, 70, 33), (13, 2, 0)],
    mode=["expectation", "fast", "projection"],
    head_dim=[8, 24, 64, 80, 256],
    seq_len=[1, 31, 33, 96, 300],
    mask_kind=MASKS,
)
def test_against_the_reference(
    seq_len: int, head_dim: int, mode: str, sizes: tuple[int, int, int], mask_kind: str
) -> None:
    code_len, num_hash, conv_window = sizes
    lsh = int(mode != "expectation")
    attributes = YosoAttentionAttributes(2, lsh, code_len, num_hash * lsh, int(mode == "fast"), conv_window)
    tensors, constants = make_inputs(attributes, 2, seq_len, head_dim)
    mask = make_mask(mask_kind, 2, seq_len, torch.Generator().manual_seed(seq_len))
    truth = yoso_attention(*doubled(tensors), mask, attributes, *constants)
    for isa in machine_isas():
        context = run_yoso(*tensors, mask, attributes, *constants, isa=isa)
        assert error(context, truth) <= FLOAT32_TOLERANCE, isa
        assert bool((context[mask == 0] == 0).all()), isa


@pytest.mark.sweep(dtype=[torch.float16, torch.bfloat16], conv_window=[0, 3], mode=list(ALL_MODES))
def test_half_types(mode: str, conv_window: int, dtype: torch.dtype, isa: str) -> None:
    """Within twice the error of the reference in that type, which rounds its output alone."""
    attributes = dataclasses.replace(ALL_MODES[mode], conv_window=conv_window)
    tensors, constants = make_inputs(attributes, 2, 100, 40, dtype)
    mask = make_mask("holes", 2, 100, torch.Generator().manual_seed(1))
    truth = yoso_attention(*doubled(tensors), mask, attributes, *constants)
    bound = 2 * error(yoso_attention(*tensors, mask, attributes, *constants), truth)
    assert error(run_yoso(*tensors, mask, attributes, *constants, isa=isa), truth) <= bound


@pytest.mark.parametrize("attributes", [FAST, PROJECTION], ids=["fast", "projection"])
@pytest.mark.parametrize("head_dim", [8, 40, 64, 256])
def test_every_hash_code_is_that_of_the_reference(head_dim: int, attributes: YosoAttentionAttributes, isa: str) -> None:
    """Every key has a column of its own in the values, so that a sum before step 5 is the number of meetings with each key."""
    seq_len = min(64, head_dim)
    generator = torch.Generator().manual_seed(head_dim)
    attributes = dataclasses.replace(attributes, num_heads=1, hash_code_len=3, num_hash=40)
    query, key = (torch.randn(1, seq_len, head_dim, generator=generator) for _ in range(2))
    value = torch.eye(seq_len, head_dim)[None]
    constants = draw_hash_constants(attributes, head_dim, 3)
    context = run_yoso(query, key, value, torch.ones(1, seq_len), attributes, constants, isa=isa)
    codes = HashCodes(hash_codes(query, attributes, constants), hash_codes(key, attributes, constants))
    meetings = (codes.query[0, 0, :, :, None] == codes.key[0, 0, :, None, :]).sum(0).double()
    expected = torch.nn.functional.normalize(meetings, dim=-1)
    assert float((context[0, :, :seq_len].double() - expected).abs().max()) <= 1e-6  # one meeting more is above 1e-3


@DTYPES
@MODES
def test_same_bits_for_any_number_of_threads(attributes: YosoAttentionAttributes, dtype: torch.dtype, isa: str) -> None:
    attributes = dataclasses.replace(attributes, num_heads=3, conv_window=3)
    tensors, constants = make_inputs(attributes, 2, 400, 16, dtype)
    mask = make_mask("holes", 2, 400, torch.Generator().manual_seed(2))
    results = [run_yoso(*tensors, mask, attributes, *constants, isa=isa, threads=n) for n in (1, 2, 3)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@MODES
def test_long_sequences_agree_with_the_reference(attributes: YosoAttentionAttributes, isa: str) -> None:
    attributes = dataclasses.replace(attributes, num_heads=1)
    tensors, constants = make_inputs(attributes, 1, 4096, 16)
    mask = make_mask("right", 1, 4096, torch.Generator().manual_seed(3))
    truth = yoso_attention(*doubled(tensors), mask, attributes, *constants)
    assert error(run_yoso(*tensors, mask, attributes, *constants, isa=isa), truth) <= FLOAT32_TOLERANCE


@MODES
def test_heads_that_are_computed_in_groups(attributes: YosoAttentionAttributes) -> None:
    """Packed, the heads take more memory than is used at once: they go in groups, and each is as it is alone."""
    seq_len, heads = 16384, 40
    attributes = dataclasses.replace(attributes, num_heads=heads, num_hash=4 * attributes.mode)
    if attributes.mode == 0:
        seq_len, heads = 4096, 400  # its time grows with the square
        attributes = dataclasses.replace(attributes, num_heads=heads)
    tensors, constants = make_inputs(attributes, 1, seq_len, 8)
    mask = torch.zeros(1, seq_len, dtype=torch.int32)
    mask[:, :: seq_len // 256] = 1
    together = run_yoso(*tensors, mask, attributes, *constants)
    for head in (0, heads // 2, heads - 1):
        part = slice(head * 8, head * 8 + 8)
        one = dataclasses.replace(attributes, num_heads=1)
        alone = run_yoso(
            *(x[..., part] for x in tensors), mask, one, *(c[head : head + 1].contiguous() for c in constants)
        )
        assert torch.equal(together[..., part], alone)


@pytest.mark.sweep(
    dtype=[torch.float32, torch.float16, torch.bfloat16],
    poison=[float("nan"), float("inf"), float("-inf")],
    mode=list(ALL_MODES),
)
def test_padding_does_not_reach_the_output(mode: str, poison: float, dtype: torch.dtype, isa: str) -> None:
    attributes = dataclasses.replace(ALL_MODES[mode], conv_window=5)
    clean, constants = make_inputs(attributes, 2, 130, 16, dtype)
    for mask_kind in ("right", "holes", "empty example"):
        mask = make_mask(mask_kind, 2, 130, torch.Generator().manual_seed(4))
        poisoned = [torch.where((mask == 0)[..., None], torch.tensor(poison, dtype=dtype), x) for x in clean]
        expected = run_yoso(*clean, mask, attributes, *constants, isa=isa)
        assert bool(torch.isfinite(expected).all())
        assert torch.equal(run_yoso(*poisoned, mask, attributes, *constants, isa=isa, fill=0x7F), expected)


@pytest.mark.sweep(
    poison=[float("nan"), float("inf"), float("-inf"), 3e38],
    where=["query", "key", "value", "all"],
    mode=list(ALL_MODES),
)
def test_special_values_in_tokens_stay_in_their_example(mode: str, where: str, poison: float, isa: str) -> None:
    attributes = ALL_MODES[mode]
    tensors, constants = make_inputs(attributes, 2, 100, 16)
    mask = make_mask("right", 2, 100, torch.Generator().manual_seed(5))
    clean = run_yoso(*tensors, mask, attributes, *constants, isa=isa)
    for name, tensor in zip(("query", "key", "value"), tensors, strict=True):
        if where in (name, "all"):
            tensor[0, 40:50, :] = poison
    context = run_yoso(*tensors, mask, attributes, *constants, isa=isa)
    assert torch.equal(context[1], clean[1])
    assert bool((context[mask == 0] == 0).all())
    if not np.isfinite(poison) and (where == "value" or attributes.mode == 0):
        assert not bool(torch.isfinite(context[0]).all()), "a value that is no number must not vanish"


@pytest.mark.parametrize("sign", [1, -1])
def test_parallel_vectors_give_no_nan(sign: int, isa: str) -> None:
    """Cosines of 1 and -1, which rounding puts beyond: within twice the error of float32 in torch."""
    (query, _, value), _ = make_inputs(EXPECTATION, 1, 200, 64)
    mask = torch.ones(1, 200)
    truth = yoso_attention(query.double(), sign * query.double(), value.double(), mask, EXPECTATION)
    bound = 2 * error(yoso_attention(query, sign * query, value, mask, EXPECTATION), truth)
    assert error(run_yoso(query, sign * query, value, mask, EXPECTATION, isa=isa), truth) <= max(
        bound, FLOAT32_TOLERANCE
    )
    alike = torch.ones(1, 200, 128)
    context = run_yoso(alike, sign * alike, value, mask, EXPECTATION, isa=isa)
    assert bool(torch.isfinite(context).all())


@MODES
def test_an_example_is_the_same_in_any_batch_and_at_any_length(attributes: YosoAttentionAttributes, isa: str) -> None:
    attributes = dataclasses.replace(attributes, conv_window=3)
    tensors, constants = make_inputs(attributes, 3, 150, 64)
    mask = make_mask("right", 3, 150, torch.Generator().manual_seed(6))
    together = run_yoso(*tensors, mask, attributes, *constants, isa=isa)
    for i in range(3):
        one = slice(i, i + 1)
        alone = run_yoso(*(x[one] for x in tensors), mask[one], attributes, *constants, isa=isa)
        assert torch.equal(alone, together[one])
        tokens = int(mask[i].sum())
        short = run_yoso(*(x[one, :tokens] for x in tensors), mask[one, :tokens], attributes, *constants, isa=isa)
        assert torch.equal(short[0], together[i, :tokens])


@MODES
def test_an_empty_batch_is_left_alone(attributes: YosoAttentionAttributes, isa: str) -> None:
    (_, constants) = make_inputs(attributes, 1, 8, 16)
    empty = torch.empty(0, 64, 32)
    assert run_yoso(empty, empty, empty, torch.empty(0, 64), attributes, *constants, isa=isa).shape == (0, 64, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads=0 must be at least 1"),
        ({"hidden_size": 60}, r"head_dim=30 .* must be a multiple of 8"),
        ({"hidden_size": 2 * 264}, r"head_dim=264 .* at most 256"),
        ({"batch": -1}, "batch=-1 must not be negative"),
        ({"seq_len": 0}, f"seq_len=0 must be between 1 and {MAX_SEQ_LEN}"),
        ({"dtype": 7}, "dtype=7 must be"),
        ({"mode": 2}, r"mode=2 must be 0 \(expectation\) or 1 \(lsh\)"),
        ({"hash_code_len": 0}, "hash_code_len=0 must be between 1 and 16"),
        ({"hash_code_len": 17}, "hash_code_len=17 must be between 1 and 16"),
        ({"num_hash": 0}, "num_hash=0 must be between 1 and 1024"),
        ({"num_hash": 1 << 40}, f"num_hash={1 << 40} must be between 1 and 1024"),
        ({"fast_hash": 2}, "fast_hash=2 must be 0 or 1"),
        ({"conv_window": 4}, "conv_window=4 must be odd and between 1 and 1023"),
        ({"conv_window": -1}, "conv_window=-1 must be odd"),
    ],
)
def test_bad_sizes_are_refused(changes: dict[str, int], message: str) -> None:
    good = {"batch": 1, "seq_len": 32, "hidden_size": 32, "dtype": 0, **FAST.as_dict()}
    text = ctypes.create_string_buffer(512)
    assert kernel().mra_test_yoso_validate(ctypes.byref(YosoParams(**good)), text, ctypes.c_size_t(512))
    params = YosoParams(**(good | changes))
    assert not kernel().mra_test_yoso_validate(ctypes.byref(params), text, ctypes.c_size_t(512))
    assert re.search(message, text.value.decode()), text.value


def test_no_code_of_one_instruction_set_is_shared_with_the_program() -> None:
    """A weak symbol compiled for AVX-512 could replace the same function of the rest of the program."""
    objects = list((build() / "kernels").rglob("yoso_attention_cpu_kernels.cc.o"))
    assert objects
    for path in objects:
        symbols = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        shared = [line for line in symbols.splitlines() if re.search(r" [WVu] ", line)]
        assert not shared, f"{path}: {shared}"
        assert re.findall(r" T (.*)", symbols) == [s for s in re.findall(r" T (.*)", symbols) if "::run_yoso(" in s]

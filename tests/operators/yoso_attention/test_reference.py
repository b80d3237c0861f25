"""YOSO attention in torch: against the formulas and transformers, the hash codes' statistics, and what never may happen."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from yoso_cases import EXPECTATION, LSH, cases, draw, draw_case

from mra_export.errors import InputError
from mra_export.operators.limits import MAX_HEAD_DIM
from mra_export.operators.yoso_attention.reference import (
    HashCodes,
    cumulate,
    draw_hash_constants,
    hash_codes,
    yoso_attention,
)
from mra_export.operators.yoso_attention.spec import GRID_LIMIT, PROJECTION_LIMIT, YosoAttentionAttributes


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("conv_window", [0, 7])
def test_expectation_is_the_formula(conv_window: int) -> None:
    """Token by token, in the standard library's arithmetic."""
    attributes = dataclasses.replace(EXPECTATION, hash_code_len=5, conv_window=conv_window)
    query, key, value, *constants = draw(1, attributes, 8, 20, batch=1)
    mask = torch.ones(1, 20)
    mask[0, [3, 11, 19]] = 0
    actual = yoso_attention(query, key, value, mask, attributes, *constants)
    for head in range(2):
        q, k, v = (x[0, :, head * 8 : head * 8 + 8].tolist() for x in (query, key, value))
        for i in range(20):
            expected = [0.0] * 8
            if mask[0, i]:
                for j in range(20):
                    if not mask[0, j]:
                        continue
                    cosine = sum(map(math.prod, zip(q[i], k[j], strict=True))) / math.hypot(*q[i]) / math.hypot(*k[j])
                    weight = (1 - math.acos(cosine) / math.pi) ** 5
                    expected = [e + weight * x for e, x in zip(expected, v[j], strict=True)]
                length = math.hypot(*expected)
                expected = [e / length for e in expected]
                for u in range(conv_window):
                    at = i + u - conv_window // 2
                    if 0 <= at < 20 and mask[0, at]:
                        expected = [e + float(constants[0][head, u]) * x for e, x in zip(expected, v[at], strict=True)]
            np.testing.assert_allclose(actual[0, i, head * 8 : head * 8 + 8].tolist(), expected, atol=1e-12)


@pytest.mark.parametrize("conv_window", [None, 5])
def test_transformers_agrees_where_nothing_is_padded(conv_window: int | None) -> None:
    from transformers import YosoConfig
    from transformers.models.yoso.modeling_yoso import YosoSelfAttention

    torch.manual_seed(0)
    config = YosoConfig(hidden_size=64, num_attention_heads=2, conv_window=conv_window)
    module = YosoSelfAttention(config).double().eval()
    hidden = torch.randn(2, 50, 64, dtype=torch.float64)
    with torch.no_grad():
        theirs = module(hidden, attention_mask=torch.ones(2, 50))[0]
        tensors = [module.query(hidden), module.key(hidden), module.value(hidden)]
        attributes = dataclasses.replace(EXPECTATION, conv_window=conv_window or 0)
        constants = [module.conv.weight.flatten(1)] if conv_window else []
        ours = yoso_attention(*tensors, torch.ones(2, 50), attributes, *constants)
    assert relative(ours, theirs) <= 1e-12


@pytest.mark.parametrize("head_dim", [8, 64, 80, 256])
def test_float32_is_close_to_float64(head_dim: int) -> None:
    tensors = draw(2, EXPECTATION, head_dim, 300)
    mask = torch.ones(2, 300)
    single = yoso_attention(*(x.float() for x in tensors), mask, EXPECTATION)
    assert single.dtype == torch.float32
    assert relative(single, yoso_attention(*(x.float().double() for x in tensors), mask, EXPECTATION)) <= 5e-6


def test_lsh_is_the_mean_over_the_keys_in_the_same_bucket() -> None:
    query, key, value, constants = draw(3, LSH, 16, 40)
    mask = torch.ones(2, 40)
    mask[0, 5:9] = 0
    actual = yoso_attention(query, key, value, mask, LSH, constants)
    codes = [hash_codes(x, LSH, constants) for x in (query, key)]
    meet = (codes[0][..., :, None] == codes[1][..., None, :]) & (mask != 0)[:, None, None, None, :]
    weight = meet.double().mean(2)  # [batch, heads, queries, keys]
    total = weight @ value.unflatten(-1, (2, 16)).transpose(1, 2)
    expected = torch.nn.functional.normalize(total, dim=-1) * (mask != 0)[:, None, :, None]
    assert relative(actual, expected.transpose(1, 2).flatten(2)) <= 1e-12


@pytest.mark.parametrize("head_dim", [8, 40, 64, 256])
def test_the_fast_hash_is_three_hadamard_transforms(head_dim: int) -> None:
    """In exact integers, with the matrix written out: rows of small integers have no rounding to differ by."""
    attributes = YosoAttentionAttributes(1, 1, 7, 20, 1)
    constants = draw_hash_constants(attributes, head_dim, 5)
    dim = attributes.transform_dim(head_dim)
    hadamard = np.array([[1]])
    while len(hadamard) < dim:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    rows = np.random.default_rng(0).integers(-3, 4, (30, head_dim))
    codes = hash_codes(torch.from_numpy(rows)[None].float(), attributes, constants)[0, 0]
    parts = constants.shape[1]
    assert parts == -(-140 // dim)
    bits = np.zeros((30, 140), dtype=int)
    for part in range(parts):
        y = np.pad(rows, ((0, 0), (0, dim - head_dim)))
        for round_number in range(3):
            y = (y * constants[0, part, round_number].numpy()) @ hadamard.T
        bits[:, part::parts] = (y > 0)[:, : bits[:, part::parts].shape[1]]
    assert (bits.reshape(30, 20, 7) @ (1 << np.arange(7)) == codes.numpy().T).all()


def test_the_projection_is_exact_in_any_order_of_sums() -> None:
    assert MAX_HEAD_DIM * GRID_LIMIT * PROJECTION_LIMIT < 2**24
    attributes = YosoAttentionAttributes(1, 1, 9, 8, 0)
    constants = draw_hash_constants(attributes, 256, 6)
    x = torch.randn(1, 200, 256, generator=torch.Generator().manual_seed(6))
    largest = x.abs().amax(-1, keepdim=True).double()
    grid = torch.round(x.double() * 2.0 ** (9 - torch.log2(largest).floor())).long()
    assert 512 <= int(grid.abs().max()) <= GRID_LIMIT
    bits = (grid @ constants[0].long().T > 0).long().unflatten(-1, (8, 9))  # 64-bit integers
    expected = (bits * 2 ** torch.arange(9)).sum(-1).transpose(1, 2)
    assert torch.equal(hash_codes(x, attributes, constants)[:, 0], expected)
    # Sums in another order: of two halves apart, and of the elements backwards.
    for order in (torch.arange(255, -1, -1), torch.randperm(256, generator=torch.Generator().manual_seed(0))):
        assert torch.equal(hash_codes(x[..., order], attributes, constants[..., order])[:, 0], expected)


@pytest.mark.parametrize("fast_hash", [0, 1])
def test_a_code_is_of_the_direction_alone(fast_hash: int) -> None:
    attributes = dataclasses.replace(LSH, fast_hash=fast_hash)
    query, _, _, constants = draw(7, attributes, 64, 100)
    codes = hash_codes(query.float(), attributes, constants)
    for factor in (2.0**-80, 2.0**-20, 2.0**60):  # powers of two: no rounding
        assert torch.equal(hash_codes(query.float() * factor, attributes, constants), codes)


@pytest.mark.parametrize("fast_hash", [0, 1])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_has_code_0(fast_hash: int, poison: float) -> None:
    attributes = dataclasses.replace(LSH, fast_hash=fast_hash)
    query, _, _, constants = draw(8, attributes, 64, 10)
    query[0, 3, 70] = poison
    codes = hash_codes(query, attributes, constants)
    assert bool((codes[0, 1, :, 3] == 0).all())
    assert bool((codes[0, 0, :, 3] != 0).any())
    zero = hash_codes(torch.zeros_like(query), attributes, constants)
    assert bool((zero == 0).all())


@pytest.mark.parametrize("fast_hash", [0, 1], ids=["projection", "fast"])
def test_collisions_have_the_probability_that_the_expectation_says(fast_hash: int) -> None:
    """Pairs at given angles, each hashed with 100 x 64 codes.

    Of independent hashes the number of collisions is binomial; the fast hash's are nearly so. With |z| <= 4.5 for
    each of 24 pairs a right implementation would fail with a probability below 2e-4, if seeds were drawn anew.
    """
    generator = torch.Generator().manual_seed(11)
    angles = torch.linspace(0.15, 2.2, 24, dtype=torch.float64)
    first, second = torch.linalg.qr(torch.randn(24, 64, 2, generator=generator, dtype=torch.float64)).Q.unbind(-1)
    rows = torch.stack((first, first * angles.cos()[:, None] + second * angles.sin()[:, None])).float()
    attributes = YosoAttentionAttributes(1, 1, 4, 64, fast_hash)
    seeds = 100
    hits = torch.zeros(24, dtype=torch.float64)
    for seed in range(seeds):
        codes = hash_codes(rows, attributes, draw_hash_constants(attributes, 64, seed))[:, 0]
        hits += (codes[0] == codes[1]).sum(0)
    trials = seeds * 64
    probability = (1 - angles / math.pi) ** 4
    z = (hits - trials * probability) / (trials * probability * (1 - probability)).sqrt()
    assert float(z.abs().max()) <= 4.5, z
    assert 0.3 <= float(z.square().mean()) <= 2.5  # chi-squared of 24: 5e-5 below, 1e-4 above


@pytest.mark.parametrize("fast_hash", [0, 1], ids=["projection", "fast"])
@pytest.mark.slow
def test_lsh_converges_to_the_expectation_as_the_root_of_the_number_of_hashes(fast_hash: int) -> None:
    """The mean square error of the sums, over 48 seeds for each number of hashes, falls as 1 / num_hash.

    The slope of its logarithm against that of num_hash is -1 within 4 standard errors, which are estimated from the seeds
    (two-sided probability 6e-5), and known to 0.05: a bias that does not fall would show as a flatter slope. With fewer than
    32 hashes the fast hash has fewer transforms than bits in a code, and a bias.
    """
    numbers = (32, 64, 128, 256)
    attributes = YosoAttentionAttributes(2, 1, 6, 1, fast_hash)
    query, key, value = (x.float() for x in draw(12, EXPECTATION, 32, 48, batch=1))
    mask = torch.ones(1, 48)
    truth = cumulate(query, key, value, mask, dataclasses.replace(EXPECTATION, hash_code_len=6))
    means, errors = [], []
    for number in numbers:
        attributes = dataclasses.replace(attributes, num_hash=number)
        squares = []
        for seed in range(48):
            constants = draw_hash_constants(attributes, 32, 1000 * number + seed)
            squares.append(float((cumulate(query, key, value, mask, attributes, constants) - truth).square().mean()))
        means.append(np.mean(squares))
        errors.append(np.std(squares, ddof=1) / math.sqrt(48) / np.mean(squares))  # of the logarithm
    x = np.log(numbers)
    centred = x - x.mean()
    slope = float((centred * np.log(means)).sum() / (centred**2).sum())
    standard_error = float(np.sqrt(((centred * errors) ** 2).sum()) / (centred**2).sum())
    assert standard_error <= 0.05
    assert abs(slope + 1) <= 4 * standard_error, (slope, standard_error)


@pytest.mark.slow
def test_the_mean_over_seeds_is_the_expectation() -> None:
    """The mean of 300 draws lies within the distance of the expectation that its own standard error says.

    The squared distance in standard errors, averaged over 48 x 64 elements of a positive correlation: below 1.5 with a
    probability beyond 0.999 (its spread over seeds is some 0.1).
    """
    attributes = YosoAttentionAttributes(2, 1, 6, 32, 1)
    query, key, value = (x.float() for x in draw(13, attributes, 32, 48, batch=1)[:3])
    mask = torch.ones(1, 48)
    truth = cumulate(query, key, value, mask, dataclasses.replace(EXPECTATION, hash_code_len=6))
    sums = torch.stack(
        [
            cumulate(query, key, value, mask, attributes, draw_hash_constants(attributes, 32, seed))
            for seed in range(300)
        ]
    ).double()
    z = (sums.mean(0) - truth) / (sums.std(0) / math.sqrt(300))
    assert float(z.square().mean()) <= 1.5


@pytest.mark.parametrize("fast_hash", [0, 1])
def test_the_same_seed_gives_the_same_constants(fast_hash: int) -> None:
    attributes = dataclasses.replace(LSH, fast_hash=fast_hash)
    constants = draw_hash_constants(attributes, 24, 1, 2)
    assert constants.shape == ((2, 5, 3, 32) if fast_hash else (2, 144, 24))
    assert torch.equal(constants, draw_hash_constants(attributes, 24, 1, 2))
    assert not torch.equal(constants, draw_hash_constants(attributes, 24, 1, 3))
    assert not torch.equal(constants, draw_hash_constants(attributes, 24, 2, 2))
    assert not torch.equal(constants[0], constants[1])
    # The stream itself is pinned: files of two machines or releases agree.
    first = constants.flatten()[:12].tolist()
    assert first == (
        [1, -1, 1, -1, 1, 1, 1, -1, 1, 1, 1, -1] if fast_hash else [-25, 9, 24, -11, 12, 32, 27, -11, -15, -36, -30, -2]
    )
    with pytest.raises(InputError, match="seed=-1 must be between 0 and 4294967295"):
        draw_hash_constants(attributes, 24, -1)


@given(case=cases)
@settings(max_examples=40, deadline=None)
def test_rows_do_not_depend_on_each_other_their_order_or_the_length(case: dict) -> None:
    tensors, mask, attributes = draw_case(case, 3)
    tensors, constants = tensors[:3], tensors[3:]
    whole = yoso_attention(*tensors, mask, attributes, *constants)
    one = [yoso_attention(*(t[i : i + 1] for t in tensors), mask[i : i + 1], attributes, *constants) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(one), rtol=0, atol=1e-13)
    order = [2, 0, 1]
    turned = yoso_attention(*(t[order] for t in tensors), mask[order], attributes, *constants)
    torch.testing.assert_close(turned, whole[order], rtol=0, atol=1e-13)
    longer = [torch.nn.functional.pad(t, (0, 0, 0, 9), value=float("nan")) for t in tensors]
    filled = yoso_attention(*longer, torch.nn.functional.pad(mask, (0, 9)), attributes, *constants)
    torch.testing.assert_close(filled[:, : case["seq_len"]], whole, rtol=0, atol=1e-13)
    assert bool((filled[:, case["seq_len"] :] == 0).all())


@given(case=cases)
@settings(max_examples=40, deadline=None)
def test_what_stands_at_padding_does_not_matter(case: dict) -> None:
    tensors, mask, attributes = draw_case(case, 2)
    clean = yoso_attention(*tensors[:3], mask, attributes, *tensors[3:])
    for tensor, poison in zip(tensors[:3], (float("nan"), float("inf"), float("nan")), strict=True):
        tensor[mask == 0] = poison
    assert torch.equal(yoso_attention(*tensors[:3], mask, attributes, *tensors[3:]), clean)
    assert bool((clean[mask == 0] == 0).all())
    assert bool(torch.isfinite(clean).all())


def test_a_cosine_that_rounds_past_1_is_no_nan() -> None:
    query = torch.randn(1, 500, 128, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(query.view(1, 500, 2, 64).transpose(1, 2), dim=-1)
    assert float((unit @ unit.transpose(2, 3)).max()) > 1  # or the test shows nothing
    assert bool(torch.isfinite(yoso_attention(query, query, query, torch.ones(1, 500), EXPECTATION)).all())
    assert bool(torch.isfinite(yoso_attention(query, -query, query, torch.ones(1, 500), EXPECTATION)).all())


def test_codes_given_back_change_nothing_and_others_do() -> None:
    query, key, value, constants = draw(14, LSH, 16, 40)
    mask = torch.ones(2, 40)
    own = HashCodes(hash_codes(query, LSH, constants), hash_codes(key, LSH, constants))
    context = yoso_attention(query, key, value, mask, LSH, constants)
    assert torch.equal(yoso_attention(query, key, value, mask, LSH, constants, codes=own), context)
    other = HashCodes(own.query, own.key.roll(1, -1))
    assert not torch.equal(yoso_attention(query, key, value, mask, LSH, constants, codes=other), context)


@pytest.mark.parametrize("attributes", [EXPECTATION, LSH], ids=["expectation", "lsh"])
def test_half_types_are_computed_in_float32(attributes: YosoAttentionAttributes) -> None:
    query, key, value, *constants = draw(15, attributes, 64, 60)
    mask = torch.ones(2, 60)
    for dtype, limit in ((torch.float16, 5e-4), (torch.bfloat16, 4e-3)):
        half = [x.to(dtype) for x in (query, key, value)]
        result = yoso_attention(*half, mask, attributes, *constants)
        assert result.dtype == dtype
        assert relative(result, yoso_attention(*(x.float() for x in half), mask, attributes, *constants)) <= limit


@pytest.mark.parametrize("attributes", [EXPECTATION, LSH], ids=["expectation", "lsh"])
def test_an_empty_batch_and_an_example_of_padding_alone(attributes: YosoAttentionAttributes) -> None:
    query, key, value, *constants = draw(16, attributes, 16, 10)
    empty = torch.zeros(0, 10, 32)
    assert yoso_attention(empty, empty, empty, torch.zeros(0, 10), attributes, *constants).shape == (0, 10, 32)
    assert not yoso_attention(query, key, value, torch.zeros(2, 10), attributes, *constants).any()


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((1, 40, 64), {"num_heads": 3}, "num_heads=3 must be at least 1 and divide the hidden size 64"),
        ((1, 40, 60), {"num_heads": 5}, "head_dim=12 must be a multiple of 8"),
        ((1, 40, 264), {"num_heads": 1}, "head_dim=264 must be a multiple of 8 and at most 256"),
        ((1, 0, 64), {}, "seq_len=0 must be between 1 and"),
        ((1, 40, 64), {"mode": 2}, "mode=2 must be one of"),
        ((1, 40, 64), {"hash_code_len": 0}, "hash_code_len=0 must be between 1 and 16"),
        ((1, 40, 64), {"hash_code_len": 17}, "hash_code_len=17 must be between 1 and 16"),
        ((1, 40, 64), {"num_hash": 0}, "num_hash=0 must be between 1 and 1024"),
        ((1, 40, 64), {"num_hash": 1025}, "num_hash=1025 must be between 1 and 1024"),
        ((1, 40, 64), {"fast_hash": 2}, "fast_hash=2 must be 0 or 1"),
        ((1, 40, 64), {"num_heads": 0}, "num_heads=0 must be at least 1 and divide the hidden size 64"),
        ((1, 40, 64), {"num_heads": -2}, "num_heads=-2 must be at least 1 and divide the hidden size 64"),
        ((1, 40, 0), {"num_heads": 1}, "num_heads=1 must be at least 1 and divide the hidden size 0"),
        ((1, 40, 1), {"num_heads": 1}, "head_dim=1 must be a multiple of 8"),
        ((1, 40, 64), {"conv_window": 4}, "conv_window=4 must be odd and between 1 and 1023"),
        ((1, 40, 64), {"conv_window": -3}, "conv_window=-3 must be odd"),
        ((1, 40, 64), {"conv_window": 1025}, "conv_window=1025 must be odd"),
    ],
)
def test_sizes_outside_the_limits_are_named(shape: tuple[int, ...], changes: dict, message: str) -> None:
    x = torch.zeros(shape)
    with pytest.raises(InputError, match=message):
        yoso_attention(x, x, x, torch.ones(shape[:2]), dataclasses.replace(LSH, **changes))


@pytest.mark.parametrize("head_dim", [8, MAX_HEAD_DIM])
def test_the_smallest_sizes_and_the_widest_head_are_allowed(head_dim: int) -> None:
    """One token meets itself alone, and its context has length 1."""
    x = torch.randn(1, 1, head_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = yoso_attention(x, x, x, torch.ones(1, 1), YosoAttentionAttributes(1, 0, 1))
    torch.testing.assert_close(result, x / x.norm(), rtol=1e-12, atol=0)


def test_shapes_and_constants_that_do_not_fit_are_named() -> None:
    x, mask = torch.zeros(1, 40, 64), torch.ones(1, 40)
    constants = draw_hash_constants(LSH, 32, 0)
    with pytest.raises(InputError, match="must have one shape"):
        yoso_attention(x, x[:, :39], x, mask, EXPECTATION)
    with pytest.raises(InputError, match=r"attention_mask \(1, 39\) must be"):
        yoso_attention(x, x, x, torch.ones(1, 39), EXPECTATION)
    with pytest.raises(InputError, match=r"0 constant inputs are given; these attributes ask for \['hash_constants'\]"):
        yoso_attention(x, x, x, mask, LSH)
    with pytest.raises(InputError, match=r"hash_constants \(1, 5, 3, 32\) must be \(2, 5, 3, 32\)"):
        yoso_attention(x, x, x, mask, LSH, constants[:1])
    with pytest.raises(InputError, match="neither -1 nor 1"):
        yoso_attention(x, x, x, mask, LSH, constants * 2)
    with pytest.raises(InputError, match="they must be int32"):
        yoso_attention(x, x, x, mask, LSH, constants.float())
    slow = dataclasses.replace(LSH, fast_hash=0)
    with pytest.raises(InputError, match="beyond -63 to 63"):
        yoso_attention(x, x, x, mask, slow, draw_hash_constants(slow, 32, 0) * 2)
    convolved = dataclasses.replace(EXPECTATION, conv_window=3)
    with pytest.raises(InputError, match=r"conv_weight \(2, 5\) must be \(2, 3\)"):
        yoso_attention(x, x, x, mask, convolved, torch.zeros(2, 5))

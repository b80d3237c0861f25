"""Single instructions of PTX, translated and run in one warp, against what the PTX manual says of them."""

from __future__ import annotations

import cuda_host
import numpy as np
import pytest
import torch
from child import in_child
from numpy.typing import ArrayLike, NDArray
from ptx_snippets import LANES, Snippet, Words, compile_snippets, module, run
from ptx_source import PtxError, find_kernels
from ptx_translate import translate

pytestmark = pytest.mark.skipif(cuda_host.ON_DEVICE, reason="translated PTX is run on the host")

LANE = np.arange(LANES, dtype=np.uint32)
RANDOM = [np.random.default_rng(seed).integers(0, 1 << 32, LANES, dtype=np.uint32) for seed in range(4)]


def words(*values: int) -> Words:
    """The values, in turns to all lanes; negative ones as 32 bits."""
    return np.resize(np.array([value % (1 << 32) for value in values], dtype=np.uint32), LANES)


def bits(values: ArrayLike) -> Words:
    """Floats as the bits of float32, in turns to all lanes."""
    return np.resize(np.asarray(values, dtype=np.float32).view(np.uint32), LANES)


def halves(values: NDArray[np.float32], dtype: torch.dtype) -> Words:
    """Each float rounded by torch to 16 bits, in the lower half of a word."""
    return torch.from_numpy(values.copy()).to(dtype).view(torch.int16).numpy().astype(np.uint16).astype(np.uint32)


FLOATS = bits(
    [1 / 3, 2049, 2051, 65519, 65520, -1e-8, 6e-8, 3e-5, 1e30, -np.inf, 0.0, -0.0, 2.0078125, 2.01171875, 1e-40]
).view(np.float32)
# prmt: bytes in another order, of both words, and the sign of one
PERMUTED = {0x3210: 0x84838281, 0x0123: 0x81828384, 0x7531: 0x08068482, 0x8888: 0xFFFFFFFF, 0xF4F4: 0x00050005}
# A float, towards zero as signed and unsigned, to the nearest even.
ROUNDED = [
    (0.5, 0, 0, 0.0),
    (1.5, 1, 1, 2.0),
    (2.5, 2, 2, 2.0),
    (-0.5, 0, 0, -0.0),
    (-1.75, -1, 0, -2.0),
    (3e9, 0x7FFFFFFF, 3_000_000_000, 3e9),
    (-3e9, -0x80000000, 0, -3e9),
    (1e20, 0x7FFFFFFF, 0xFFFFFFFF, 1e20),
]
THIRD, TINY = float(np.float32(1 / 3)), 2.0**-140
# a * b rounded, and a * b + c rounded once to the nearest and downwards
FUSED = float(np.float32(np.float64(np.float32(1 / 3)) * 3 - 1))


def bitwise(table: int, a: Words, b: Words, c: Words) -> Words:
    """lop3 by its definition, one bit after the other."""
    result = np.zeros(LANES, dtype=np.uint32)
    for bit in range(32):
        index = (a >> bit & 1) * 4 + (b >> bit & 1) * 2 + (c >> bit & 1)
        result |= (np.uint32(table) >> index & 1).astype(np.uint32) << np.uint32(bit)
    return result


def fragments(dtype: torch.dtype) -> tuple[tuple[Words, ...], tuple[Words, ...]]:
    """Operands and results of mma.m16n8k16 for matrices of small integers, laid out as the manual says."""
    generator = torch.Generator().manual_seed(1)
    a, b, c = (torch.randint(-9, 10, size, generator=generator).float() for size in ((16, 16), (16, 8), (16, 8)))

    def packed(low: torch.Tensor, high: torch.Tensor) -> Words:
        one, two = (halves(x.numpy(), dtype) for x in (low, high))
        return one | two << np.uint32(16)

    group, pair = torch.arange(LANES) // 4, torch.arange(LANES) % 4 * 2
    left = [
        packed(a[group + 8 * (i % 2), pair + 8 * (i // 2)], a[group + 8 * (i % 2), pair + 8 * (i // 2) + 1])
        for i in range(4)
    ]
    right = [packed(b[pair + 8 * i, group], b[pair + 8 * i + 1, group]) for i in range(2)]
    places = [(group + 8 * (i // 2), pair + i % 2) for i in range(4)]
    sums = [tuple(bits(x[place].numpy()) for place in places) for x in (c, a @ b + c)]
    return (*left, *right, *sums[0]), sums[1]


MMA = """mma.sync.aligned.m16n8k16.row.col.f32.{0}.{0}.f32
{{%r40,%r41,%r42,%r43}}, {{%r10,%r11,%r12,%r13}}, {{%r14,%r15}}, {{%r16,%r17,%r18,%r19}};"""
# Each lane stores a row of 8 elements, 8 lane ..., at 16 lane; then lanes name the rows.
LDMATRIX = """
shl.b32 %r2, %r1, 4;
mov.u32 %r3, sm;
add.s32 %r4, %r2, %r3;
st.shared.v4.b32 [%r4], {{%r10,%r11,%r12,%r13}};
bar.warp.sync -1;
ldmatrix.sync.aligned.m8n8.x4{0}.shared.b16 {{%r40,%r41,%r42,%r43}}, [%r4];
"""
ROWS = tuple((8 * LANE + 2 * i) | (8 * LANE + 2 * i + 1) << np.uint32(16) for i in range(4))
MATRIX = [(64 * i + LANE // 4 * 8 + LANE % 4 * 2).astype(np.uint32) for i in range(4)]
TURNED = [(64 * i + LANE % 4 * 16 + LANE // 4).astype(np.uint32) for i in range(4)]
# Lane l copies the 16 bytes of its inputs; odd lanes copy nothing, from an address that is not there.
COPY = """
shl.b32 %r2, %r1, 4;
mov.u32 %r3, sm;
add.s32 %r4, %r2, %r3;
st.shared.v4.b32 [%r4], {%r14,%r14,%r14,%r14};
and.b32 %r5, %r1, 1;
setp.eq.s32 %p1, %r5, 0;
selp.b32 %r6, 16, 0, %p1;
selp.b64 %rd6, %rd4, 16, %p1;
cp.async.cg.shared.global [%r4], [%rd6], 16, %r6;
cp.async.commit_group;
cp.async.commit_group;
ld.shared.b32 %r40, [%r4];
cp.async.wait_group 1;
ld.shared.v2.b32 {%r41,%r42}, [%r4];
cp.async.wait_group 0;
"""
EVEN = LANE % 2 == 0
EX2 = [0.0, 1.0, -1.0, 10.0, -126.0, -127.0, -200.0, 128.0, 1e-40, 0.5, -0.3, np.inf, -np.inf]

SNIPPETS = {
    "add_wraps": Snippet("add.s32 %r40, %r10, %r11;", (words(-1, 5), words(2, -7)), (words(1, -2),)),
    "mul_wide": Snippet(
        "mul.wide.s32 %rd6, %r10, %r11; mov.b64 {%r40,%r41}, %rd6;",
        (words(-3, 1 << 30), words(5, 8)),
        (words(-15, 0), words(-1, 2)),
    ),
    "mul_hi": Snippet(
        "mul.hi.u32 %r40, %r10, %r11; mul.hi.s32 %r41, %r10, %r11;",
        (words(-1), words(-1, 3)),
        (words(-2, 2), words(0, -1)),
    ),
    "mad": Snippet("mad.lo.s32 %r40, %r10, %r11, %r1;", (words(1 << 31, -4), words(2, 3)), (LANE + words(0, -12),)),
    "division": Snippet(
        "div.s32 %r40, %r10, 2; rem.s32 %r41, %r10, 2; div.u32 %r42, %r10, 2;",
        (words(-7, 7),),
        (words(-3, 3), words(-1, 1), words((2**32 - 7) // 2, 3)),
    ),
    "min_max": Snippet(
        "min.s32 %r40, %r10, %r11; min.u32 %r41, %r10, %r11; max.s32 %r42, %r10, %r11;",
        (words(-1), words(1)),
        (words(-1), words(1), words(1)),
    ),
    "shifts": Snippet(
        "shl.b32 %r40, %r10, %r11; shr.u32 %r41, %r10, %r11; shr.s32 %r42, %r10, %r11;",
        (words(-8), words(1, 31, 32, 40)),
        (words(-16, 0, 0, 0), words(0x7FFFFFFC, 1, 0, 0), words(-4, -1, -1, -1)),
    ),
    "funnel_shift": Snippet(
        "shf.l.wrap.b32 %r40, %r10, %r11, %r12; shf.r.wrap.b32 %r41, %r10, %r11, %r12;",
        (words(0x89ABCDEF), words(0x01234567), words(0, 8, 36)),
        (words(0x01234567, 0x23456789, 0x12345678), words(0x89ABCDEF, 0x6789ABCD, 0x789ABCDE)),
    ),
    "counting": Snippet(
        "popc.b32 %r40, %r10; clz.b32 %r41, %r10; bfind.u32 %r42, %r10; bfind.shiftamt.u32 %r43, %r10; brev.b32 %r44, %r10;",
        (words(0, 1, 0xF0),),
        (words(0, 1, 4), words(32, 31, 24), words(-1, 0, 7), words(-1, 31, 24), words(0, 1 << 31, 0x0F000000)),
    ),
    "bit_fields": Snippet(
        "bfe.u32 %r40, %r10, %r11, %r12; bfe.s32 %r41, %r10, %r11, %r12; bfi.b32 %r42, %r13, %r10, %r11, %r12;",
        (words(0x80F0), words(4, 12, 30, 0), words(4, 8, 4, 0), words(0xA5)),
        (words(0xF, 8, 0, 0), words(-1, 8, 0, 0), words(0x8050, 0xA50F0, 0x400080F0, 0x80F0)),
    ),
    "insert_into_64_bits": Snippet(
        "mov.b64 %rd6, {%r10,%r11}; mov.b64 %rd7, {%r12,%r12}; bfi.b64 %rd8, %rd6, %rd7, 1, 32; mov.b64 {%r40,%r41}, %rd8;",
        (words(0xC0000001), words(-1), words(0x10)),
        (words(0x80000002), words(0x11)),
    ),
    "prmt": Snippet(
        "prmt.b32 %r40, %r10, %r11, %r12;",
        (words(0x84838281), words(0x08070605), words(*PERMUTED)),
        (words(*PERMUTED.values()),),
    ),
    "lop3": Snippet(
        "lop3.b32 %r40, %r10, %r11, %r12, 0x96; lop3.b32 %r41, %r10, %r11, %r12, 0xe8; lop3.b32 %r42, %r10, %r11, %r12, 0x1d;",
        tuple(RANDOM[:3]),
        tuple(bitwise(table, *RANDOM[:3]) for table in (0x96, 0xE8, 0x1D)),
    ),
    "halves_of_words": Snippet(
        "mov.b32 {%rs1,%rs2}, %r10; mov.b32 %r40, {%rs2,%rs1}; cvt.s32.s16 %r41, %rs1; cvt.u32.u16 %r42, %rs1;",
        (words(0x12348765),),
        (words(0x87651234), words(0x8765 - 0x10000), words(0x8765)),
    ),
    "narrow_conversions": Snippet(
        "cvt.s32.s8 %r40, %r10; cvt.u32.u8 %r41, %r10; cvt.s64.s32 %rd6, %r10; mov.b64 {_,%r42}, %rd6;",
        (words(0xFFFFFF80, 0x7F),),
        (words(-128, 127), words(128, 127), words(-1, 0)),
    ),
    "to_float16": Snippet(
        "mov.b32 %f1, %r10; cvt.rn.f16.f32 %rs1, %f1; cvt.u32.u16 %r40, %rs1; cvt.f32.f16 %f2, %rs1; mov.b32 %r41, %f2;",
        (FLOATS.view(np.uint32),),
        (halves(FLOATS, torch.float16), torch.from_numpy(FLOATS.copy()).half().float().numpy().view(np.uint32)),
    ),
    "to_bfloat16": Snippet(
        "mov.b32 %f1, %r10; cvt.rn.bf16.f32 %rs1, %f1; cvt.u32.u16 %r40, %rs1;",
        (FLOATS.view(np.uint32),),
        (halves(FLOATS, torch.bfloat16),),
    ),
    "two_halves": Snippet(
        "mov.b32 %f1, %r10; mov.b32 %f2, %r11; cvt.rn.f16x2.f32 %r40, %f1, %f2; cvt.rn.bf16x2.f32 %r41, %f1, %f2;",
        (bits([1.0]), bits([-2.0])),
        (words(0x3C00C000), words(0x3F80C000)),
    ),
    "float_to_integer": Snippet(
        "mov.b32 %f1, %r10; cvt.rzi.s32.f32 %r40, %f1; cvt.rzi.u32.f32 %r41, %f1; cvt.rni.f32.f32 %f2, %f1; mov.b32 %r42, %f2;",
        (bits([x[0] for x in ROUNDED]),),
        (words(*(x[1] for x in ROUNDED)), words(*(x[2] for x in ROUNDED)), bits([x[3] for x in ROUNDED])),
    ),
    "integer_to_float": Snippet(
        "cvt.rn.f32.s32 %f1, %r10; mov.b32 %r40, %f1; cvt.rn.f32.u32 %f2, %r10; mov.b32 %r41, %f2;",
        (words(-1, 16777217, 16777219),),
        (bits([-1.0, 16777216.0, 16777220.0]), bits([4294967296.0, 16777216.0, 16777220.0])),
    ),
    "fused": Snippet(
        "mov.b32 %f1, %r10; mov.b32 %f2, %r11; mov.b32 %f3, %r12; fma.rn.f32 %f4, %f1, %f2, %f3; mov.b32 %r40, %f4; "
        "mul.f32 %f5, %f1, %f2; add.f32 %f6, %f5, %f3; mov.b32 %r41, %f6;",
        (bits([1 / 3]), bits([3.0]), bits([-1.0])),
        (bits([FUSED]), bits([0.0])),
    ),
    "rounded_down": Snippet(
        "mov.b32 %f1, %r10; fma.rm.f32 %f2, %f1, 0f3F800000, 0f33000000; mov.b32 %r40, %f2; "
        "fma.rn.f32 %f3, %f1, 0f3F800000, 0f33800000; mov.b32 %r41, %f3;",
        (bits([1.0, np.float32(1) + np.float32(2**-23)]),),
        (bits([1.0, 1 + 2**-23]), bits([1.0, 1 + 2**-22])),  # plus a quarter of a unit, down; plus half a unit, to even
    ),
    "float_min_max": Snippet(
        "mov.b32 %f1, %r10; mov.b32 %f2, %r11; min.f32 %f3, %f1, %f2; max.f32 %f4, %f1, %f2; mov.b32 %r40, %f3; mov.b32 %r41, %f4;",
        (bits([np.nan, 1, 0.0, -0.0, 2]), bits([3, np.nan, -0.0, 0.0, -np.inf])),
        (bits([3, 1, -0.0, -0.0, -np.inf]), bits([3, 1, 0.0, 0.0, 2])),
    ),
    "comparisons": Snippet(
        "mov.b32 %f1, %r10; mov.b32 %f2, %r11; "
        + " ".join(
            f"setp.{relation}.f32 %p1, %f1, %f2; selp.b32 %r{40 + i}, 1, 0, %p1;"
            for i, relation in enumerate(("lt", "ltu", "neu", "ne", "nan", "geu"))
        ),
        (bits([1, 2, np.nan, 2]), bits([2, 1, 1, 2])),
        (
            words(1, 0, 0, 0),
            words(1, 0, 1, 0),
            words(1, 1, 1, 0),
            words(1, 1, 0, 0),
            words(0, 0, 1, 0),
            words(0, 1, 1, 1),
        ),
    ),
    "integer_comparisons": Snippet(
        "setp.lt.s32 %p1, %r10, %r11; selp.b32 %r40, 1, 0, %p1; setp.lt.u32 %p2, %r10, %r11; selp.b32 %r41, 1, 0, %p2; "
        "setp.ne.or.s32 %p3, %r10, %r11, %p2; selp.b32 %r42, 1, 0, %p3; @!%p1 mov.u32 %r43, 7;",
        (words(-1, 1, 3), words(1, -1, 3)),
        (words(1, 0, 0), words(0, 1, 0), words(1, 1, 0), words(0, 7, 7)),
    ),
    "shuffles": Snippet(
        "shfl.sync.bfly.b32 %r40|%p1, %r10, 5, 31, -1; shfl.sync.idx.b32 %r41|%p1, %r10, 35, 31, -1; "
        "shfl.sync.up.b32 %r42|%p2, %r10, 3, 0, -1; selp.b32 %r43, 1, 0, %p2; "
        "shfl.sync.down.b32 %r44|%p3, %r10, 30, 31, -1; selp.b32 %r45, 1, 0, %p3;",
        (RANDOM[0],),
        (
            RANDOM[0][LANE ^ 5],
            np.full(LANES, RANDOM[0][3]),
            np.concatenate([RANDOM[0][:3], RANDOM[0][:-3]]),
            (LANE >= 3).astype(np.uint32),
            np.concatenate([RANDOM[0][30:], RANDOM[0][2:]]),
            (LANE < 2).astype(np.uint32),
        ),
    ),
    "votes": Snippet(
        "and.b32 %r2, %r1, 3; setp.eq.s32 %p1, %r2, 1; vote.sync.ballot.b32 %r40, %p1, -1; match.any.sync.b32 %r41, %r2, -1;",
        (),
        (words(0x22222222), words(0x11111111, 0x22222222, 0x44444444, 0x88888888)),
    ),
    "mma_f16": Snippet(MMA.format("f16"), *fragments(torch.float16)),
    "mma_bf16": Snippet(MMA.format("bf16"), *fragments(torch.bfloat16)),
    "ldmatrix": Snippet(LDMATRIX.format(""), ROWS, tuple(x | (x + 1) << np.uint32(16) for x in MATRIX)),
    "ldmatrix_trans": Snippet(LDMATRIX.format(".trans"), ROWS, tuple(x | (x + 8) << np.uint32(16) for x in TURNED)),
    "cp_async": Snippet(
        COPY,
        (*RANDOM, words(99)),
        (words(99), *(np.where(EVEN, x, 0).astype(np.uint32) for x in RANDOM[:2])),
    ),
    "atomics": Snippet(
        "mov.u32 %r3, sm; st.shared.u32 [%r3], 5; bar.warp.sync -1; atom.shared.add.u32 %r2, [%r3], 2; "
        "bar.warp.sync -1; ld.shared.u32 %r40, [%r3]; cvt.u64.u32 %rd6, %r3; cvta.shared.u64 %rd7, %rd6; ld.u32 %r41, [%rd7];",
        (),
        (words(5 + 64), words(5 + 64)),
    ),
    "scopes": Snippet(
        "{ .reg .b64 %tmp; cvt.u64.u32 %tmp, %r10; shl.b64 %rd6, %tmp, 32; } "
        "{ .reg .b32 %tmp; mov.b64 {_,%tmp}, %rd6; mov.b32 %r40, %tmp; }",
        (RANDOM[1],),
        (RANDOM[1],),
    ),
    "branches": Snippet(
        "mov.u32 %r40, 0; $L__again: add.s32 %r40, %r40, 1; setp.lt.u32 %p1, %r40, %r10; @%p1 bra $L__again;",
        (words(1, 2, 9),),
        (words(1, 2, 9),),
    ),
    "ex2": Snippet(
        "mov.b32 %f1, %r10; ex2.approx.ftz.f32 %f2, %f1; mov.b32 %r40, %f2;",
        (bits(EX2),),
        (
            bits(
                [
                    1,
                    2,
                    0.5,
                    1024,
                    2.0**-126,
                    0,
                    0,
                    np.inf,
                    1,
                    np.exp2(np.float32(0.5)),
                    np.exp2(np.float32(-0.3)),
                    np.inf,
                    0,
                ]
            ),
        ),
    ),
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, int]:
    return compile_snippets(SNIPPETS)


@pytest.mark.parametrize("name", SNIPPETS)
def test_instruction(name: str, compiled: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    snippet = SNIPPETS[name]
    monkeypatch.setenv("MRA_HOST_COPIES", "late")
    for order in ("forward", "reverse"):
        monkeypatch.setenv("MRA_HOST_ORDER", order)
        found = run(compiled[name], snippet.inputs, len(snippet.results))
        for i, (actual, expected) in enumerate(zip(found, snippet.results, strict=True)):
            wrong = np.flatnonzero(actual != expected)
            assert not wrong.size, f"result {i}, lane {wrong[0]}: {actual[wrong[0]]:#x}, not {expected[wrong[0]]:#x}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("add.f64 %rd6, %rd6, %rd6;", "line 22 .*`add.f64 .*is not known"),
        ("add.sat.s32 %r2, %r2, %r2;", "line 22 .*`add.sat.s32 .*is not known"),
        ("mov.u32 %r2, 1;\nfma.rn.ftz.f32 %f1, %f1, %f1, %f1;", "line 23 .*`fma.rn.ftz.f32 .*is not known"),
        ("add.s32 %r2, %r2, %rd6;", "%rd6 is a register of .b64, where .u32 is expected"),
        ("add.s32 %r2, %r2, %r99;", "the operand %r99 is not known"),
        ("add.s32 %r2, %r2;", "3 operands were expected"),
        ("mov.u32 %r2, %tid.y;", "the operand %tid.y is not known"),
        ("mov.u32 %r2, 0x1ffffffff;", "0x1ffffffff is too large for .u32"),
        ("ld.global.u32 %r2, [%rd4+%rd5];", r"the address \[%rd4\+%rd5\] is not known"),
        ("ld.const.u32 %r2, [%rd4];", "`ld.const.u32 .*is not known"),
        ("ld.param.u64 %rd6, [snippet_param_1+4];", "8 bytes at 4 of a parameter of 8"),
        ("st.shared.v4.b32 [%r2], {%r2,%r3};", "does not have 4 elements"),
        ("bar.sync 1;", "only barrier 0"),
        ("cp.async.ca.shared.global [%r2], [%rd4], 8;", "only copies of 16 bytes"),
        ("ret 1;", "no operand was expected"),
        ("call helper;", "`call helper.*is not known"),
        (".local .b8 frame[16];", r"line 22 .*`\.local .*is not known"),
    ],
)
def test_what_is_not_known_is_an_error(body: str, message: str) -> None:
    (kernel,) = find_kernels(module(body)).values()
    with pytest.raises(PtxError, match=message):
        translate(kernel)


def test_functions_and_parameters_that_are_not_known() -> None:
    text = module("mov.u32 %r2, 1;")
    with pytest.raises(PtxError, match="line 26 of the PTX: calls of functions"):
        find_kernels(text + ".func helper() { ret; }\n")
    with pytest.raises(PtxError, match=r"parameter `\.param \.v4 \.u64 snippet_param_0` is not known"):
        find_kernels(text.replace(".param .u64 snippet_param_0", ".param .v4 .u64 snippet_param_0"))


CRASHES = {
    "misaligned": ("ld.global.u32 %r2, [%rd4+2];", "thread 0: 4 bytes at the misaligned address"),
    "misaligned_vector": ("ld.global.v4.u32 {%r2,%r3,%r4,%r5}, [%rd4+8];", "16 bytes at the misaligned address"),
    "misaligned_shared": (
        "mov.u32 %r2, sm; st.shared.u32 [%r2+2], 1;",
        "4 bytes at 2 of shared memory, which has 1024",
    ),
    "past_the_end": ("mov.u32 %r2, sm; ld.shared.v2.u32 {%r3,%r4}, [%r2+1024];", "8 bytes at 1024 of shared memory"),
    "before_the_start": ("mov.u32 %r2, sm; ld.shared.u32 %r3, [%r2+-4];", "4 bytes at 4294967292 of shared memory"),
    "clamp": ("shfl.sync.bfly.b32 %r2|%p1, %r1, 1, 7967, -1;", "a shuffle with clamp 7967, not 31"),
    "division": ("div.u32 %r2, %r1, %r1;", "thread 0: division by 0"),
    "copy_of_8": (
        "mov.u32 %r2, sm; mov.u32 %r3, 8; cp.async.cg.shared.global [%r2], [%rd4], 16, %r3;",
        "cp.async of 8 bytes",
    ),
    "divergent": (
        "setp.lt.u32 %p1, %r1, 16; @%p1 bar.sync 0; bar.warp.sync -1;",
        "deadlock: block 0, 16 of 32 live threads",
    ),
}


def test_what_a_gpu_would_trap_ends_the_process() -> None:
    compiled = compile_snippets({name: Snippet(body, (), ()) for name, (body, _) in CRASHES.items()})
    for name, (_, message) in CRASHES.items():
        outcome = in_child(lambda name=name: run(compiled[name], (), 0))  # type: ignore[misc]
        assert outcome.status < 0
        assert message in outcome.errors

"""YOSO attention as an ONNX function of standard operators, so that a stock runtime runs the exported file.

The function is `mra::YosoAttention` itself: a runtime that knows the operator uses its own kernel, one that does not inlines this
body. It is written for the attributes of one model, whose nodes have them all in common. All arithmetic is float32; the steps are
numbered as in `docs/operators/yoso_attention.md`. Mode expectation compares some queries at a time with all keys, mode
lsh goes hash by hash: no tensor grows with the square of the length.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mra_export.operators.limits import OP_DOMAIN
from mra_export.operators.old_opsets import for_opset
from mra_export.operators.yoso_attention.spec import (
    ATTRIBUTES,
    GRID_LIMIT,
    MODES,
    NORM_EPSILON,
    OP_TYPE,
    OUTPUTS,
    YosoAttentionAttributes,
)

if TYPE_CHECKING:
    from onnx import FunctionProto


__all__ = ["MIN_OPSET", "yoso_function_body"]

MIN_OPSET = 17
"""The oldest that ONNX Runtime has LayerNormalization in, which the models need anyway."""

_QUERY_ROWS = 128  # queries that are compared with all keys at a time


def yoso_function_body(attributes: YosoAttentionAttributes, head_dim: int, opset: int) -> FunctionProto:
    """The function `mra::YosoAttention` over standard operators of one opset.

    Args:
        attributes: those of all nodes of the model that will hold the function.
        head_dim: D.
        opset: version of the standard operator set, at least `MIN_OPSET`; that of the model.

    Returns:
        The function, to be appended to `ModelProto.functions`.
    """
    import onnx

    lines = [_SIZES.format(heads=attributes.num_heads, epsilon=NORM_EPSILON)]
    for name in ("query", "key", "value"):
        lines.append(_HEADS.format(name=name))
    if attributes.mode == MODES["expectation"]:
        lines.append(_expectation(attributes.hash_code_len))
    else:
        for name in ("query", "key"):
            if attributes.fast_hash:
                lines.append(_fast_bits(name, attributes.transform_dim(head_dim), attributes.parts(head_dim)))
            else:
                lines.append(_projected_bits(name))
            lines.append(_codes(name, attributes))
        lines.append(_TABLES.format(buckets=2**attributes.hash_code_len, num_hash=float(attributes.num_hash)))
    lines.append(_UNIT)
    if attributes.conv_window:
        window = attributes.conv_window
        lines.append(_CONVOLUTION.format(heads=attributes.num_heads, window=window, pad=window // 2))
    else:
        lines.append("whole = Identity (unit)")
    lines.append(_END)
    text = f"""
        <domain: "{OP_DOMAIN}", opset_import: ["" : {opset}]>
        {OP_TYPE} <{", ".join(ATTRIBUTES)}> ({", ".join(attributes.inputs())}) => ({OUTPUTS[0]})
        {{ {for_opset("".join(lines), opset)} }}
    """
    return onnx.parser.parse_function(text)


# Neither an Expand, a reduction over a negative axis nor a product that broadcasts: ONNX Runtime gets them wrong for an empty
# batch. And no GatherElements, whose table onnx's evaluator limits to 64 rows. B batch, S seq_len, H heads, D head_dim.
_SIZES = """
    zero = Constant <value_int: int = 0> ()
    axis0 = Constant <value_ints = [0]> ()
    axis1 = Constant <value_ints = [1]> ()
    axis2 = Constant <value_ints = [2]> ()
    axis3 = Constant <value_ints = [3]> ()
    axis4 = Constant <value_ints = [4]> ()
    last = Constant <value_ints = [-1]> ()
    f0 = Constant <value_float = 0.0> ()
    f1 = Constant <value_float = 1.0> ()
    epsilon = Constant <value_float = {epsilon}> ()
    heads = Constant <value_ints = [{heads}]> ()
    batch = Shape <start: int = 0, end: int = 1> (query)
    length = Shape <start: int = 1, end: int = 2> (query)
    hidden = Shape <start: int = 2, end: int = 3> (query)
    head_dim = Div (hidden, heads)
    cut_shape = Concat <axis: int = 0> (batch, length, heads, head_dim)
    mask_zero = CastLike (zero, attention_mask)
    dropped = Equal (attention_mask, mask_zero)
    drop = Unsqueeze (dropped, last)
    drop_heads = Unsqueeze (drop, axis1)
"""

# 1. Padding becomes 0: as a key its value adds nothing, as a query it is left out at the end. [B, H, S, D].
# The cast comes last: ONNX Runtime's CPU provider computes half types in float32 and drops a rounding to the half type that a
# cast to float32 follows at once. A hash code is of the rounded row.
_HEADS = """
    {name}_cut = Reshape <allowzero: int = 1> ({name}, cut_shape)
    {name}_turned_heads = Transpose <perm = [0, 2, 1, 3]> ({name}_cut)
    {name}_float = Cast <to: int = 1> ({name}_turned_heads)
    {name}_heads = Where (drop_heads, f0, {name}_float)
"""

_UNIT_LENGTH = """
    {name}_squares = ReduceSumSquare <keepdims: int = 1> ({source}, axis3)
    {name}_length = Sqrt ({name}_squares)
    {name}_divisor = Max ({name}_length, epsilon)
    {result} = Div ({source}, {name}_divisor)
"""

# 5. Unit length.
_UNIT = _UNIT_LENGTH.format(name="total", source="total", result="unit")

# 6. The convolution of the values.
_CONVOLUTION = """
    conv_shape = Constant <value_ints = [{heads}, 1, {window}, 1]> ()
    conv_float = Cast <to: int = 1> (conv_weight)
    conv_kernel = Reshape (conv_float, conv_shape)
    convolved = Conv <group: int = {heads}, pads = [{pad}, 0, {pad}, 0]> (value_heads, conv_kernel)
    whole = Add (unit, convolved)
"""

# 7. Padded queries are 0.
_END = """
    context_tokens = Transpose <perm = [0, 2, 1, 3]> (whole)
    flat_shape = Concat <axis: int = 0> (batch, length, hidden)
    context_flat = Reshape <allowzero: int = 1> (context_tokens, flat_shape)
    context_float = Where (drop, f0, context_flat)
    context = CastLike (context_float, query)
"""


def _expectation(exponent: int) -> str:
    """Steps 2 and 3; the power as a chain of products."""
    power, square, result = [], "weight_1", ""
    for bit in range(exponent.bit_length()):
        if bit:
            power.append(f"weight_{2 << (bit - 1)} = Mul ({square}, {square})")
            square = f"weight_{2 << (bit - 1)}"
        if exponent >> bit & 1:
            if result:
                power.append(f"product_{bit} = Mul ({result}, {square})")
                result = f"product_{bit}"
            else:
                result = square
    newline = "\n            "
    return f"""
    {_UNIT_LENGTH.format(name="query", source="query_heads", result="query_unit")}
    {_UNIT_LENGTH.format(name="key", source="key_heads", result="key_unit")}
    key_columns = Transpose <perm = [0, 1, 3, 2]> (key_unit)
    chunk = Constant <value_ints = [{_QUERY_ROWS}]> ()
    chunk_less_one = Constant <value_ints = [{_QUERY_ROWS - 1}]> ()
    length_up = Add (length, chunk_less_one)
    chunks = Div (length_up, chunk)
    padded = Mul (chunks, chunk)
    fill = Sub (padded, length)
    pads = Concat <axis: int = 0> (axis0, fill)
    query_padded = Pad <mode = "constant"> (query_unit, pads, f0, axis2) # rank 4
    chunked_shape = Concat <axis: int = 0> (batch, heads, chunks, chunk, head_dim)
    query_chunked = Reshape <allowzero: int = 1> (query_padded, chunked_shape)
    query_chunks = Transpose <perm = [2, 0, 1, 3, 4]> (query_chunked)
    minus_one = Constant <value_float = -1.0> ()
    pi = Constant <value_float = {math.pi}> ()
    total_chunks = Scan <num_scan_inputs: int = 1, body: graph = attend (float[b, h, c, d] rows) => (float[b2, h2, c2, d2] sums) {{
            product = MatMul (rows, key_columns)
            above = Greater (product, f1)
            product_below = Where (above, f1, product)
            below = Less (product_below, minus_one)
            cosine = Where (below, minus_one, product_below)
            angle = Acos (cosine)
            share = Div (angle, pi)
            weight_1 = Sub (f1, share)
            {newline.join(power)}
            sums = MatMul ({result}, value_heads)
        }}> (query_chunks)
    total_chunked = Transpose <perm = [1, 2, 0, 3, 4]> (total_chunks)
    padded_shape = Concat <axis: int = 0> (batch, heads, padded, head_dim)
    total_padded = Reshape <allowzero: int = 1> (total_chunked, padded_shape)
    total = Slice (total_padded, axis0, length, axis2)
"""


def _fast_bits(name: str, dim: int, parts: int) -> str:
    """The fast hash's signs, bool [B, H, S, dim * parts]; the sums are in the order of the definition."""
    lines = [
        f"""
    {name}_dim = Constant <value_ints = [{dim}]> ()
    {name}_fill = Sub ({name}_dim, head_dim)
    {name}_pads = Concat <axis: int = 0> (axis0, {name}_fill)
    {name}_filled = Pad <mode = "constant"> ({name}_heads, {name}_pads, f0, axis3) # rank 4
    {name}_0_0 = Unsqueeze ({name}_filled, axis2)
    {name}_signs_int = Split <axis: int = 2, num_outputs: int = 3> (hash_constants)
    {name}_parts = Constant <value_ints = [{parts}]> ()
    {name}_shape = Concat <axis: int = 0> (batch, heads, {name}_parts, length, {name}_dim)
"""
    ]
    signs = ", ".join(f"{name}_signs_{number}" for number in range(3))
    lines[0] = lines[0].replace(f"{name}_signs_int =", f"{signs} =")
    current = f"{name}_0_0"  # [B, H, 1, S, dim]
    for number in range(3):
        lines.append(f"""
    {name}_signs_float_{number} = Cast <to: int = 1> ({name}_signs_{number})
    {name}_signed_{number} = Mul ({current}, {name}_signs_float_{number})
""")
        current = f"{name}_signed_{number}"  # [B, H, parts, S, dim]
        stride = dim // 2
        while stride:
            stage = f"{name}_{number}_{stride}"
            lines.append(f"""
    {stage}_pairs = Constant <value_ints = [{dim // (2 * stride)}, 2, {stride}]> ()
    {stage}_shape = Concat <axis: int = 0> (batch, heads, {name}_parts, length, {stage}_pairs)
    {stage}_cut = Reshape <allowzero: int = 1> ({current}, {stage}_shape)
    {stage}_low, {stage}_high = Split <axis: int = 5, num_outputs: int = 2> ({stage}_cut)
    {stage}_sum = Add ({stage}_low, {stage}_high)
    {stage}_difference = Sub ({stage}_low, {stage}_high)
    {stage}_both = Concat <axis: int = 5> ({stage}_sum, {stage}_difference)
    {stage}_out = Reshape <allowzero: int = 1> ({stage}_both, {name}_shape)
""")
            current = f"{stage}_out"
            stride //= 2
    lines.append(f"""
    {name}_positive = Greater ({current}, f0)
    {name}_turned = Transpose <perm = [0, 1, 3, 4, 2]> ({name}_positive)
    {name}_all = Constant <value_ints = [{dim * parts}]> ()
    {name}_bits_shape = Concat <axis: int = 0> (batch, heads, length, {name}_all)
    {name}_bits = Reshape <allowzero: int = 1> ({name}_turned, {name}_bits_shape)
""")
    return "".join(lines)


def _projected_bits(name: str) -> str:
    """The random projections' signs, bool [B, H, S, num_hash * hash_code_len]; every product and sum is exact."""
    bits = GRID_LIMIT.bit_length() - 1
    lines = [
        f"""
    {name}_magnitude = Abs ({name}_heads)
    {name}_largest_0 = ReduceMax <keepdims: int = 1> ({name}_magnitude, axis3)
    {name}_infinity = Constant <value_float = 3.4028234663852886e38> ()
    {name}_finite = LessOrEqual ({name}_largest_0, {name}_infinity)
    {name}_scale_0 = Where ({name}_finite, f1, f0)
"""
    ]
    # The power of two that brings the largest element to [limit / 2, limit), found by halving the range of exponents.
    step = 0
    for up in (False, True):
        for power in (64, 32, 16, 8, 4, 2, 1):
            factor = 2.0**power if up else 2.0**-power
            bound = 2.0 ** (bits - power) if up else 2.0 ** (bits - 1 + power)
            lines.append(f"""
    {name}_bound_{step} = Constant <value_float = {bound!r}> ()
    {name}_factor_{step} = Constant <value_float = {factor!r}> ()
    {name}_there_{step} = {"Less" if up else "GreaterOrEqual"} ({name}_largest_{step}, {name}_bound_{step})
    {name}_step_{step} = Where ({name}_there_{step}, {name}_factor_{step}, f1)
    {name}_largest_{step + 1} = Mul ({name}_largest_{step}, {name}_step_{step})
    {name}_scale_{step + 1} = Mul ({name}_scale_{step}, {name}_step_{step})
""")
            step += 1
    lines.append(f"""
    {name}_scaled = Mul ({name}_heads, {name}_scale_{step})
    {name}_rounded = Round ({name}_scaled)
    {name}_grid = Where ({name}_finite, {name}_rounded, f0)
    {name}_projections = Cast <to: int = 1> (hash_constants)
    {name}_columns = Transpose <perm = [0, 2, 1]> ({name}_projections)
    {name}_by_head = Transpose <perm = [1, 0, 2, 3]> ({name}_grid)
    {name}_rows = Mul (batch, length)
    {name}_rows_shape = Concat <axis: int = 0> (heads, {name}_rows, head_dim)
    {name}_grid_rows = Reshape <allowzero: int = 1> ({name}_by_head, {name}_rows_shape)
    {name}_projected = MatMul ({name}_grid_rows, {name}_columns)
    {name}_positive = Greater ({name}_projected, f0)
    {name}_bit_count = Shape <start: int = 1, end: int = 2> (hash_constants)
    {name}_bits_shape = Concat <axis: int = 0> (heads, batch, length, {name}_bit_count)
    {name}_bits_by_head = Reshape <allowzero: int = 1> ({name}_positive, {name}_bits_shape)
    {name}_bits = Transpose <perm = [1, 0, 2, 3]> ({name}_bits_by_head)
""")
    return "".join(lines)


def _codes(name: str, attributes: YosoAttentionAttributes) -> str:
    """The codes, int64 [num_hash, B, H, S, 1]."""
    powers = ", ".join(str(float(1 << bit)) for bit in range(attributes.hash_code_len))
    return f"""
    {name}_count = Constant <value_ints = [{attributes.num_hash * attributes.hash_code_len}]> ()
    {name}_used = Slice ({name}_bits, axis0, {name}_count, axis3)
    {name}_used_float = Where ({name}_used, f1, f0)
    {name}_of_hash = Constant <value_ints = [{attributes.num_hash}, {attributes.hash_code_len}]> ()
    {name}_code_shape = Concat <axis: int = 0> (batch, heads, length, {name}_of_hash)
    {name}_code_bits = Reshape <allowzero: int = 1> ({name}_used_float, {name}_code_shape)
    {name}_powers = Constant <value_floats = [{powers}]> ()
    {name}_worth = Mul ({name}_code_bits, {name}_powers)
    {name}_code_float = ReduceSum <keepdims: int = 1> ({name}_worth, axis4)
    {name}_code = Cast <to: int = 7> ({name}_code_float)
    {name}_codes = Transpose <perm = [3, 0, 1, 2, 4]> ({name}_code)
"""


# 4. Hash by hash: a table of the values, and what each query finds in it.
_TABLES = """
    buckets = Constant <value_ints = [{buckets}]> ()
    table_shape = Concat <axis: int = 0> (batch, heads, buckets, head_dim)
    empty_table = ConstantOfShape <value = float[1] {{0.0}}> (table_shape)
    column_ones = ConstantOfShape <value = int64[1] {{1}}> (head_dim)
    sum_shape = Concat <axis: int = 0> (batch, heads, length, head_dim)
    nothing = ConstantOfShape <value = float[1] {{0.0}}> (sum_shape)
    batch_heads = Mul (batch, heads)
    row_count = Mul (batch_heads, buckets)
    rows_shape = Concat <axis: int = 0> (row_count, head_dim)
    asked = Mul (batch_heads, length)
    one = Constant <value_int: int = 1> ()
    batch_heads_0d = Squeeze (batch_heads, axis0)
    table_numbers = Range (zero, batch_heads_0d, one)
    first_rows_flat = Mul (table_numbers, buckets)
    first_rows_shape = Concat <axis: int = 0> (batch, heads, axis1, axis1)
    first_rows = Reshape <allowzero: int = 1> (first_rows_flat, first_rows_shape)
    found_sum = Scan <num_scan_inputs: int = 2, body: graph = count
        (float[b, h, s, d] before, int64[b1, h1, s1, one1] query_of, int64[b2, h2, s2, one2] key_of)
        => (float[b3, h3, s3, d3] after) {{
            key_index = Mul (key_of, column_ones)
            table = ScatterElements <axis: int = 2, reduction = "add"> (empty_table, key_index, value_heads)
            table_rows = Reshape <allowzero: int = 1> (table, rows_shape)
            asked_row = Add (query_of, first_rows)
            asked_rows = Reshape <allowzero: int = 1> (asked_row, asked)
            found_rows = Gather <axis: int = 0> (table_rows, asked_rows)
            found = Reshape <allowzero: int = 1> (found_rows, sum_shape)
            after = Add (before, found)
        }}> (nothing, query_codes, key_codes)
    num_hash = Constant <value_float = {num_hash}> ()
    total = Div (found_sum, num_hash)
"""

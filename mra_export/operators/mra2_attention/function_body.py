"""The operator as an ONNX function of standard operators, so that a stock runtime runs the exported file.

The function is `mra::Mra2Attention` itself: a runtime that knows the operator uses its own kernel, one that does not inlines
this body. All arithmetic is float32 whatever the inputs' type, as the specification asks for the selection; the steps are
numbered as in `docs/operators/mra2_attention.md`. The largest tensors are
[batch * heads, selected blocks, 32, max(32, head_dim + 1)].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mra_export.dtypes import onnx_type
from mra_export.operators.limits import OP_DOMAIN, OP_VERSION
from mra_export.operators.mra2_attention.spec import (
    ATTRIBUTES,
    BLOCK_SIZE,
    INPUTS,
    MASKED_BLOCK_PENALTY,
    NO_BLOCK_MAX,
    NORMALIZER_EPSILON,
    OP_TYPE,
    OUTPUTS,
    POOL_EPSILON,
    PRIOR_BONUS,
    Mra2AttentionAttributes,
)
from mra_export.operators.old_opsets import for_opset

if TYPE_CHECKING:
    from onnx import FunctionProto


__all__ = ["MIN_OPSET", "function_body", "operator_model"]

MIN_OPSET = 17
"""The oldest that ONNX Runtime has LayerNormalization in, which the models need anyway."""


def function_body(opset: int) -> FunctionProto:
    """The function `mra::Mra2Attention` over standard operators of one opset.

    Args:
        opset: version of the standard operator set, at least `MIN_OPSET`; that of the model that will hold the function.

    Returns:
        The function, to be appended to `ModelProto.functions`.
    """
    import onnx

    body = _BODY if opset >= 18 else _BODY.replace(_SCATTER_MAX, _SCAN_MAX)
    text = f"""
        <domain: "{OP_DOMAIN}", opset_import: ["" : {opset}]>
        {OP_TYPE} <{", ".join(ATTRIBUTES)}> ({", ".join(INPUTS)}) => ({OUTPUTS[0]})
        {{ {for_opset(body, opset)} }}
    """
    return onnx.parser.parse_function(text)


def operator_model(
    attributes: Mra2AttentionAttributes,
    hidden_size: int,
    dtype: str = "fp32",
    opset: int = 20,
    functions: list[Any] | None = None,
) -> Any:
    """An ONNX model of the one node, with its function body.

    Args:
        attributes: the node's.
        hidden_size: last dimension of query, key and value.
        dtype: of query, key, value and context; one of fp32, fp16, bf16.
        opset: of the function body.
        functions: instead of our function body, those of a file that is to be examined.

    Returns:
        `onnx.ModelProto`; inputs and output are named as in `spec`, batch and sequence are dynamic.
    """
    from onnx import TensorProto, helper

    kind = onnx_type(dtype)
    shape: list[str | int | None] = ["batch", "sequence", hidden_size]
    node = helper.make_node(
        OP_TYPE, list(INPUTS), list(OUTPUTS), name=OP_TYPE, domain=OP_DOMAIN, **attributes.as_dict()
    )
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name in INPUTS[:3]]
    inputs.append(helper.make_tensor_value_info(INPUTS[3], TensorProto.INT32, shape[:2]))
    outputs = [helper.make_tensor_value_info(OUTPUTS[0], kind, shape)]
    graph = helper.make_graph([node], OP_TYPE, inputs, outputs)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(OP_DOMAIN, OP_VERSION)]
    bodies = [function_body(opset)] if functions is None else functions
    return helper.make_model(
        graph, opset_imports=opsets, functions=bodies, ir_version=helper.find_min_ir_version_for(opsets, True)
    )


_SCATTER_MAX = """\
    high_max_start = ConstantOfShape <value = float[1] {-3.4e38}> (max_shape)
    flat_row_2d = Unsqueeze (flat_row, last)
    block_ones = ConstantOfShape <value = int64[1] {1}> (block)
    scatter_index = Mul (flat_row_2d, block_ones)
    high_max_found = ScatterElements <axis: int = 0, reduction = "max"> (high_max_start, scatter_index, tile_max)
"""
# The same below opset 18, which has no reduction max: row by row, so that no tensor has the size of rows times tiles.
_SCAN_MAX = """\
    tile_max_shape = Concat <axis: int = 0> (batch, heads, budget, block)
    tile_max_cut = Reshape (tile_max, tile_max_shape)
    row_max_found = Scan <num_scan_inputs: int = 1, body: graph = row_maximum (int64 at) => (float[b, h, k] largest) {
            of_row = Equal (row, at)
            of_row_tiles = Unsqueeze (of_row, last)
            candidates = Where (of_row_tiles, tile_max_cut, lowest)
            largest = ReduceMax <keepdims: int = 0> (candidates, axis2)
        }> (index)
    row_max_turned = Transpose <perm = [1, 2, 0, 3]> (row_max_found)
    high_max_found = Reshape (row_max_turned, max_shape)
"""

# Neither Expand nor a ReduceMax over a negative axis is used: ONNX Runtime gets them wrong for an empty batch.
# B batch, S seq_len, H heads, D head_dim, R row blocks (nb), P = 32 R padded length, T selected blocks.
_BODY = f"""
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    two = Constant <value_int: int = 2> ()
    axis0 = Constant <value_ints = [0]> ()
    axis1 = Constant <value_ints = [1]> ()
    axis2 = Constant <value_ints = [2]> ()
    axis3 = Constant <value_ints = [3]> ()
    last = Constant <value_ints = [-1]> ()
    block = Constant <value_ints = [{BLOCK_SIZE}]> ()
    block_less_one = Constant <value_ints = [{BLOCK_SIZE - 1}]> ()
    f0 = Constant <value_float = 0.0> ()
    f1 = Constant <value_float = 1.0> ()
    mask_zero = CastLike (zero, attention_mask)
    scale = Constant <value_float: float = @scale> ()
    heads_0d = Constant <value_int: int = @num_heads> ()
    heads = Unsqueeze (heads_0d, axis0)

    # Sizes, each int64 [1].
    batch = Shape <start: int = 0, end: int = 1> (query)
    length = Shape <start: int = 1, end: int = 2> (query)
    hidden = Shape <start: int = 2, end: int = 3> (query)
    head_dim = Div (hidden, heads)
    length_up = Add (length, block_less_one)
    rows = Div (length_up, block)
    padded = Mul (rows, block)
    fill = Sub (padded, length)
    pairs = Mul (rows, rows)
    batch_heads = Mul (batch, heads)
    batch_rows = Mul (batch_heads, rows)

    # 1. Padded tokens are left out; the last block is filled with padding.
    keep_tokens = Equal (attention_mask, mask_zero)
    keep_short = Where (keep_tokens, f0, f1)
    pads = Concat <axis: int = 0> (axis0, fill)
    keep_flat = Pad <mode = "constant"> (keep_short, pads, f0, axis1) # rank 2
    keep_shape = Concat <axis: int = 0> (batch, rows, block)
    keep = Reshape (keep_flat, keep_shape)
    drop_column = Unsqueeze (keep_tokens, last)
    blocked_shape = Concat <axis: int = 0> (batch, rows, block, heads, head_dim)
    query_float = Cast <to: int = 1> (query)
    query_kept = Where (drop_column, f0, query_float)
    query_padded = Pad <mode = "constant"> (query_kept, pads, f0, axis1) # rank 3
    query_cut = Reshape (query_padded, blocked_shape)
    q = Transpose <perm = [0, 3, 1, 2, 4]> (query_cut)
    key_float = Cast <to: int = 1> (key)
    key_kept = Where (drop_column, f0, key_float)
    key_padded = Pad <mode = "constant"> (key_kept, pads, f0, axis1) # rank 3
    key_cut = Reshape (key_padded, blocked_shape)
    k = Transpose <perm = [0, 3, 1, 2, 4]> (key_cut)
    value_float = Cast <to: int = 1> (value)
    value_kept = Where (drop_column, f0, value_float)
    value_padded = Pad <mode = "constant"> (value_kept, pads, f0, axis1) # rank 3
    value_cut = Reshape (value_padded, blocked_shape)
    v_only = Transpose <perm = [0, 3, 1, 2, 4]> (value_cut)
    # A last column of 1 at tokens and 0 at padding carries the normalizer through the same products as the values.
    keep_5d = Unsqueeze (keep, last)
    keep_head = Unsqueeze (keep_5d, axis1)
    per_head_shape = Concat <axis: int = 0> (axis1, heads, axis1, axis1, axis1)
    per_head = ConstantOfShape <value = float[1] {{1.0}}> (per_head_shape)
    ones_column = Mul (keep_head, per_head)
    v = Concat <axis: int = 4> (v_only, ones_column)

    # 2. Pool.
    count = ReduceSum <keepdims: int = 0> (keep, axis2)
    pool_epsilon = Constant <value_float = {POOL_EPSILON}> ()
    count_eps = Add (count, pool_epsilon)
    divisor_2d = Unsqueeze (count_eps, axis1)
    divisor = Unsqueeze (divisor_2d, last)
    q_sum = ReduceSum <keepdims: int = 0> (q, axis3)
    q_hat = Div (q_sum, divisor)
    k_sum = ReduceSum <keepdims: int = 0> (k, axis3)
    k_hat = Div (k_sum, divisor)
    v_sum = ReduceSum <keepdims: int = 0> (v_only, axis3)
    v_hat_only = Div (v_sum, divisor)
    hat_ones_shape = Concat <axis: int = 0> (batch, heads, rows, axis1)
    hat_ones = ConstantOfShape <value = float[1] {{1.0}}> (hat_ones_shape)
    v_hat = Concat <axis: int = 3> (v_hat_only, hat_ones)

    # 3 to 5. Low-resolution logits [B, H, R, R] and their row maximum, taken before empty blocks are penalised.
    k_hat_t = Transpose <perm = [0, 1, 3, 2]> (k_hat)
    low_product = MatMul (q_hat, k_hat_t)
    low_all = Mul (low_product, scale)
    row_max = ReduceMax <keepdims: int = 1> (low_all, axis3)
    occupied = Greater (count, f0)
    occupied_row = Unsqueeze (occupied, last)
    occupied_column = Unsqueeze (occupied, axis1)
    occupied_pair = And (occupied_row, occupied_column)
    occupied_heads = Unsqueeze (occupied_pair, axis1)
    penalty = Constant <value_float = {MASKED_BLOCK_PENALTY}> ()
    penalties = Where (occupied_heads, f0, penalty)
    low = Sub (low_all, penalties)

    # 6. Scores, with the priors in order.
    low_shifted = Sub (low, row_max)
    rows_0d = Squeeze (rows, axis0)
    index = Range (zero, rows_0d, one)
    index_row = Unsqueeze (index, last)
    index_difference = Sub (index_row, index)
    distance = Abs (index_difference)
    diagonal_n = Constant <value_int: int = @initial_prior_diagonal_n_blocks> ()
    reach = Div (diagonal_n, two)
    diagonal_on = Greater (diagonal_n, zero)
    in_reach = LessOrEqual (distance, reach)
    diagonal = And (in_reach, diagonal_on)
    bonus = Constant <value_float = {PRIOR_BONUS}> ()
    diagonal_bonus = Where (diagonal, bonus, f0)
    first_n = Constant <value_int: int = @initial_prior_first_n_blocks> ()
    first_row = Less (index_row, first_n)
    first_row_bonus = Where (first_row, bonus, f0)
    first_column = Less (index, first_n)
    first_column_bonus = Where (first_column, bonus, f0)
    score_diagonal = Add (low_shifted, diagonal_bonus)
    score_row = Add (score_diagonal, first_row_bonus)
    score = Add (score_row, first_column_bonus)

    # 7. TopK puts the lower index first where scores are equal.
    score_shape = Concat <axis: int = 0> (batch, heads, pairs)
    score_flat = Reshape (score, score_shape)
    num_blocks_0d = Constant <value_int: int = @num_blocks> ()
    num_blocks = Unsqueeze (num_blocks_0d, axis0)
    budget = Min (num_blocks, pairs)
    scores_chosen, chosen = TopK <axis: int = 2, largest: int = 1, sorted: int = 1> (score_flat, budget)
    no_pair = ConstantOfShape <value = float[1] {{0.0}}> (score_shape)
    chosen_shape = Shape (chosen)
    chosen_ones = ConstantOfShape <value = float[1] {{1.0}}> (chosen_shape)
    selected_flat = ScatterElements <axis: int = 2> (no_pair, chosen, chosen_ones)
    low_shape = Concat <axis: int = 0> (batch, heads, rows, rows)
    selected = Reshape (selected_flat, low_shape)

    # 8. High resolution: logits of the selected blocks, [B * H * T, 32 queries, 32 keys].
    row = Div (chosen, rows)
    row_start = Mul (row, rows)
    column = Sub (chosen, row_start)
    batch_heads_0d = Squeeze (batch_heads, axis0)
    head_index = Range (zero, batch_heads_0d, one)
    head_offset = Mul (head_index, rows)
    offset_shape = Concat <axis: int = 0> (batch, heads, axis1)
    offset = Reshape (head_offset, offset_shape)
    flat_row_3d = Add (row, offset)
    flat_column_3d = Add (column, offset)
    tile_count = Mul (batch_heads, budget)
    flat_row = Reshape (flat_row_3d, tile_count)
    flat_column = Reshape (flat_column_3d, tile_count)
    qk_shape = Concat <axis: int = 0> (batch_rows, block, head_dim)
    head_dim_one = Add (head_dim, axis1)
    v_shape = Concat <axis: int = 0> (batch_rows, block, head_dim_one)
    q_scaled = Mul (q, scale)
    q_rows = Reshape (q_scaled, qk_shape)
    k_rows = Reshape (k, qk_shape)
    v_rows = Reshape (v, v_shape)
    q_tiles = Gather <axis: int = 0> (q_rows, flat_row)
    k_tiles = Gather <axis: int = 0> (k_rows, flat_column)
    k_tiles_t = Transpose <perm = [0, 2, 1]> (k_tiles)
    logit = MatMul (q_tiles, k_tiles_t)

    # 9. Row maxima over the selected blocks, padded keys included as 0.
    tile_max = ReduceMax <keepdims: int = 0> (logit, axis2)
    max_shape = Concat <axis: int = 0> (batch_rows, block)
    lowest = Constant <value_float = -3.4e38> ()
{_SCATTER_MAX}    no_block_max = Constant <value_float = {NO_BLOCK_MAX}> ()
    found_none = Equal (high_max_found, lowest)
    high_max = Where (found_none, no_block_max, high_max_found)

    # 11. The shift M; in the sparse mode the low resolution does not take part.
    approx_mode = Constant <value_int: int = @approx_mode> ()
    full = Equal (approx_mode, zero)
    row_max_shape = Concat <axis: int = 0> (batch_rows, axis1)
    row_max_rows = Reshape (row_max, row_max_shape)
    shift_full = Max (row_max_rows, high_max)
    shift = Where (full, shift_full, high_max)
    shift_tiles_2d = Gather <axis: int = 0> (shift, flat_row)
    shift_tiles = Unsqueeze (shift_tiles_2d, last)
    logit_shifted = Sub (logit, shift_tiles)
    weight = Exp (logit_shifted)
    v_tiles = Gather <axis: int = 0> (v_rows, flat_column)
    tiles = MatMul (weight, v_tiles)
    # The sum over each row's tiles as a product with a 0/1 matrix [B, H, R, T]: unlike a scatter with repeated indices it is
    # right in every runtime (some run ScatterND with reduction in parallel and lose updates) and uses all threads.
    row_4d = Unsqueeze (row, axis2)
    in_row = Equal (row_4d, index_row)
    in_row_float = Cast <to: int = 1> (in_row)
    tile_size = Mul (block, head_dim_one)
    tiles_shape = Concat <axis: int = 0> (batch, heads, budget, tile_size)
    tiles_flat = Reshape (tiles, tiles_shape)
    high_flat = MatMul (in_row_float, tiles_flat)
    high = Reshape (high_flat, v_shape)

    # 10. Low resolution on what is not selected.
    low_exp = Exp (low_shifted)
    count_row = Unsqueeze (count, axis1)
    count_column = Unsqueeze (count_row, axis1)
    low_counted = Mul (low_exp, count_column)
    unselected = Equal (selected, f0)
    low_weight = Where (unselected, low_counted, f0)
    low_total = MatMul (low_weight, v_hat)
    low_rows_shape = Concat <axis: int = 0> (batch_rows, axis1, head_dim_one)
    low_rows = Reshape (low_total, low_rows_shape)
    rescale_log = Sub (row_max_rows, shift)
    rescale_2d = Exp (rescale_log)
    rescale = Unsqueeze (rescale_2d, last)
    low_rescaled = Mul (low_rows, rescale)
    low_part = Where (full, low_rescaled, f0)

    # Normalize, and 12: padded queries are 0.
    total = Add (high, low_part)
    split_at = Concat <axis: int = 0> (head_dim, axis1)
    numerator, denominator = Split <axis: int = 2> (total, split_at)
    normalizer_epsilon = Constant <value_float = {NORMALIZER_EPSILON}> ()
    denominator_eps = Add (denominator, normalizer_epsilon)
    quotient = Div (numerator, denominator_eps)
    heads_shape = Concat <axis: int = 0> (batch, heads, padded, head_dim)
    context_heads = Reshape (quotient, heads_shape)
    context_tokens = Transpose <perm = [0, 2, 1, 3]> (context_heads)
    flat_shape = Concat <axis: int = 0> (batch, padded, hidden)
    context_padded = Reshape (context_tokens, flat_shape)
    context_sliced = Slice (context_padded, axis0, length, axis1)
    context_float = Where (drop_column, f0, context_sliced)
    context = CastLike (context_float, query)
"""

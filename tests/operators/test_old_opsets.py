"""Function bodies of opset 18 in the words of opset 17."""

from __future__ import annotations

from mra_export.operators.old_opsets import for_opset

BODY = """
    pads = Concat <axis: int = 0> (axis0, fill)
    a = Pad <mode = "constant"> (x, pads, f0, axis1) # rank 3
    b = ReduceMax <keepdims: int = 1> (a, axis2)
    c, d = Split <axis: int = 1, num_outputs: int = 2> (b)
    e = ReduceSum <keepdims: int = 0> (c, axis1)
"""
OLD = """
    pads = Concat <axis: int = 0> (axis0, fill)
    a_before = Constant <value_ints = [0, 0, 0]> ()
    a_after = Constant <value_ints = [0]> ()
    a_pads = Concat <axis: int = 0> (a_before, pads, a_after)
    a = Pad <mode = "constant"> (x, a_pads, f0)
    b = ReduceMax <keepdims: int = 1, axes: ints = [2]> (a)
    c, d = Split <axis: int = 1> (b)
    e = ReduceSum <keepdims: int = 0> (c, axis1)
"""


def test_opset_18_stays() -> None:
    assert for_opset(BODY, 18) == BODY


def test_opset_17() -> None:
    assert for_opset(BODY, 17) == OLD

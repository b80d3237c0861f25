"""Function bodies that are written for opset 18, in the words of opset 17."""

from __future__ import annotations

import re

__all__ = ["for_opset"]

_AXIS = re.compile(r"(Reduce(?:Max|SumSquare)) <([^>]*)> \((\w+), axis(\d)\)")
_PARTS = re.compile(r"(Split <axis: int = \d), num_outputs: int = \d>")
_PAD = re.compile(r"(\w+) = Pad <mode = \"constant\"> \((\w+), (\w+), f0, axis(\d)\) # rank (\d)")


def for_opset(body: str, opset: int) -> str:
    """A function body in the words of an opset.

    Three things came with opset 18: the axes of ReduceMax and ReduceSumSquare as an input, the axes of Pad, and the number of parts
    of a Split into equal ones.

    Args:
        body: in ONNX's text form. An axis input is called axis0, axis1 and so on; what is padded by `[0, n]` at one axis says its
            rank in a comment, `# rank 3`.
        opset: of the model, at least 17.
    """
    if opset >= 18:
        return body
    body = _AXIS.sub(r"\1 <\2, axes: ints = [\4]> (\3)", body)
    return _PAD.sub(_whole_pads, _PARTS.sub(r"\1>", body))


def _whole_pads(found: re.Match[str]) -> str:
    """Pad with a begin and an end for every axis; `[0, n]` at one axis ends with its n."""
    name, source, pads, axis, rank = found.groups()
    before = int(rank) + int(axis) - 1
    after = int(rank) - int(axis) - 1
    parts = [f"{name}_before", pads, *[f"{name}_after"] * bool(after)]
    lines = [f"{name}_before = Constant <value_ints = {[0] * before}> ()"]
    lines += [f"{name}_after = Constant <value_ints = {[0] * after}> ()"] * bool(after)
    lines += [
        f"{name}_pads = Concat <axis: int = 0> ({', '.join(parts)})",
        f'{name} = Pad <mode = "constant"> ({source}, {name}_pads, f0)',
    ]
    return "\n    ".join(lines)

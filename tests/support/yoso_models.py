"""ONNX models of one YosoAttention node with its function body, and what they are fed."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from yoso_cases import EXPECTATION, LSH

from mra_export.operators.limits import OP_DOMAIN, OP_VERSION
from mra_export.operators.yoso_attention.function_body import yoso_function_body
from mra_export.operators.yoso_attention.spec import OP_TYPE, YosoAttentionAttributes

CONFIGURATIONS = {
    "expectation": EXPECTATION,
    "expectation, convolution": dataclasses.replace(EXPECTATION, hash_code_len=6, conv_window=5),
    "fast hash": LSH,
    "fast hash, convolution": dataclasses.replace(LSH, hash_code_len=5, num_hash=13, conv_window=3),
    "projection": dataclasses.replace(LSH, fast_hash=0),
}


ALL = pytest.mark.parametrize("attributes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)


def yoso_model(
    attributes: YosoAttentionAttributes,
    head_dim: int,
    constants: list[Tensor],
    *,
    opset: int = 20,
    kind: int = TensorProto.FLOAT,
    functions: bool = True,
) -> onnx.ModelProto:
    """An ONNX model of one node, its constants as initializers."""
    names = attributes.inputs()
    shape = ["batch", "sequence", attributes.num_heads * head_dim]
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name in names[:3]]
    inputs.append(helper.make_tensor_value_info(names[3], TensorProto.INT32, shape[:2]))
    float_type = helper.tensor_dtype_to_np_dtype(kind)
    arrays = [c.numpy() if c.dtype == torch.int32 else c.float().numpy().astype(float_type) for c in constants]
    graph = helper.make_graph(
        [helper.make_node(OP_TYPE, names, ["context"], domain=OP_DOMAIN, **attributes.as_dict())],
        OP_TYPE,
        inputs,
        [helper.make_tensor_value_info("context", kind, shape)],
        [numpy_helper.from_array(array, name) for array, name in zip(arrays, names[4:], strict=True)],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(OP_DOMAIN, OP_VERSION)],
        functions=[yoso_function_body(attributes, head_dim, opset)] if functions else [],
        ir_version=10,
    )


def feeds(tensors: list[Tensor], mask: Tensor, kind: type = np.float32) -> dict[str, np.ndarray]:
    named = dict(zip(("query", "key", "value"), (x.float().numpy().astype(kind) for x in tensors), strict=True))
    return {**named, "attention_mask": mask.int().numpy()}


def error(actual: np.ndarray, expected: Tensor) -> float:
    return float(np.linalg.norm(actual.astype(np.float64) - expected.double().numpy()) / expected.double().norm())

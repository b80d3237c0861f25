"""The plugin of mra::YosoAttention: its life in every mode, its inputs that depend on attributes, and engines of TensorRT-RTX."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import cuda_host
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tensorrt_plugin import Rtx, harness, host_plugin, read_errors

from mra_export.operators.yoso_attention.reference import draw_hash_constants
from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes

HEADS, HEAD_DIM = 2, 32
CASES = {
    "expectation": (torch.float32, YosoAttentionAttributes(HEADS, 0, 9, 0, 0, 0)),
    "expectation_conv": (torch.bfloat16, YosoAttentionAttributes(HEADS, 0, 4, 0, 0, 5)),
    "fast": (torch.float16, YosoAttentionAttributes(HEADS, 1, 5, 7, 1, 0)),
    "fast_conv": (torch.float32, YosoAttentionAttributes(HEADS, 1, 9, 8, 1, 3)),
    "projection": (torch.bfloat16, YosoAttentionAttributes(HEADS, 1, 6, 5, 0, 0)),
}


def make_constants(attributes: YosoAttentionAttributes, dtype: torch.dtype, head_dim: int) -> list[torch.Tensor]:
    constants = [draw_hash_constants(attributes, head_dim, 7)] if attributes.mode else []
    if attributes.conv_window:
        generator = torch.Generator().manual_seed(1)
        constants.append(torch.randn(attributes.num_heads, attributes.conv_window, generator=generator).to(dtype))
    return constants


@pytest.mark.parametrize("name", CASES)
def test_every_context_computes_what_the_kernels_compute(name: str, tmp_path: Path) -> None:
    dtype, attributes = CASES[name]
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(2, 70, HEADS * HEAD_DIM, generator=generator).to(dtype) for _ in range(3)]
    mask = torch.ones(2, 70, dtype=torch.int32)
    mask[0, -9:] = 0
    constants = make_constants(attributes, dtype, HEAD_DIM)
    inputs = cuda_host.yoso_inputs(*tensors, mask, *constants, attributes=attributes)
    expected = cuda_host.run_yoso(inputs, attributes).context

    (tmp_path / "cases").write_bytes(cuda_host.pack_yoso_case(inputs, attributes) * 2)  # once for each creator
    library = os.environ.get("MRA_HARNESS_LIBRARY") or str(host_plugin())
    program = os.environ.get("MRA_HARNESS") or str(harness())
    done = subprocess.run(
        [program, library, "yoso", str(tmp_path / "cases"), str(tmp_path / "results")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MRA_HOST_LOADED": "1"},  # contexts load all that they may launch
    )
    assert done.returncode == 0, done.stderr
    raw = torch.from_numpy(np.fromfile(tmp_path / "results", dtype=np.uint8))
    for context in raw.view(dtype).view(4, *expected.shape):
        assert torch.equal(context, expected)


ERRORS = {
    "mode": r"YosoAttention 'layer.0': mode=2 must be 0 \(expectation\) or 1 \(lsh\)",
    "num_hash": r"num_hash=0 must be between 1 and 1024",
    "conv_window": r"conv_window=4 must be odd",
    "count": r"4 inputs and 1 outputs; it has 6 inputs \(query, .*, attention_mask, hash_constants, conv_weight\)",
    "hash_constants": r"YosoAttention: hash_constants \[2, 4, 3, 32\] must be \[2, 3, 3, 32\] for these attributes",
    "conv_weight": r"conv_weight \[2, 3\] must be \[2, 5\] for these attributes",
    "enqueue": r"cudaErrorInvalidValue\) at batch=2, .*num_heads=2, mode=1, .*conv_window=5.*architectures",
}


@functools.cache
def logged_errors() -> dict[str, str]:
    return read_errors("yoso")


@pytest.mark.parametrize("name", ERRORS)
def test_errors_reach_the_logger_with_their_values(name: str) -> None:
    assert re.search(ERRORS[name], logged_errors()[name]), logged_errors()[name]


def test_every_logged_error_is_tested() -> None:
    assert logged_errors().keys() == ERRORS.keys()


ELEMENTS = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}


def one_node(
    element: int, attributes: YosoAttentionAttributes, head_dim: int = HEAD_DIM, **more: Any
) -> onnx.ModelProto:
    """The node alone, its constants as initializers."""
    shape = ["batch", "seq_len", attributes.num_heads * head_dim]
    inputs = [helper.make_tensor_value_info(name, element, shape) for name in ("query", "key", "value")]
    inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT32, shape[:2]))
    names = attributes.inputs()
    constants = []
    for name, value in zip(names[4:], make_constants(attributes, torch.float32, head_dim), strict=True):
        if name == "hash_constants":
            constants.append(numpy_helper.from_array(value.numpy(), name))
        else:
            constants.append(helper.make_tensor(name, element, value.shape, value.flatten().tolist()))
    node = helper.make_node(
        "YosoAttention", list(names), ["context"], name="attention", domain="mra", **attributes.as_dict(), **more
    )
    outputs = [helper.make_tensor_value_info("context", element, shape)]
    graph = helper.make_graph([node], "one", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("mra", 1)])


@pytest.mark.parametrize("element", ELEMENTS, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_rtx_builds_an_engine(rtx: Rtx, element: int, name: str) -> None:
    trt = rtx.trt
    lookup = {"plugin_namespace": "", "plugin_version": "1"}
    builder, network, errors = rtx.parse(one_node(element, CASES[name][1], **lookup))
    assert errors == []
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    assert [layer.type for layer in layers].count(trt.LayerType.PLUGIN_V3) == 1
    wanted = {TensorProto.FLOAT: trt.float32, TensorProto.FLOAT16: trt.float16, TensorProto.BFLOAT16: trt.bfloat16}
    assert network.get_output(0).dtype == wanted[element]
    assert tuple(network.get_output(0).shape) == (-1, -1, HEADS * HEAD_DIM)

    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for tensor in ("query", "key", "value"):
        profile.set_shape(tensor, (1, 1, 64), (4, 128, 64), (8, 512, 64))
    profile.set_shape("attention_mask", (1, 1), (4, 128), (8, 512))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    assert engine.nbytes > 1000


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (YosoAttentionAttributes(HEADS, 2, 9, 0, 0, 0), "mode=2 must be 0"),
        (YosoAttentionAttributes(HEADS, 0, 17, 0, 0, 0), "hash_code_len=17 must be between 1 and 16"),
    ],
)
def test_rtx_hears_why_a_node_is_refused(rtx: Rtx, attributes: YosoAttentionAttributes, message: str) -> None:
    rtx.logger.errors.clear()
    model = one_node(TensorProto.FLOAT, YosoAttentionAttributes(HEADS, 0, 9, 0, 0, 0))
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(
        helper.make_attribute(name, value) for name, value in attributes.as_dict().items()
    )
    *_, errors = rtx.parse(model)
    assert errors
    assert any(message in line for line in rtx.logger.errors), rtx.logger.errors

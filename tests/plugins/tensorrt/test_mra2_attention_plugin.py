"""The TensorRT plugin: what the library exports, its life from creator to enqueue, and engines that TensorRT-RTX builds with it."""

from __future__ import annotations

import ctypes
import functools
import json
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
from onnx import TensorProto, helper
from tensorrt_plugin import Rtx, harness, host_plugin, logger_slots, plugin_library, read_errors

from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

EXPORTS = {"getCreators", "setLoggerFinder", "mraBuildInfo"}


def test_library_exports_only_its_entry_points() -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(plugin_library())], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[-1] for line in symbols.splitlines()} == EXPORTS


def test_library_needs_neither_tensorrt_nor_cuda() -> None:
    dynamic = subprocess.run(
        ["readelf", "-d", str(plugin_library())], capture_output=True, text=True, check=True
    ).stdout
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert needed <= {"libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "ld-linux-x86-64.so.2"}


def test_library_stays_loaded() -> None:
    """Threads that end after an engine was freed, and its plugin closed, still call the CUDA runtime in it."""
    dynamic = subprocess.run(
        ["readelf", "-d", str(plugin_library())], capture_output=True, text=True, check=True
    ).stdout
    assert any("(FLAGS_1)" in line and "NODELETE" in line for line in dynamic.splitlines())


def test_build_info() -> None:
    library = ctypes.CDLL(str(plugin_library()))
    library.mraBuildInfo.restype = ctypes.c_char_p
    info = json.loads(library.mraBuildInfo())
    assert info["plugin_version"] == "1"
    assert [int(part) for part in info["tensorrt_headers"].split(".")] >= [10, 3]
    assert info["cuda_runtime"] >= 12000
    assert info["architectures"]


# The plugin's life, driven by a small program in TensorRT's place, the kernels on the host.


CASES = [
    (torch.float32, 2, 70, 2, 32, Mra2AttentionAttributes(2, 4, 0, 0, 0, 0.125)),
    (torch.float16, 1, 320, 2, 64, Mra2AttentionAttributes(2, 40, 0, 1, 3, 0.125)),
    (torch.bfloat16, 3, 33, 1, 8, Mra2AttentionAttributes(1, 10**9, 1, 0, 2, 0.25)),
    (torch.float32, 1, 33, 1, 136, Mra2AttentionAttributes(1, 3, 0, 0, 0, 0.125)),
    (torch.float16, 1, 65 * 32, 1, 8, Mra2AttentionAttributes(1, 70, 0, 0, 0, 0.125)),
    (torch.bfloat16, 1, 33, 1, 128, Mra2AttentionAttributes(1, 3, 0, 0, 0, 0.125)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[0]))
def test_every_context_computes_what_the_kernels_compute(case: tuple[Any, ...], tmp_path: Path) -> None:
    dtype, batch, seq_len, heads, head_dim, attributes = case
    generator = torch.Generator().manual_seed(seq_len)
    tensors = [torch.randn(batch, seq_len, heads * head_dim, generator=generator).to(dtype) for _ in range(3)]
    mask = torch.ones(batch, seq_len, dtype=torch.int32)
    mask[0, -9:] = 0
    expected = cuda_host.run(*tensors, mask, attributes).context

    packed = cuda_host.pack_case(*tensors, mask, attributes)
    (tmp_path / "cases").write_bytes(packed * 2)  # once for each creator
    library = os.environ.get("MRA_HARNESS_LIBRARY") or str(host_plugin())
    program = os.environ.get("MRA_HARNESS") or str(harness())
    done = subprocess.run(
        [program, library, "mra", str(tmp_path / "cases"), str(tmp_path / "results")],
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
    "num_blocks": r"Mra2Attention 'layer.0': num_blocks=0 must be at least 1",
    "approx_mode": r"approx_mode=3 must be 0 \(full\) or 1 \(sparse\)",
    "scale": r"scale=inf must be finite",
    "missing": r"attribute scale is missing",
    "type": r"attribute num_blocks has field type 1 and length 1; it must be one int",
    "length": r"attribute num_blocks has field type 5 and length 2",
    "nothing": r"attribute num_heads is missing",
    "count": r"3 inputs and 1 outputs; it has 4 inputs",
    "shapes": r"query \[2, 64, 64\], key \[2, 32, 64\] and value \[2, 64, 64\] must have one shape",
    "mask": r"attention_mask \[7, 1\] must be \[batch, seq_len\] of query \[1, 1, 64\]",
    "head_dim": r"head_dim=30 \(hidden_size=60 / num_heads=2\) must be a multiple of 8",
    "workspace": r"head_dim=30",
    "onShapeChange": r"head_dim=30",
    "data type": r"data type 2 must be float, half or bf16",
    "too long": r"seq_len=131073 must be at most 131072 on a GPU, where a logit for each pair of blocks is kept\. Cut",
    "enqueue": r"cudaErrorInvalidValue\) at batch=2, seq_len=64, hidden_size=64, num_heads=2, num_blocks=4.*architectures",
}


@functools.cache
def logged_errors() -> dict[str, str]:
    return read_errors("mra")


@pytest.mark.parametrize("name", ERRORS)
def test_errors_reach_the_logger_with_their_values(name: str) -> None:

    assert re.search(ERRORS[name], logged_errors()[name]), logged_errors()[name]


def test_logger_is_called_where_it_is() -> None:
    """By the headers that are here. Where they are of a version that the plugin does not know: add it to logger_slot.h."""
    headers, others = logger_slots()
    product, version, place, known = headers.split()
    assert known == place, f"{product} {version} has ILogger::log at {place}, and logger_slot() says {known}"
    assert others.split() == ["-1", "0", "0", "-1", "-1", "4", "-1", "-1"], "versions that nobody tried have no place"


def test_every_logged_error_is_tested() -> None:
    assert logged_errors().keys() == ERRORS.keys()


# Real engines: TensorRT-RTX builds ahead of time, without a GPU.


def one_node(element: int, hidden: int = 256, **attributes: Any) -> onnx.ModelProto:
    shape = ["batch", "seq_len", hidden]
    inputs = [helper.make_tensor_value_info(name, element, shape) for name in ("query", "key", "value")]
    inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT32, shape[:2]))
    node = helper.make_node(
        "Mra2Attention",
        ["query", "key", "value", "attention_mask"],
        ["context"],
        name="attention",
        domain="mra",
        **{
            "num_heads": 4,
            "num_blocks": 64,
            "approx_mode": 0,
            "initial_prior_first_n_blocks": 0,
            "initial_prior_diagonal_n_blocks": 0,
            "scale": 0.125,
            **attributes,
        },
    )
    graph = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("context", element, shape)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("mra", 1)])


def test_both_namespaces_are_registered(rtx: Rtx) -> None:
    for name in ("Mra2Attention", "YosoAttention"):
        assert sorted(creator[1:] for creator in rtx.creators if creator[0] == name) == [("", "1"), ("mra", "1")]


@pytest.mark.parametrize(
    "element", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["fp32", "fp16", "bf16"]
)
@pytest.mark.parametrize(
    "lookup", [{}, {"plugin_namespace": "", "plugin_version": "1"}, {"plugin_namespace": "mra", "plugin_version": "1"}]
)
def test_rtx_builds_an_engine(rtx: Rtx, element: int, lookup: dict[str, str]) -> None:
    trt = rtx.trt
    builder, network, errors = rtx.parse(one_node(element, **lookup))
    assert errors == []
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    assert [layer.type for layer in layers].count(trt.LayerType.PLUGIN_V3) == 1
    wanted = {TensorProto.FLOAT: trt.float32, TensorProto.FLOAT16: trt.float16, TensorProto.BFLOAT16: trt.bfloat16}[
        element
    ]
    assert network.get_output(0).dtype == wanted
    assert tuple(network.get_output(0).shape) == (-1, -1, 256)

    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name in ("query", "key", "value"):
        profile.set_shape(name, (1, 1, 256), (4, 128, 256), (8, 512, 256))
    profile.set_shape("attention_mask", (1, 1), (4, 128), (8, 512))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    assert engine.nbytes > 1000


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"num_blocks": 0}, "num_blocks=0 must be at least 1"),
        ({"approx_mode": 5}, "approx_mode=5 must be 0"),
        ({"num_heads": 0}, "num_heads=0 must be at least 1"),
    ],
)
def test_rtx_hears_why_a_node_is_refused(rtx: Rtx, attributes: dict[str, int], message: str) -> None:
    rtx.logger.errors.clear()
    *_, errors = rtx.parse(one_node(TensorProto.FLOAT, **attributes))
    assert errors
    assert any(message in line for line in rtx.logger.errors), rtx.logger.errors

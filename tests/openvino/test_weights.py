"""Weights of an OpenVINO model in bfloat16 and in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mra_export.errors import InputError
from mra_export.openvino.weights import round_to_bfloat16, to_bfloat16, to_int8

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def product(weight: np.ndarray, name: str = "encoder.layer.0.output.dense.MatMul"):
    """A look-up in a table and a linear layer, [?, ?] of ids -> [?, ?, columns]."""
    from openvino import opset13 as ops

    ids = ops.parameter([-1, -1], np.int64, name="ids")
    rows = ops.gather(ops.constant(values(10, weight.shape[0])), ids, ops.constant(0))
    node = ops.matmul(rows, ops.constant(weight), False, False)
    node.set_friendly_name(name)
    return openvino.Model([node.output(0)], [ids], "product")


def run(model, **settings: str) -> np.ndarray:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **settings})
    return compiled({"ids": np.arange(10)[None]})[0]


def constants(model, kind: str) -> list:
    found = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    return [node for node in found if node.get_element_type().to_string() == kind]


def test_rounding_to_bfloat16_is_that_of_torch() -> None:
    numbers = np.concatenate([values(4096), values(4096) * 1e30, [0.0, -0.0, np.inf, -np.inf, 1.00390625, 1.01171875]])
    numbers = numbers.astype(np.float32)  # the last two are ties
    wanted = torch.from_numpy(numbers).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(round_to_bfloat16(numbers), wanted)
    assert round_to_bfloat16(np.array([np.nan], np.float32))[0] & 0x7FC0 == 0x7FC0


def test_matrices_become_bfloat16() -> None:
    weight = values(256, 64)
    model = product(weight)
    assert to_bfloat16(model) == 2
    assert {tuple(node.shape) for node in constants(model, "bf16")} == {(10, 256), (256, 64)}
    rounded = [torch.from_numpy(x).bfloat16().float().numpy() for x in (values(10, 256), weight)]
    assert np.allclose(run(model)[0], rounded[0] @ rounded[1], rtol=1e-5, atol=1e-4)


def test_weights_of_the_encoder_become_int8() -> None:
    weight = values(256, 64) * np.linspace(0.01, 10, 64, dtype=np.float32)
    weight[:, 3] = 0
    model = product(weight)
    assert to_int8(model) == 1
    assert [tuple(node.shape) for node in constants(model, "i8")] == [(256, 64)]
    exact, scale = values(10, 256) @ weight, np.abs(weight).max(axis=0)
    alone = run(model, DYNAMIC_QUANTIZATION_GROUP_SIZE="0")[0]
    # Half a step of each of 256 weights, as the random sum of these.
    assert np.abs(alone - exact).max() <= (6 * 16 * 0.5 / 127 * scale).max()
    assert np.all(np.abs(alone - exact) <= 6 * 16 * 0.5 / 127 * scale + 1e-6)


def test_what_layers_read_is_rounded_as_the_model_says() -> None:
    """Groups of 128, by `runtime_options` of the model: what stock OpenVINO does where nobody asks for anything."""
    model = product(values(256, 64))
    to_int8(model)
    asked = [run(model, DYNAMIC_QUANTIZATION_GROUP_SIZE=size) for size in ("0", "32", "128")]
    found = run(model)
    assert np.array_equal(found, asked[2])
    if "avx512_vnni" in Path("/proc/cpuinfo").read_text():
        assert not np.allclose(found, asked[0], rtol=1e-6, atol=1e-6)
        assert not np.array_equal(found, asked[1])


def test_other_products_stay() -> None:
    model = product(values(256, 64), name="lm_head.decoder.MatMul")
    with pytest.raises(InputError, match="no linear layers in an encoder"):
        to_int8(model)

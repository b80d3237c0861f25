"""The operator as a node in OpenVINO, of libmra_openvino.so and in Python: the accuracy that only OpenVINO's node has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cpu_kernels import ISAS, choose_isa, run_kernel
from onnx import TensorProto, helper

from mra_export.native.libraries import LIBRARY_FILES, find_library
from mra_export.openvino.core import open_core
from mra_export.operators.limits import OP_DOMAIN, OP_VERSION
from mra_export.operators.mra2_attention.spec import INPUTS, OP_TYPE, Mra2AttentionAttributes

pytestmark = pytest.mark.native
openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")

ATTRIBUTES = Mra2AttentionAttributes(2, 24, 0, 0, 0, 0.125)
NAMES = {number: name for name, number in ISAS.items()}


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def core(request: pytest.FixtureRequest) -> Any:
    library = find_library(request.param)
    if library is None:
        pytest.skip(f"{LIBRARY_FILES[request.param]} is not built: `mra-export build {request.param}`")
    return open_core(library)


@pytest.fixture
def model(core: Any) -> Any:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", 128]) for name in INPUTS[:3]]
    inputs.append(helper.make_tensor_value_info(INPUTS[3], TensorProto.INT32, ["b", "s"]))
    node = helper.make_node(OP_TYPE, list(INPUTS), ["context"], domain=OP_DOMAIN, **ATTRIBUTES.as_dict())
    graph = helper.make_graph(
        [node], "one", inputs, [helper.make_tensor_value_info("context", TensorProto.FLOAT, None)]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(OP_DOMAIN, OP_VERSION)]
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return core.read_model(proto.SerializeToString())


@pytest.fixture(scope="module")
def feed() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    mask = np.ones((2, 300), np.int32)
    mask[1, 200:] = 0
    return [*(generator.standard_normal((2, 300, 128), dtype=np.float32) for _ in INPUTS[:3]), mask]


def node_of(model: Any) -> Any:
    return next(node for node in model.get_ops() if node.get_type_name() == OP_TYPE)


def run(core: Any, model: Any, feed: list[np.ndarray], threads: int = 2) -> np.ndarray:
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    return np.array(core.compile_model(model, "CPU", hints)(feed)[0])


def direct(feed: list[np.ndarray], isa: str) -> np.ndarray:
    return run_kernel(*(torch.from_numpy(tensor) for tensor in feed), ATTRIBUTES, isa=isa).numpy()


def test_the_attribute_chooses_the_instruction_set(
    core: Any, model: Any, feed: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert node_of(model).get_attributes()["accuracy"] == "fp32"
    assert np.array_equal(run(core, model, feed), direct(feed, NAMES[choose_isa("", "fp32")]))
    node_of(model).set_attribute("accuracy", "bf16")
    for threads in (1, 2):
        assert np.array_equal(run(core, model, feed, threads), direct(feed, NAMES[choose_isa("", "bf16")]))
    monkeypatch.setenv("MRA_CPU_ISA", "portable")  # it comes before the attribute
    assert np.array_equal(run(core, model, feed), direct(feed, "portable"))


def test_the_ir_keeps_it_and_one_without_it_is_float32(
    core: Any, model: Any, feed: list[np.ndarray], tmp_path: Path
) -> None:
    node_of(model).set_attribute("accuracy", "bf16")
    path = tmp_path / "model.xml"
    openvino.save_model(model, path)
    assert node_of(core.read_model(path)).get_attributes()["accuracy"] == "bf16"
    text = path.read_text()
    assert text.count(' accuracy="bf16"') == 1
    path.write_text(text.replace(' accuracy="bf16"', ""))
    old = core.read_model(path)
    assert node_of(old).get_attributes()["accuracy"] == "fp32"
    assert np.array_equal(run(core, old, feed), direct(feed, NAMES[choose_isa("", "fp32")]))
    path.write_text(text.replace(' accuracy="bf16"', ' accuracy="fp8"'))
    with pytest.raises(RuntimeError, match="accuracy=fp8 must be fp32 or bf16"):
        core.read_model(path)


def test_an_unknown_accuracy_is_refused(core: Any, model: Any, feed: list[np.ndarray]) -> None:
    node_of(model).set_attribute("accuracy", "int4")
    with pytest.raises(RuntimeError, match="accuracy=int4 must be fp32 or bf16"):
        run(core, model, feed)

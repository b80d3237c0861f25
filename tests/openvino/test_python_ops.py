"""The operators as nodes in Python: which library is taken, and what such a node refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from mra_export.errors import DependencyError, InputError
from mra_export.families._registry import families
from mra_export.native.libraries import find_library, has_functions
from mra_export.openvino import core as core_module
from mra_export.openvino.core import check_library, open_core, operator_library, operators_shown
from mra_export.operators.limits import OP_DOMAIN, OP_VERSION
from mra_export.operators.mra2_attention.spec import INPUTS, OP_TYPE, Mra2AttentionAttributes

pytest.importorskip("openvino", reason="OpenVINO is not installed")

EXTENSION = b"\x7fELF...\0mra-openvino-release=2026.4.1\0"
FUNCTIONS = b"\x7fELF...\0mra_call_Mra2Attention\0"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libraries are looked for, and nowhere else."""
    monkeypatch.setattr("mra_export.native.libraries.library_dirs", lambda: [tmp_path])
    monkeypatch.setattr(core_module, "release", lambda: "2026.4.1")
    return tmp_path


def test_the_extension_comes_first(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extension, other = places / "libmra_openvino.so", places / "libmra_onnxruntime.so"
    with pytest.raises(DependencyError, match="`mra-export build openvino` to compile it"):
        operator_library()
    other.write_bytes(FUNCTIONS)
    assert operator_library() == other
    extension.write_bytes(EXTENSION)
    assert operator_library() == extension
    monkeypatch.setattr(core_module, "release", lambda: "2027.0.0")
    assert operator_library() == other
    assert operator_library(extension) == extension  # the user's choice, which is then refused
    with pytest.raises(DependencyError, match=r"built for OpenVINO 2026\.4\.1, and 2027\.0\.0 is installed"):
        check_library(extension)
    check_library(other)
    other.write_bytes(b"\x7fELF of an older version")
    assert operator_library() == extension
    with pytest.raises(InputError, match=r"libmra_onnxruntime\.so is not libmra_openvino\.so"):
        check_library(other)


def test_what_runs_is_said(places: Path) -> None:
    for content, shown in ((EXTENSION, "native operator"), (FUNCTIONS, "native operator in a node in Python")):
        (places / "library.so").write_bytes(content)
        assert operators_shown(places / "library.so") == shown


def test_a_library_without_the_functions_is_refused(places: Path) -> None:
    (places / "library.so").write_bytes(FUNCTIONS)
    with pytest.raises(InputError, match=r"library\.so cannot be loaded"):
        open_core(places / "library.so")


def test_the_params_are_those_of_the_operators() -> None:
    """Names and order of the struct's members, which a wrong one would shift."""
    for family in families().values():
        if family.operator_attributes:
            assert family.operator_inputs[:4] == INPUTS
            assert set(family.operator_integers) <= set(family.operator_inputs)
            values = dict.fromkeys(family.operator_attributes, 1)
            assert list(family.attributes_from(values).as_dict()) == list(family.operator_attributes)


@pytest.fixture(scope="module")
def core() -> Any:
    library = find_library("onnxruntime")
    if library is None or not has_functions(library):
        pytest.skip("libmra_onnxruntime.so is not built: `mra-export build`")
    return open_core(library, threads=2)


def one_node(rank: int = 3, **changed: Any) -> bytes:
    dims = ["batch", "tokens", "numbers"]  # of key, value and mask others, so that only a call tells whether they fit
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}_{dim}" for dim in dims[:rank]])
        for name in INPUTS[:3]
    ]
    mask_dims = [f"mask_{dim}" for dim in dims[: rank - 1]]
    inputs.append(helper.make_tensor_value_info(INPUTS[3], TensorProto.INT32, mask_dims))
    attributes = Mra2AttentionAttributes(2, 4, 0, 0, 0, 0.125).as_dict() | changed
    node = helper.make_node(OP_TYPE, list(INPUTS), ["context"], domain=OP_DOMAIN, **attributes)
    graph = helper.make_graph(
        [node], "one", inputs, [helper.make_tensor_value_info("context", TensorProto.FLOAT, None)]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(OP_DOMAIN, OP_VERSION)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


@pytest.mark.native
def test_a_bad_attribute_fails_where_the_model_is_read(core: Any) -> None:
    with pytest.raises(RuntimeError, match="approx_mode=7"):
        core.read_model(one_node(approx_mode=7))


@pytest.mark.native
@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (((1, 40, 32), (1, 40, 32), (1, 40, 32), (1, 39)), r"attention_mask is i32\[1, 39\]; .*must be i32\[1, 40\]"),
        (((1, 40, 32), (1, 40, 16), (1, 40, 32), (1, 40)), r"key is f32\[1, 40, 16\]; .*must be f32\[1, 40, 32\]"),
        (((40, 32), (40, 32), (40, 32), (40,)), r"query is f32\[40, 32\]; it must be f32, f16, bf16 of 3 dimensions"),
        (((1, 40, 36), (1, 40, 36), (1, 40, 36), (1, 40)), r"hidden_size=36|head_dim=18"),
    ],
)
def test_inputs_that_do_not_fit_are_named(core: Any, shapes: Any, text: str) -> None:
    model = core.read_model(one_node(rank=len(shapes[0])))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feed = [np.ones(shape, np.int32 if place == 3 else np.float32) for place, shape in enumerate(shapes)]
    with pytest.raises(RuntimeError, match=text):
        compiled(feed)


@pytest.mark.native
def test_no_example_gives_none(core: Any) -> None:
    compiled = core.compile_model(core.read_model(one_node()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feed = [*(np.ones((0, 40, 32), np.float32) for _ in range(3)), np.ones((0, 40), np.int32)]
    assert compiled(feed)[0].shape == (0, 40, 32)

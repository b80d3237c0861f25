"""The op of ONNX Runtime's CUDA provider: in a real session with its kernels on the host, and in the library of nvcc."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda_host
import numpy as np
import onnx
import pytest
import torch
from goldens import Golden, load_golden
from measures import relative_error
from onnx import TensorProto, helper
from paths import REPO, TESTS

from mra_export.native.headers import fetch_headers, find_headers
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes
from mra_export.operators.yoso_attention.reference import draw_hash_constants, yoso_attention
from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes

ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(cuda_host.ON_DEVICE, reason="the kernels of this test are on the host")
PLUGIN = REPO / "plugins" / "onnxruntime"
ELEMENTS = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}


def ort_include() -> Path:
    return (find_headers("onnxruntime") or fetch_headers("onnxruntime")).path


@functools.cache
def host_library() -> Path:
    sources = (
        TESTS / "plugins" / "onnxruntime" / "onnxruntime_on_host.cc",
        *(PLUGIN / f"{name}.cc" for name in ("custom_op", "mra2_attention_op", "yoso_attention_op")),
        TESTS / "plugins" / "tensorrt" / "host_cuda.cc",
    )
    options = ("-isystem", str(ort_include()), f"-I{PLUGIN}", '-DMRA_CUDA_ARCHITECTURES="host"')
    return cuda_host.compile_host("libmra_onnxruntime_host.so", sources, options=options)


def cuda_library() -> Path:
    """libmra_onnxruntime.so with MRA_CUDA."""
    return cuda_host.nvcc_library("onnxruntime")


@functools.cache
def concurrent_runs() -> Path:
    sources = (
        TESTS / "plugins" / "onnxruntime" / "concurrent_runs.cc",
        PLUGIN / "custom_op.cc",
        TESTS / "plugins" / "tensorrt" / "host_cuda.cc",
    )
    options = ("-isystem", str(ort_include()), f"-I{PLUGIN}", '-DMRA_CUDA_ARCHITECTURES="host"')
    return cuda_host.compile_host("concurrent_runs", sources, options=options, kernels=False)


def make_session(
    library: Path, attributes: Mra2AttentionAttributes, dtype: torch.dtype, hidden: int
) -> ort.InferenceSession:
    element = ELEMENTS[dtype]
    shape = ["batch", "seq_len", hidden]
    inputs = [helper.make_tensor_value_info(name, element, shape) for name in ("query", "key", "value")]
    inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT32, shape[:2]))
    node = helper.make_node(
        "Mra2Attention",
        ["query", "key", "value", "attention_mask"],
        ["context"],
        domain="mra",
        **attributes.as_dict(),
    )
    graph = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("context", element, shape)])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("mra", 1)], ir_version=10
    )
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feed(golden: Golden, dtype: torch.dtype) -> dict[str, np.ndarray]:
    kind = np.float32 if dtype == torch.float32 else np.float16
    return {
        "query": golden.query.astype(kind),
        "key": golden.key.astype(kind),
        "value": golden.value.astype(kind),
        "attention_mask": golden.attention_mask,
    }


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("name", ["c03_pad_batch", "c04_priors", "c07_sparse_pad_empty_rows"])
def test_session_computes_what_the_kernels_compute(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load_golden(name)
    session = make_session(host_library(), golden.attributes, dtype, golden.query.shape[2])
    inputs = feed(golden, dtype)
    with monkeypatch.context() as environment:
        environment.setenv("MRA_HOST_LOADED", "1")  # making the session loaded all that it may launch
        (context,) = session.run(None, inputs)
    alone = cuda_host.run(*(torch.from_numpy(x) for x in inputs.values()), golden.attributes).context
    assert np.array_equal(context, alone.numpy())
    assert relative_error(context, golden.expected) <= (2e-5 if dtype == torch.float32 else 5e-4)


YOSO = {
    "expectation": YosoAttentionAttributes(2, 0, 9, 0, 0, 0),
    "expectation_conv": YosoAttentionAttributes(2, 0, 9, 0, 0, 5),
    "lsh": YosoAttentionAttributes(2, 1, 9, 8, 1, 0),
    "lsh_conv": YosoAttentionAttributes(2, 1, 9, 8, 0, 5),
}


def yoso_session(
    library: Path, attributes: YosoAttentionAttributes, dtype: torch.dtype, head_dim: int
) -> tuple[ort.InferenceSession, dict[str, np.ndarray]]:
    """A session of one YosoAttention node, and inputs for it."""
    generator = torch.Generator().manual_seed(2)
    hidden = attributes.num_heads * head_dim
    given = {
        name: torch.randn(2, 70, hidden, generator=generator).to(dtype).numpy() for name in ("query", "key", "value")
    }
    given["attention_mask"] = np.ones((2, 70), np.int32)
    given["attention_mask"][1, 50:] = 0
    if attributes.mode:
        given["hash_constants"] = draw_hash_constants(attributes, head_dim, 0).numpy()
    if attributes.conv_window:
        shape = (attributes.num_heads, attributes.conv_window)
        given["conv_weight"] = torch.randn(shape, generator=generator).to(dtype).numpy()
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in given.items()
    ]
    node = helper.make_node("YosoAttention", list(given), ["context"], domain="mra", **attributes.as_dict())
    outputs = [helper.make_tensor_value_info("context", ELEMENTS[dtype], given["query"].shape)]
    graph = helper.make_graph([node], "one", inputs, outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mra", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]), given


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("name", YOSO)
def test_yoso_session_computes_what_the_kernels_compute(name: str, dtype: torch.dtype) -> None:
    session, given = yoso_session(host_library(), YOSO[name], dtype, 32)
    (context,) = session.run(None, given)
    inputs = cuda_host.yoso_inputs(*map(torch.from_numpy, given.values()), attributes=YOSO[name])
    assert np.array_equal(context, cuda_host.run_yoso(inputs, YOSO[name]).context.numpy())


@pytest.mark.parametrize("name", ["streams", "no stream", "no memory"])
def test_workspace_belongs_to_the_stream(name: str) -> None:
    """Calls on several streams whose kernels run at once, as those of concurrent runs of a session."""
    done = subprocess.run([str(concurrent_runs()), name], capture_output=True, text=True, check=False)
    assert done.stdout == "OK\n", done.stderr


@pytest.mark.parametrize(
    ("driver", "sentence"),
    [
        (
            "12040",
            r"The driver serves CUDA 12\.4, this library needs CUDA 1\d: install a newer driver, or compile the library",
        ),
        ("0", r"There is no NVIDIA driver here\."),
    ],
)
def test_old_driver_is_named(driver: str, sentence: str) -> None:
    environment = os.environ | {"MRA_HOST_DRIVER": driver}
    done = subprocess.run(
        [str(concurrent_runs()), "driver"], capture_output=True, text=True, check=True, env=environment
    )
    assert re.search(rf"num_heads=1\. The library holds code for GPU architectures host\. {sentence}", done.stdout)


def test_empty_batch_in_a_session() -> None:
    attributes = Mra2AttentionAttributes(1, 4, 0, 0, 0, 0.125)
    session = make_session(host_library(), attributes, torch.float32, 32)
    empty = np.zeros((0, 64, 32), np.float32)
    inputs = {"query": empty, "key": empty, "value": empty, "attention_mask": np.zeros((0, 64), np.int32)}
    assert session.run(None, inputs)[0].shape == (0, 64, 32)


def test_bad_attribute_fails_where_the_session_is_made() -> None:
    with pytest.raises(Exception, match="num_blocks=0 must be at least 1"):
        make_session(host_library(), Mra2AttentionAttributes(1, 0, 0, 0, 0, 0.125), torch.float32, 32)


def test_library_with_cuda_serves_the_cpu_provider_too() -> None:
    golden = load_golden("c04_priors")
    session = make_session(cuda_library(), golden.attributes, torch.float32, golden.query.shape[2])
    (context,) = session.run(None, feed(golden, torch.float32))
    assert relative_error(context, golden.expected) <= 2e-5


needs_cuda_provider = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers() or not torch.cuda.is_available(),
    reason="ONNX Runtime has no CUDA provider here, or there is no GPU",
)


@needs_cuda_provider
@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_cuda_provider(dtype: torch.dtype) -> None:
    golden = load_golden("c04_priors")
    session = make_session(cuda_library(), golden.attributes, dtype, golden.query.shape[2])
    session.set_providers(["CUDAExecutionProvider"])
    (context,) = session.run(None, feed(golden, dtype))
    assert relative_error(context, golden.expected) <= (2e-5 if dtype == torch.float32 else 5e-4)


@needs_cuda_provider
@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("name", YOSO)
def test_yoso_in_the_cuda_provider(name: str, dtype: torch.dtype) -> None:
    session, given = yoso_session(cuda_library(), YOSO[name], dtype, 32)
    session.set_providers(["CUDAExecutionProvider"])
    (context,) = session.run(None, given)
    tensors = [torch.from_numpy(value) for value in given.values()]
    wide = [x.double() if x.dtype == dtype else x for x in tensors]
    expected = yoso_attention(*wide[:4], YOSO[name], *wide[4:]).numpy()
    assert relative_error(context, expected) <= (2e-5 if dtype == torch.float32 else 1e-3)


@needs_cuda_provider
def test_concurrent_runs_in_the_cuda_provider() -> None:
    """8 threads, one session, inputs of their own, 1000 runs: bit for bit what each input gives alone."""
    attributes = Mra2AttentionAttributes(4, 256, 0, 0, 1, 0.125)
    session = make_session(cuda_library(), attributes, torch.float16, 256)
    session.set_providers(["CUDAExecutionProvider"])
    generator = np.random.default_rng(0)
    feeds = []
    for thread in range(8):
        shape = (2, 2048 - 96 * thread, 256)
        given = {
            name: generator.standard_normal(shape, np.float32).astype(np.float16) for name in ("query", "key", "value")
        }
        given["attention_mask"] = (generator.random(shape[:2]) < 0.9).astype(np.int32)
        feeds.append(given)
    alone = [session.run(None, given)[0].view(np.uint16) for given in feeds]

    def count_differences(thread: int) -> int:
        runs = (session.run(None, feeds[thread])[0].view(np.uint16) for _ in range(125))
        return sum(not np.array_equal(context, alone[thread]) for context in runs)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(count_differences, range(8))) == [0] * 8

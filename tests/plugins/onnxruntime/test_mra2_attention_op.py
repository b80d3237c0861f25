"""The operator as a node in ONNX Runtime, through libmra_onnxruntime.so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cpu_kernels import ISAS, build, choose_isa, machine_isas, run_kernel
from goldens import Golden
from measures import relative_error
from onnx import TensorProto, helper
from paths import REPO

from mra_export.operators.limits import OP_DOMAIN, OP_VERSION
from mra_export.operators.mra2_attention.spec import INPUTS, OP_TYPE, Mra2AttentionAttributes

ort = pytest.importorskip("onnxruntime")

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
ATTRIBUTES = Mra2AttentionAttributes(2, 24, 0, 0, 0, 0.125)


@pytest.fixture(scope="module")
def library() -> Path:
    return build() / "plugins" / "onnxruntime" / "libmra_onnxruntime.so"


def make_model(
    attributes: Mra2AttentionAttributes, dtype: str = "float32", *, functions: tuple[onnx.FunctionProto, ...] = ()
) -> onnx.ModelProto:
    """query, key, value float32 [batch, sequence, hidden] -> casts -> one node -> cast -> context."""
    inputs, nodes = [], []
    for name in INPUTS[:3]:
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "sequence", "hidden"]))
        nodes.append(helper.make_node("Cast", [name], [f"{name}_cast"], to=TYPES[dtype]))
    inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT32, None))
    operands = [*(f"{name}_cast" for name in INPUTS[:3]), "attention_mask"]
    nodes.append(helper.make_node(OP_TYPE, operands, ["context_cast"], domain=OP_DOMAIN, **attributes.as_dict()))
    nodes.append(helper.make_node("Cast", ["context_cast"], ["context"], to=TensorProto.FLOAT))
    graph = helper.make_graph(nodes, "one", inputs, [helper.make_tensor_value_info("context", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(OP_DOMAIN, OP_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def make_session(library: Path, model: onnx.ModelProto, threads: int = 2) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def make_feed(batch: int, seq_len: int, hidden: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feed = {name: rng.standard_normal((batch, seq_len, hidden), dtype=np.float32) for name in INPUTS[:3]}
    return {**feed, "attention_mask": (rng.random((batch, seq_len)) < 0.9).astype(np.int32)}


def run(session: ort.InferenceSession, feed: dict[str, np.ndarray]) -> np.ndarray:
    return session.run(None, feed)[0]


@pytest.mark.parametrize("dtype", TYPES)
def test_golden_vectors(golden: Golden, dtype: str, library: Path) -> None:
    session = make_session(library, make_model(golden.attributes, dtype))
    tensors = (golden.query, golden.key, golden.value, golden.attention_mask)
    context = run(session, dict(zip(INPUTS, tensors, strict=True)))
    if dtype == "float32":
        assert relative_error(context, golden.expected) <= 2e-5
    half = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in tensors[:3]]
    direct = run_kernel(*half, torch.from_numpy(golden.attention_mask), golden.attributes)
    assert np.array_equal(context, direct.float().numpy()), "the node is the kernel, bit for bit"


def test_the_library_is_preferred_to_the_function_body(library: Path) -> None:
    """The body of this model answers with the query, so that the two cannot be confused."""
    body = onnx.helper.make_function(
        OP_DOMAIN,
        OP_TYPE,
        list(INPUTS),
        ["context"],
        [helper.make_node("Identity", ["query"], ["context"])],
        [helper.make_opsetid("", 18)],
        list(ATTRIBUTES.as_dict()),
    )
    model = make_model(ATTRIBUTES, functions=(body,))
    feed = make_feed(1, 64, 128)
    stock = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(run(stock, feed), feed["query"])
    with_library = run(make_session(library, model), feed)
    assert np.array_equal(with_library, run(make_session(library, make_model(ATTRIBUTES)), feed))
    assert not np.array_equal(with_library, feed["query"])


def test_shapes_are_inferred(library: Path) -> None:
    assert make_session(library, make_model(ATTRIBUTES)).get_outputs()[0].shape == ["batch", "sequence", "hidden"]


@pytest.mark.parametrize("dtype", TYPES)
def test_same_bits_for_any_number_of_threads(dtype: str, library: Path) -> None:
    model = make_model(ATTRIBUTES, dtype)
    feed = make_feed(2, 700, 128)
    results = [run(make_session(library, model, threads), feed) for threads in (1, 2, 3)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_many_sessions_and_threads_at_once(library: Path) -> None:
    jobs = []
    for i in range(8):
        attributes = Mra2AttentionAttributes(2, 5 + 9 * i, i % 2, i % 3, i % 4, 0.2)
        session = make_session(library, make_model(attributes, list(TYPES)[i % 3]), threads=1 + i % 3)
        feeds = [make_feed(1 + j % 2, 40 + 97 * j, 64, seed=j) for j in range(4)]
        jobs += [(session, feed, run(session, feed)) for feed in feeds]

    def repeat(job: tuple[ort.InferenceSession, dict[str, np.ndarray], np.ndarray]) -> bool:
        session, feed, expected = job
        return all(np.array_equal(run(session, feed), expected) for _ in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(repeat, jobs * 2))


def test_an_empty_batch_gives_an_empty_output(library: Path) -> None:
    assert run(make_session(library, make_model(ATTRIBUTES)), make_feed(0, 64, 128)).shape == (0, 64, 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads=0 must be at least 1"),
        ({"num_blocks": -3}, "num_blocks=-3 must be at least 1"),
        ({"approx_mode": 9}, r"approx_mode=9 must be 0 \(full\) or 1 \(sparse\)"),
        ({"initial_prior_first_n_blocks": -1}, "initial_prior_first_n_blocks=-1 must not be negative"),
        ({"scale": float("inf")}, "scale=inf must be finite"),
    ],
)
def test_bad_attributes_fail_where_the_session_is_made(changes: dict[str, object], message: str, library: Path) -> None:
    attributes = Mra2AttentionAttributes(**{**ATTRIBUTES.as_dict(), **changes})
    with pytest.raises(Exception, match=message):
        make_session(library, make_model(attributes))


def test_a_missing_attribute_fails_where_the_session_is_made(library: Path) -> None:
    model = make_model(ATTRIBUTES)
    node = next(node for node in model.graph.node if node.op_type == OP_TYPE)
    node.attribute.remove(next(attribute for attribute in node.attribute if attribute.name == "num_blocks"))
    with pytest.raises(Exception, match="num_blocks"):
        make_session(library, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": (1, 64, 12)}, "key has size 128 in dimension 2, and query has 12; they must be equal"),
        ({"key": (1, 63, 128)}, "key has size 63 in dimension 1, and query has 64; they must be equal"),
        ({"value": (2, 64, 128)}, "value has size 2 in dimension 0, and query has 1; they must be equal"),
        ({"attention_mask": (1, 65)}, "attention_mask has size 65 in dimension 1, and query has 64"),
        ({"attention_mask": (1, 1, 1, 64)}, "attention_mask has 4 dimensions; it must have 2"),
        (dict.fromkeys(INPUTS[:3], (1, 64, 24)), r"head_dim=12 .* must be a multiple of 8"),
        (dict.fromkeys(INPUTS[:3], (1, 64, 1024)), r"head_dim=512 .* at most 256"),
    ],
)
def test_bad_shapes_are_refused_and_the_session_lives(
    changes: dict[str, tuple[int, ...]], message: str, library: Path
) -> None:
    session = make_session(library, make_model(ATTRIBUTES))
    feed = make_feed(1, 64, 128)
    bad = {name: np.ones(changes.get(name, tensor.shape), tensor.dtype) for name, tensor in feed.items()}
    with pytest.raises(Exception, match=message):
        run(session, bad)
    assert np.isfinite(run(session, feed)).all()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPO), **environment}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env, check=False
    )


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_the_environment_chooses_the_instruction_set(isa: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa not in machine_isas():
        pytest.skip(f"this machine has no {isa}")
    monkeypatch.setenv("MRA_CPU_ISA", isa)
    feed = make_feed(1, 300, 128)
    context = run(make_session(library, make_model(ATTRIBUTES)), feed)
    direct = run_kernel(*(torch.from_numpy(feed[name]) for name in INPUTS), ATTRIBUTES, isa=isa)
    assert np.array_equal(context, direct.numpy())


def test_an_unknown_instruction_set_is_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRA_CPU_ISA", "mmx")
    with pytest.raises(Exception, match="MRA_CPU_ISA=mmx must be avx512_bf16, avx512_fp16, avx512, avx2 or portable"):
        make_session(library, make_model(ATTRIBUTES))


def session_of_accuracy(library: Path, accuracy: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.add_session_config_entry("mra.accuracy", accuracy)
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(make_model(ATTRIBUTES).SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_the_session_chooses_the_accuracy(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of itself alone: sessions of both levels live beside each other. MRA_CPU_ISA comes before it."""
    feed = make_feed(1, 300, 128)
    names = {number: name for name, number in ISAS.items()}
    sessions = [session_of_accuracy(library, level) for level in ("fp32", "bf16")]
    sessions.append(make_session(library, make_model(ATTRIBUTES)))
    monkeypatch.setenv("MRA_CPU_ISA", "portable")
    sessions.append(session_of_accuracy(library, "bf16"))
    used = [names[choose_isa("", "fp32")], names[choose_isa("", "bf16")], names[choose_isa("", "fp32")], "portable"]
    for session, isa in zip(sessions, used, strict=True):
        direct = run_kernel(*(torch.from_numpy(feed[name]) for name in INPUTS), ATTRIBUTES, isa=isa)
        assert np.array_equal(run(session, feed), direct.numpy())


@pytest.mark.parametrize(
    ("accuracy", "message"),
    [("fp8", "mra.accuracy=fp8 must be fp32 or bf16"), ("bf16" * 200, "mra.accuracy has 800 characters; it must be")],
)
def test_an_unknown_accuracy_is_refused(accuracy: str, message: str, library: Path) -> None:
    with pytest.raises(Exception, match=message):
        session_of_accuracy(library, accuracy)


def test_an_old_runtime_is_told_so(library: Path) -> None:
    """A base that knows no API 21, as ONNX Runtime 1.20's; its older APIs are those of the runtime that is installed."""
    code = f"""
        import ctypes, glob, os, onnxruntime
        capi = os.path.join(os.path.dirname(onnxruntime.__file__), "capi")
        runtime = ctypes.CDLL(glob.glob(os.path.join(capi, "libonnxruntime.so*"))[0])
        GetApi = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
        GetVersion = ctypes.CFUNCTYPE(ctypes.c_char_p)
        class Base(ctypes.Structure):
            _fields_ = [("get_api", GetApi), ("get_version", GetVersion)]
        runtime.OrtGetApiBase.restype = ctypes.POINTER(Base)
        real = runtime.OrtGetApiBase().contents
        old = Base(GetApi(lambda version: real.get_api(version) if version <= 20 else None), GetVersion(lambda: b"1.20.1"))
        plugin = ctypes.CDLL({str(library)!r})
        plugin.RegisterCustomOps.restype = ctypes.c_void_p
        plugin.RegisterCustomOps.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        status = plugin.RegisterCustomOps(None, ctypes.addressof(old))
        api = ctypes.cast(real.get_api(1), ctypes.POINTER(ctypes.c_void_p))
        get_message = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(api[2])  # CreateStatus, GetErrorCode, GetErrorMessage
        print(get_message(status).decode())
    """
    done = run_python(code)
    assert "ONNX Runtime 1.20.1 is too old for libmra_onnxruntime.so. Install 1.21 or newer." in done.stdout, (
        done.stderr
    )


def test_the_library_exports_its_functions_and_links_no_runtime(library: Path) -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    names = ["RegisterCustomOps", "mra_call_Mra2Attention", "mra_call_YosoAttention"]
    assert [line.split()[-1] for line in symbols.splitlines()] == names
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"NEEDED.*(onnxruntime|stdc\+\+)", needed)

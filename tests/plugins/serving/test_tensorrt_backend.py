"""Engines in the C++ serving library: its backend on a stand-in for TensorRT in host memory, and linked with TensorRT-RTX."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measures import relative_error
from serving_support import (
    Driver,
    Refused,
    cuda_include,
    installed,
    mixed_texts,
    relist,
    rtx_library,
    spell,
    write_manifest,
)

from mra_export.engine.manifest import Manifest
from mra_export.engine.manifest import write_manifest as write_engine_manifest

SETTINGS = {
    "hidden": 64,
    "min_rows": 1,
    "max_rows": 8,
    "min_width": 1,
    "max_width": 128,
    "types": 1,
    "pooled": 1,
    "half": 0,
    "capturable": 1,
    "working": 5000,
}
MACHINE = {
    "backend": "tensorrt",
    "backend_version": "10.14.1.48",
    "compute_capability": "9.0",
    "hardware_compatible": False,
}


def add_engine(
    bundle: Path,
    name: str = "a",
    machine: dict[str, Any] | None = None,
    plugin_content: bytes = b"plugin\n",
    **settings: int,
) -> None:
    """Adds an engine of the stand-in, with its plugin, its manifest and its variant, to a bundle."""
    machine = {**MACHINE, **(machine or {})}
    engine, plugin = bundle / "engines" / f"{name}.engine", bundle / "lib" / "libmra_tensorrt.so"
    engine.parent.mkdir(exist_ok=True)
    engine.write_text("".join(f"{key} {value}\n" for key, value in {**SETTINGS, **settings}.items()))
    plugin.write_bytes(plugin_content)
    low, high = [SETTINGS["min_rows"], SETTINGS["min_width"]], [SETTINGS["max_rows"], SETTINGS["max_width"]]
    profile = {"min": low, "opt": high, "max": high}
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    write_engine_manifest(
        Manifest(
            format=1,
            mra_export="0.1.0",
            version_compatible=False,
            gpu="host memory",
            engine_bytes=engine.stat().st_size,
            engine_sha256=hashlib.sha256(engine.read_bytes()).hexdigest(),
            plugin_name="Mra2Attention",
            plugin_version="1",
            plugin_sha256=hashlib.sha256(plugin.read_bytes()).hexdigest(),
            plugin_embedded=False,
            plugin_architectures="90-real",
            plugin_layers=2,
            precision="fp16",
            precision_proof="none",
            tensor_types={},
            weights_stripped=False,
            task="feature-extraction",
            inputs=dict.fromkeys(inputs, profile),
            outputs=["last_hidden_state", "sentence_embedding"],
            onnx_sha256="0" * 64,
            onnx_dtype="fp32",
            attributes=[],
            pooling=None,
            parity=None,
            versions={},
            **machine,
        ),
        engine.with_name(f"{engine.name}.json"),
    )
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["variants"].append(
        {
            **machine,
            "file": f"engines/{name}.engine",
            "manifest": f"engines/{name}.engine.json",
            "precision": "fp16",
            "library": "lib/libmra_tensorrt.so",
            "version_compatible": False,
            "gpu": "host memory",
            "profiles": dict.fromkeys(inputs, profile),
        }
    )
    write_manifest(bundle, manifest)
    relist(bundle)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Driver]:
    """The sanitized driver, whose backend is linked with the stand-in."""
    if cuda_include() is None:
        pytest.skip("CUDA's headers were not found")
    with Driver("static", tmp_path) as process:
        yield process


def backend_dir(kind: str) -> str:
    return f"backend_dir={installed(kind) / 'lib'}"


def expected_vectors(texts: list[list[int]]) -> np.ndarray:
    """The stand-in's model: see fake_tensorrt.cc."""
    rows = []
    for text in texts:
        states = (31 * np.array(text)[:, None] + 7 * np.arange(len(text))[:, None] + 13 * np.arange(64)) % 101 / 101
        rows.append((states + -(-len(text) // 32)).mean(0))
    return np.array(rows)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, ()),
        ({}, ("cuda_graphs=1",)),
        ({}, ("cuda_graphs=1", "max_batch_tokens=256")),
        ({"capturable": 0}, ("cuda_graphs=1",)),
        ({"min_rows": 3, "min_width": 32}, ("parallel_runs=1",)),
        ({"max_rows": 1}, ()),
    ],
    ids=str,
)
def test_an_engine_gives_each_text_its_vector(
    settings: dict[str, int], options: tuple[str, ...], fake: Driver, bundle: Path
) -> None:
    add_engine(bundle, **settings)
    opened = fake.ask("open", "m", bundle, backend_dir("static"), "max_batch_tokens=1024", *options)
    assert opened[:6] == ["tensorrt", "engines/a.engine", "host memory", "10.14.1", "mean", "128"]
    texts = mixed_texts(112, 128, 60)
    for _ in range(3):  # graphs are recorded in the first round and run in the others
        assert relative_error(fake.embed("m", texts), expected_vectors(texts)) <= 1e-6
    assert relative_error(fake.embed("m", texts[7:8]), expected_vectors(texts[7:8])) <= 1e-6
    with pytest.raises(Refused, match="Text 0 has 129 tokens, more than the 128"):
        fake.embed("m", [[5] * 129])


@pytest.mark.parametrize(
    ("settings", "options", "padded"),
    [
        ({}, (), 3 * 8 + 40),
        ({"min_width": 16}, (), 3 * 16 + 40),
        ({}, ("cuda_graphs=1",), 4 * 32 + 64),  # whole blocks, and rows filled up to a power of two
        ({"max_width": 50}, ("cuda_graphs=1",), 4 * 32 + 50),
    ],
    ids=str,
)
def test_a_run_is_no_wider_than_the_profile_wants(
    settings: dict[str, int], options: tuple[str, ...], padded: int, fake: Driver, bundle: Path
) -> None:
    add_engine(bundle, **settings)
    fake.ask("open", "m", bundle, backend_dir("static"), *options)
    texts = [[5] * 8, [6] * 40, [7], [8] * 4]
    assert relative_error(fake.embed("m", texts), expected_vectors(texts)) <= 1e-6
    assert int(fake.ask("counters", "m")[2]) == padded


def test_the_ids_of_an_engine_are_those_of_the_onnx_file(fake: Driver, bundle: Path) -> None:
    add_engine(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["model"]["vocab_size"] = 121
    write_manifest(bundle, manifest)
    with pytest.raises(Refused, match=r"manifest.json says vocab_size=121, and .*model.onnx is a model of 120"):
        fake.ask("open", "m", bundle, backend_dir("static"), "variant=tensorrt")


@pytest.mark.parametrize("verify", [0, 1])
def test_a_plugin_that_was_cut_off_is_refused(verify: int, fake: Driver, bundle: Path) -> None:
    library = (bundle / "lib" / "libmra_onnxruntime.so").read_bytes()
    add_engine(bundle, plugin_content=library[: len(library) // 2])
    with pytest.raises(Refused, match=r"libmra_tensorrt\.so has \d+ bytes, .*: it was cut off or damaged"):
        fake.ask("open", "m", bundle, backend_dir("static"), "variant=tensorrt", f"verify_files={verify}")


def test_a_profile_may_end_within_a_block(fake: Driver, bundle: Path) -> None:
    add_engine(bundle, max_width=100)
    assert fake.ask("open", "m", bundle, backend_dir("static"))[5] == "100"
    texts = mixed_texts(112, 100, 40)
    assert relative_error(fake.embed("m", texts), expected_vectors(texts)) <= 1e-6


@pytest.mark.parametrize("graphs", [0, 1])
def test_contexts_are_shared_out_to_threads(graphs: int, fake: Driver, bundle: Path) -> None:
    add_engine(bundle)
    fake.ask("open", "m", bundle, backend_dir("static"), "parallel_runs=3", f"cuda_graphs={graphs}")
    assert float(fake.ask("threads", "m", 8, 20, spell(mixed_texts(112, 128, 30)))[0]) <= 1e-6


def test_a_fault_on_the_device_is_an_error_and_the_next_run_is_right(fake: Driver, bundle: Path) -> None:
    add_engine(bundle)
    fake.ask("open", "m", bundle, backend_dir("static"), "parallel_runs=1")
    with pytest.raises(Refused, match="running the engine: an illegal memory access") as refused:
        fake.embed("m", [[5, 6], [113, 6]])
    assert refused.value.code == 1
    assert relative_error(fake.embed("m", [[5, 6]]), expected_vectors([[5, 6]])) <= 1e-6


def test_states_are_averaged_where_there_is_no_pooling(fake: Driver, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["embedding"], manifest["model"]["outputs"] = None, ["last_hidden_state"]
    write_manifest(bundle, manifest)
    add_engine(bundle, pooled=0)
    fake.ask("open", "m", bundle, backend_dir("static"), "mean_of_tokens=1")
    texts = mixed_texts(112, 128, 40)
    assert relative_error(fake.embed("m", texts), expected_vectors(texts)) <= 1e-6


REFUSED: list[tuple[dict[str, Any], dict[str, int], str]] = [
    ({"compute_capability": "8.9"}, {}, "needs a GPU of compute capability 8.9 exactly .* this one has 9.0"),
    ({"backend_version": "10.9.0"}, {}, "needs TensorRT 10.9.0 exactly; this is 10.14.1"),
    ({"backend": "rtx"}, {}, "libmra_serving_rtx.so cannot be loaded"),
    ({}, {"min_width": 64}, "takes sequences from 64 tokens only"),
    ({}, {"types": 0}, "has the inputs input_ids, attention_mask; manifest.json has others"),
    ({}, {"hidden": 32}, r"sentence_embedding has the shape \[8, 32\] .* and vectors of 64"),
    ({}, {"half": 1}, "sentence_embedding must be float32"),
    ({}, {"pooled": 0}, "lacks the output sentence_embedding"),
    ({}, {"working": 1 << 31}, "the engine's working memory: out of memory"),
]


@pytest.mark.parametrize(("machine", "settings", "message"), REFUSED, ids=range(len(REFUSED)))
def test_an_engine_that_does_not_fit_is_passed_over(
    machine: dict[str, Any], settings: dict[str, int], message: str, fake: Driver, bundle: Path
) -> None:
    add_engine(bundle, machine=machine, **settings)
    backend, file, *_, reason = fake.ask("open", "m", bundle, backend_dir("static"))
    assert (backend, file) == ("onnxruntime", "onnx/model.onnx")
    assert reason.startswith("engines/a.engine: ")
    with pytest.raises(Refused, match=message) as refused:
        fake.ask("open", "m", bundle, backend_dir("static"), "variant=engines/a.engine")
    assert str(refused.value) in reason
    assert fake.ask("open", "m", bundle, "device=cpu")[0] == "onnxruntime"


def test_the_first_engine_that_fits_is_taken(fake: Driver, bundle: Path) -> None:
    add_engine(bundle, "old", {"compute_capability": "8.0"})
    add_engine(bundle, "portable", {"compute_capability": "8.0", "hardware_compatible": True})
    add_engine(bundle, "exact")
    assert fake.ask("open", "m", bundle, backend_dir("static"))[1] == "engines/portable.engine"
    assert (
        fake.ask("open", "m", bundle, backend_dir("static"), "variant=engines/exact.engine")[1]
        == "engines/exact.engine"
    )
    assert fake.ask("open", "m", bundle, backend_dir("static"), "variant=onnxruntime")[1] == "onnx/model.onnx"
    with pytest.raises(Refused, match="gpu=3 is not here: CUDA finds 1"):
        fake.ask("open", "m", bundle, backend_dir("static"), "variant=tensorrt", "gpu=3")


def test_another_tensorrt_than_the_headers_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cuda_include() is None:
        pytest.skip("CUDA's headers were not found")
    add_engine(bundle)
    for variable, value, message in (
        ("MRA_FAKE_TENSORRT", "110000", r"headers of TensorRT 10\.14, and the library here is TensorRT 11\.0\.0"),
        ("MRA_FAKE_GPUS", "0", "Engines need a GPU, and CUDA finds none here: no CUDA-capable device is detected"),
    ):
        monkeypatch.setenv(variable, value)
        with Driver("static", tmp_path) as process:
            with pytest.raises(Refused, match=message) as refused:
                process.ask("open", "m", bundle, backend_dir("static"), "variant=tensorrt")
            assert refused.value.code == 4
            assert process.ask("open", "m", bundle, backend_dir("static"))[0] == "onnxruntime"
        monkeypatch.delenv(variable)


def test_the_backend_links_with_tensorrt_rtx_and_says_why_it_does_not_run(shared_driver: Driver, bundle: Path) -> None:
    if cuda_include() is None or rtx_library() is None:
        pytest.skip("TensorRT-RTX or CUDA's headers were not found")
    add_engine(bundle, machine={"backend": "rtx", "backend_version": "1.7.1.116"})
    with pytest.raises(
        Refused, match=r"headers of TensorRT 10\.\d+, and the library here is TensorRT-RTX 1\."
    ) as refused:
        shared_driver.ask("open", "m", bundle, backend_dir("shared"), "variant=rtx")
    assert refused.value.code == 4
    with pytest.raises(Refused, match=r"libmra_serving_rtx\.so cannot be loaded"):
        shared_driver.ask("open", "m", bundle, "variant=rtx", "backend_dir=/nowhere")
    backend, *_, reason = shared_driver.ask("open", "m", bundle, backend_dir("shared"))
    assert backend == "onnxruntime"
    assert reason.startswith("engines/a.engine: libmra_serving_rtx.so was compiled with")

"""The model repository: what its configurations say is true of the models, and its Python steps give what they should."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import save_checkpoint
from triton_support import (
    HIDDEN,
    MAX_POSITIONS,
    TEXTS,
    FakeError,
    configs,
    copy_tokenizer,
    make_bundle,
    open_session,
    python_model,
    read_config,
    strings,
    vector,
)

from mra_export.bundle.manifest import Bundle, Variant, read_bundle
from mra_export.bundle.verify import verify_bundle
from mra_export.checkpoint.load import load_checkpoint
from mra_export.checkpoint.pooling import Pooling, pool
from mra_export.engine.ranges import Range
from mra_export.errors import DependencyError, InputError
from mra_export.export.exporter import export_onnx
from mra_export.native.libraries import find_library
from mra_export.pipeline.create_bundle import create_bundle
from mra_export.triton.repository import RepositoryWriter, write_model_repository
from mra_export.triton.settings import TritonSettings, triton_settings

pytest.importorskip(
    "tritonclient.grpc", reason="tritonclient[grpc] is not installed (pip install 'mra-export[triton]')"
)


@pytest.fixture(scope="session")
def bundle(minilm_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(minilm_dense, tmp_path_factory.getbasetemp(), pooled=True)


@pytest.fixture(scope="session")
def bare_bundle(minilm_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(minilm_dense, tmp_path_factory.getbasetemp(), pooled=False)


def engine(bundle: Bundle, name: str, folder: Path, **changes: Any) -> Variant:
    """A variant as a bundle has it for an engine; the file is none, which only a GPU could tell."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_bytes(f"engine {name}".encode())
    profile = {"min": [1, 1], "opt": [8, 128], "max": [16, MAX_POSITIONS]}
    settings: dict[str, Any] = {
        "backend": "tensorrt",
        "file": file,
        "precision": "fp16",
        "library": None,
        "backend_version": "10.14.1",
        "version_compatible": False,
        "compute_capability": "9.0",
        "hardware_compatible": False,
        "gpu": "a GPU",
        "manifest": file,
        "profiles": dict.fromkeys(bundle.inputs, profile),
    }
    return Variant(**{**settings, **changes})


def with_engines(bundle: Bundle, *engines: Variant) -> Bundle:
    return dataclasses.replace(bundle, variants=(bundle.variants[0], *engines))


def sizes(batch: tuple[int, int, int], seq_len: tuple[int, int, int]) -> dict[str, dict[str, list[int]]]:
    shape = {key: [batch[i], seq_len[i]] for i, key in enumerate(("min", "opt", "max"))}
    return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), shape)


def test_inputs_and_outputs_are_those_that_onnx_runtime_sees(bundle: Bundle) -> None:
    config = read_config(bundle.path / "triton" / "mra_onnx")
    session = open_session(bundle)
    names = {"TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)"}
    from tritonclient.grpc import model_config_pb2 as pb

    for configured, values in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [each.name for each in configured] == [value.name for value in values]
        for each, value in zip(configured, values, strict=True):
            assert names[pb.DataType.Name(each.data_type)] == value.type
            assert value.shape[0] == "batch"
            assert list(each.dims) == [-1 if isinstance(dim, str) else dim for dim in value.shape[1:]]
    assert {o.name: list(o.dims) for o in config.output} == {
        "last_hidden_state": [-1, HIDDEN],
        "sentence_embedding": [HIDDEN],
    }


def test_configurations_say_how_the_models_are_served(bundle: Bundle) -> None:
    from tritonclient.grpc import model_config_pb2 as pb

    repository = bundle.path / "triton"
    found = configs(repository)
    assert list(found) == ["mra_onnx", "mra_onnx_text", "mra_onnx_texts", "mra_tokenizer"]
    for name, config in found.items():
        assert config.name == name  # Triton refuses others
        assert config.version_policy.latest.num_versions == 1
        assert not config.response_cache.enable
        assert (repository / name / "1").is_dir()
        assert any((repository / name / "1").iterdir())  # an empty folder is lost in a bucket
    encoder = found["mra_onnx"]
    assert (encoder.backend, encoder.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert encoder.max_batch_size == 32
    assert list(encoder.dynamic_batching.preferred_batch_size) == [8, 32]
    assert encoder.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(group.kind, group.count) for group in encoder.instance_group] == [(pb.ModelInstanceGroup.KIND_CPU, 1)]
    assert (repository / "mra_onnx" / "1" / encoder.default_model_filename).is_file()
    if bundle.library is not None:
        (library,) = encoder.model_operations.op_library_filename
        assert (repository / library).read_bytes() == bundle.library.read_bytes()
        assert "/" in library  # else dlopen would look on its own path


def test_settings_reach_the_configuration(bundle: Bundle, tmp_path: Path) -> None:
    settings = triton_settings(
        True, batch="1:4:16", seq_len="8:40:96", instances=3, queue_delay=2000, name="search", library="/opt/ops.so"
    )
    assert settings is not None
    made = write_model_repository(bundle, tmp_path / "repository", settings)
    assert made.models == ("search_onnx",)
    config = read_config(tmp_path / "repository" / "search_onnx")
    assert config.max_batch_size == 16
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config.instance_group[0].count == 3
    assert [(w.batch_size, list(w.inputs["input_ids"].dims)) for w in config.model_warmup] == [
        (1, [32]), (1, [64]), (1, [96]), (4, [64]),
    ]  # fmt: skip
    if bundle.library is not None:
        assert list(config.model_operations.op_library_filename) == ["/opt/ops.so"]
        assert not list((tmp_path / "repository").rglob("*.so"))


def test_a_batch_of_one_is_not_batched(bundle: Bundle, tmp_path: Path) -> None:
    write_model_repository(bundle, tmp_path / "r", TritonSettings(batch=Range(1, 1, 1)))
    config = read_config(tmp_path / "r" / "mra_onnx")
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")


def test_the_model_takes_its_warm_up(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built from the files as Triton builds it, and run as Triton runs it: from the repository, with the library it names."""
    import onnxruntime

    repository = bundle.path / "triton"
    config = read_config(repository / "mra_onnx")
    monkeypatch.chdir(repository)
    options = onnxruntime.SessionOptions()
    for library in config.model_operations.op_library_filename:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(
        f"mra_onnx/1/{config.default_model_filename}", options, providers=["CPUExecutionProvider"]
    )
    lengths = []
    for warmup in config.model_warmup:
        assert 1 <= warmup.batch_size <= config.max_batch_size
        feed = {}
        for name, value in warmup.inputs.items():
            count = int(np.prod(value.dims))
            if value.WhichOneof("input_data_type") == "zero_data":
                flat = np.zeros(count, dtype=np.int64)
            else:
                content = (repository / "mra_onnx" / "warmup" / value.input_data_file).read_bytes()
                assert len(content) >= 8 * count
                flat = np.frombuffer(content[: 8 * count], dtype="<i8")
            feed[name] = np.broadcast_to(flat.reshape(1, *value.dims), (warmup.batch_size, *value.dims)).copy()
        assert set(feed) == {each.name for each in config.input}
        assert feed["attention_mask"].min() == 1  # nothing would be computed for padding
        assert len(np.unique(feed["input_ids"])) > 16
        (embedding,) = session.run(["sentence_embedding"], feed)
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
        lengths.append(feed["input_ids"].shape)
    assert lengths == [(1, 32), (1, 128), (1, MAX_POSITIONS), (8, 128)]


def test_the_tokenizer_step_gives_the_ids_of_transformers(bundle: Bundle) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundle.path)
    with python_model(bundle.path / "triton" / "mra_tokenizer") as execute:
        responses = execute([{"text": strings(text)} for text in TEXTS] + [{"text": strings(*TEXTS)}])
    for response, texts in zip(responses, [*([text] for text in TEXTS), TEXTS], strict=True):
        expected = tokenizer(texts, truncation=True, max_length=bundle.tokenizer_max_length)
        longest = max(map(len, expected["input_ids"]))
        width = min(-(-longest // 32) * 32, MAX_POSITIONS)
        padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
        assert not response.has_error()
        assert list(response.tensors) == list(bundle.inputs)
        for name, array in response.tensors.items():
            assert array.dtype == np.int64
            rows = [row + [padding[name]] * (width - len(row)) for row in expected[name]]
            np.testing.assert_array_equal(array, rows)
    assert [r.tensors["input_ids"].shape[1] for r in responses] == [32, 32, 32, 96, MAX_POSITIONS, MAX_POSITIONS]


def test_text_that_is_no_text_fails_alone(bundle: Bundle) -> None:
    with python_model(bundle.path / "triton" / "mra_tokenizer") as execute:
        good, bad, other = execute([{"text": strings(t)} for t in ("one", b"\xff\xfe", "another one")])
    assert "not UTF-8" in str(bad.error())
    assert not good.has_error()
    np.testing.assert_array_equal(good.tensors["attention_mask"].sum(), 3)
    np.testing.assert_array_equal(other.tensors["attention_mask"].sum(), 4)


@pytest.mark.parametrize("mode", ["cls", "mean"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_pooling_step_pools_as_the_export_does(
    bare_bundle: Bundle, tmp_path: Path, mode: str, normalize: bool
) -> None:
    import torch

    settings = TritonSettings(tokenizer=True, pooling=mode, normalize=normalize)
    write_model_repository(bare_bundle, tmp_path / "r", settings)
    random = np.random.default_rng(0)
    states = random.standard_normal((3, 40, HIDDEN)).astype(np.float32)
    mask = (random.random((3, 40)) < 0.7).astype(np.int64)
    mask[2] = 0
    with python_model(tmp_path / "r" / "mra_pooling") as execute:
        (response,) = execute([{"last_hidden_state": states, "attention_mask": mask}])
    expected = pool(torch.from_numpy(states), torch.from_numpy(mask), Pooling(mode, normalize)).numpy()
    assert response.tensors["sentence_embedding"].dtype == np.float32
    np.testing.assert_allclose(response.tensors["sentence_embedding"], expected, rtol=1e-5, atol=1e-6)


def run_ensemble(repository: Path, name: str, text: str, encoder: Any) -> dict[str, np.ndarray]:
    """Goes through the steps of an ensemble by its configuration alone, and checks that the tensors fit on the way."""
    from tritonclient.grpc import model_config_pb2 as pb

    found = configs(repository)
    config = found[name]
    kinds = {pb.TYPE_INT64: np.int64, pb.TYPE_FP32: np.float32, pb.TYPE_STRING: np.object_}
    pool_of = {"text": strings(text)}
    produced = {each.name: (each.data_type, tuple(each.dims)) for each in config.input}
    for step in config.ensemble_scheduling.step:
        model = found[step.model_name]
        assert model.max_batch_size >= config.max_batch_size
        assert set(step.input_map) == {each.name for each in model.input}, step.model_name
        assert set(step.output_map) <= {each.name for each in model.output}
        for each in model.input:
            assert produced[step.input_map[each.name]] == (each.data_type, tuple(each.dims)), each.name
        inputs = {each.name: pool_of[step.input_map[each.name]] for each in model.input}
        if model.backend == "python":
            with python_model(repository / model.name) as execute:
                (response,) = execute([inputs])
            outputs = response.tensors
        else:
            names = [each.name for each in model.output]
            outputs = dict(zip(names, encoder.run(names, inputs), strict=True))
        for each in model.output:
            assert outputs[each.name].dtype == kinds[each.data_type]
            assert all(
                want in (-1, have) for want, have in zip(each.dims, outputs[each.name].shape[1:], strict=True)
            ), each.name
            if each.name in step.output_map:
                pool_of[step.output_map[each.name]] = outputs[each.name]
                produced[step.output_map[each.name]] = (each.data_type, tuple(each.dims))
    for each in config.output:
        assert produced[each.name] == (each.data_type, tuple(each.dims))
    return {each.name: pool_of[each.name] for each in config.output}


@pytest.mark.parametrize("text", TEXTS)
def test_the_ensemble_embeds_a_text(bundle: Bundle, text: str) -> None:
    session = open_session(bundle)
    outputs = run_ensemble(bundle.path / "triton", "mra_onnx_text", text, session)
    np.testing.assert_array_equal(outputs["sentence_embedding"], vector(bundle, session, text))


def test_an_ensemble_that_pools_gives_the_vectors_of_a_model_that_pools(bundle: Bundle, bare_bundle: Bundle) -> None:
    repository = bare_bundle.path / "triton"
    assert list(configs(repository)) == ["mra_onnx", "mra_onnx_text", "mra_onnx_texts", "mra_pooling", "mra_tokenizer"]
    session, pooled = open_session(bare_bundle), open_session(bundle)
    for text in TEXTS:
        outputs = run_ensemble(repository, "mra_onnx_text", text, session)
        np.testing.assert_allclose(outputs["sentence_embedding"], vector(bundle, pooled, text), atol=1e-6)


def test_the_ensemble_takes_one_text_a_request(bundle: Bundle) -> None:
    """Two texts would share their padding, and its blocks are part of the result."""
    assert read_config(bundle.path / "triton" / "mra_onnx_text").max_batch_size == 1


@pytest.mark.parametrize("pooled", [True, False])
def test_many_texts_are_grouped_by_length(bundle: Bundle, bare_bundle: Bundle, pooled: bool) -> None:
    """Over all requests that Triton hands over, in batches within the encoder's limit; each text gets the vector it has alone."""
    own = bundle if pooled else bare_bundle
    session = open_session(own)
    config = read_config(own.path / "triton" / "mra_onnx_texts")
    assert config.max_batch_size == 8 * 32
    called: list[tuple[int, ...]] = []

    def encoder(name: str, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        assert name == "mra_onnx"
        assert outputs == ["sentence_embedding" if pooled else "last_hidden_state"]
        called.append(inputs["input_ids"].shape)
        return session.run(outputs, inputs)

    requests = [TEXTS, ["A sentence."] * 31, list(reversed(TEXTS)), ["one"]]
    with python_model(own.path / "triton" / "mra_onnx_texts", encoder) as execute:
        responses = execute([{"text": strings(*texts)} for texts in requests])
    assert called == [(2, MAX_POSITIONS), (2, 96), (32, 32), (6, 32)]
    reference = open_session(bundle)
    expected = {text: vector(bundle, reference, text)[0] for texts in requests for text in texts}
    for response, texts in zip(responses, requests, strict=True):
        found = response.tensors["sentence_embedding"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.stack([expected[text] for text in texts]), atol=1e-6)


def test_an_error_of_the_encoder_reaches_whose_texts_it_had(bundle: Bundle) -> None:
    def encoder(name: str, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        if inputs["input_ids"].shape[1] > 32:
            raise FakeError("out of memory")
        return [np.zeros((len(inputs["input_ids"]), HIDDEN), np.float32)]

    with python_model(bundle.path / "triton" / "mra_onnx_texts", encoder) as execute:
        short, mixed, none = execute([{"text": strings(*texts)} for texts in (["one"], ["one", TEXTS[3]], [b"\xff"])])
    assert short.tensors["sentence_embedding"].shape == (1, HIDDEN)
    assert str(mixed.error()) == "out of memory"
    assert "not UTF-8" in str(none.error())


def test_engines_for_different_gpus_are_one_model(bundle: Bundle, tmp_path: Path) -> None:
    from tritonclient.grpc import model_config_pb2 as pb

    made = with_engines(
        bundle,
        engine(bundle, "hopper.engine", tmp_path / "e", compute_capability="9.0"),
        engine(bundle, "any.engine", tmp_path / "e", compute_capability="8.0", hardware_compatible=True),
        engine(bundle, "small.engine", tmp_path / "e", profiles=sizes((1, 1, 4), (1, 32, 64))),
        engine(bundle, "full.engine", tmp_path / "e", precision="fp32"),
    )
    repository = write_model_repository(made, tmp_path / "r")
    assert repository.models == ("mra_onnx", "mra_trt_fp16_16x200", "mra_trt_fp16_4x64", "mra_trt_fp32")
    assert repository.gpu
    config = read_config(tmp_path / "r" / "mra_trt_fp16_16x200")
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert dict(config.cc_model_filenames) == {"9.0": "model_9.0.plan"}
    folder = tmp_path / "r" / config.name / "1"
    assert (folder / "model_9.0.plan").read_bytes() == b"engine hopper.engine"
    assert (folder / config.default_model_filename).read_bytes() == b"engine any.engine"
    assert config.max_batch_size == 16
    assert [(g.kind, list(g.profile)) for g in config.instance_group] == [(pb.ModelInstanceGroup.KIND_GPU, ["0"])]
    assert [each.name for each in config.input] == list(bundle.inputs)
    assert [each.name for each in config.output] == list(bundle.outputs)
    for name, batch, longest in (("mra_trt_fp16_16x200", 16, 200), ("mra_trt_fp16_4x64", 4, 64)):
        config = read_config(tmp_path / "r" / name)
        shapes = [(w.batch_size, *w.inputs["input_ids"].dims) for w in config.model_warmup]
        assert max(shapes) == (batch, longest)  # the largest fits in the GPU's memory, or the server does not start
        assert all(1 <= rows <= batch and 1 <= length <= longest for rows, length in shapes)


@pytest.mark.parametrize("class_name", ["MraForMultipleChoice", "MraForSequenceClassification"])
def test_other_tasks(class_name: str, minilm_dense: Path, tmp_path: Path) -> None:
    """Three axes for multiple choice; logits for a text in text classification. Weights in a file of their own, too."""
    source = save_checkpoint(tmp_path / "checkpoint", class_name, vocab_size=30522, num_hidden_layers=1, pad_token_id=0)
    copy_tokenizer(minilm_dense, source)
    directory = export_onnx(load_checkpoint(source), tmp_path / "onnx").directory
    file = directory / "onnx" / "model.onnx"
    onnx.save_model(
        onnx.load(str(file)), str(file), save_as_external_data=True, location="model.onnx_data", size_threshold=1024
    )
    text = class_name == "MraForSequenceClassification"
    create_bundle(directory, tmp_path / "b", check=False, triton=RepositoryWriter(TritonSettings(tokenizer=text)))
    folder = tmp_path / "b" / "triton" / "mra_onnx"
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    config = read_config(folder)
    assert {tuple(each.dims) for each in config.input} == {(-1,) if text else (-1, -1)}
    for warmup in config.model_warmup:
        feed = {}
        for name, value in warmup.inputs.items():
            path = folder / "warmup" / value.input_data_file
            shape = (warmup.batch_size, *value.dims)
            row = np.zeros(value.dims, np.int64) if value.zero_data else np.fromfile(path, "<i8", np.prod(value.dims))
            feed[name] = np.broadcast_to(row.reshape(value.dims), shape)
        (logits,) = session.run(None, feed)
        assert logits.shape == (warmup.batch_size, *([3] if text else value.dims[:1]))
        assert np.isfinite(logits).all()
    if text:
        outputs = run_ensemble(folder.parent, "mra_onnx_text", TEXTS[3], session)
        made = read_bundle(tmp_path / "b")
        np.testing.assert_allclose(outputs["logits"], vector(made, session, TEXTS[3], "logits"), atol=1e-6)
        assert list(read_config(folder.parent / "mra_onnx_texts").output[0].dims) == [3]


def test_engines_find_the_plugin(bundle: Bundle, tmp_path: Path) -> None:
    """That of the repository, opened from its working directory; or the one they carry."""
    library = tmp_path / "libmra_tensorrt.so"
    library.write_bytes(b"a library")
    plain = with_engines(bundle, engine(bundle, "plain.engine", tmp_path / "e", library=library))
    made = write_model_repository(plain, tmp_path / "plain")
    plugin = "mra_trt_fp16/1/libmra_tensorrt.so"
    assert made.backend_options == (f"--backend-config=tensorrt,plugins={plugin}",)
    assert (tmp_path / "plain" / plugin).read_bytes() == b"a library"
    commands = made.commands(Path("DIR"))
    assert (
        f"MRA_TENSORRT_REGISTER=1 tritonserver --model-repository=. --disable-auto-complete-config {made.backend_options[0]}"
        in (commands["server"])
    )
    assert "--gpus all -e MRA_TENSORRT_REGISTER=1 " in commands["docker"]
    assert "TensorRT is 10.14.1" in made.describe(Path("DIR"))

    carrying = with_engines(bundle, engine(bundle, "carrying.engine", tmp_path / "e"))
    made = write_model_repository(carrying, tmp_path / "carrying")
    assert made.backend_options == ("--backend-config=tensorrt,version-compatible=true",)
    assert made.environment == ()


@pytest.mark.parametrize("asked", [False, True])
def test_the_plugin_registers_itself_where_triton_opens_it(asked: bool) -> None:
    """With TensorRT-RTX, which has the registry of TensorRT 11: a library that is only opened, as Triton's backend opens it."""
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
    plugin = find_library("tensorrt")
    if plugin is None:
        pytest.skip("libmra_tensorrt.so was not built")
    code = (
        "import ctypes, sys, tensorrt_rtx; registry = tensorrt_rtx.get_plugin_registry(); ctypes.CDLL(sys.argv[1]); "
        "print([c.plugin_namespace for c in registry.all_creators if c.name == 'Mra2Attention'])"
    )
    environment = {**os.environ, **({"MRA_TENSORRT_REGISTER": "1"} if asked else {})}
    done = subprocess.run(
        [sys.executable, "-c", code, str(plugin)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ("['', 'mra']" if asked else "[]")
    assert "libmra_tensorrt.so" not in done.stderr


def test_the_image_is_chosen_by_the_engine_that_needs_its_own(bundle: Bundle, tmp_path: Path) -> None:
    old = engine(bundle, "old.engine", tmp_path / "e", backend_version="10.9.0", version_compatible=True)
    older = engine(
        bundle, "older.engine", tmp_path / "e", backend_version="9.0.1", version_compatible=True, precision="fp32"
    )
    exact = engine(bundle, "exact.engine", tmp_path / "e", backend_version="11.0.0", precision="bf16")
    made = write_model_repository(with_engines(bundle, old, older), tmp_path / "compatible")
    assert made.tensorrt == "10.9.0"
    assert made.backend_options == ("--backend-config=tensorrt,version-compatible=true",)
    assert write_model_repository(with_engines(bundle, old, exact), tmp_path / "exact").tensorrt == "11.0.0"


def test_engines_for_rtx_are_left_out_and_said_so(bundle: Bundle, tmp_path: Path) -> None:
    made = with_engines(bundle, engine(bundle, "ahead.engine", tmp_path / "e", backend="rtx"))
    repository = write_model_repository(made, tmp_path / "r")
    assert repository.models == ("mra_onnx",)
    assert not repository.gpu
    assert "ahead.engine is for TensorRT-RTX" in repository.describe(tmp_path / "r")


@pytest.mark.parametrize(
    ("engines", "settings", "message"),
    [
        ([{}, {}], {}, "Triton could not choose"),
        ([{}, {"precision": "fp32", "backend_version": "10.3.0"}], {}, r"different TensorRTs \(10.14.1, 10.3.0\)"),
        ([{"profiles": sizes((2, 8, 16), (1, 32, 64))}], {}, r"batches of 2:8:16.*--batch 1:8:16"),
        ([{}], {"batch": Range(1, 8, 32)}, r"--batch=1:8:32 is outside the profile 1:8:16 of 0.engine"),
        ([{"profiles": sizes((1, 8, 16), (32, 32, 64))}], {"seq_len": Range(1, 32, 64)}, "outside the profile 32:32:64"),
        ([{"profiles": sizes((1, 8, 16), (1, 32, 64))}], {"tokenizer": True}, r"takes 1 to 64 tokens.*--seq-len 1:32:64"),
        ([{"profiles": sizes((1, 8, 16), (64, 128, 200))}], {"tokenizer": True}, r"takes 64 to 200 tokens"),
    ],
)  # fmt: skip
def test_engines_that_cannot_be_served_are_refused(
    bundle: Bundle, tmp_path: Path, engines: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    made = [engine(bundle, f"{i}.engine", tmp_path / "e", **changes) for i, changes in enumerate(engines)]
    with pytest.raises(InputError, match=message):
        write_model_repository(with_engines(bundle, *made), tmp_path / "r", TritonSettings(**settings))
    assert not (tmp_path / "r").exists()


def test_texts_are_cut_where_the_engine_ends_if_asked(bundle: Bundle, tmp_path: Path) -> None:
    made = with_engines(bundle, engine(bundle, "s.engine", tmp_path / "e", profiles=sizes((1, 8, 16), (1, 32, 64))))
    settings = TritonSettings(tokenizer=True, seq_len=Range(1, 32, 64))
    repository = write_model_repository(made, tmp_path / "r", settings)
    models = ["mra_onnx", "mra_trt_fp16", "mra_onnx_text", "mra_onnx_texts", "mra_trt_fp16_text", "mra_trt_fp16_texts"]
    assert repository.models == ("mra_tokenizer", *models)
    with python_model(tmp_path / "r" / "mra_tokenizer") as execute:
        (response,) = execute([{"text": strings(TEXTS[-1])}])
    assert response.tensors["input_ids"].shape == (1, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enabled": False, "tokenizer": True, "batch": "1"}, r"--triton-tokenizer, --batch is for .*: add --triton"),
        ({"enabled": False, "queue_delay": 0}, r"--triton-queue-delay is for .*: add --triton"),
        ({"batch": "2:8:32"}, r"--batch=2:8:32: .* least size must be 1"),
        ({"batch": "1:8"}, r"--batch=1:8 must be MIN:OPT:MAX"),
        ({"name": "a/b"}, r"--triton-name='a/b' must be letters"),
        ({"name": ".."}, r"--triton-name='..' must be letters"),
        ({"instances": 0}, r"--triton-instances=0 must be between 1"),
        ({"queue_delay": -1}, r"--triton-queue-delay=-1 must be between 0"),
        ({"normalize": True}, r"add --triton-pooling"),
        ({"pooling": "cls"}, r"add --triton-tokenizer"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        triton_settings(**{"enabled": True, **options})


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"seq_len": Range(1, 128, 512)}, {}, r"512.*200"),
        ({"tokenizer": True, "pooling": "mean"}, {}, r"already gives sentence_embedding"),
        ({"device": "gpu"}, {}, r"built without CUDA kernels"),
        ({}, {"dtype": "bf16"}, r"no bfloat16 kernels for CPUs"),
        ({"tokenizer": True}, {"task": "fill-mask"}, r"this is fill-mask"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
    bundle: Bundle, tmp_path: Path, settings: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    if settings.get("device") and (bundle.library is None or b"CUDAExecutionProvider" in bundle.library.read_bytes()):
        pytest.skip("the native library is not there, or has CUDA kernels")
    manifest = {**bundle.manifest, "model": {**bundle.manifest["model"], **changes}}
    with pytest.raises(InputError, match=message):
        write_model_repository(
            dataclasses.replace(bundle, manifest=manifest), tmp_path / "r", TritonSettings(**settings)
        )
    assert not (tmp_path / "r").exists()


def test_text_without_pooling_or_tokenizer_is_refused(bare_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no sentence_embedding.*--triton-pooling mean"):
        write_model_repository(bare_bundle, tmp_path / "r", TritonSettings(tokenizer=True))
    without = dataclasses.replace(bare_bundle, manifest={**bare_bundle.manifest, "tokenizer": None})
    with pytest.raises(InputError, match=r"needs a tokenizer\.json"):
        write_model_repository(without, tmp_path / "r", TritonSettings(tokenizer=True, pooling="cls"))


def test_without_the_schema_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(DependencyError, match=r"pip install 'tritonclient\[grpc\]'") as error:
        triton_settings(True)
    assert error.value.exit_code == 4


def test_the_repository_is_part_of_the_bundle(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Listed, verified, at home where it is copied to, the same bytes again, and damage is seen."""
    from mra_export.cli import main

    output = tmp_path / "it's here"
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "bundle",
                str(bundle.path),
                "-o",
                str(output),
                "--no-check",
                "--triton",
                "--triton-tokenizer",
                "--json",
                "-q",
            ]
        )
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["triton"]["models"] == ["mra_tokenizer", "mra_onnx", "mra_onnx_text", "mra_onnx_texts"]
    assert printed["triton"]["commands"]["server"].startswith(
        f"cd '{tmp_path}/it'\"'\"'s here/triton' && tritonserver "
    )

    moved = tmp_path / "moved"
    shutil.copytree(output, moved)
    again = verify_bundle(moved)
    ours = {n: e for n, e in again.manifest["files"].items() if n.startswith("triton/")}
    assert ours == {n: e for n, e in bundle.manifest["files"].items() if n.startswith("triton/")}
    for name in ours:
        file = moved / name
        assert not (output / name).is_symlink()
        assert (output / name).stat().st_nlink == 1  # a link would be a copy after the next upload, or refused
        if file.suffix in (".pbtxt", ".py", ".txt"):
            assert str(tmp_path) not in file.read_text()
            assert not re.search(r'"/', file.read_text()), name
    config = moved / "triton" / "mra_onnx" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 32", "max_batch_size: 33"))
    with pytest.raises(InputError, match=r"triton/mra_onnx/config\.pbtxt was changed"):
        verify_bundle(moved)


def test_a_bundle_without_triton_has_no_repository(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from mra_export.cli import main

    with pytest.raises(SystemExit) as stop:
        main(
            ["bundle", str(bundle.path), "-o", str(tmp_path / "b"), "--no-check", "--triton-tokenizer", "--json", "-q"]
        )
    assert stop.value.code == 2
    assert "add --triton" in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "b").exists()
    with pytest.raises(SystemExit) as stop:
        main(["bundle", str(bundle.path), "-o", str(tmp_path / "b"), "--no-check", "--json", "-q"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["triton"] is None
    assert not [name for name in read_bundle(tmp_path / "b").manifest["files"] if name.startswith("triton/")]


def test_the_documentation_shows_what_is_printed(bundle: Bundle, tmp_path: Path) -> None:
    from mra_export.cli import cli

    text = (Path(__file__).parent.parent / "docs" / "triton.md").read_text()
    made = write_model_repository(bundle, tmp_path / "r", TritonSettings(tokenizer=True))
    shown = re.sub(r" \\\n +", " ", text)
    for name, command in made.commands(Path("minilm-bundle/triton")).items():
        assert command in shown, f"{name}: {command}"
    options = [option for p in cli.commands["bundle"].params for option in p.opts if option.startswith("--triton")]
    assert len(options) > 5
    assert [option for option in options if option not in text] == []

"""What the configurations say is true of the models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from triton_support import (
    HIDDEN,
    MAX_POSITIONS,
    configs,
    open_session,
    read_config,
)

from mra_export.bundle.manifest import Bundle
from mra_export.engine.ranges import Range
from mra_export.errors import InputError
from mra_export.triton.repository import write_model_repository
from mra_export.triton.settings import TritonSettings, triton_settings

pytest.importorskip(
    "tritonclient.grpc", reason="tritonclient[grpc] is not installed (pip install 'mra-export[triton]')"
)


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
    library = None if bundle.library is None else "/opt/ops.so"
    settings = triton_settings(
        True, batch="1:4:16", seq_len="8:40:96", instances=3, queue_delay=2000, name="search", library=library
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


def test_the_ensemble_takes_one_text_a_request(bundle: Bundle) -> None:
    """Two texts would share their padding, and its blocks are part of the result."""
    assert read_config(bundle.path / "triton" / "mra_onnx_text").max_batch_size == 1


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"seq_len": Range(1, 128, 512)}, {}, r"512.*200"),
        ({"tokenizer": True, "pooling": "mean"}, {}, r"already gives sentence_embedding"),
        pytest.param({"device": "gpu"}, {}, r"built without CUDA kernels", marks=pytest.mark.native),
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


def test_the_tokenizer_is_warmed_up_with_one_text_and_waits_for_none(bundle: Bundle) -> None:
    """What costs next to nothing does not wait for company."""
    from tritonclient.grpc import model_config_pb2 as pb

    folder = bundle.path / "triton" / "mra_tokenizer"
    config = read_config(folder)
    (warmup,) = config.model_warmup
    assert (warmup.batch_size, warmup.count, list(warmup.inputs)) == (1, 1, ["text"])
    text = warmup.inputs["text"]
    assert (text.data_type, list(text.dims), text.input_data_file) == (pb.DataType.TYPE_STRING, [1], "text")
    content = (folder / "warmup" / "text").read_bytes()
    assert int.from_bytes(content[:4], "little") == len(content) - 4 > 0
    content[4:].decode()
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert list(config.dynamic_batching.preferred_batch_size) == []
    texts = read_config(bundle.path / "triton" / "mra_onnx_texts")
    assert texts.dynamic_batching.max_queue_delay_microseconds == 500
    assert list(texts.dynamic_batching.preferred_batch_size) == []
    encoder = read_config(bundle.path / "triton" / "mra_onnx")
    assert {warmup.count for warmup in encoder.model_warmup} == {1}


@pytest.mark.parametrize(
    ("batch", "preferred"),
    [(Range(1, 1, 1), None), (Range(1, 1, 2), [2]), (Range(1, 2, 2), [2]), (Range(1, 3, 8), [3, 8])],
)
def test_requests_are_batched_from_two_on(
    batch: Range, preferred: list[int] | None, bundle: Bundle, tmp_path: Path
) -> None:
    write_model_repository(bundle, tmp_path / "r", TritonSettings(batch=batch, queue_delay=70))
    config = read_config(tmp_path / "r" / "mra_onnx")
    assert config.HasField("dynamic_batching") is (preferred is not None)
    if preferred is not None:
        assert list(config.dynamic_batching.preferred_batch_size) == preferred
        assert config.dynamic_batching.max_queue_delay_microseconds == 70

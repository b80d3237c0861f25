"""The Python steps of a model repository give what they should, alone and in the ensembles."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from triton_support import (
    HIDDEN,
    MAX_POSITIONS,
    TEXTS,
    FakeError,
    OldError,
    configs,
    make_bundle,
    open_session,
    python_model,
    read_config,
    run_ensemble,
    strings,
    vector,
)

from mra_export.bundle.manifest import Bundle
from mra_export.checkpoint.module_torch import as_torch
from mra_export.checkpoint.modules import POOLING_MODES, Normalize, Pooling
from mra_export.errors import InputError
from mra_export.triton.repository import write_model_repository
from mra_export.triton.settings import TritonSettings

pytestmark = pytest.mark.slow

pytest.importorskip(
    "tritonclient.grpc", reason="tritonclient[grpc] is not installed (pip install 'mra-export[triton]')"
)


def test_the_tokenizer_step_gives_the_ids_of_transformers(bundle: Bundle) -> None:
    compare_with_transformers(bundle)


def test_the_tokenizer_step_gives_the_ids_of_a_real_tokenizer(
    minilm_dense: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compare_with_transformers(make_bundle(minilm_dense, tmp_path_factory.getbasetemp(), pooled=True))


def compare_with_transformers(bundle: Bundle) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundle.path)
    with python_model(bundle.path / "triton" / "mra_tokenizer") as execute:
        responses = execute([{"text": strings(text)} for text in TEXTS] + [{"text": strings(*TEXTS)}])
    for response, texts in zip(responses, [*([text] for text in TEXTS), TEXTS], strict=True):
        expected = tokenizer(texts, truncation=True, max_length=bundle.tokenizer_max_length)
        width = max(map(len, expected["input_ids"]))
        padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
        assert not response.has_error()
        assert list(response.tensors) == list(bundle.inputs)
        for name, array in response.tensors.items():
            assert array.dtype == np.int64
            rows = [row + [padding[name]] * (width - len(row)) for row in expected[name]]
            np.testing.assert_array_equal(array, rows)
    widths = [r.tensors["input_ids"].shape[1] for r in responses]
    assert max(widths[:3]) < 32 < widths[3] <= 96  # not whole blocks
    assert widths[4:] == [MAX_POSITIONS, MAX_POSITIONS]


@pytest.mark.parametrize("error", [FakeError, OldError])
def test_text_that_is_no_text_fails_alone(error: type[Exception], bundle: Bundle) -> None:
    with python_model(bundle.path / "triton" / "mra_tokenizer", error=error) as execute:
        good, bad, other = execute([{"text": strings(t)} for t in ("one", b"\xff\xfe", "another one")])
    assert "not UTF-8" in str(bad.error())
    assert getattr(bad.error(), "code", 3) == FakeError.INVALID_ARG
    assert not good.has_error()
    np.testing.assert_array_equal(good.tensors["attention_mask"].sum(), 3)
    np.testing.assert_array_equal(other.tensors["attention_mask"].sum(), 4)


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("normalize", [False, True])
def test_the_pooling_step_pools_as_the_export_does(
    bare_bundle: Bundle, tmp_path: Path, mode: str, normalize: bool
) -> None:
    import torch

    settings = TritonSettings(tokenizer=True, pooling=mode, normalize=normalize)
    write_model_repository(bare_bundle, tmp_path / "r", settings)
    states = np.random.default_rng(0).standard_normal((3, 40, HIDDEN)).astype(np.float32)
    mask = (np.arange(40) < np.array([[40], [17], [1]])).astype(np.int64)
    with python_model(tmp_path / "r" / "mra_pooling") as execute:
        (response,) = execute([{"last_hidden_state": states, "attention_mask": mask}])
    modules = [Pooling((mode,)), *([Normalize()] if normalize else [])]
    expected = as_torch(modules, tmp_path)(torch.from_numpy(states), torch.from_numpy(mask)).numpy()
    assert response.tensors["sentence_embedding"].dtype == np.float32
    np.testing.assert_allclose(response.tensors["sentence_embedding"], expected, rtol=1e-5, atol=1e-6)


PROMPTS = {"query": "one another ", "document": ""}


def prompted(bundle: Bundle, default: str | None, *, include: bool = True) -> Bundle:
    """The bundle with prompts in its manifest, of which only the repository's generator is told."""
    manifest = copy.deepcopy(bundle.manifest)
    manifest["text"] = {"prompts": PROMPTS, "default_prompt": default}
    manifest["embedding"]["modules"][0]["include_prompt"] = include
    return dataclasses.replace(bundle, manifest=manifest)


@pytest.mark.parametrize("model", ["mra_tokenizer", "mra_onnx_texts"])
def test_a_request_gets_the_default_prompt_or_the_one_that_it_names(model: str, bundle: Bundle, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundle.path)
    write_model_repository(prompted(bundle, "query"), tmp_path / "r", TritonSettings(tokenizer=True))
    called: list[np.ndarray] = []

    def encoder(name: str, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        called.append(inputs["input_ids"])
        return [np.zeros((len(inputs["input_ids"]), HIDDEN), np.float32)]

    requests = [
        {"text": strings("A sentence.")},
        {"text": strings("A sentence."), "prompt_name": strings("query")},
        {"text": strings("A sentence."), "prompt_name": strings("")},
        {"text": strings("A sentence.", "A sentence."), "prompt_name": strings("document", "query")},
        {"text": strings("A sentence."), "prompt_name": strings("passage")},
        {"text": strings("A sentence."), "prompt_name": strings(b"\xff")},
    ]
    with python_model(tmp_path / "r" / model, encoder) as execute:
        responses = execute(requests)
    assert [response.has_error() for response in responses] == [False] * 4 + [True] * 2
    assert "no prompt 'passage'. The model has document, query" in str(responses[4].error())
    assert "prompt_name is not UTF-8" in str(responses[5].error())
    plain, with_prompt = (tokenizer(prompt + "A sentence.")["input_ids"] for prompt in ("", PROMPTS["query"]))
    expected = [with_prompt, with_prompt, plain, plain, with_prompt]
    found = called if model.endswith("texts") else [response.tensors["input_ids"] for response in responses[:4]]
    rows = sorted([id for id in row.tolist() if id] for batch in found for row in batch)
    assert rows == sorted(expected)


def test_an_ensemble_takes_the_name_of_a_prompt(bundle: Bundle, tmp_path: Path) -> None:
    write_model_repository(prompted(bundle, "query"), tmp_path / "r", TritonSettings(tokenizer=True))
    session = open_session(bundle)
    for name, prompt in ((None, PROMPTS["query"]), ("document", "")):
        outputs = run_ensemble(tmp_path / "r", "mra_onnx_text", "A sentence.", session, prompt_name=name)
        wanted = vector(bundle, session, prompt + "A sentence.")
        np.testing.assert_allclose(outputs["sentence_embedding"], wanted, atol=1e-6)


def test_a_prompt_that_must_not_count_is_refused_or_not_offered(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prompt 'query' before each text, and has include_prompt=false"):
        write_model_repository(prompted(bundle, "query", include=False), tmp_path / "r", TritonSettings(tokenizer=True))
    assert not (tmp_path / "r").exists()
    made = write_model_repository(
        prompted(bundle, "document", include=False), tmp_path / "r", TritonSettings(tokenizer=True)
    )
    assert "take no prompt_name" in made.describe(tmp_path / "r")
    with python_model(tmp_path / "r" / "mra_tokenizer") as execute:
        (plain, named) = execute([{"text": strings("one")}, {"text": strings("one"), "prompt_name": strings("query")}])
    assert not plain.has_error()
    assert "no prompt 'query'" in str(named.error())


def test_texts_are_cut_on_the_side_of_the_tokenizer(bundle: Bundle, tmp_path: Path) -> None:
    manifest = copy.deepcopy(bundle.manifest)
    manifest["tokenizer"].update(truncation_side="left", max_length=6)
    write_model_repository(
        dataclasses.replace(bundle, manifest=manifest), tmp_path / "r", TritonSettings(tokenizer=True)
    )
    with python_model(tmp_path / "r" / "mra_tokenizer") as execute:
        left, short = execute(
            [{"text": strings(text)} for text in ("one another one another one sentence", "one another one sentence")]
        )
    # [CLS], the last four words, [SEP]
    np.testing.assert_array_equal(left.tensors["input_ids"][0, 2:6], short.tensors["input_ids"][0, 2:6])
    assert left.tensors["attention_mask"].sum() == 6


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
    assert [rows for rows, _ in called] == [2, 2, 32, 6]
    widths = [width for _, width in called]
    assert widths[0] == MAX_POSITIONS
    assert 64 < widths[1] <= 96
    assert 32 > widths[2] >= widths[3]  # the longest first, and no whole blocks
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
    assert (str(mixed.error()), mixed.error().code) == ("out of memory", None)  # the server's fault, not the client's
    assert ("not UTF-8" in str(none.error()), none.error().code) == (True, FakeError.INVALID_ARG)

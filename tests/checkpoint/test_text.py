"""Text to vector as sentence-transformers' files say it: limit, case, prompts, and what is refused or noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dense_support import write_files
from sentence_support import listing

from mra_export.checkpoint.files import LENGTH_FILES
from mra_export.checkpoint.modules import Normalize, Pooling, Truncate
from mra_export.checkpoint.text import (
    TextContract,
    max_length,
    prompt_of,
    read_contract,
    tokenizer_limit,
    write_length_file,
)
from mra_export.errors import InputError

SENTENCE = "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"
MODULES = {"modules.json": listing([("", "Transformer"), ("1_Pooling", "Pooling")]), "1_Pooling/config.json": {}}


def read(directory: Path, files: dict[str, Any], **asked: Any) -> TextContract:
    write_files(directory, {**MODULES, **files})
    return read_contract(directory, **asked)


def test_a_directory_without_such_files_says_nothing(tmp_path: Path) -> None:
    assert read_contract(tmp_path) == TextContract()


def test_everything_is_read(tmp_path: Path) -> None:
    files = {
        SENTENCE: {
            "__version__": {"sentence_transformers": "6.2.0"},
            "model_type": "SentenceTransformer",
            "prompts": {"query": "query: ", "document": None},
            "default_prompt_name": "query",
            "similarity_fn_name": "dot",
            "truncate_dim": 16.0,
        },
        LENGTH: {"max_seq_length": 128, "do_lower_case": True},
    }
    assert read(tmp_path, files) == TextContract(
        max_length=128,
        lowercase=True,
        prompts={"query": "query: ", "document": ""},
        default_prompt="query",
        modules=(Pooling(("mean",)), Truncate(16)),
        similarity="dot",
    )


@pytest.mark.parametrize("name", LENGTH_FILES)
def test_every_name_of_the_file_with_the_limit_is_read(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, {name: {"max_seq_length": 16}}).max_length == 16


def test_the_first_file_that_says_anything_counts(tmp_path: Path) -> None:
    files = {
        LENGTH: {},
        "sentence_albert_config.json": {"max_seq_length": 8},
        "sentence_xlnet_config.json": {"max_seq_length": 9},
    }
    assert read(tmp_path, files).max_length == 8


@pytest.mark.parametrize(("stated", "expected"), [(128, 128), (128.0, 128), (1, 1), (None, None)])
def test_a_limit_may_be_a_json_float(stated: Any, expected: int | None, tmp_path: Path) -> None:
    assert read(tmp_path, {LENGTH: {"max_seq_length": stated}}).max_length == expected


@pytest.mark.parametrize("stated", [0, -1, 12.5, "128", True, [128], 1e400])
def test_a_limit_that_is_none_is_refused(stated: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{LENGTH}: max_seq_length=.* must be a whole number of at least 1"):
        read(tmp_path, {LENGTH: {"max_seq_length": stated}})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_seq_length": 32, "tokenizer_args": {"model_max_length": 16}}, 16),
        ({"max_seq_length": 16, "processor_kwargs": {"model_max_length": 32}}, 32),
        ({"max_seq_length": 32, "processing_kwargs": {"text": {"max_length": 8}}}, 8),
        ({"max_seq_length": 32, "processing_kwargs": {"common": {"max_length": 40}}}, 40),
        ({"processing_kwargs": {"common": {"max_length": 40}, "text": {"max_length": 8, "padding": True}}}, 8),
    ],
)
def test_the_limit_that_sentence_transformers_takes_counts(
    settings: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    assert read(tmp_path, {LENGTH: settings}).max_length == expected


@pytest.mark.parametrize(
    ("own", "tokenizer", "positions", "expected"),
    [
        (None, None, 512, 512),
        (None, 128, 512, 128),
        (None, 1e30, 512, 512),
        (256, 128, 512, 256),  # instead of the tokenizer's, not the least of both
        (128, 256, 512, 128),
        (1024, 256, 512, 512),
    ],
)
def test_the_limit_of_the_file_counts_instead_of_the_tokenizers(
    own: int | None, tokenizer: float | None, positions: int, expected: int
) -> None:
    assert max_length(TextContract(max_length=own), tokenizer, positions) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, None), ({"model_max_length": 128}, 128), ({"model_max_length": 128.0}, 128), ({"max_len": 64}, 64),
     ({"model_max_length": None}, None), ({"model_max_length": "128"}, None)],
)  # fmt: skip
def test_the_tokenizers_limit(settings: dict[str, Any], expected: int | None, tmp_path: Path) -> None:
    write_files(tmp_path, {"tokenizer_config.json": settings})
    assert tokenizer_limit(tmp_path) == expected


def test_a_prompt_by_name() -> None:
    prompts = {"query": "query: ", "doc": ""}
    assert prompt_of(prompts, None, None) == ""
    assert prompt_of(prompts, "query", None) == "query: "
    assert prompt_of(prompts, "query", "doc") == ""
    with pytest.raises(InputError, match=r"There is no prompt 'passage'. The model has doc, query."):
        prompt_of(prompts, "query", "passage")
    with pytest.raises(InputError, match=r"The model has none."):
        prompt_of({}, None, "passage")
    assert prompt_of({}, None, "query") == prompt_of(prompts, "query", "document") == ""  # every model has these


@pytest.mark.parametrize("name", ["query", "document"])
def test_sentence_transformers_has_two_empty_prompts_for_every_model(name: str, tmp_path: Path) -> None:
    contract = read(tmp_path, {SENTENCE: {"default_prompt_name": name}})
    assert (contract.prompts, contract.default_prompt) == ({}, None)


def test_the_tokens_of_a_prompt_may_not_count(tmp_path: Path) -> None:
    files = {"1_Pooling/config.json": {"include_prompt": False}, SENTENCE: {"prompts": {"query": "q: "}}}
    contract = read(tmp_path, files)
    assert not contract.include_prompt
    assert len(contract.notes) == 1
    assert "An ONNX graph alone counts every token in sentence_embedding." in contract.notes[0]
    write_files(tmp_path, {SENTENCE: {}})
    assert read_contract(tmp_path).notes == ()  # nothing to leave out
    assert not read_contract(tmp_path).include_prompt


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        (SENTENCE, {"model_type": "SparseEncoder"}, "model_type='SparseEncoder' gives something else than one vector"),
        (SENTENCE, {"model_type": "CrossEncoder"}, "model_type='CrossEncoder'"),
        (SENTENCE, {"prompts": ["query: "]}, r"prompts=\['query: '\] must be an object of texts"),
        (SENTENCE, {"prompts": {"query": 1}}, "must be an object of texts"),
        (SENTENCE, {"default_prompt_name": "passage"}, "default_prompt_name='passage' is none of its prompts, none"),
        (SENTENCE, {"truncate_dim": 0}, "truncate_dim=0 must be a whole number"),
        (SENTENCE, {"truncate_dim": "64"}, "truncate_dim='64' must be a whole number"),
        (LENGTH, {"do_lower_case": "yes"}, "do_lower_case='yes' must be true or false"),
        (LENGTH, {"transformer_task": "fill-mask"}, "transformer_task='fill-mask' changes vectors and is not offered"),
        (LENGTH, {"module_output_name": "sentence_embedding"}, "module_output_name='sentence_embedding'"),
        (LENGTH, {"query_length": 32}, "query_length=32 changes vectors"),
        (LENGTH, {"document_length": 180}, "document_length=180 changes vectors"),
        (LENGTH, {"query_expansion": {"length": 32}}, "query_expansion=.* changes vectors"),
        (LENGTH, {"tokenizer_name_or_path": "other/model"}, "tokenizer_name_or_path='other/model'"),
        (LENGTH, {"modality_config": {"text": {"method": "get_text_features"}}}, "modality_config has text="),
        (LENGTH, {"modality_config": {"message": {}}}, "modality_config has message; only text"),
        (LENGTH, {"model_args": {"attention_window": 64}}, "model_args has attention_window=64, which may change"),
        (LENGTH, {"config_kwargs": {"hidden_act": "relu"}}, "config_kwargs has hidden_act='relu'"),
        (LENGTH, {"processing_kwargs": {"text": {"add_special_tokens": False}}}, "text has add_special_tokens=False"),
        (LENGTH, {"processing_kwargs": {"chat_template": {"x": 1}}}, "processing_kwargs has chat_template"),
        (LENGTH, {"processor_kwargs": ["x"]}, "processor_kwargs=.* must be an object"),
        (LENGTH, ["x"], "must hold a JSON object"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(file: str, settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{file}.*{message}"):
        read(tmp_path, {file: settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"max_seq_length": 64, "do_lower_case": None, "unpad_inputs": True},
        {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings", "query_length": None},
        {"modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}},
        {"model_args": {}, "config_args": {}, "tokenizer_args": {}},
        {"model_kwargs": {"attn_implementation": "sdpa", "torch_dtype": "float32", "add_pooling_layer": False}},
        {"processor_kwargs": {"use_fast": True, "trust_remote_code": False}, "config_kwargs": {"use_cache": False}},
        {"processing_kwargs": {"text": {"padding": "longest", "truncation": True}}},
    ],
)
def test_what_changes_nothing_is_no_matter(settings: dict[str, Any], tmp_path: Path) -> None:
    contract = read(tmp_path, {LENGTH: settings})
    assert (contract.notes, contract.tokenizer_options, contract.lowercase) == ((), {}, False)


def test_arguments_of_the_tokenizer_are_kept(tmp_path: Path) -> None:
    contract = read(
        tmp_path, {LENGTH: {"tokenizer_args": {"do_lower_case": False, "truncation_side": "left", "revision": "x"}}}
    )
    assert contract.tokenizer_options == {"do_lower_case": False, "truncation_side": "left"}


@pytest.mark.parametrize(
    ("file", "settings", "note"),
    [
        (SENTENCE, {"pooling_temperature": 2}, "has pooling_temperature, which is not known here and changes nothing."),
        (LENGTH, {"strip_accents": True, "lower": 1}, "has lower, strip_accents, which is not known here"),
        (SENTENCE, {"similarity_fn_name": "hamming"}, "similarity_fn_name='hamming' is none of cosine, dot"),
        (
            LENGTH,
            {"model_kwargs": {"torch_dtype": "bfloat16"}},
            "model_kwargs has torch_dtype=bfloat16; what is compared",
        ),
    ],
)
def test_what_is_not_known_is_named(file: str, settings: Any, note: str, tmp_path: Path) -> None:
    notes = read(tmp_path, {file: settings}).notes
    assert len(notes) == 1
    assert note in notes[0]
    assert str(tmp_path / file) in notes[0]


def test_what_is_asked_for_replaces_the_checkpoints_own(tmp_path: Path) -> None:
    files = {SENTENCE: {"truncate_dim": 16}}
    contract = read(tmp_path, files, pooling="lasttoken", normalize=True)
    assert contract.modules == (Pooling(("lasttoken",)), Normalize(), Truncate(16))
    assert (contract.pooling, contract.normalize) == ("lasttoken", True)


def test_without_a_vector_nothing_of_it_is_refused(tmp_path: Path) -> None:
    files = {
        "modules.json": listing([("", "Transformer"), ("x", "CNN")]),
        SENTENCE: {"model_type": "CrossEncoder", "truncate_dim": 8, "prompts": {"query": "q: "}},
        LENGTH: {"max_seq_length": 8, "transformer_task": "sequence-classification", "model_args": {"x": 1}},
    }
    for asked in ({"pooling": "none"}, {"embedding": False}):
        contract = read(tmp_path, files, **asked)
        assert (contract.modules, contract.max_length, contract.prompts) == ((), 8, {"query": "q: "})
    with pytest.raises(InputError, match="CNN"):
        read_contract(tmp_path)


def test_an_encoder_in_a_folder_of_its_own_has_its_limit_there(tmp_path: Path) -> None:
    files = {
        "modules.json": listing([("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")]),
        "0_Transformer/sentence_bert_config.json": {"max_seq_length": 8},
        "sentence_bert_config.json": {"max_seq_length": 9},
        SENTENCE: {"default_prompt_name": "q", "prompts": {"q": "Q "}},
    }
    for folder in (tmp_path, tmp_path / "0_Transformer"):
        contract = read(tmp_path, files) if folder == tmp_path else read_contract(folder)
        assert (contract.max_length, contract.default_prompt, contract.modules) == (8, "q", (Pooling(("mean",)),))


@pytest.mark.parametrize(
    ("settings", "longest", "expected"),
    [
        ({"max_seq_length": 128.0, "other": 1}, 512, {"max_seq_length": 128, "other": 1}),
        ({"max_seq_length": 128}, 64, {"max_seq_length": 64}),
        ({"do_lower_case": True}, 64, {"do_lower_case": True}),
    ],
)
def test_the_file_with_the_limit_is_written_under_its_present_name(
    settings: dict[str, Any], longest: int, expected: dict[str, Any], tmp_path: Path
) -> None:
    write_files(tmp_path / "a", {"sentence_roberta_config.json": settings})
    write_files(tmp_path / "b", {"sentence_roberta_config.json": {"max_seq_length": 1}})
    write_length_file(tmp_path / "a", tmp_path / "b", longest)
    assert [path.name for path in (tmp_path / "b").iterdir()] == [LENGTH]
    assert json.loads((tmp_path / "b" / LENGTH).read_text()) == expected

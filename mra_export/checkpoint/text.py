"""Text to vector as a checkpoint has it: everything beside the encoder that decides which vector a text gets."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mra_export.checkpoint.files import LENGTH_FILES, read_json, write_json
from mra_export.checkpoint.layout import sentence_root, transformer_folder
from mra_export.checkpoint.modules import Module, Pooling, Truncate, override_normalize, read_modules
from mra_export.errors import InputError

__all__ = [
    "SENTENCE_FILE",
    "SIMILARITIES",
    "TextContract",
    "length_file",
    "max_length",
    "prompt_of",
    "read_contract",
    "tokenizer_limit",
    "write_length_file",
]

SENTENCE_FILE = "config_sentence_transformers.json"
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_ALWAYS_THERE = {"query": "", "document": ""}
"""Prompts that sentence-transformers has for every model, so that a default may name them."""
_HARMLESS = ("__version__", "pytorch", "transformers", "sentence_transformers")
"""Keys of `SENTENCE_FILE` that change no vector."""
_HARMLESS_LENGTH = ("unpad_inputs",)
"""Keys of `LENGTH_FILES` that change no vector, whatever they say."""
_USUAL = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "query_length": None,
    "document_length": None,
    "query_expansion": None,
    "tokenizer_name_or_path": None,
}
"""Keys of `LENGTH_FILES` that change vectors, and the one value that is offered."""
_USUAL_MODALITY = {"method": "forward", "method_output_name": "last_hidden_state"}
_OF_LOADING = (
    "attn_implementation", "cache_dir", "code_revision", "device_map", "export", "file_name", "force_download", "local_files_only",
    "low_cpu_mem_usage", "provider", "proxies", "revision", "subfolder", "token", "trust_remote_code", "use_auth_token",
    "use_cache", "use_fast", "use_safetensors", "add_pooling_layer", "output_attentions", "output_hidden_states", "return_dict",
)  # fmt: skip
"""Arguments of transformers' `from_pretrained` that change no vector."""
_TYPES = ("dtype", "torch_dtype")


@dataclass(frozen=True)
class TextContract:
    """How a text becomes a vector, apart from the encoder's weights.

    Attributes:
        max_length: tokens of a text at most, special tokens included, as sentence-transformers' files say; None where they
            leave it to the tokenizer and the model. See the function of that name.
        lowercase: whether a text is lowered before all else.
        prompts: name -> what is put before a text.
        default_prompt: name of the prompt that a text gets if none is asked for; None for no prompt.
        modules: what follows the encoder; empty where there are no sentence-transformers files.
        similarity: of two vectors, one of `SIMILARITIES`; None where it is not said.
        tokenizer_options: arguments that sentence-transformers gives to `AutoTokenizer.from_pretrained`.
        notes: what changes nothing or cannot be had everywhere, one sentence each.
        pooling: what was asked for instead of the checkpoint's own, as for `read_contract`.
        normalize: the same.
    """

    max_length: int | None = None
    lowercase: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    modules: tuple[Module, ...] = ()
    similarity: str | None = None
    tokenizer_options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pooling: str | None = None
    normalize: bool | None = None

    @property
    def include_prompt(self) -> bool:
        """Whether the tokens of a prompt count in the pooling."""
        return all(module.include_prompt for module in self.modules if isinstance(module, Pooling))


def prompt_of(prompts: dict[str, str], default: str | None, name: str | None) -> str:
    """What is put before a text.

    Args:
        prompts: name -> prompt.
        default: name of the one that is meant where none is asked for.
        name: of the one that is asked for; None for the default.

    Raises:
        InputError: there is none of that name.
    """
    if name is None:
        return prompts.get(default, "") if default is not None else ""
    if name not in prompts and name in _ALWAYS_THERE:  # in sentence-transformers every model has these
        return _ALWAYS_THERE[name]
    if name not in prompts:
        known = f"The model has {', '.join(sorted(prompts))}." if prompts else "The model has none."
        raise InputError(f"There is no prompt {name!r}. {known}")
    return prompts[name]


def max_length(contract: TextContract, limit: float | None, positions: int) -> int:
    """Tokens of a text at most, special tokens included, as sentence-transformers has it.

    Args:
        contract: whose `max_length` counts instead of the tokenizer's.
        limit: the tokenizer's `model_max_length`, see `tokenizer_limit`; None for none.
        positions: tokens that the model has positions for.
    """
    stated = contract.max_length or limit
    return positions if stated is None else int(min(stated, positions))


def tokenizer_limit(directory: Path) -> float | None:
    """`model_max_length` of a tokenizer_config.json, None where it states none."""
    settings = read_json(directory / "tokenizer_config.json")
    value = settings.get("model_max_length", settings.get("max_len"))
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 else None


def read_contract(
    directory: Path, *, pooling: str | None = None, normalize: bool | None = None, embedding: bool = True
) -> TextContract:
    """Reads the sentence-transformers files of a checkpoint, an ONNX directory or a bundle.

    Args:
        directory: with `modules.json`, `config_sentence_transformers.json` and one of `LENGTH_FILES`, as far as there are any;
            where the Transformer has a folder of its own, that folder or the one above.
        pooling: of `POOLING_MODES` instead of the checkpoint's own, what follows it stays; "none" for no modules at all, so
            that they are not read; None for the checkpoint's own.
        normalize: whether the vector is scaled to length 1 by the last module, `Truncate` aside; None for the checkpoint's own.
        embedding: whether a text's vector is wanted; else what would only change that is neither read nor refused.

    Raises:
        InputError: a file cannot be read, or a setting that changes vectors cannot be honoured; the message names it.
    """
    root = sentence_root(directory)
    chain: tuple[Module, ...] = ()
    notes: list[str] = []
    is_vector = embedding and pooling != "none"
    if is_vector:
        chain, notes = read_modules(root, pooling=pooling)
    chain = override_normalize(chain, normalize)
    contract = _settings(root / SENTENCE_FILE, chain, is_vector, notes)
    contract = _transformer(transformer_folder(root), contract, is_vector, notes)
    if contract.prompts and not contract.include_prompt:
        notes.append(
            f"{root / SENTENCE_FILE} has prompts, and by include_prompt=false their tokens do not count in the pooling: so it is "
            "where the prompt is known (`mra-export embed`). An ONNX graph alone counts every token in sentence_embedding."
        )
    return replace(contract, notes=tuple(notes), pooling=pooling, normalize=normalize)


def _settings(path: Path, chain: tuple[Module, ...], is_vector: bool, notes: list[str]) -> TextContract:
    """What `SENTENCE_FILE` says, the modules with what it adds to them."""
    settings = read_json(path)
    kind = settings.pop("model_type", None) or "SentenceTransformer"
    if is_vector and kind != "SentenceTransformer":
        raise InputError(
            f"{path}: model_type={kind!r} gives something else than one vector a text; only SentenceTransformer is offered. "
            "Take another checkpoint."
        )
    prompts = settings.pop("prompts", None) or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise InputError(f"{path}: prompts={prompts!r} must be an object of texts. Mend it.")
    prompts = {name: text or "" for name, text in prompts.items()}
    default = settings.pop("default_prompt_name", None)
    if default is not None and default not in _ALWAYS_THERE | prompts:
        raise InputError(
            f"{path}: default_prompt_name={default!r} is none of its prompts, {', '.join(sorted(prompts)) or 'none'}. Mend it."
        )
    dimension = settings.pop("truncate_dim", None)
    size = _whole(dimension)
    if dimension is not None and size is None:
        raise InputError(f"{path}: truncate_dim={dimension!r} must be a whole number of at least 1. Mend it.")
    similarity = settings.pop("similarity_fn_name", None)
    if similarity not in (None, *SIMILARITIES):
        notes.append(f"{path}: similarity_fn_name={similarity!r} is none of {', '.join(SIMILARITIES)}; it is left out.")
        similarity = None
    _note(path, settings, _HARMLESS, notes)
    if size is not None and chain:
        chain = (*chain, Truncate(size))
    return TextContract(
        prompts=prompts,
        default_prompt=default if default in prompts else None,
        modules=chain,
        similarity=similarity,
    )


def length_file(folder: Path) -> Path:
    """The file of sentence-transformers' Transformer module that counts, whether it is there or not."""
    return next((folder / name for name in LENGTH_FILES if read_json(folder / name)), folder / LENGTH_FILES[0])


def write_length_file(folder: Path, target: Path, longest: int) -> None:
    """Writes the file of sentence-transformers' Transformer module under its present name, its limit a whole number.

    Args:
        folder: of the source's.
        target: the directory to write to.
        longest: the most that the limit may be.
    """
    source = length_file(folder)
    settings = read_json(source)
    for name in LENGTH_FILES:
        (target / name).unlink(missing_ok=True)
    limit = _whole(settings.get("max_seq_length"))
    if limit is not None and (limit > longest or not isinstance(settings["max_seq_length"], int)):
        write_json(target / LENGTH_FILES[0], {**settings, "max_seq_length": min(limit, longest)})
    elif settings:
        shutil.copyfile(source, target / LENGTH_FILES[0])


def _transformer(folder: Path, contract: TextContract, is_vector: bool, notes: list[str]) -> TextContract:
    """Adds what the file of sentence-transformers' Transformer module says: limit, case, arguments of the tokenizer."""
    path = length_file(folder)
    settings = read_json(path)
    limit = _limit(path, "max_seq_length", settings.pop("max_seq_length", None))
    lowercase = settings.pop("do_lower_case", None) or False
    if not isinstance(lowercase, bool):
        raise InputError(f"{path}: do_lower_case={lowercase!r} must be true or false. Mend it.")
    for key, usual in _USUAL.items():
        if settings.pop(key, None) not in (usual, None) and is_vector:
            raise InputError(
                f"{path}: {key}={read_json(path)[key]!r} changes vectors and is not offered, only {usual or 'null'}. "
                "Remove it, or take another checkpoint."
            )
    modality = settings.pop("modality_config", None)
    loading = {key: settings.pop(key, None) for key in ("model_args", "model_kwargs", "config_args", "config_kwargs")}
    if is_vector:
        _check_modality(path, modality)
        for name, stated in loading.items():
            _check_loading(path, name, stated, notes)
    name = "tokenizer_args" if "tokenizer_args" in settings else "processor_kwargs"
    options = _object(path, name, settings.pop(name, None))
    settings.pop("processor_kwargs", None)
    options = {key: value for key, value in options.items() if key not in _OF_LOADING}
    limit = _limit(path, f"{name}.model_max_length", options.pop("model_max_length", None)) or limit
    limit = (
        _check_processing(path, _object(path, "processing_kwargs", settings.pop("processing_kwargs", None))) or limit
    )
    _note(path, settings, _HARMLESS_LENGTH, notes)
    return replace(contract, max_length=limit, lowercase=lowercase, tokenizer_options=options)


def _limit(path: Path, name: str, stated: Any) -> int | None:
    if stated is None:
        return None
    limit = _whole(stated)
    if limit is None:
        raise InputError(f"{path}: {name}={stated!r} must be a whole number of at least 1. Mend it.")
    return limit


def _check_modality(path: Path, stated: Any) -> None:
    """Refuses anything but text that goes through the encoder to its token vectors."""
    modality = _object(path, "modality_config", stated)
    if other := sorted(set(modality) - {"text"}):
        raise InputError(
            f"{path}: modality_config has {', '.join(other)}; only text is offered, which goes to the encoder as it is. "
            "Take another checkpoint."
        )
    if modality and modality["text"] != _USUAL_MODALITY:
        raise InputError(
            f"{path}: modality_config has text={modality['text']!r}, only {_USUAL_MODALITY} is offered. "
            "Take another checkpoint."
        )


def _check_loading(path: Path, name: str, stated: Any, notes: list[str]) -> None:
    """Refuses arguments with which transformers would load another model."""
    options = _object(path, name, stated)
    if types := [f"{key}={options[key]}" for key in _TYPES if str(options.get(key)).endswith("float16")]:
        notes.append(f"{path}: {name} has {', '.join(types)}; what is compared with is the model in float32.")
    if other := sorted(set(options) - {*_OF_LOADING, *_TYPES}):
        raise InputError(
            f"{path}: {name} has {', '.join(f'{key}={options[key]!r}' for key in other)}, which may change vectors and is not "
            "offered. Put it into config.json, or remove it."
        )


def _check_processing(path: Path, processing: dict[str, Any]) -> int | None:
    """The limit that `processing_kwargs` state, which counts before all others; refuses what changes ids otherwise."""
    limit = None
    for part in ("common", "text"):
        options = dict(_object(path, f"processing_kwargs.{part}", processing.pop(part, None)))
        limit = _limit(path, f"processing_kwargs.{part}.max_length", options.pop("max_length", None)) or limit
        usual = {"padding": (True, "longest"), "truncation": (True, "longest_first"), "return_tensors": ("pt",)}
        if other := [key for key, value in options.items() if value not in usual.get(key, ())]:
            shown = ", ".join(f"{key}={options[key]!r}" for key in sorted(other))
            raise InputError(f"{path}: processing_kwargs.{part} has {shown}, which is not offered. Remove it.")
    if other := sorted(key for key, value in processing.items() if value):
        raise InputError(f"{path}: processing_kwargs has {', '.join(other)}; only text is offered. Remove it.")
    return limit


def _object(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise InputError(f"{path}: {name}={value!r} must be an object. Mend it.")
    return value or {}


def _whole(value: Any) -> int | None:
    """A size that JSON may have as 128 or 128.0; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return int(value) if is_number and value >= 1 and value == int(value) else None


def _note(path: Path, settings: dict[str, Any], harmless: tuple[str, ...], notes: list[str]) -> None:
    if unknown := sorted(set(settings) - set(harmless)):
        notes.append(f"{path} has {', '.join(unknown)}, which is not known here and changes nothing.")

"""Text to vector as a checkpoint has it: everything beside the encoder that decides which vector a text gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mra_export.checkpoint.files import LENGTH_FILES, read_json
from mra_export.checkpoint.layout import sentence_root
from mra_export.checkpoint.modules import Module, Pooling, Truncate, read_modules
from mra_export.errors import InputError

__all__ = ["SENTENCE_FILE", "SIMILARITIES", "TextContract", "prompt_of", "read_contract"]

SENTENCE_FILE = "config_sentence_transformers.json"
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_HARMLESS = ("__version__", "model_type", "pytorch", "transformers", "sentence_transformers")
"""Keys of `SENTENCE_FILE` that change no vector."""
_HARMLESS_LENGTH = (
    "transformer_task", "modality_config", "module_output_name", "unpad_inputs", "model_args", "tokenizer_args", "config_args",
    "model_kwargs", "processor_kwargs", "config_kwargs", "processing_kwargs",
)  # fmt: skip
"""Keys of `LENGTH_FILES` that newer releases write whatever the model is; they change nothing where they have their usual value."""
_USUAL = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "unpad_inputs": False,
}


@dataclass(frozen=True)
class TextContract:
    """How a text becomes a vector, apart from the encoder's weights.

    Attributes:
        max_length: tokens of a text at most, special tokens included, as sentence-transformers' files say; None where they
            leave it to the tokenizer and the model.
        lowercase: whether a text is lowered before all else.
        prompts: name -> what is put before a text.
        default_prompt: name of the prompt that a text gets if none is asked for; None for no prompt.
        modules: what follows the encoder; empty where there are no sentence-transformers files.
        similarity: of two vectors, one of `SIMILARITIES`; None where it is not said.
        notes: keys that nobody knows, one sentence each.
    """

    max_length: int | None = None
    lowercase: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    modules: tuple[Module, ...] = ()
    similarity: str | None = None
    notes: tuple[str, ...] = ()

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
    if name not in prompts:
        known = f"The model has {', '.join(sorted(prompts))}." if prompts else "The model has none."
        raise InputError(f"There is no prompt {name!r}. {known}")
    return prompts[name]


def read_contract(directory: Path) -> TextContract:
    """Reads the sentence-transformers files of a checkpoint, an ONNX directory or a bundle.

    Args:
        directory: with `modules.json`, `config_sentence_transformers.json` and one of `LENGTH_FILES`, as far as there are any.

    Raises:
        InputError: a file cannot be read, or a setting that changes vectors cannot be honoured; the message names it.
    """
    root = sentence_root(directory)
    modules, notes = read_modules(root)
    max_length, lowercase = _length(directory, notes)
    path = root / SENTENCE_FILE
    settings = read_json(path)
    prompts = settings.pop("prompts", None) or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise InputError(f"{path}: prompts={prompts!r} must be an object of texts. Mend it.")
    prompts = {name: text or "" for name, text in prompts.items()}
    default = settings.pop("default_prompt_name", None)
    if default is not None and default not in prompts:
        raise InputError(
            f"{path}: default_prompt_name={default!r} is none of its prompts, {', '.join(sorted(prompts)) or 'none'}. Mend it."
        )
    dimension = settings.pop("truncate_dim", None)
    if dimension is not None:
        size = _whole(dimension)
        if size is None:
            raise InputError(f"{path}: truncate_dim={dimension!r} must be a whole number of at least 1. Mend it.")
        if modules:
            modules = (*modules, Truncate(size))
    similarity = settings.pop("similarity_fn_name", None)
    if similarity not in (None, *SIMILARITIES):
        notes.append(f"{path}: similarity_fn_name={similarity!r} is none of {', '.join(SIMILARITIES)}; it is left out.")
        similarity = None
    _note(path, settings, _HARMLESS, notes)
    return TextContract(max_length, lowercase, prompts, default, modules, similarity, tuple(notes))


def _length(directory: Path, notes: list[str]) -> tuple[int | None, bool]:
    """The limit and the case of sentence-transformers' Transformer module."""
    path = next((directory / name for name in LENGTH_FILES if read_json(directory / name)), directory / LENGTH_FILES[0])
    settings = read_json(path)
    stated = settings.pop("max_seq_length", None)
    limit = None if stated is None else _whole(stated)
    if stated is not None and limit is None:
        raise InputError(f"{path}: max_seq_length={stated!r} must be a whole number of at least 1. Mend it.")
    lowercase = settings.pop("do_lower_case", False)
    if not isinstance(lowercase, bool):
        raise InputError(f"{path}: do_lower_case={lowercase!r} must be true or false. Mend it.")
    for key, usual in _USUAL.items():
        if settings.get(key, usual) not in (usual, None):
            raise InputError(f"{path}: {key}={settings[key]!r} is not offered, only {usual!r}. Export another model.")
    _note(path, settings, _HARMLESS_LENGTH, notes)
    return limit, lowercase


def _whole(value: Any) -> int | None:
    """A size that JSON may have as 128 or 128.0; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and value >= 1 and value == int(value) else None


def _note(path: Path, settings: dict[str, Any], harmless: tuple[str, ...], notes: list[str]) -> None:
    if unknown := sorted(set(settings) - set(harmless)):
        notes.append(f"{path} has {', '.join(unknown)}, which is not known here and changes nothing.")

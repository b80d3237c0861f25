"""Whether config.json names a kind of model, and whether settings are of the types that transformers means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mra_export.errors import InputError
from mra_export.schema import shown

__all__ = ["architectures_of", "check_config", "check_tokenizer_config"]

_SIZES = (
    "block_per_row",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)
"""Settings that cannot be null: nothing would be known of the model without them."""


def check_config(stated: dict[str, Any], path: Path) -> None:
    """Refuses a configuration that names no kind of model, or has a setting of another type than transformers' default.

    Args:
        stated: config.json as parsed.
        path: of the file.

    Raises:
        InputError: the message names the setting.
    """
    from transformers import CONFIG_MAPPING

    model_type = stated.get("model_type")
    if not model_type:
        raise InputError(f"{path} names no model_type, so the kind of model is not known. {_advice(stated, path)}")
    if not isinstance(model_type, str):
        raise InputError(f"{path}: model_type={shown(model_type)} must be a text. Mend it.")
    architectures_of(stated, path)
    if model_type not in CONFIG_MAPPING:
        return  # transformers says so itself
    defaults = vars(CONFIG_MAPPING[model_type]())
    for name, value in stated.items():
        default = defaults.get(name)
        expected = _expected(default)
        if expected is None or _fits(value, default):
            continue
        if value is None and name not in _SIZES:
            continue
        if name.endswith("_token_id") and isinstance(value, list):
            continue
        raise InputError(f"{path}: {name}={shown(value)} must be {expected}. Mend it.")


def check_tokenizer_config(stated: dict[str, Any], path: Path) -> None:
    """Refuses a setting of another type in tokenizer_config.json, of those that decide what a text becomes.

    Args:
        stated: the file as parsed.
        path: of the file.

    Raises:
        InputError: the message names the setting.
    """
    for name, expected in _OF_TOKENIZER.items():
        value = stated.get(name)
        is_flag = isinstance(value, bool)
        fits = {
            "a number": isinstance(value, int | float) and not is_flag,
            "a text": isinstance(value, str),
            "true or false": is_flag,
        }
        if value is not None and not fits[expected]:
            raise InputError(f"{path}: {name}={shown(value)} must be {expected}. Mend it.")


_OF_TOKENIZER = {
    "model_max_length": "a number",
    "padding_side": "a text",
    "truncation_side": "a text",
    "tokenizer_class": "a text",
    "do_lower_case": "true or false",
    "strip_accents": "true or false",
    "tokenize_chinese_chars": "true or false",
}


def _expected(default: Any) -> str | None:
    """What a setting has to be, by its default, in words; None where the default says too little."""
    words = {int: "an integer", float: "a number", str: "a text"}
    return words.get(type(default))


def _fits(value: Any, default: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def architectures_of(stated: dict[str, Any], path: Path) -> list[str] | None:
    """The classes that config.json names, None where it names none.

    Raises:
        InputError: it is neither a text nor a list of texts.
    """
    value = stated.get("architectures")
    if isinstance(value, str):
        return [value] if value else None
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise InputError(f"{path}: architectures={shown(value)} must be a list of classes. Mend it.")
    return value or None


def _advice(stated: dict[str, Any], path: Path) -> str:
    """The model_type that the class in config.json has, to be added; or that one is needed."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names = architectures_of(stated, path) or [""]
    # The bare encoder of each kind; its class name without "Model" begins those of the heads.
    prefixes = {}
    for kind, model in MODEL_MAPPING_NAMES.items():
        for each in [model] if isinstance(model, str) else model:
            prefixes[each.removesuffix("Model")] = kind
    found = max((prefix for prefix in prefixes if prefix and names[0].startswith(prefix)), key=len, default=None)
    if found is None or not names[0].removeprefix(found).startswith(("Model", "For")):
        return 'Add "model_type" there, for example "bert".'
    return f'By its architecture {names[0]} it is "model_type": "{prefixes[found]}"; add that.'

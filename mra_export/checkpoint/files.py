"""The files of a checkpoint: where they are, and which travel with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mra_export.errors import InputError

__all__ = ["SIDE_FILES", "first_line", "locate", "read_json", "write_json"]

SIDE_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config_sentence_transformers.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "1_Pooling/config.json",
    "2_Normalize/config.json",
    "COPYING",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
)
"""Files beside the weights that travel with a checkpoint: tokenizer, sentence-transformers, licence."""


def locate(source: str | Path, *, weights: bool = True) -> Path:
    """The directory of a checkpoint.

    Args:
        source: a directory, a `config.json`, or a hub id.
        weights: whether the weights are wanted too, where they have to be fetched.

    Returns:
        The directory; for a hub id, where the hub's client keeps it.

    Raises:
        InputError: there is no such directory or hub id, or it has no `config.json`.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".json":
        path = path.parent
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{path} has no config.json, so it is not a checkpoint. Give a transformers checkpoint.")
        return path
    if path.exists():
        raise InputError(f"{path} is not a checkpoint directory.")
    name = str(source)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name:
        raise InputError(f"{name} does not exist. Give a checkpoint directory or a hub id.")
    from huggingface_hub import snapshot_download

    patterns = [
        "*.json",
        "*.txt",
        "*.model",
        "*_*/config.json",
        "LICENSE*",
        "COPYING",
        "NOTICE*",
        "README.md",
        "chat_template.jinja",
    ]
    patterns += ["*.safetensors", "pytorch_model*.bin"] if weights else []
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise InputError(
            f"{name} is neither a directory here nor could it be had from the hub: {first_line(error)}"
        ) from error


def first_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut to what fits in a message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " ..."


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}. Mend or remove it.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object. Mend or remove it.")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes an object with its keys in order, so that the same value gives the same bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

"""The files beside the weights: tokenizer, sentence-transformers' modules, model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.files import SIDE_FILES, read_json, write_json
from mra_export.errors import InputError
from mra_export.version import __version__

if TYPE_CHECKING:
    from mra_export.checkpoint.from_dense.source import DenseFamily

__all__ = ["copy_side_files", "write_model_card"]


def copy_side_files(directory: Path, stage: Path, config: Any, family: DenseFamily, length: int) -> list[str]:
    """Carries tokenizer, sentence-transformers and licence files along; keeps their length limits within the table."""
    notes = []
    for name in SIDE_FILES:
        if (directory / name).is_file():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / name, stage / name)
    for folder in _module_folders(directory):
        for path in sorted((directory / folder).rglob("*")):
            if path.is_file():
                target = stage / path.relative_to(directory)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    if any((stage / name).is_file() for name in _TOKENIZER_FILES):
        path = stage / "tokenizer_config.json"
        settings = read_json(path)
        # Without these, AutoTokenizer takes RoBERTa's class for "mra" and knows no limit.
        settings["tokenizer_class"] = (
            settings.get("tokenizer_class") or getattr(config, "tokenizer_class", None) or family.tokenizer_class
        )
        limit = settings.get("model_max_length")
        settings["model_max_length"] = length if not isinstance(limit, int) else min(limit, length)
        write_json(path, settings)
    else:
        notes.append("The source has no tokenizer, so the result has none.")
    path = stage / "sentence_bert_config.json"
    settings = read_json(path)
    limit = settings.get("max_seq_length")
    if isinstance(limit, int) and limit > length:
        settings["max_seq_length"] = length
        write_json(path, settings)
        notes.append(f"max_seq_length in sentence_bert_config.json was lowered from {limit} to {length}.")
    return notes


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
)


def _module_folders(directory: Path) -> list[str]:
    """Folders of the sentence-transformers modules that follow the encoder."""
    path = directory / "modules.json"
    if not path.is_file():
        return []
    try:
        folders = [str(module["path"]) for module in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a valid list of modules: {error}") from error
    for folder in folders:
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
            raise InputError(f"{path} names the folder {folder!r}, which is outside the checkpoint. Mend it.")
    return [folder for folder in folders if folder not in ("", ".") and (directory / folder).is_dir()]


def write_model_card(directory: Path, stage: Path, summary: str) -> None:
    """A README.md that says what was changed, ahead of the source's, whose front matter (licence, language) stays."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    notice = (
        f"> Converted by mra-export {__version__} (`from-dense`): the self-attention was replaced by MRA-2 "
        f"(Zeng et al., 2022, arXiv 2207.10284); the weights are the source's. {summary}.\n"
    )
    source = directory / "README.md"
    text = source.read_text(encoding="utf-8", errors="replace") if source.is_file() else ""
    found = REGEX_YAML_BLOCK.match(text)
    front, body = (text[: found.end()], text[found.end() :]) if found else ("", text)
    front = front if not front or front.endswith("\n") else front + "\n"
    if body.strip():
        notice += ">\n> What follows is the source's own description.\n\n"
    (stage / "README.md").write_text(f"{front}\n{notice}{body.lstrip()}".lstrip("\n"), encoding="utf-8")

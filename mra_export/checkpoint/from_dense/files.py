"""The files beside the weights: tokenizer, sentence-transformers' modules, model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.files import read_json, side_files, write_json
from mra_export.checkpoint.layout import MODULES_FILE, flat_listing, read_listing, sentence_root
from mra_export.checkpoint.provenance import MODEL_CARD
from mra_export.checkpoint.text import length_file, read_contract, write_length_file
from mra_export.checkpoint.text_ids import write_tokenizer
from mra_export.errors import InputError

if TYPE_CHECKING:
    from mra_export.checkpoint.from_dense.source import DenseFamily

__all__ = ["copy_as_they_are", "copy_side_files", "write_model_card"]


def copy_side_files(directory: Path, stage: Path, config: Any, family: DenseFamily, length: int) -> list[str]:
    """Carries tokenizer, sentence-transformers and licence files along; keeps their length limits within the table."""
    notes = []
    copy_as_they_are(directory, stage)
    if any((stage / name).is_file() for name in _TOKENIZER_FILES):
        path = stage / "tokenizer_config.json"
        settings = read_json(path)
        # Without these, AutoTokenizer takes RoBERTa's class for "mra" and knows no limit.
        settings["tokenizer_class"] = (
            settings.get("tokenizer_class") or getattr(config, "tokenizer_class", None) or family.tokenizer_class
        )
        limit = settings.get("model_max_length")
        settings["model_max_length"] = length if not isinstance(limit, int | float) else int(min(limit, length))
        write_json(path, settings)
    else:
        notes.append("The source has no tokenizer, so the result has none.")
    return notes + _text_files(directory, stage, length)


def _text_files(directory: Path, stage: Path, length: int) -> list[str]:
    """The limit of sentence-transformers under the present name of its file, and the tokenizer that it uses."""
    contract = read_contract(directory, embedding=False)
    notes = list(contract.notes)
    try:
        notes = list(read_contract(directory).notes)
    except InputError as error:  # the result says the same, so that nothing is lost: whoever exports it has to choose
        notes.append(f"No embeddings can be exported of this: {error}")
    write_length_file(directory, stage, length)
    if contract.max_length is not None and contract.max_length > length:
        notes.append(
            f"max_seq_length in {length_file(directory).name} was lowered from {contract.max_length} to {length}."
        )
    return notes + write_tokenizer(directory, stage, contract, length)


def copy_as_they_are(directory: Path, stage: Path) -> None:
    """Copies the files beside the weights but the model card; where the Transformer has a folder of its own, flat.

    Args:
        directory: of the source, from `locate`.
        stage: the directory that is written.
    """
    for name, source in side_files(directory).items():
        if name != MODEL_CARD:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, stage / name)
    root = sentence_root(directory)
    for module in read_listing(root):
        if root / module.folder in (root, directory):
            continue
        for path in sorted((root / module.folder).rglob("*")):
            if path.is_file():
                target = stage / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    if root != directory:
        (stage / MODULES_FILE).write_text(json.dumps(flat_listing(root), indent=2) + "\n", encoding="utf-8")


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


def write_model_card(directory: Path, stage: Path, summary: str) -> None:
    """A README.md that says what was changed, ahead of the source's, whose front matter (licence, language) stays."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    notice = f"> {summary}.\n"
    source = side_files(directory).get(MODEL_CARD)
    text = "" if source is None else source.read_text(encoding="utf-8", errors="replace")
    found = REGEX_YAML_BLOCK.match(text)
    front, body = (text[: found.end()], text[found.end() :]) if found else ("", text)
    front = front if not front or front.endswith("\n") else front + "\n"
    if body.strip():
        notice += ">\n> What follows is the source's own description.\n\n"
    (stage / MODEL_CARD).write_text(f"{front}\n{notice}{body.lstrip()}".lstrip("\n"), encoding="utf-8")

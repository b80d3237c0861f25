"""The files of a checkpoint: where they are, and which travel with it."""

from __future__ import annotations

from pathlib import Path

from mra_export.checkpoint.adapter import ADAPTER_CONFIG, describe_alone
from mra_export.checkpoint.config_types import check_tokenizer_config
from mra_export.checkpoint.hub import fetch
from mra_export.checkpoint.json_files import read_json, refuse_pointer, write_json
from mra_export.checkpoint.layout import MODULES_FILE, read_listing, sentence_root, transformer_folder
from mra_export.errors import InputError

__all__ = ["LENGTH_FILES", "SIDE_FILES", "first_line", "locate", "read_json", "side_files", "write_json"]

LENGTH_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""Of sentence-transformers' Transformer module; the first that is there and says anything counts."""
_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_ROOT_FILES = (
    "config_sentence_transformers.json",
    MODULES_FILE,
    "1_Pooling/config.json",
    "2_Normalize/config.json",
    "README.md",
    "COPYING",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
)
"""Of the whole, where the Transformer has a folder of its own."""
SIDE_FILES = tuple(name for name in (*_TOKENIZER_FILES, *LENGTH_FILES, *_ROOT_FILES) if name != "README.md")
"""Files beside the weights that travel with a checkpoint: tokenizer, sentence-transformers, licence."""


def locate(source: str | Path, *, weights: bool = True) -> Path:
    """The directory of a checkpoint's configuration, weights and tokenizer.

    Where sentence-transformers keeps the Transformer in a folder of its own, that is the folder; `sentence_root` leads back.

    Args:
        source: a directory, a `config.json`, or a hub id.
        weights: whether the weights are wanted too, where they have to be fetched.

    Returns:
        The directory; for a hub id, where the hub's client keeps it.

    Raises:
        InputError: there is no such directory or hub id, it has no `config.json`, or a JSON file of it cannot be read.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".json":
        path = path.parent
    if not path.is_dir():
        if path.exists():
            raise InputError(f"{path} is not a checkpoint directory.")
        path = _fetched(str(source), weights)
    directory = transformer_folder(path)
    if not (directory / "config.json").is_file():
        raise InputError(_why_none(path, directory))
    _check_json(directory)
    return directory


def _fetched(name: str, weights: bool) -> Path:
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name:
        raise InputError(f"{name} does not exist. Give a checkpoint directory or a hub id.")
    try:
        return fetch(name, SIDE_FILES, weights=weights)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} is neither a directory here nor could it be had from the hub: {first_line(error)}"
        ) from error


def _why_none(path: Path, directory: Path) -> str:
    """What a directory is that has no config.json, and what to do."""
    for folder in (directory, path):
        if (folder / ADAPTER_CONFIG).is_file():
            return describe_alone(folder)
    snapshots = sorted(each for each in (path / "snapshots").glob("*") if each.is_dir())
    if (path / "blobs").is_dir() and snapshots:
        return f"{path} is the hub's cache of a model, not a checkpoint. Give {' or '.join(map(str, snapshots))}."
    if directory != path:
        return (
            f"{directory} has no config.json, but {path / MODULES_FILE} names it for the Transformer. "
            "Copy the checkpoint again, whole."
        )
    if (modules := read_listing(path)) and modules[0].kind != "Transformer":
        return f"{path / MODULES_FILE} begins with the module {modules[0].kind}, which is no Transformer: there is no encoder."
    return f"{path} has no config.json, so it is not a checkpoint. Give a transformers checkpoint."


def _check_json(directory: Path) -> None:
    """Refuses JSON that cannot be read, by the name that the user knows, before a copy of it is read."""
    files = side_files(directory)
    names = [name for name in files if name.endswith(".json") and name != MODULES_FILE]
    for path in [
        *(files[name] for name in names),
        *(directory / name for name in ("generation_config.json", ADAPTER_CONFIG)),
    ]:
        settings = read_json(path)
        if path.name == "tokenizer_config.json":
            check_tokenizer_config(settings, path)
    root = sentence_root(directory)
    for module in read_listing(root):
        if root / module.folder != directory:
            read_json(root / module.folder / "config.json")


def side_files(directory: Path) -> dict[str, Path]:
    """The `SIDE_FILES` and the model card that a checkpoint has.

    Args:
        directory: from `locate`.

    Returns:
        The name in a directory where the Transformer has no folder of its own -> where the file is now.

    Raises:
        InputError: modules.json cannot be read, or a file was not fetched by Git LFS.
    """
    root = sentence_root(directory)
    found = {}
    for name in (*SIDE_FILES, "README.md"):
        places = (root, directory) if name in _ROOT_FILES else (directory,)
        path = next((place / name for place in places if (place / name).is_file()), None)
        if path is not None:
            refuse_pointer(path)
            found[name] = path
    return found


def first_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut to what fits in a message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " ..."

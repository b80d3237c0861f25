"""The tokenizer of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.json_files import read_json, refuse_pointer
from mra_export.errors import DependencyError, InputError
from mra_export.optional import require

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["load_tokenizer"]

_SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", *_SENTENCEPIECE_FILES)
_NEWER_CLASS = "TokenizersBackend"
"""What transformers 5 writes for its release 4's PreTrainedTokenizerFast."""
_JSON_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")


def load_tokenizer(directory: Path, options: Mapping[str, Any] | None = None) -> Any | None:
    """The tokenizer of a checkpoint, as transformers' AutoTokenizer gives it.

    Args:
        directory: with the files of the tokenizer.
        options: arguments that count before what the files say.

    Returns:
        The tokenizer; None where there is no vocabulary, or none in the files of the class that tokenizer_config.json names.

    Raises:
        InputError: a file cannot be read, or the files do not make a tokenizer.
        DependencyError: a package that its files need is not installed.
    """
    from mra_export.quiet import quiet_transformers

    files = [directory / name for name in _VOCABULARIES if (directory / name).is_file()]
    if not files:
        return None
    for path in files:
        refuse_pointer(path)
    for name in _JSON_FILES:
        read_json(directory / name)
    if files[0].name == "tokenizer.json":
        _check_own_format(files[0])
    elif files[0].name in _SENTENCEPIECE_FILES:
        _check_sentencepiece(files[0])
    import transformers

    loader: Any = transformers.AutoTokenizer
    stated = read_json(directory / "tokenizer_config.json").get("tokenizer_class")
    if stated == _NEWER_CLASS and not hasattr(transformers, stated):
        loader = transformers.PreTrainedTokenizerFast
    names = ", ".join(path.name for path in files)
    with quiet_transformers():
        try:
            tokenizer = loader.from_pretrained(directory, **(options or {}))
        except Exception as error:
            if isinstance(error, TypeError) and "NoneType" in str(error):
                return None  # so says transformers 4 where the class finds none of its files
            first = " ".join(str(error).split())[:300] or type(error).__name__
            given = "".join(f" with {key}={value!r}" for key, value in (options or {}).items())
            raise InputError(
                f"The tokenizer in {directory} ({names}) cannot be loaded{given}: {first} Mend its files, or take them away."
            ) from error
    # transformers 5 makes do with these where the class finds none of its files: every text would be unknown.
    is_empty = set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens)
    return None if is_empty else tokenizer


def _check_own_format(path: Path) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises this class itself
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read as a tokenizer: {first}. Mend or remove it.") from error


def _check_sentencepiece(path: Path) -> None:
    """Refuses a vocabulary in sentencepiece's format where the packages that read it are not there, or cannot read it."""
    install = "Install it with `pip install 'mra-export[sentencepiece]'`."
    for package, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf")):
        require(
            module,
            f"{path} is a vocabulary of sentencepiece, and {package}, which reads it, cannot be imported ({{error}}). {install}",
        )
    try:
        import sentencepiece.sentencepiece_model_pb2
    except Exception as error:  # protobuf's own, where the two are not of one time
        raise DependencyError(
            f"{path} is a vocabulary of sentencepiece, which does not go with the protobuf that is installed: {error} {install}"
        ) from error
    try:
        sentencepiece.SentencePieceProcessor(model_file=str(path))
    except Exception as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} cannot be read as a vocabulary of sentencepiece: {first}. Mend or remove it."
        ) from error

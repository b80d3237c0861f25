"""The tokenizer that sentence-transformers uses, as one tokenizer.json that says all of it, and the proof that it does."""

from __future__ import annotations

import contextlib
import inspect
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.files import read_json
from mra_export.checkpoint.text import TextContract, max_length
from mra_export.checkpoint.tokenizer import load_tokenizer
from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "NASTY_TEXTS",
    "TOKENIZER_FILE",
    "as_backend",
    "ids_of",
    "settings_between",
    "source_tokenizer",
    "tokenizer_texts",
    "write_tokenizer",
]

TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_OF_EVERY_CLASS = (
    "added_tokens_decoder", "additional_special_tokens", "add_bos_token", "add_eos_token", "add_prefix_space", "chat_template",
    "clean_up_tokenization_spaces", "extra_special_tokens", "max_len", "model_input_names", "model_max_length", "padding_side",
    "split_special_tokens", "tokenizer_class", "truncation_side",
)  # fmt: skip
"""Keys of tokenizer_config.json that transformers reads whatever the class is."""
_OF_NO_MATTER = (
    "auto_map", "backend", "do_basic_tokenize", "errors", "from_slow", "is_local", "legacy", "local_files_only", "max_length",
    "merges_file", "model_specific_special_tokens", "name_or_path", "never_split", "pad_to_multiple_of", "pad_token_type_id",
    "padding", "processor_class", "response_schema", "sp_model_kwargs", "special_tokens_map_file", "stride", "tokenizer_file",
    "transformers_version", "trim_offsets", "truncation", "truncation_strategy", "use_fast", "vocab_file",
)  # fmt: skip
"""Keys that releases of transformers leave there, and that change no ids of a fast tokenizer."""
NASTY_TEXTS: list[str] = json.loads((Path(__file__).parents[1] / "data" / "texts.json").read_text(encoding="utf-8"))
"""Texts on which settings of a tokenizer show: case, accents, scripts, blanks, control characters, none at all."""


def source_tokenizer(directory: Path, contract: TextContract, positions: int) -> Any | None:
    """The tokenizer of a checkpoint as sentence-transformers sets it up.

    Args:
        directory: of the tokenizer's files.
        contract: read from there.
        positions: tokens that the model has positions for.

    Returns:
        A transformers tokenizer with the contract's case, limit and arguments; None where there is none.

    Raises:
        InputError: it cannot be loaded.
    """
    tokenizer = load_tokenizer(directory, contract.tokenizer_options)
    if tokenizer is None:
        return None
    tokenizer = _own_kind(directory, tokenizer)
    tokenizer.model_max_length = max_length(contract, tokenizer.model_max_length, positions)
    if contract.lowercase and getattr(tokenizer, "backend_tokenizer", None) is not None:
        backend = tokenizer.backend_tokenizer
        backend.normalizer = _lowered(backend.normalizer)
    elif contract.lowercase:
        tokenizer.do_lower_case = True
    return tokenizer


def _own_kind(directory: Path, tokenizer: Any) -> Any:
    """The tokenizer, or tokenizer.json alone where transformers guessed a class and that has another kind of vocabulary."""
    from transformers import PreTrainedTokenizerFast

    path = directory / TOKENIZER_FILE
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not path.is_file() or backend is None:
        return tokenizer
    from tokenizers import Tokenizer

    stored = Tokenizer.from_file(str(path))
    if isinstance(backend.model, type(stored.model)):
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(directory)


def _lowered(normalizer: Any) -> Any:
    """A normalizer with Lowercase before all else, as sentence-transformers puts it there."""
    from tokenizers.normalizers import Lowercase, Sequence

    many: Any = normalizer if isinstance(normalizer, Sequence) else [normalizer] if normalizer is not None else []
    parts = list(many)
    return normalizer if any(isinstance(part, Lowercase) for part in parts) else Sequence([Lowercase(), *parts])


def write_tokenizer(directory: Path, target: Path, contract: TextContract, positions: int) -> list[str]:
    """Writes the tokenizer.json that does what sentence-transformers does with the source's files, and proves that it does.

    Truncation at the limit and on the tokenizer's side is in it, and no padding. What `AutoTokenizer` makes of the files in
    `target` is compared too.

    Args:
        directory: of the source's tokenizer.
        target: where its other files and a config.json are already.
        contract: of the source.
        positions: tokens that the model has positions for.

    Returns:
        Notes, one sentence each.

    Raises:
        InputError: a setting cannot be said in a tokenizer.json; the message names it.
    """
    tokenizer = source_tokenizer(directory, contract, positions)
    if tokenizer is None:
        return []
    notes = [*_unknown(directory, tokenizer), *_padding_side(tokenizer, target)]
    backend = as_backend(tokenizer)
    if backend is None:
        kind = type(tokenizer).__name__
        return [*notes, f"{kind} has no form as tokenizer.json, which servers read: clients have to bring token ids."]
    (target / TOKENIZER_FILE).write_text(backend.to_str(pretty=True), encoding="utf-8")
    texts = tokenizer_texts(tokenizer)
    expected = ids_of(tokenizer, texts)
    from tokenizers import Tokenizer

    written = Tokenizer.from_file(str(target / TOKENIZER_FILE))
    _check(expected, _rust_ids(written, texts), texts, directory, contract, positions, f"the {TOKENIZER_FILE} written")
    again = source_tokenizer(target, contract, positions)
    if again is not None:
        _check(expected, ids_of(again, texts), texts, directory, contract, positions, "the directory written")
    return notes


def _unknown(directory: Path, tokenizer: Any) -> list[str]:
    """Names the keys of tokenizer_config.json that the tokenizer's class does not take."""
    makers = [vars(kind)["__init__"] for kind in type(tokenizer).__mro__[:-1] if "__init__" in vars(kind)]
    parameters = {name for maker in makers for name in inspect.signature(maker).parameters}
    known = {*parameters, *_OF_EVERY_CLASS, *_OF_NO_MATTER}
    path = directory / _CONFIG_FILE
    unknown = sorted(
        key for key in read_json(path) if key not in known and not key.startswith("_") and not key.endswith("_token")
    )
    kind = type(tokenizer).__name__
    return [f"{path} has {', '.join(unknown)}, which {kind} does not know: nothing changes by it."] if unknown else []


def _padding_side(tokenizer: Any, target: Path) -> list[str]:
    """Padding is on the right in what is written: positions count from the left, so that only there it changes no vector."""
    if tokenizer.padding_side == "right":
        return []
    path = target / _CONFIG_FILE
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(
        json.dumps({**settings, "padding_side": "right"}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return [
        "padding_side=left became right: every text gets the vector that it has alone. Padding on the left moves the positions "
        "of the shorter texts of a batch."
    ]


def as_backend(tokenizer: Any) -> Any | None:
    """A transformers tokenizer as one of the tokenizers library: cut at its limit and on its side, without padding.

    Args:
        tokenizer: from `source_tokenizer`.

    Returns:
        None where it has no such form.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        from transformers.convert_slow_tokenizer import convert_slow_tokenizer

        try:
            backend = convert_slow_tokenizer(tokenizer)
        except Exception:  # whatever it is: this one has no such form
            return None
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.enable_truncation(tokenizer.model_max_length, direction=tokenizer.truncation_side)
    return copy


def tokenizer_texts(tokenizer: Any) -> list[str]:
    """Texts on which settings of a tokenizer show: its own special tokens among words, and one beyond the limit on both sides."""
    special = [str(token) for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab())]
    found = [f"word {token} Word{token}word {token.upper()} {token.lower()}" for token in dict.fromkeys(special)]
    room = min(int(tokenizer.model_max_length), 1 << 15)
    changing = [f"first{i % 7} alpha{i}" for i in range(room)] + [f"second{i % 5} Omega{i}" for i in range(room)]
    return [*NASTY_TEXTS, *found[:60], " ".join(changing)]


def ids_of(tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """Ids and token types of each text as a transformers tokenizer gives them, cut at its limit."""
    encoded = [tokenizer(text, truncation="longest_first") for text in texts]
    return [(list(e["input_ids"]), list(e.get("token_type_ids") or [0] * len(e["input_ids"]))) for e in encoded]


def _rust_ids(tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    return [(e.ids, e.type_ids) for e in map(tokenizer.encode, texts)]


def _check(
    expected: list[tuple[list[int], list[int]]],
    actual: list[tuple[list[int], list[int]]],
    texts: list[str],
    directory: Path,
    contract: TextContract,
    positions: int,
    what: str,
) -> None:
    differing = [text for text, want, got in zip(texts, expected, actual, strict=True) if want != got]
    if not differing:
        return
    settings = _responsible(directory, contract, positions, texts, actual)
    named = (
        f"{directory / _CONFIG_FILE} has {settings}, which" if settings else f"The tokenizer in {directory} does what"
    )
    text = differing[0] if len(differing[0]) <= 60 else differing[0][:60] + "..."
    raise InputError(
        f"{named} cannot be carried over: of {len(texts)} texts {len(differing)} get other ids with {what}, {text!r} among them. "
        "Take the setting away, or save the tokenizer again with transformers."
    )


def _responsible(
    directory: Path, contract: TextContract, positions: int, texts: list[str], actual: list[tuple[list[int], list[int]]]
) -> str:
    """The setting of tokenizer_config.json without which there is no difference, "" where it is none of them alone."""
    try:
        settings = json.loads((directory / _CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    for name, value in settings.items():
        with tempfile.TemporaryDirectory(prefix="mra-export-") as folder, contextlib.suppress(Exception):
            for path in directory.iterdir():
                if path.is_file() and path.suffix in (".json", ".txt", ".model"):
                    shutil.copyfile(path, Path(folder) / path.name)
            rest = {key: other for key, other in settings.items() if key != name}
            (Path(folder) / _CONFIG_FILE).write_text(json.dumps(rest), encoding="utf-8")
            without = source_tokenizer(Path(folder), contract, positions)
            if without is not None and ids_of(without, texts) == actual:
                return f"{name}={value!r}"
    return ""


def settings_between(one: Any, other: Any) -> list[str]:
    """What differs between two tokenizers, by the names that tokenizer_config.json and sentence-transformers have for it.

    Args:
        one: of the tokenizers library.
        other: another one.
    """
    first, second = (json.loads(each.to_str()) for each in (one, other))
    readers = {
        "max_seq_length": lambda t: (t["truncation"] or {}).get("max_length"),
        "truncation_side": lambda t: (t["truncation"] or {}).get("direction"),
        "do_lower_case": lambda t: "Lowercase" in _kinds(t["normalizer"]) or any(_all(t["normalizer"], "lowercase")),
        "strip_accents": lambda t: ("StripAccents" in _kinds(t["normalizer"]), _all(t["normalizer"], "strip_accents")),
        "tokenize_chinese_chars": lambda t: _all(t["normalizer"], "handle_chinese_chars"),
        "add_prefix_space": lambda t: _all(t["pre_tokenizer"], "add_prefix_space"),
        "added_tokens": lambda t: t["added_tokens"],
    }
    found = [name for name, read in readers.items() if read(first) != read(second)]
    is_explained = {"normalizer": _OF_NORMALIZER, "pre_tokenizer": {"add_prefix_space"}}
    parts = ("normalizer", "pre_tokenizer", "post_processor", "model")
    return found + [p for p in parts if first[p] != second[p] and not is_explained.get(p, set()) & set(found)]


_OF_NORMALIZER = {"do_lower_case", "strip_accents", "tokenize_chinese_chars"}


def _parts(stated: Any) -> list[dict[str, Any]]:
    """The members of a normalizer or pre-tokenizer, itself where it is none of several."""
    many = (stated or {}).get("normalizers") or (stated or {}).get("pretokenizers")
    return [stated] * bool(stated) if many is None else [part for each in many for part in _parts(each)]


def _kinds(stated: Any) -> list[str]:
    return [part["type"] for part in _parts(stated)]


def _all(stated: Any, key: str) -> list[Any]:
    return [part[key] for part in _parts(stated) if key in part]

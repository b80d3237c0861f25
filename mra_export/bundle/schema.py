"""The fields of a bundle's manifest and their types, and the words in which a wrong one is refused."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mra_export.errors import InputError

__all__ = ["ENGINE_VARIANT", "FORMAT", "ONNX_VARIANT", "SCHEMA", "check", "refusal", "shown"]

FORMAT = 1
"""Of the manifest; a reader refuses a newer one. A field more or less is a new format."""

_MEND = "Copy the bundle again, or write it again with `mra-export bundle`."


@dataclass(frozen=True)
class _Text:
    """A string that matches `pattern` as a whole; `name` says it in words."""

    name: str
    pattern: str = r"(?s).*"

    def __str__(self) -> str:
        return self.name


def _choice(*choices: str) -> _Text:
    return _Text(f"one of {', '.join(choices)}", "|".join(choices))


@dataclass(frozen=True)
class _Int:
    """An integer of at least `least`."""

    least: int

    def __str__(self) -> str:
        return f"an integer of at least {self.least}"


@dataclass(frozen=True)
class _Or:
    """null, or what `kind` says."""

    kind: Any


@dataclass(frozen=True)
class _Map:
    """An object of any names, with values of one kind."""

    kind: Any


_TEXT = _Text("text")
_WORD = _Text("text on one line, without space around it", r"\S(.*\S)?")
_SHA256 = _Text("64 hexadecimal digits, in lower case", r"[0-9a-f]{64}")
_DTYPE = _choice("fp32", "fp16", "bf16")
_SIZES = [_Int(1)]
ONNX_VARIANT = {
    "backend": _choice("onnxruntime", "tensorrt", "rtx"),
    "file": _WORD,
    "precision": _DTYPE,
    "library": _Or(_WORD),
}
ENGINE_VARIANT = {
    **ONNX_VARIANT,
    "backend_version": _WORD,
    "version_compatible": bool,
    "compute_capability": _Text("a compute capability, as in 9.0", r"[0-9]+\.[0-9]+"),
    "hardware_compatible": bool,
    "gpu": _TEXT,
    "manifest": _WORD,
    "profiles": _Map({"min": _SIZES, "opt": _SIZES, "max": _SIZES}),
}
"""Fields of an entry of `variants`: of the first, and of those that follow."""
SCHEMA: dict[str, Any] = {
    "format": int,
    "mra_export": _WORD,
    "manifest_sha256": _SHA256,
    "model": {
        "family": _WORD,
        "architecture": _Or(_WORD),
        "task": _WORD,
        "dtype": _DTYPE,
        "hidden_size": _Int(1),
        "max_seq_len": _Int(1),
        "vocab_size": _Int(1),
        "pad_token_id": _Int(0),
        "inputs": [_WORD],
        "outputs": [_WORD],
        "operator": {
            "domain": _WORD,
            "type": _WORD,
            "version": _Int(1),
            "nodes": _Int(0),
            "attributes": [_Map(float)],
        },
    },
    "pooling": _Or({"mode": _choice("cls", "mean"), "normalize": bool}),
    "tokenizer": _Or({"file": _WORD, "max_length": _Int(1)}),
    "variants": list,  # of ONNX_VARIANT first, then ENGINE_VARIANT
    "files": _Map({"bytes": _Int(0), "sha256": _SHA256}),
    "parity": _Or(
        [
            {
                "reference": _WORD,
                "candidate": _WORD,
                "metrics": _Map(_Or(float)),
                "tolerance": _Map(float),
                "ok": _Or(bool),
                "notes": [_TEXT],
                "layers": [dict],
                "cases": [dict],
            }
        ]
    ),
    "versions": _Map(_WORD),
    "license": _Or(
        {"id": _Or(_WORD), "name": _Or(_WORD), "link": _Or(_WORD), "source": _Or(_WORD), "file": _Or(_WORD)}
    ),
    "provenance": {"source": _Or(_WORD), "base_model": [_WORD], "random_init": _Or(_Int(0))},
}


def refusal(subject: Path, text: str) -> InputError:
    """What to raise for a damaged bundle: the file, what is wrong with it (cut to a readable length), what to do."""
    text = text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"
    return InputError(f"{subject}{text}. {_MEND}")


def check(value: Any, kind: Any, where: str, file: Path) -> None:
    """Refuses a value that is not of its kind, and names the field.

    Args:
        value: as parsed.
        kind: as in `SCHEMA`.
        where: name of the field.
        file: the manifest, for the message.

    Raises:
        InputError: it is of another kind.
    """

    def wrong(expected: object) -> InputError:
        return refusal(file, f": {where or 'the manifest'}={shown(value)} must be {expected}")

    if isinstance(kind, _Or):
        if value is not None:
            check(value, kind.kind, where, file)
    elif isinstance(kind, _Text):
        if not isinstance(value, str) or not re.fullmatch(kind.pattern, value):
            raise wrong(kind)
    elif isinstance(kind, _Int):
        if type(value) is not int or not kind.least <= value < 1 << 62:
            raise wrong(kind)
    elif isinstance(kind, _Map):
        if not isinstance(value, dict):
            raise wrong("an object")
        for name, inner in value.items():
            check(inner, kind.kind, f"{where}[{name!r}]", file)
    elif isinstance(kind, dict):
        if not isinstance(value, dict):
            raise wrong("an object")
        dot = f"{where}." if where else ""
        for name in kind:
            if name not in value:
                raise refusal(file, f" lacks {dot}{name}")
        for name in value:
            if name not in kind:
                raise refusal(file, f": {dot}{name} is not a field of format {FORMAT}")
        for name, inner in kind.items():
            check(value[name], inner, f"{dot}{name}", file)
    elif isinstance(kind, list):
        if not isinstance(value, list):
            raise wrong("a list")
        for index, inner in enumerate(value):
            check(inner, kind[0], f"{where}[{index}]", file)
    elif kind is float:
        if type(value) not in (int, float):
            raise wrong("a number")
    elif type(value) is not kind:
        raise wrong({int: "an integer", bool: "true or false", dict: "an object", list: "a list"}[kind])


def shown(value: Any) -> str:
    """A value as JSON, cut to what fits in a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:80] + " ..."

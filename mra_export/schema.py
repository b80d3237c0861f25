"""Kinds of fields of a JSON file, and the words in which a value of another kind is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["SHA256", "TEXT", "WORD", "Int", "Map", "Or", "Text", "check_texts", "check_value", "choice", "shown"]


@dataclass(frozen=True)
class Text:
    """A string that matches `pattern` as a whole; `name` says it in words."""

    name: str
    pattern: str = r"(?s).*"

    def __str__(self) -> str:
        return self.name


def choice(*choices: str) -> Text:
    """A string that is one of these."""
    return Text(f"one of {', '.join(choices)}", "|".join(choices))


@dataclass(frozen=True)
class Int:
    """An integer of at least `least`."""

    least: int

    def __str__(self) -> str:
        return f"an integer of at least {self.least}"


@dataclass(frozen=True)
class Or:
    """null, or what `kind` says."""

    kind: Any


@dataclass(frozen=True)
class Map:
    """An object of any names, with values of one kind."""

    kind: Any


TEXT = Text("text")
WORD = Text("text on one line, without space around it", r"\S(.*\S)?")
SHA256 = Text("64 hexadecimal digits, in lower case", r"[0-9a-f]{64}")


_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)
"""As `is_control` in plugins/serving/json.h, but for the end of a line and the tabulator."""


def check_value(
    value: Any, kind: Any, where: str, refuse: Callable[[str], Exception], *, unknown: str = "is not known"
) -> None:
    """Refuses a value that is not of its kind, and names the field.

    Args:
        value: as parsed.
        kind: a `Text`, `Int`, `Or` or `Map`, a dictionary of names and kinds, a list of one kind, or a type.
        where: name of the field, "" for the whole.
        refuse: makes the exception to raise of the text that follows the file's name.
        unknown: what is said of a name that `kind` does not have.
    """

    def wrong(expected: object) -> Exception:
        return refuse(f": {where or 'the manifest'}={shown(value)} must be {expected}")

    if isinstance(kind, Or):
        if value is not None:
            check_value(value, kind.kind, where, refuse, unknown=unknown)
    elif isinstance(kind, Text):
        if not isinstance(value, str) or not re.fullmatch(kind.pattern, value):
            raise wrong(kind)
    elif isinstance(kind, Int):
        if type(value) is not int or not kind.least <= value < 1 << 62:
            raise wrong(kind)
    elif isinstance(kind, Map):
        if not isinstance(value, dict):
            raise wrong("an object")
        for name, inner in value.items():
            check_value(inner, kind.kind, f"{where}[{name!r}]", refuse, unknown=unknown)
    elif isinstance(kind, dict):
        if not isinstance(value, dict):
            raise wrong("an object")
        dot = f"{where}." if where else ""
        for name in kind:
            if name not in value:
                raise refuse(f" lacks {dot}{name}")
        for name in value:
            if name not in kind:
                raise refuse(f": {dot}{name} {unknown}")
        for name, inner in kind.items():
            check_value(value[name], inner, f"{dot}{name}", refuse, unknown=unknown)
    elif isinstance(kind, list):
        if not isinstance(value, list):
            raise wrong("a list")
        for index, inner in enumerate(value):
            check_value(inner, kind[0], f"{where}[{index}]", refuse, unknown=unknown)
    elif kind is float:
        if type(value) not in (int, float):
            raise wrong("a number")
    elif type(value) is not kind:
        raise wrong({int: "an integer", bool: "true or false", dict: "an object", list: "a list"}[kind])


def check_texts(value: Any, where: str, refuse: Callable[[str], Exception]) -> None:
    """Refuses text that would steer a terminal, anywhere in a file that is shown to people; text may have several lines.

    Args:
        value: as parsed.
        where: name of the field, "" for the whole.
        refuse: as for `check_value`.
    """
    if isinstance(value, str) and _CONTROL.search(value):
        raise refuse(f": {where or 'the manifest'}={shown(value)} holds a control character")
    if isinstance(value, list):
        for index, inner in enumerate(value):
            check_texts(inner, f"{where}[{index}]", refuse)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if _CONTROL.search(name):
                raise refuse(f": {where or 'the manifest'} has the name {name!r}, which holds a control character")
            check_texts(inner, f"{where}.{name}" if where else name, refuse)


def shown(value: Any) -> str:
    """A value as JSON, cut to what fits in a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:80] + " ..."

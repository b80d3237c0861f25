"""The text of a row that has named fields: where it is, and whether it is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mra_export.embedding import chunks
from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["MISSING", "checked_text", "json_kind", "lookup", "names_of", "no_field", "text_in"]

MISSING = object()
"""What `lookup` returns where there is no such field."""


def lookup(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a field, or `MISSING`.

    `doc.text` is the field of that very name, else the field `text` of the object `doc`; of a null it is null.
    """
    if name in fields:
        return fields[name]
    place = name.rfind(".")
    while place > 0:
        inner = fields.get(name[:place], MISSING)
        if inner is None:
            return None
        if isinstance(inner, dict) and (found := lookup(inner, name[place + 1 :])) is not MISSING:
            return found
        place = name.rfind(".", 0, place)
    return MISSING


def names_of(fields: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The names that `lookup` knows, those of objects within objects as `doc.text`."""
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            yield from names_of(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def no_field(where: str, fields: Mapping[str, Any], name: str, option: str = "--column") -> str:
    """The message for a field that is not there."""
    names = list(names_of(fields))
    have = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"
    what = "the field of the texts" if option == "--column" else "another field"
    return f"{where} has no field {name!r}; it has: {have}. Name {what} with {option}."


def text_in(
    where: str, fields: Mapping[str, Any], column: str, others: tuple[str, ...], *, lenient: bool
) -> str | None:
    """The text of a row, None where it is null.

    Args:
        where: file and row.
        fields: of the row.
        column: which is the text.
        others: which have to be there too.
        lenient: whether a field that is missing is a null.

    Raises:
        InputError: a field is missing, or the text is none.
    """
    for name in others:
        if lookup(fields, name) is MISSING:
            raise InputError(no_field(where, fields, name, "--id-column"))
    text = lookup(fields, column)
    if text is MISSING:
        if not lenient:
            raise InputError(no_field(where, fields, column))
        text = None
    return checked_text(f"{where}: {column!r}", where, text)


def checked_text(what: str, where: str, text: object) -> str | None:
    """A value as a text, None for null.

    Args:
        what: the field, for messages.
        where: file and row.
        text: the value.

    Raises:
        InputError: it is neither, holds half a character, or is too long.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise InputError(
            f"{what} is {json_kind(text)}, not a string. Mend or remove the row, or choose another field with --column."
        )
    if text.isascii():
        size = len(text)
    else:
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise InputError(
                f"{what} holds half of a surrogate pair (\\u{ord(text[error.start]):04x}), which is no "
                "character. Mend or remove the row."
            ) from error
    if size > chunks.MAX_TEXT_BYTES:
        raise InputError(chunks.too_long(where, size))
    return text


def json_kind(value: object) -> str:
    """What a JSON value is, in a word."""
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "a string")

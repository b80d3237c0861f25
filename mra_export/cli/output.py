"""What a command gives back: text, or one JSON object."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mra_export.errors import ParityError

__all__ = ["fail_parity", "failures", "plain", "print_json", "print_notes", "print_result"]


def plain(comparisons: list[Any]) -> list[dict[str, Any]]:
    """Comparisons as plain data."""
    from mra_export.parity.comparison import as_json

    return [as_json(comparison) for comparison in comparisons]


def failures(comparisons: list[Any]) -> str:
    """The message of comparisons of which some failed."""
    from mra_export.parity.comparison import describe_failures

    return "FAILED " + "\n".join(describe_failures(comparisons))


def fail_parity(
    command: str, error: ParityError, comparisons: list[Any], as_json: bool, outputs: list[str] | None = None
) -> NoReturn:
    """Ends the command with the comparisons in its JSON; without --json the caller shows them."""
    if as_json:
        print_json(ok=False, command=command, outputs=outputs or [], error=str(error), comparisons=plain(comparisons))
        sys.exit(error.exit_code)
    raise error


def print_notes(notes: Iterable[str]) -> None:
    """Sentences about the input, on standard error."""
    for note in notes:
        click.echo(f"note: {note}", err=True)


def print_result(command: str, text: str, as_json: bool, **fields: Any) -> None:
    """The result of a command that did what it was asked to."""
    if as_json:
        print_json(ok=True, command=command, **fields)
    else:
        click.echo(text)


def print_json(**fields: Any) -> None:
    """One JSON object on standard output."""
    text = json.dumps(fields, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # a path that is not UTF-8, or a terminal that is not
        text = json.dumps(fields)
    click.echo(text)

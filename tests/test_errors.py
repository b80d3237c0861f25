"""What an error quotes cannot steer a terminal."""

from __future__ import annotations

import pickle

import pytest

from mra_export.errors import DependencyError, InputError, MraExportError, escaped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, naïve, 日本語, 😀", "plain, naïve, 日本語, 😀"),
        ("two\nlines", "two\nlines"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\tb\r", "a\\tb\\r"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("\u202etxt", "\\u202etxt"),
        ("\U000e0041", "\\U000e0041"),
        ("half \ud800", "half \\ud800"),
        ("\\x1b", "\\x1b"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown
    for kind in (MraExportError, InputError, DependencyError):
        assert str(kind(text)) == shown
        assert str(pickle.loads(pickle.dumps(kind(text)))) == shown  # as it comes from another process
    assert "\n" not in escaped(text, keep="")

"""Where weights come from and under which licence, as the files beside them state it; what is not stated is None."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

from mra_export.errors import InputError

__all__ = ["LICENSE_FILES", "MODEL_CARD", "licence_of", "name_or_path", "provenance_of"]

MODEL_CARD = "README.md"
LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING")
"""The first that is there is taken for the licence's text."""


def licence_of(directory: Path) -> dict[str, str | None] | None:
    """The licence that a model card and the files beside it state.

    Args:
        directory: a checkpoint, or what was exported from one.

    Returns:
        "id" (the hub's name for it), "name" and "link" (of a licence that is none of the hub's), "source" (where these
        stand) and "file" (the text); None where nothing is stated.

    Raises:
        InputError: the model card's front matter cannot be read.
    """
    card = _front_matter(directory)
    stated = {key: _words(card.get(name)) for key, name in _CARD_FIELDS.items()}
    file = next((name for name in LICENSE_FILES if (directory / name).is_file()), None)
    if file is None and not any(stated.values()):
        return None
    source = f"front matter of {MODEL_CARD}" if any(stated.values()) else None
    return {**{key: ", ".join(words) or None for key, words in stated.items()}, "source": source, "file": file}


_CARD_FIELDS = {"id": "license", "name": "license_name", "link": "license_link"}


def provenance_of(directory: Path) -> dict[str, Any]:
    """What the weights are made from.

    Args:
        directory: a checkpoint, or what was exported from one.

    Returns:
        "source" (`_name_or_path` of config.json, unless it is a path on some machine) and "base_model" (of the model card).

    Raises:
        InputError: the model card's front matter cannot be read.
    """
    return {"source": name_or_path(directory), "base_model": _words(_front_matter(directory).get("base_model"))}


def name_or_path(directory: Path) -> str | None:
    """`_name_or_path` of a config.json where it is a name, such as that of a checkpoint on the hub."""
    try:
        name = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    words = _words(name)
    if (
        len(words) != 1
        or PurePath(words[0]).is_absolute()
        or words[0].startswith((".", "~"))
        or words[0].count("/") > 1
    ):
        return None  # a path tells of the machine, not of the weights
    return words[0]


def _front_matter(directory: Path) -> dict[str, Any]:
    card = directory / MODEL_CARD
    if not card.is_file():
        return {}
    from huggingface_hub import metadata_load

    try:
        return metadata_load(card) or {}
    except Exception as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(
            f"The front matter of {card} cannot be read, so the licence it states would be lost: {first}. Mend the file."
        ) from error


def _words(value: Any) -> list[str]:
    """A field that is a text or a list of texts, each on one line."""
    values = value if isinstance(value, list) else [value]
    return [" ".join(v.split()) for v in values if isinstance(v, str) and v.split()]

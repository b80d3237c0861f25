"""Finds the families, and one of them by its `model_type`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from mra_export import families as package
from mra_export.errors import InputError

if TYPE_CHECKING:
    from mra_export.families._base import Family

__all__ = ["families", "family_named", "family_of"]


@functools.cache
def families() -> dict[str, Family]:
    """All families, by `model_type`; MRA's first, then by name."""
    names = sorted((m.name for m in pkgutil.iter_modules(package.__path__)), key=lambda name: (name != "mra", name))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names if not name.startswith("_")]
    return {module.FAMILY.model_type: module.FAMILY for module in modules}


def family_named(model_type: str) -> Family:
    """The family of a `model_type`.

    Raises:
        InputError: it is of no family we know.
    """
    family = families().get(model_type)
    if family is None:
        hint = (
            " Its attention can be replaced with `mra-export from-dense`."
            if model_type in ("bert", "roberta", "xlm-roberta")
            else ""
        )
        raise InputError(
            f"model_type {model_type!r} is not one that this tool exports ({', '.join(families())}).{hint}"
        )
    return family


def family_of(config: Any) -> Family:
    """The family of a configuration.

    Args:
        config: a transformers configuration.

    Raises:
        InputError: it is of no family we know.
    """
    return family_named(config.model_type)

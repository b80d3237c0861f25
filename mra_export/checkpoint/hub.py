"""Fetches from the hub what a command reads of a checkpoint, and no more: one format of weights, no other exports."""

from __future__ import annotations

import fnmatch
import glob
from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.checkpoint.layout import read_listing
from mra_export.checkpoint.weight_files import WEIGHT_FILES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["fetch"]

_ROUNDS = 3
"""At most: what is there by convention; the folders that modules.json names; the other format of weights."""

_WITHOUT_WEIGHTS = ("Dropout", "Normalize", "Pooling", "Transformer")
"""Modules that have none, or, of the Transformer, others than the modules after it."""


def fetch(name: str, beside: Sequence[str], *, weights: bool) -> Path:
    """The directory in which the hub's client keeps a repository.

    Args:
        name: of the repository.
        beside: names of the files that are read besides configuration and weights.
        weights: whether the weights are wanted too.

    Raises:
        Exception: of whatever kind the hub's client raises.
        InputError: modules.json cannot be read.
    """
    from huggingface_hub import snapshot_download

    # No listing is asked for: so a repository that was fetched once is found without a network too.
    wanted = [*_of_transformer("", beside, weights), *_of_transformer("0_*/", beside, weights)]
    wanted += ["README.md", "LICENSE*", "NOTICE*", "[0-9]_*/config.json"] + ["[0-9]_*/model.safetensors"] * weights
    path = Path(snapshot_download(name, allow_patterns=wanted))
    for _ in range(_ROUNDS - 1):
        lacking = _lacking(path, beside, weights)
        more = [name for name in lacking if not any(fnmatch.fnmatch(name, asked) for asked in wanted)]
        if not more:
            break
        path = Path(snapshot_download(name, allow_patterns=more))
        wanted += more
    return path


def _of_transformer(folder: str, beside: Sequence[str], weights: bool) -> list[str]:
    """Patterns of what is read of a transformers checkpoint in a folder ("" or with a slash at its end)."""
    names = ["config.json", "generation_config.json", "adapter_config.json", *beside]
    return [folder + name for name in (*names, *(_patterns(WEIGHT_FILES[0]) if weights else ()))]


def _patterns(name: str) -> tuple[str, ...]:
    """Patterns of one format of weights, the whole file, its shards and an adapter; no variants, such as fp16."""
    stem, _, ending = name.rpartition(".")
    return (name, f"{name}.index.json", f"{stem}-?????-of-?????.{ending}", f"adapter_model.{ending}")


def _lacking(path: Path, beside: Sequence[str], weights: bool) -> Iterator[str]:
    """Patterns of what modules.json names and the conventional patterns did not, and of weights in the other format."""
    modules = read_listing(path)
    first = next((module.folder for module in modules if module.kind == "Transformer"), "")
    prefix = f"{glob.escape(first)}/" if first else ""
    if not (path / first / "config.json").is_file():
        yield from _of_transformer(prefix, beside, weights)
    elif weights:
        safe, other = WEIGHT_FILES
        if not any((path / first / name).is_file() for name in (safe, f"{safe}.index.json")):
            yield from (prefix + pattern for pattern in _patterns(other)[:-1])
        adapter = path / first / "adapter_model.safetensors"
        if adapter.with_name("adapter_config.json").is_file() and not adapter.is_file():
            yield f"{prefix}adapter_model.bin"
    for module in modules:
        folder = path / module.folder
        inside = f"{glob.escape(module.folder)}/"
        if not module.folder or module.folder == first:
            continue
        if not (folder / "config.json").is_file():
            yield inside + "config.json"
        if weights and module.kind not in _WITHOUT_WEIGHTS and not (folder / WEIGHT_FILES[0]).is_file():
            yield from (inside + name for name in WEIGHT_FILES)

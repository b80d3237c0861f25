"""Writes the modules that follow an encoder as sentence-transformers reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.files import write_json
from mra_export.checkpoint.layout import MODULES_FILE
from mra_export.checkpoint.module_torch import load_weights
from mra_export.checkpoint.modules import (
    POOLING_FLAGS,
    POOLING_MODES,
    Dense,
    LayerNorm,
    Module,
    Normalize,
    Pooling,
    Truncate,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["module_folders", "write_modules"]

_PATHS = {"Identity": "torch.nn.modules.linear.Identity"}


def module_folders(modules: Iterable[Module]) -> list[str]:
    """The folder of each module in a directory that `write_modules` wrote; `Truncate` has none.

    Layers with weights keep theirs, so that they are found in the checkpoint too.
    """
    taken = {module.folder for module in modules if isinstance(module, Dense | LayerNorm)}
    folders = []
    for index, module in enumerate(each for each in modules if not isinstance(each, Truncate)):
        folder = module.folder if isinstance(module, Dense | LayerNorm) else f"{index + 1}_{type(module).__name__}"
        while not isinstance(module, Dense | LayerNorm) and folder in taken:
            folder += "_"
        taken.add(folder)
        folders.append(folder)
    return folders


def write_modules(modules: tuple[Module, ...], source: Path, target: Path, hidden_size: int) -> None:
    """Writes `modules.json` and a folder for each module, with its configuration and its weights.

    `Truncate` is not among them: sentence-transformers has it as truncate_dim of config_sentence_transformers.json.

    Args:
        modules: as from `read_contract`.
        source: the directory in which their folders with weights are.
        target: the directory to write to.
        hidden_size: of the encoder.

    Raises:
        InputError: weights are missing or cannot be read.
    """
    from safetensors.torch import save_file

    listing = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    stages = [module for module in modules if not isinstance(module, Truncate)]
    for index, (module, folder) in enumerate(zip(stages, module_folders(stages), strict=True), start=1):
        kind = f"sentence_transformers.models.{type(module).__name__}"
        listing.append({"idx": index, "name": str(index), "path": folder, "type": kind})
        shutil.rmtree(target / folder, ignore_errors=True)
        if not isinstance(module, Normalize):
            (target / folder).mkdir(parents=True)
            write_json(target / folder / "config.json", _settings(module, hidden_size))
        if isinstance(module, Dense | LayerNorm):
            weights = load_weights(source / module.folder)
            ordered = {name: weights[name].float().contiguous() for name in sorted(weights)}
            save_file(ordered, target / folder / "model.safetensors", metadata={"format": "pt"})
    (target / MODULES_FILE).write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")


def _settings(module: Module, hidden_size: int) -> dict[str, Any]:
    """A module's config.json, in the oldest form that says it."""
    if isinstance(module, Pooling):
        settings: dict[str, Any] = {"word_embedding_dimension": hidden_size}
        if module.modes == tuple(mode for mode in POOLING_MODES if mode in module.modes):
            settings |= {flag: mode in module.modes for flag, mode in POOLING_FLAGS.items()}
        else:  # the order of flags is fixed
            settings["pooling_mode"] = list(module.modes)
        return settings if module.include_prompt else {**settings, "include_prompt": False}
    if isinstance(module, Dense):
        path = _PATHS.get(module.activation, f"torch.nn.modules.activation.{module.activation}")
        sizes = {"in_features": module.in_features, "out_features": module.out_features, "bias": module.bias}
        return {**sizes, "activation_function": path, **({"use_residual": True} if module.residual else {})}
    assert isinstance(module, LayerNorm)
    return {"dimension": module.dimension}

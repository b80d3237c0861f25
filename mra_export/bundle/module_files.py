"""The files of the modules that follow the encoder: their way into a bundle, and out of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.bundle.manifest import MODULE_WEIGHTS
from mra_export.checkpoint.layout import MODULES_FILE
from mra_export.checkpoint.module_torch import as_torch, load_weights
from mra_export.checkpoint.modules import (
    Dense,
    LayerNorm,
    Module,
    Normalize,
    Truncate,
    as_stated,
)
from mra_export.errors import InputError

if TYPE_CHECKING:
    from mra_export.bundle.chain import Step
    from mra_export.bundle.manifest import Bundle

__all__ = ["copy_modules", "cut_to", "read_steps"]


def copy_modules(modules: tuple[Module, ...], source: Path, target: Path) -> None:
    """Copies the settings of modules as they are, and their weights as float32 in `MODULE_WEIGHTS`.

    Args:
        modules: as from `read_contract`.
        source: an ONNX directory, with modules.json.
        target: what becomes a bundle; modules.json is there.

    Raises:
        InputError: weights are missing or do not fit.
    """
    if not modules:
        return
    for entry in json.loads((source / MODULES_FILE).read_text(encoding="utf-8-sig")):
        config = Path(entry.get("path") or "") / "config.json"
        if (source / config).is_file() and not (target / config).exists():
            (target / config).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / config, target / config)
    for module in modules:
        if isinstance(module, Dense | LayerNorm):
            _copy_weights(source / module.folder, target / module.folder)
    as_torch(modules, target)  # refuses weights that do not fit


def cut_to(modules: tuple[Module, ...], dimension: int | None, dimensions: int | None) -> tuple[Module, ...]:
    """Modules whose vectors are cut to `dimensions` numbers.

    Vectors of length 1 have length 1 again after that, so that a dot product stays a cosine.

    Args:
        modules: of a bundle.
        dimension: numbers of their vectors.
        dimensions: that are wanted; None for all.

    Raises:
        InputError: there are not so many, or fewer than 1.
    """
    if dimensions is None:
        return modules
    if dimension is None or not 1 <= dimensions <= dimension:
        raise InputError(f"dimensions={dimensions} must be from 1 to {dimension}, the numbers of the bundle's vectors.")
    again = (Normalize(),) if isinstance(modules[-1], Normalize) else ()
    return (*modules, Truncate(dimensions), *again)


def read_steps(bundle: Bundle, dimensions: int | None = None) -> list[Step]:
    """The modules of a bundle with their weights, for `vector_of`.

    Args:
        bundle: whose files were verified.
        dimensions: as for `cut_to`.

    Raises:
        InputError: as `cut_to`.
    """
    import numpy as np
    from safetensors.numpy import load_file

    steps: list[Step] = []
    for module in cut_to(bundle.modules, bundle.dimension, dimensions):
        weights = {}
        if isinstance(module, Dense | LayerNorm):
            stored = load_file(bundle.path / module.folder / MODULE_WEIGHTS)
            weights = {name: value.astype(np.float64) for name, value in stored.items()}
        steps.append((as_stated(module), weights))
    return steps


def _copy_weights(source: Path, target: Path) -> None:
    import torch
    from safetensors.torch import save_file

    weights = load_weights(source)
    target.mkdir(parents=True, exist_ok=True)
    own = source / MODULE_WEIGHTS
    if own.is_file() and all(value.dtype == torch.float32 for value in weights.values()):
        shutil.copyfile(own, target / MODULE_WEIGHTS)
        return
    save_file({name: weights[name].float().contiguous() for name in sorted(weights)}, target / MODULE_WEIGHTS)

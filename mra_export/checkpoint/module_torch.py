"""Token vectors to one vector in torch, as sentence-transformers defines it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.checkpoint.modules import Dense, LayerNorm, Module, Normalize, Pooling, Truncate
from mra_export.checkpoint.weight_files import WEIGHT_FILES, read_weight_file
from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

__all__ = ["as_torch", "load_weights"]


def as_torch(modules: Iterable[Module], directory: Path) -> nn.Module:
    """The modules as one torch module, float32.

    Args:
        modules: as from `read_modules`, a `Pooling` first.
        directory: where their folders with weights are.

    Returns:
        A module that takes token vectors float32 [batch, seq_len, hidden_size] and the attention mask [batch, seq_len],
        padding on the right, and returns [batch, `width_of`]. Prompts count.

    Raises:
        InputError: weights are missing, or do not fit.
    """
    import torch

    chain = list(modules)
    layers = torch.nn.ModuleList()
    for module in chain:
        if isinstance(module, Dense):
            layers.append(_torch_dense(module, directory))
        elif isinstance(module, LayerNorm):
            norm = torch.nn.LayerNorm(module.dimension)
            _load(norm, directory / module.folder, "norm.")
            layers.append(norm)
        else:
            layers.append(torch.nn.Identity())

    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
            vector = hidden
            for module, layer in zip(chain, self.layers, strict=True):
                if isinstance(module, Pooling):
                    vector = torch.cat([_pooled(hidden, mask, mode) for mode in module.modes], dim=-1)
                elif isinstance(module, Normalize):
                    vector = torch.nn.functional.normalize(vector, dim=-1)
                elif isinstance(module, Truncate):
                    vector = vector[..., : module.dimension]
                else:
                    vector = layer(vector)
            return vector

    return Chain().eval().requires_grad_(False)


def _pooled(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Token vectors to one vector a text, as sentence-transformers' `Pooling` does it where padding is on the right."""
    import torch

    weight = mask.to(hidden.dtype).unsqueeze(-1)
    if mode == "cls":
        return hidden[:, 0]
    if mode == "max":
        return hidden.masked_fill(weight == 0, float("-inf")).amax(1)
    if mode in ("weightedmean", "lasttoken"):
        place = weight * torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype, device=hidden.device).view(1, -1, 1)
        if mode == "lasttoken":  # no gather, of which onnx's evaluator has none for more than 64 tokens
            return (hidden * weight * (place == place.amax(1, keepdim=True))).sum(1)
        weight = place
    total, count = (hidden * weight).sum(1), weight.sum(1).clamp(min=1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def _torch_dense(module: Dense, directory: Path) -> nn.Module:
    import torch

    linear = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias)
    _load(linear, directory / module.folder, "linear.")
    act = getattr(torch.nn, module.activation)()
    if not module.residual:
        return torch.nn.Sequential(linear, act)
    beside: nn.Module = torch.nn.Identity()
    if module.in_features != module.out_features:
        beside = torch.nn.Linear(module.in_features, module.out_features, bias=False)
        _load(beside, directory / module.folder, "residual.")

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.act, self.beside = linear, act, beside

        def forward(self, vector: Tensor) -> Tensor:
            out: Tensor = self.act(self.linear(vector)) + self.beside(vector)
            return out

    return Residual()


def _load(layer: nn.Module, folder: Path, prefix: str) -> None:
    """Fills a layer from the weights of a module's folder."""
    weights = load_weights(folder)
    own = {name.removeprefix(prefix): value.float() for name, value in weights.items() if name.startswith(prefix)}
    try:
        layer.load_state_dict(own)
    except RuntimeError as error:
        raise InputError(
            f"The weights in {folder} do not fit its config.json: {' '.join(str(error).split())[:300]}"
        ) from error


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a module's folder by name.

    Raises:
        InputError: there are none, or they cannot be read.
    """
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder} has no {' and no '.join(WEIGHT_FILES)}. Take the whole checkpoint.")
    return read_weight_file(file)

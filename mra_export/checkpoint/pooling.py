"""How token vectors become one vector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.checkpoint.json_files import parse_json
from mra_export.checkpoint.layout import MODULES_FILE, module_kind, sentence_root
from mra_export.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["POOLINGS", "Pooling", "pool", "pooling_of"]

POOLINGS = ("none", "cls", "mean")


@dataclass(frozen=True)
class Pooling:
    """How token vectors become one vector.

    Attributes:
        mode: "none", "cls" (the first token) or "mean" (over tokens that are not padding).
        normalize: whether the vector is scaled to length 1.
    """

    mode: str = "none"
    normalize: bool = False


def pooling_of(directory: Path) -> Pooling:
    """The pooling that a checkpoint's sentence-transformers files ask for.

    Args:
        directory: the checkpoint.

    Returns:
        "none" where there are no such files.

    Raises:
        InputError: they ask for a pooling that the export does not offer.
    """
    root = sentence_root(directory)
    modules = root / MODULES_FILE
    if not modules.is_file():
        return Pooling()
    try:
        kinds = [(module_kind(str(m["type"])), m["path"]) for m in parse_json(modules)]
        settings = [parse_json(root / path / "config.json") for kind, path in kinds if kind == "Pooling"]
        if any(not isinstance(each, dict) for each in settings):
            raise TypeError("it is not an object")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{modules} or its 1_Pooling/config.json cannot be read: {error}.") from error
    unknown = sorted({kind for kind, _ in kinds} - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise InputError(
            f"The checkpoint's sentence-transformers module {', '.join(unknown)} is not one that the export offers. "
            "Export the bare encoder with --pooling none."
        )
    if not settings:
        return Pooling()
    modes = [
        key.removeprefix("pooling_mode_") for key, on in settings[0].items() if key.startswith("pooling_mode_") and on
    ]
    if isinstance(settings[0].get("pooling_mode"), str):
        modes = [settings[0]["pooling_mode"]]
    known = {"cls_token": "cls", "mean_tokens": "mean", "cls": "cls", "mean": "mean"}
    if len(modes) != 1 or modes[0] not in known:
        raise InputError(
            f"The checkpoint asks for pooling {' + '.join(modes) or 'none'}, which the export does not offer. "
            f"Choose one with --pooling ({', '.join(POOLINGS)})."
        )
    return Pooling(known[modes[0]], any(kind == "Normalize" for kind, _ in kinds))


def pool(last_hidden_state: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Token vectors to sentence vectors, as sentence-transformers' `Pooling` and `Normalize` do it.

    Args:
        last_hidden_state: float32 [batch, seq_len, hidden_size].
        attention_mask: [batch, seq_len].
        pooling: mode "cls" or "mean".

    Returns:
        [batch, hidden_size].
    """
    import torch

    if pooling.mode == "cls":
        vector = last_hidden_state[:, 0]
    else:
        weight = attention_mask.to(last_hidden_state.dtype).unsqueeze(-1)
        vector = (last_hidden_state * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(vector, dim=-1) if pooling.normalize else vector

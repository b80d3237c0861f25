"""Small checkpoints with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_checkpoint(directory: Path, class_name: str = "MraModel", *, seed: int = 0, **settings: Any) -> Path:
    """A small MRA checkpoint whose attention is far from uniform: with plain random weights errors would hide."""
    import torch
    import transformers

    small = {
        "vocab_size": 120,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "type_vocab_size": 2,
        "pad_token_id": 1,
        "num_labels": 3,
    }
    torch.manual_seed(seed)
    model = getattr(transformers, class_name)(transformers.MraConfig(**{**small, **settings}))
    with torch.no_grad():
        for layer in model.base_model.encoder.layer:
            layer.attention.self.query.weight *= 6
            layer.attention.self.key.weight *= 6
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zeros hide a bias that is left out
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory

"""The tokenizer of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["load_tokenizer"]


def load_tokenizer(directory: Path) -> Any | None:
    """The tokenizer of a checkpoint, or None where it has none that can be loaded."""
    from mra_export.quiet import quiet_transformers

    if not any(
        (directory / n).is_file() for n in ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
    ):
        return None
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(directory)
        except Exception:  # any failure means the same: random ids have to do, and the check says so
            return None

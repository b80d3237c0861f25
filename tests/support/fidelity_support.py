"""A small dense checkpoint with a tokenizer, and texts of as many tokens as are asked for."""

from __future__ import annotations

import random
from pathlib import Path

from dense_support import VOCABULARY, save, tiny, write_files

LAYERS, POSITIONS = 3, 256


def save_dense(directory: Path) -> Path:
    """BERT with 8 blocks of positions and three layers whose attention is far from uniform."""
    save(tiny("bert", "Model", positions=POSITIONS, num_hidden_layers=LAYERS), directory)
    write_files(directory, {"vocab.txt": VOCABULARY, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}})
    return directory


def letters(lengths: list[int], seed: int = 0) -> list[str]:
    """Texts of single letters, of so many tokens each with the two special ones."""
    generator = random.Random(seed)
    return [" ".join(generator.choices("abcdefghijklmnop", k=length - 2)) for length in lengths]

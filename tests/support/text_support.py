"""Small tokenizers of the kinds that there are tables of, and files of texts for the driver."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paths import REPO
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

__all__ = ["byte_level", "pack_texts", "word_piece"]

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_piece(normalizer: Any = normalizers.BertNormalizer()) -> Tokenizer:  # noqa: B008  (never changed)
    """BERT's with letters, digits, signs and some longer pieces, and added tokens of several kinds."""
    letters = [
        chr(code) for code in (*range(0x21, 0x7F), 0xE9, 0xDF, 0x3C3, 0x3C2, 0x4E2D, 0xAC01, 0x1100, 0x1161, 0x11A8)
    ]
    pieces = ["the", "ing", "word", "first", "second", "Un", "able", "caf", "ünd"]
    vocabulary = [
        *_SPECIAL,
        *letters,
        *(f"##{letter}" for letter in letters),
        *pieces,
        *(f"##{piece}" for piece in pieces),
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(vocabulary)}, unk_token="[UNK]"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.add_tokens(
        [AddedToken("[X]", normalized=False, lstrip=True), AddedToken("[XY]", normalized=False, rstrip=True)]
    )
    tokenizer.add_tokens([AddedToken("ÉCole", normalized=True, lstrip=True, rstrip=True)])
    return tokenizer


def byte_level(*, add_prefix_space: bool = False) -> Tokenizer:
    """RoBERTa's, with 700 pieces."""
    lines = (REPO / "mra_export" / "data" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*lines, "naïve Привет 日本語 1234 12 don't I'm we'll"], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=add_prefix_space)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    return tokenizer


def pack_texts(path: Path, texts: Iterable[str | bytes]) -> Path:
    """Writes texts as the driver reads them: the size of each as four bytes, the least first, and its bytes."""
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    path.write_bytes(b"".join(struct.pack("<I", len(text)) + text for text in encoded))
    return path

"""Embeds the package's sentences with an exported directory and prints each one's nearest neighbour.

It uses what a client would: onnxruntime and the tokenizer, not this package's exporter. The native operator is used where it
is built; the same file runs without it.

Example:
  python scripts/nearest_neighbours.py ./minilm-onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from mra_export.native.libraries import find_library
from mra_export.optional import require_onnxruntime
from mra_export.parity.cases import SENTENCES


def embed(directory: Path, sentences: list[str]) -> np.ndarray:
    """[sentences, hidden_size], as the exported model pools and scales them."""
    onnxruntime = require_onnxruntime()
    options = onnxruntime.SessionOptions()
    library = find_library("onnxruntime")
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(
        str(directory / "onnx" / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    tokens = AutoTokenizer.from_pretrained(directory)(sentences, padding=True, return_tensors="np")
    inputs = {i.name: tokens[i.name].astype(np.int64) for i in session.get_inputs()}
    return session.run(["sentence_embedding"], inputs)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="what `mra-export onnx` wrote, with --pooling")
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    vectors = embed(parser.parse_args().directory, sentences)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    nearest = similarity.argmax(1)
    for row in range(0, len(sentences), 2):
        print(f"{similarity[row].max():.3f}  {sentences[row]}\n       {sentences[nearest[row]]}")
    found = np.mean(nearest == (np.arange(len(sentences)) ^ 1))
    print(f"{found:.0%} of {len(sentences)} sentences found their paraphrase.")


if __name__ == "__main__":
    main()

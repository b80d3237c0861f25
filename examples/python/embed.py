"""Embeds the lines of a text file with a bundle, and names the nearest other line of each.

python examples/python/embed.py BUNDLE TEXTS VECTORS.npy
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from mra_export import MraExportError, embed, verify_bundle


def main(bundle: Path, texts: Path, output: Path) -> None:
    verified = verify_bundle(bundle)  # every file is what it was when the bundle was written
    print(f"{verified.family}, {verified.task}, texts of up to {verified.tokenizer_max_length} tokens")
    result = embed(bundle, texts, output, force=True)
    print(f"{result.rows} vectors of {result.dimension} numbers, {result.truncated} texts were cut")

    vectors = np.load(result.output)  # float32 [rows, dimension]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    lines = texts.read_text(encoding="utf-8").splitlines()
    for line, nearest, cosine in zip(lines, cosines.argmax(1), cosines.max(1), strict=True):
        print(f"{cosine:.3f}  {line}  ->  {lines[nearest]}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*map(Path, sys.argv[1:]))
    except MraExportError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)

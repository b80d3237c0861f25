"""Whether float16 holds the tensors of an exported file, where its checkpoint is not at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.parity.cases import SENTENCES
from mra_export.parity.comparison import Comparison
from mra_export.parity.range import check_range

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.export.onnx_model import OnnxModel
    from mra_export.trace import Inputs

__all__ = ["file_range", "fill_with_text", "random_inputs", "stand_in"]

SHAPES = ((1, 48), (4, 128), (1, 512))
"""Rows and tokens of what a file by itself is run with; cut to what the model takes."""


def stand_in(model: OnnxModel) -> Checkpoint:
    """What an exported directory says of its checkpoint: the configuration and the tokenizer, without the weights.

    Raises:
        InputError: the file is not in a directory with its configuration.
    """
    from mra_export.checkpoint.load import Checkpoint, load_config
    from mra_export.checkpoint.tasks import TASKS
    from mra_export.families._registry import family_of

    folder = model.path.parent
    directory = folder if (folder / "config.json").is_file() else folder.parent
    config = load_config(directory)
    task = TASKS[model.task or "feature-extraction"]
    return Checkpoint(directory, family_of(config), task, config, model=None, random_init=None)


def file_range(
    model: OnnxModel,
    *,
    source: OnnxModel | None = None,
    lost: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """`check_range` of a file, with the check's sentences where a tokenizer lies in its directory.

    Args:
        model: the file; fp16.
        source: the file that it was converted from, which lies in its directory; None for itself.
        lost: as for `check_range`.
        progress: called with a line before the run.
    """
    source = source or model
    inputs = [random_inputs(source, width, rows) for rows, width in SHAPES]
    text = fill_with_text(inputs, source.directory / "tokenizer.json", source.vocabulary)
    return check_range(model, inputs, lost=lost, origin="text" if text else "random ids", progress=progress)


def fill_with_text(inputs: Sequence[Inputs], path: Path, vocabulary: int | None) -> bool:
    """Puts the ids of sentences in the place of random ones; false where no tokenizer of the model is at hand.

    By the tokenizer alone: loading transformers for it would take longer than the run.
    """
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # of the library's own; any failure means the same, as in `load_tokenizer`
        return False
    if vocabulary is None or tokenizer.get_vocab_size(with_added_tokens=True) > vocabulary:
        return False
    sentences = SENTENCES.read_text(encoding="utf-8").split("\n")
    generator = np.random.default_rng(0)
    tokenizer.no_padding()
    for each in inputs:
        ids = each["input_ids"]
        width = ids.shape[-1]
        tokenizer.enable_truncation(max(width, 8))
        for row in ids.reshape(-1, width):
            words = " ".join(generator.permutation(sentences).tolist() * (1 + width // 256))
            found = tokenizer.encode(words).ids[:width]
            row[: len(found)] = found
    return True


def random_inputs(model: OnnxModel, seq_len: int, rows: int = 2) -> Inputs:
    """Random ids, the last row padded.

    Args:
        model: a file.
        seq_len: tokens of each; cut to what the model takes.
        rows: examples.
    """
    graph = model.proto.graph
    tables = {
        i.name.rsplit(".", 2)[-2]: int(i.dims[0]) for i in graph.initializer if i.name.endswith("embeddings.weight")
    }
    seq_len = min(seq_len, model.position_limit or seq_len)
    rank = next(len(i.type.tensor_type.shape.dim) for i in graph.input if i.name == "input_ids")
    shape = (*(rows, 2)[: rank - 1], seq_len)  # of a multiple choice two choices
    generator = np.random.default_rng(0)
    mask: np.ndarray[Any, Any] = np.ones(shape, np.int64)
    mask[-1, ..., seq_len - seq_len // 3 :] = 0
    inputs = {
        "input_ids": generator.integers(0, model.vocabulary or 100, shape),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, tables.get("token_type_embeddings", 1), shape),
    }
    return {name: inputs[name] for name in model.inputs}

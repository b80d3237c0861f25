"""Whether float16 holds the tensors of an exported file, where its checkpoint is not at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.errors import InputError
from mra_export.parity.cases import build_cases
from mra_export.parity.comparison import Comparison
from mra_export.parity.range import check_range

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.export.onnx_model import OnnxModel
    from mra_export.trace import Inputs

__all__ = ["file_range", "random_inputs", "stand_in"]

LONGEST_RANDOM = 512
"""Tokens of random ids, where nothing says how long the model's texts are."""


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
    """`check_range` of a file, with the inputs of a check where there is its directory.

    Args:
        model: the file; fp16.
        source: the file that it was converted from, which lies in its directory; None for itself.
        lost: as for `check_range`.
        progress: called with a line before the run.
    """
    source = source or model
    try:
        cases, origin = build_cases(stand_in(source))
        inputs = [case.inputs for case in cases]
    except InputError:  # a file by itself
        lengths = dict.fromkeys((96, min(LONGEST_RANDOM, source.position_limit or LONGEST_RANDOM)))
        inputs, origin = [random_inputs(source, seq_len) for seq_len in lengths], "random ids"
    return check_range(model, inputs, lost=lost, origin=origin, progress=progress)


def random_inputs(model: OnnxModel, seq_len: int) -> Inputs:
    """Two examples of random ids, of which one is padded.

    Args:
        model: a file.
        seq_len: tokens of each; cut to what the model takes.
    """
    graph = model.proto.graph
    tables = {
        i.name.rsplit(".", 2)[-2]: int(i.dims[0]) for i in graph.initializer if i.name.endswith("embeddings.weight")
    }
    seq_len = min(seq_len, model.position_limit or seq_len)
    rank = next(len(i.type.tensor_type.shape.dim) for i in graph.input if i.name == "input_ids")
    shape = (2,) * (rank - 1) + (seq_len,)
    generator = np.random.default_rng(0)
    mask: np.ndarray[Any, Any] = np.ones(shape, np.int64)
    mask[-1, ..., seq_len - seq_len // 3 :] = 0
    inputs = {
        "input_ids": generator.integers(0, model.vocabulary or 100, shape),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, tables.get("token_type_embeddings", 1), shape),
    }
    return {name: inputs[name] for name in model.inputs}

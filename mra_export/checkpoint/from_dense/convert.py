"""Dense checkpoint -> MRA checkpoint: BERT, RoBERTa and XLM-R with the same weights and MRA's attention.

The three families share MRA's layer structure, so their weights fit by name. What differs is mended here: the
row at which the position table starts, the scale of heads narrower than a block, the names of the heads. What would not
compute the same is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.adapter import has_adapter, merged_weights
from mra_export.checkpoint.files import locate, write_json
from mra_export.checkpoint.from_dense.files import copy_side_files, write_model_card
from mra_export.checkpoint.from_dense.source import (
    check_head,
    check_modules,
    check_options,
    dense_family,
    length_of,
    positions,
    task_of,
)
from mra_export.checkpoint.from_dense.weights import Weights, convert, notes_on_weights, save_weights
from mra_export.checkpoint.layout import MODULES_FILE, sentence_root
from mra_export.checkpoint.load import load_config
from mra_export.checkpoint.provenance import name_or_path
from mra_export.checkpoint.weight_files import read_weights
from mra_export.errors import InputError
from mra_export.families._mra_budgets import BUDGET_KEY, as_stated
from mra_export.families.mra import FAMILY
from mra_export.operators.mra2_attention.spec import APPROX_MODES, BLOCK_SIZE
from mra_export.outputs import check_target, staged_directory
from mra_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mra_export.checkpoint.tasks import Task
    from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

__all__ = ["FromDenseResult", "check_not_source", "from_dense"]

_CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "chunk_size_feed_forward",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "tie_word_embeddings",
    "problem_type",
)
"""Settings that mean the same in both configurations."""


@dataclass(frozen=True)
class FromDenseResult:
    """What `from_dense` wrote.

    Attributes:
        output: the checkpoint directory.
        source_architecture: class of the dense model.
        architecture: class of the MRA model.
        task: its task, one of `TASKS`.
        num_layers: number of layers.
        max_position_embeddings: the longest input, in tokens.
        block_per_row: high-resolution blocks per row of blocks at that length; of budgets layer by layer the largest, rounded up.
        num_blocks: the same per head, as the operator's attribute; of budgets layer by layer the largest.
        exact_up_to: tokens up to which every block fits into the budget, so that the result is the dense model's.
        files: what the directory holds, sorted.
        notes: what a user should know of the conversion, one sentence each.
        layer_num_blocks: blocks per head of each layer.
        measured: what a search for the budgets measured, as plain data; None where there was none.
    """

    output: Path
    source_architecture: str
    architecture: str
    task: str
    num_layers: int
    max_position_embeddings: int
    block_per_row: int
    num_blocks: int
    exact_up_to: int
    files: tuple[str, ...]
    notes: tuple[str, ...]
    layer_num_blocks: tuple[int, ...] = ()
    measured: dict[str, Any] | None = None


def from_dense(
    source: str | Path,
    output: Path,
    *,
    task: str = "auto",
    block_per_row: int | None = None,
    budgets: Sequence[Mra2AttentionAttributes] | None = None,
    max_position: int | None = None,
    approx_mode: str = "full",
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> FromDenseResult:
    """Writes a BERT, RoBERTa or XLM-R checkpoint as an MRA checkpoint.

    Where the budget holds every block of an input, the result computes what the dense model computes; with
    `block_per_row` at least `max_position / 32` that is every input. One difference is MRA's own: to the softmax
    denominator it adds 1e-6 relative to a maximum that counts padding as 0, so a token in a block with padding whose
    logits all lie below about -8 gets less than its share.

    Weights are float32; the same input gives the same bytes.

    Args:
        source: a checkpoint directory or a hub id.
        output: the directory to write.
        task: the head to keep, one of `TASKS`; "auto" goes by the checkpoint's architecture, "feature-extraction" drops
            the head.
        block_per_row: high-resolution blocks of 32 x 32 per row of blocks; None for all.
        budgets: of each layer instead, its attributes; None where all layers have that of `block_per_row`.
        max_position: the longest input in tokens; None for all that the source's position table holds.
        approx_mode: one of `APPROX_MODES`.
        force: whether an existing output is replaced.
        progress: called with a line about each step that takes time.

    Returns:
        What was written.

    Raises:
        InputError: the source cannot be read, is none of the three families, has an option or a head that MRA cannot
            compute, lacks weights or has weights that are not finite; or an option or the output path is wrong.
    """
    import transformers

    say = progress or (lambda _: None)
    output = Path(output)
    check_target(output, force=force)
    if block_per_row is not None and block_per_row < 1:
        raise InputError(f"block_per_row={block_per_row} must be at least 1.")
    if approx_mode not in APPROX_MODES:
        raise InputError(f"approx_mode={approx_mode!r} must be one of {', '.join(APPROX_MODES)}.")
    directory = locate(source)
    check_not_source(output, source, directory)
    check_modules(directory)
    config = load_config(directory)
    family = dense_family(config)
    chosen, source_architecture = task_of(config, family, task)
    check_options(config, directory, family)
    check_head(config, family, chosen, source_architecture)
    first_row, usable = positions(config, family)
    length = length_of(usable, max_position, config)
    if budgets is not None:
        block_per_row = -(-max(each.num_blocks for each in budgets) // (length // BLOCK_SIZE))
    elif block_per_row is None:
        block_per_row = length // BLOCK_SIZE
    target = _target_config(config, chosen, length, block_per_row, approx_mode)
    if budgets is not None:
        target[BUDGET_KEY] = as_stated(budgets)
    if stated := name_or_path(directory):
        target["_name_or_path"] = stated  # where the weights come from, as the source has it
    attributes = _validated(target)

    say(f"reading the weights of {source_architecture}")
    notes: list[str] = []
    stored = read_weights(directory)
    if has_adapter(directory):
        stored, note = merged_weights(directory, getattr(transformers, source_architecture), config, stored)
        notes.append(note)
    weights = Weights(stored, family.weight_prefix)
    converted = convert(weights, config, family, chosen, first_row, length)
    notes += notes_on_weights(weights, config, chosen)
    if length % BLOCK_SIZE and budgets is None:
        notes.append(
            f"max_position {length} is not a multiple of {BLOCK_SIZE}: the budget counts its {length // BLOCK_SIZE} "
            f"whole blocks, so no block_per_row makes the last {length % BLOCK_SIZE} positions exact."
        )
    if family.fairseq_positions:
        notes.append("Positions count from the start of a row: padding belongs on the right, as the tokenizer has it.")

    if chosen.name != "feature-extraction" and (sentence_root(directory) / MODULES_FILE).is_file():
        notes.append(f"{MODULES_FILE} is for embeddings, and {chosen.name} gives none: --task feature-extraction does.")

    say(f"writing {output}")
    with staged_directory(output, force=force) as stage:
        write_json(stage / "config.json", target)  # by which AutoTokenizer goes
        notes += copy_side_files(directory, stage, config, family, length)
        summary = (
            f"Converted by mra-export {__version__} (`from-dense`): the self-attention was replaced by MRA-2 "
            "(Zeng et al., 2022, arXiv 2207.10284); the weights are the source's. "
            f"{source_architecture} -> {target['architectures'][0]}, max_position_embeddings {length}, "
            f"block_per_row {block_per_row}, approx_mode {approx_mode}"
        )
        if budgets is not None:
            summary += f"; each layer has a budget of its own, {BUDGET_KEY} in config.json, which transformers alone passes over"
        write_model_card(directory, stage, summary)
        save_weights(converted, stage / "model.safetensors")
        files = tuple(sorted(p.relative_to(stage).as_posix() for p in stage.rglob("*") if p.is_file()))
    return FromDenseResult(
        output=output,
        source_architecture=source_architecture,
        architecture=target["architectures"][0],
        task=chosen.name,
        num_layers=config.num_hidden_layers,
        max_position_embeddings=length,
        block_per_row=block_per_row,
        num_blocks=max(each.num_blocks for each in attributes),
        exact_up_to=min(math.isqrt(min(each.num_blocks for each in attributes)) * BLOCK_SIZE, length),
        files=files,
        notes=tuple(notes),
        layer_num_blocks=tuple(each.num_blocks for each in attributes),
    )


def check_not_source(output: Path, source: str | Path, directory: Path) -> None:
    """Refuses an output in the place of the source.

    Args:
        output: the directory to write.
        source: as it was given.
        directory: where it is.

    Raises:
        InputError: it would be replaced.
    """
    root = sentence_root(directory).resolve()
    if output.resolve() in (directory.resolve(), root, *root.parents):
        raise InputError(f"The output {output} would replace the source {source}. Choose another path.")


def _target_config(config: Any, task: Task, length: int, block_per_row: int, approx_mode: str) -> dict[str, Any]:
    """`config.json` of the result; every setting is written out, since MRA's defaults are not the source's."""
    target = {key: getattr(config, key, None) for key in _CONFIG_KEYS}
    target["chunk_size_feed_forward"] = target["chunk_size_feed_forward"] or 0
    target["tie_word_embeddings"] = target["tie_word_embeddings"] is not False
    for key in ("problem_type", "sep_token_id"):
        if target[key] is None:
            del target[key]
    if task.name != "feature-extraction":
        target["id2label"] = {str(index): label for index, label in sorted(config.id2label.items())}
        target["label2id"] = dict(sorted(config.label2id.items()))
    return {
        **target,
        "architectures": [f"Mra{task.suffix}"],
        "model_type": FAMILY.model_type,
        "max_position_embeddings": length,
        "block_per_row": block_per_row,
        "approx_mode": approx_mode,
        "initial_prior_first_n_blocks": 0,
        "initial_prior_diagonal_n_blocks": 0,
    }


def _validated(target: dict[str, Any]) -> list[Mra2AttentionAttributes]:
    """The operator's attributes in each layer for a configuration, which is checked as every MRA configuration is."""
    from transformers import MraConfig

    settings = {key: value for key, value in target.items() if key not in ("model_type", "id2label", "label2id")}
    config = MraConfig(**settings)
    FAMILY.validate(config)
    return FAMILY.layer_attributes(config)

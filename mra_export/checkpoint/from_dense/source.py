"""What a dense checkpoint is, and whether MRA computes the same as each part of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mra_export.checkpoint.files import read_json
from mra_export.checkpoint.layout import MODULES_FILE, read_listing, sentence_root
from mra_export.checkpoint.tasks import TASKS, Task, resolve_task
from mra_export.errors import InputError
from mra_export.families.mra import FAMILY
from mra_export.operators.mra2_attention.spec import BLOCK_SIZE

__all__ = [
    "DENSE_FAMILIES",
    "check_head",
    "check_modules",
    "check_options",
    "dense_family",
    "length_of",
    "positions",
    "task_of",
]


@dataclass(frozen=True)
class DenseFamily:
    """What is particular to one kind of dense checkpoint.

    Attributes:
        class_prefix: of its transformers classes.
        weight_prefix: of the encoder's weights in a checkpoint with a head.
        tokenizer_class: what its checkpoints are tokenized with if they do not say.
        fairseq_positions: whether positions are counted from padding_idx + 1 over the tokens that are not padding
            (RoBERTa), instead of from 0 over all of them (BERT).
    """

    class_prefix: str
    weight_prefix: str
    tokenizer_class: str
    fairseq_positions: bool


DENSE_FAMILIES = {
    "bert": DenseFamily("Bert", "bert.", "BertTokenizer", fairseq_positions=False),
    "roberta": DenseFamily("Roberta", "roberta.", "RobertaTokenizer", fairseq_positions=True),
    "xlm-roberta": DenseFamily("XLMRoberta", "roberta.", "XLMRobertaTokenizer", fairseq_positions=True),
}
"""`model_type` of a dense checkpoint -> its family."""


def dense_family(config: Any) -> DenseFamily:
    """The family of a configuration; refuses one that is not dense or not convertible."""
    family = DENSE_FAMILIES.get(config.model_type)
    if family is None:
        hint = " It already has MRA's attention." if config.model_type == FAMILY.model_type else ""
        raise InputError(
            f"model_type {config.model_type!r} cannot be converted: only the weights of {', '.join(DENSE_FAMILIES)} "
            f"fit MRA's layers.{hint}"
        )
    return family


def task_of(config: Any, family: DenseFamily, name: str) -> tuple[Task, str]:
    """The head to convert, and the class of the dense model that has it."""
    architecture = (config.architectures or [f"{family.class_prefix}Model"])[0]
    if name != "auto":
        chosen = resolve_task(config, name)
        FAMILY.check_task(config, chosen.name)
        if not architecture.startswith(family.class_prefix):
            raise InputError(_unknown_architecture(architecture, family))
        return chosen, family.class_prefix + chosen.suffix
    for task in (TASKS[each] for each in FAMILY.tasks):
        if architecture == family.class_prefix + task.suffix:
            return task, architecture
    raise InputError(_unknown_architecture(architecture, family))


def _unknown_architecture(architecture: str, family: DenseFamily) -> str:
    known = ", ".join(family.class_prefix + TASKS[task].suffix for task in FAMILY.tasks)
    if architecture.startswith(family.class_prefix):
        hint = "To keep one of its parts choose --task feature-extraction (the bare encoder) or --task fill-mask."
    else:
        hint = "It is not transformers' own class, so its layers may compute something else; take another checkpoint."
    return f"The architecture {architecture} has no counterpart in MRA; {known} have. {hint}"


def check_modules(directory: Path) -> None:
    """Refuses modules that are not sentence-transformers' own: their code would not be in the result."""
    root = sentence_root(directory)
    for module in read_listing(root):
        if module.kind and not module.kind.isidentifier():
            raise InputError(
                f"{root / MODULES_FILE} names the module {module.kind}, which is not one of sentence-transformers' own, so its "
                f"code may compute something else. To convert the encoder alone, take {MODULES_FILE} away."
            )


def check_options(config: Any, directory: Path, family: DenseFamily) -> None:
    """Refuses options under which the dense model computes something that MRA has no place for."""
    kind = getattr(config, "position_embedding_type", None)
    if kind not in (None, "absolute"):
        raise InputError(
            f'position_embedding_type={kind!r} cannot be converted: MRA has only "absolute" position embeddings. '
            "Take a checkpoint trained with absolute ones."
        )
    for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        if getattr(config, name, False):
            raise InputError(f"{name}=true cannot be converted: MRA is an encoder. Take an encoder checkpoint.")
    if getattr(config, "pruned_heads", None):
        raise InputError("pruned_heads cannot be converted: MRA's layers all have the same number of heads.")
    code = getattr(config, "auto_map", None)
    if code:
        raise InputError(
            f"The checkpoint brings its own model code (auto_map: {', '.join(sorted(code))}), which may not compute "
            f"what transformers' {family.class_prefix}Model computes. Take one that needs no trust_remote_code."
        )
    from transformers.activations import ACT2FN

    if config.hidden_act not in ACT2FN:
        raise InputError(f"hidden_act={config.hidden_act!r} is unknown to transformers. Check config.json.")
    if (
        family.fairseq_positions
        and read_json(directory / "tokenizer_config.json").get("padding_side", "right") != "right"
    ):
        raise InputError(
            'padding_side="left" in tokenizer_config.json cannot be converted: positions here skip padding, '
            'MRA\'s do not. Set it to "right": with that the dense model computes the same.'
        )


def check_head(config: Any, family: DenseFamily, task: Task, architecture: str) -> None:
    """Refuses heads whose formula differs from that of MRA's head."""
    advice = "Convert the bare encoder instead: --task feature-extraction."
    target = f"Mra{task.suffix}"
    if task.name == "multiple-choice":
        raise InputError(
            f"{architecture} cannot be converted: its head applies tanh after the first layer, {target} applies relu. "
            f"{advice}"
        )
    if task.name == "text-classification" and config.hidden_act != "tanh":
        raise InputError(
            f"{architecture} cannot be converted: its head applies tanh after the first layer, {target} applies "
            f"hidden_act, here {config.hidden_act!r}. {advice}"
        )
    if task.name == "fill-mask" and family.fairseq_positions and config.hidden_act != "gelu":
        raise InputError(
            f"{architecture} cannot be converted: its head applies gelu whatever hidden_act is, {target} applies "
            f"hidden_act, here {config.hidden_act!r}. {advice}"
        )


def positions(config: Any, family: DenseFamily) -> tuple[int, int]:
    """First row of the source's position table that a token can have, and the number of rows from there on."""
    if not family.fairseq_positions:
        return 0, config.max_position_embeddings
    if config.pad_token_id is None:
        raise InputError("pad_token_id is not set in config.json, but positions are counted from it. Set it.")
    first = config.pad_token_id + 1
    return first, config.max_position_embeddings - first


def length_of(usable: int, max_position: int | None, config: Any) -> int:
    """The longest input of the result, in tokens; refuses one that the source has no positions for."""
    length = usable if max_position is None else max_position
    if length > usable:
        raise InputError(
            f"max_position={length} is more than the {usable} positions that the checkpoint has "
            f"(max_position_embeddings={config.max_position_embeddings} in its config.json). Give at most {usable}."
        )
    if length < BLOCK_SIZE:
        raise InputError(f"max_position={length} must be at least {BLOCK_SIZE}, the size of one block.")
    return length

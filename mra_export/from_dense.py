"""Dense checkpoint -> MRA checkpoint: BERT, RoBERTa and XLM-R with the same weights and MRA's attention.

The three families share MRA's layer structure, so their weights fit by name. What differs is mended here: the
row at which the position table starts, the scale of heads narrower than a block, the names of the heads. What would not
compute the same is refused.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mra_export import __version__
from mra_export.checkpoint import SIDE_FILES, TASKS, load_config, locate, resolve_task
from mra_export.errors import InputError
from mra_export.families.mra import FAMILY
from mra_export.operators.mra2_attention.spec import APPROX_MODES, BLOCK_SIZE
from mra_export.outputs import check_target, staged_directory
from mra_export.provenance import name_or_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from mra_export.checkpoint import Task

__all__ = ["DENSE_FAMILIES", "POSITION_OFFSET", "FromDenseResult", "from_dense"]

POSITION_OFFSET = 2
"""The first row of MRA's position table that is read (`MraEmbeddings`); the rows before it are written as zeros."""


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

_LAYER_WEIGHTS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


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
        block_per_row: high-resolution blocks per row of blocks at that length.
        num_blocks: the same per head, as the operator's attribute.
        exact_up_to: tokens up to which every block fits into the budget, so that the result is the dense model's.
        files: what the directory holds, sorted.
        notes: what a user should know of the conversion, one sentence each.
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


def from_dense(
    source: str | Path,
    output: Path,
    *,
    task: str = "auto",
    block_per_row: int = 4,
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
        block_per_row: high-resolution blocks of 32 x 32 per row of blocks.
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
    say = progress or (lambda _: None)
    output = Path(output)
    check_target(output, force=force)
    if block_per_row < 1:
        raise InputError(f"block_per_row={block_per_row} must be at least 1.")
    if approx_mode not in APPROX_MODES:
        raise InputError(f"approx_mode={approx_mode!r} must be one of {', '.join(APPROX_MODES)}.")
    directory = locate(source)
    if output.resolve() == directory.resolve() or output.resolve() in directory.resolve().parents:
        raise InputError(f"The output {output} would replace the source {directory}. Choose another path.")
    config = load_config(directory)
    family = _family(config)
    chosen, source_architecture = _task(config, family, task)
    _check_options(config, directory, family)
    _check_head(config, family, chosen, source_architecture)
    first_row, usable = _positions(config, family)
    length = _length(usable, max_position, config)
    target = _target_config(config, chosen, length, block_per_row, approx_mode)
    if stated := name_or_path(directory):
        target["_name_or_path"] = stated  # where the weights come from, as the source has it
    attributes = _validated(target)

    say(f"reading the weights of {source_architecture}")
    notes: list[str] = []
    weights = _Weights(_read_weights(directory), family.weight_prefix)
    converted = _convert(weights, config, family, chosen, first_row, length)
    notes += _notes_on_weights(weights, config, chosen)
    if length % BLOCK_SIZE:
        notes.append(
            f"max_position {length} is not a multiple of {BLOCK_SIZE}: the budget counts its {length // BLOCK_SIZE} "
            f"whole blocks, so no block_per_row makes the last {length % BLOCK_SIZE} positions exact."
        )
    if family.fairseq_positions:
        notes.append("Positions count from the start of a row: padding belongs on the right, as the tokenizer has it.")

    say(f"writing {output}")
    with staged_directory(output, force=force) as stage:
        notes += _copy_side_files(directory, stage, config, family, length)
        _write_json(stage / "config.json", target)
        summary = (
            f"{source_architecture} -> {target['architectures'][0]}, max_position_embeddings {length}, "
            f"block_per_row {block_per_row}, approx_mode {approx_mode}"
        )
        _write_model_card(directory, stage, summary)
        _save_weights(converted, stage / "model.safetensors")
        files = tuple(sorted(p.relative_to(stage).as_posix() for p in stage.rglob("*") if p.is_file()))
    return FromDenseResult(
        output=output,
        source_architecture=source_architecture,
        architecture=target["architectures"][0],
        task=chosen.name,
        num_layers=config.num_hidden_layers,
        max_position_embeddings=length,
        block_per_row=block_per_row,
        num_blocks=attributes.num_blocks,
        exact_up_to=min(math.isqrt(attributes.num_blocks) * BLOCK_SIZE, length),
        files=files,
        notes=tuple(notes),
    )


def _family(config: Any) -> DenseFamily:
    family = DENSE_FAMILIES.get(config.model_type)
    if family is None:
        hint = " It already has MRA's attention." if config.model_type == FAMILY.model_type else ""
        raise InputError(
            f"model_type {config.model_type!r} cannot be converted: only the weights of {', '.join(DENSE_FAMILIES)} "
            f"fit MRA's layers.{hint}"
        )
    return family


def _task(config: Any, family: DenseFamily, name: str) -> tuple[Task, str]:
    """The head to convert, and the class of the dense model that has it."""
    architecture = (getattr(config, "architectures", None) or [f"{family.class_prefix}Model"])[0]
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


def _check_options(config: Any, directory: Path, family: DenseFamily) -> None:
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
    if family.fairseq_positions and _json(directory / "tokenizer_config.json").get("padding_side", "right") != "right":
        raise InputError(
            'padding_side="left" in tokenizer_config.json cannot be converted: positions here skip padding, '
            'MRA\'s do not. Set it to "right": with that the dense model computes the same.'
        )


def _check_head(config: Any, family: DenseFamily, task: Task, architecture: str) -> None:
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


def _positions(config: Any, family: DenseFamily) -> tuple[int, int]:
    """First row of the source's position table that a token can have, and the number of rows from there on."""
    if not family.fairseq_positions:
        return 0, config.max_position_embeddings
    if config.pad_token_id is None:
        raise InputError("pad_token_id is not set in config.json, but positions are counted from it. Set it.")
    first = config.pad_token_id + 1
    return first, config.max_position_embeddings - first


def _length(usable: int, max_position: int | None, config: Any) -> int:
    length = usable if max_position is None else max_position
    if length > usable:
        raise InputError(
            f"max_position={length} is more than the {usable} positions that the checkpoint has "
            f"(max_position_embeddings={config.max_position_embeddings} in its config.json). Give at most {usable}."
        )
    if length < BLOCK_SIZE:
        raise InputError(f"max_position={length} must be at least {BLOCK_SIZE}, the size of one block.")
    return length


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


def _validated(target: dict[str, Any]) -> Any:
    """The operator's attributes for a configuration, which is checked as every MRA configuration is."""
    from transformers import MraConfig

    settings = {key: value for key, value in target.items() if key not in ("model_type", "id2label", "label2id")}
    config = MraConfig(**settings)
    FAMILY.validate(config)
    return FAMILY.attributes(config)


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint by name, as transformers would choose among its files."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            return _read_file(directory / name)
        index = directory / f"{name}.index.json"
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise InputError(f"{index} is not a valid index of weight files: {error}") from error
            weights: dict[str, Tensor] = {}
            for shard in shards:
                if not (directory / shard).is_file():
                    raise InputError(
                        f"{index.name} names {shard}, which is not in {directory}. Fetch the checkpoint again."
                    )
                weights.update(_read_file(directory / shard))
            return weights
    raise InputError(
        f"{directory} has neither model.safetensors nor pytorch_model.bin. Give a checkpoint with weights."
    )


def _read_file(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} cannot be read as weights: {reason} Fetch the checkpoint again.") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path} holds no table of weights by name. Give a transformers checkpoint.")
    return loaded


class _Weights:
    """The source's weights by their present-day names, without the encoder's prefix; remembers which were taken."""

    def __init__(self, weights: dict[str, Tensor], prefix: str) -> None:
        old_names = {".gamma": ".weight", ".beta": ".bias"}  # LayerNorm's, before 2019
        self._weights: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            for old, new in old_names.items():
                if name.endswith(f"LayerNorm{old}"):
                    name = name.removesuffix(old) + new
            self._weights[name.removeprefix(prefix)] = tensor
        self._taken: set[str] = set()
        self.dtypes: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def take(self, name: str, *shape: int) -> Tensor:
        """A weight in float32; refuses one that is missing, has another shape or is not finite."""
        import torch

        tensor = self._weights.get(name)
        if tensor is None:
            raise InputError(
                f"The checkpoint has no weight {name}, which its config.json or the task calls for. Take a complete "
                "one, or choose another --task."
            )
        if tuple(tensor.shape) != shape:
            raise InputError(
                f"The weight {name} has the shape {tuple(tensor.shape)}, but config.json calls for {shape}. "
                "The two are not of one checkpoint."
            )
        if not tensor.is_floating_point():
            raise InputError(f"The weight {name} is {tensor.dtype}: a quantized checkpoint cannot be converted.")
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise InputError(
                f"The weight {name} has {bad} values that are NaN or infinite, of {tensor.numel()}. "
                "The checkpoint is damaged, or training diverged; take another one."
            )
        self._taken.add(name)
        self.dtypes.add(str(tensor.dtype).removeprefix("torch."))
        return tensor.to(torch.float32)

    def left(self) -> list[str]:
        """Names that were not taken."""
        return sorted(set(self._weights) - self._taken)


def _convert(
    weights: _Weights, config: Any, family: DenseFamily, task: Task, first_row: int, length: int
) -> dict[str, Tensor]:
    """The MRA model's weights by name."""
    import torch

    hidden, inner = config.hidden_size, config.intermediate_size
    prefix = "" if task.name == "feature-extraction" else "mra."
    result: dict[str, Tensor] = {}

    def keep(name: str, *shape: int, to: str | None = None) -> None:
        result[prefix + name if to is None else to] = weights.take(name, *shape)

    keep("embeddings.word_embeddings.weight", config.vocab_size, hidden)
    keep("embeddings.token_type_embeddings.weight", config.type_vocab_size, hidden)
    keep("embeddings.LayerNorm.weight", hidden)
    keep("embeddings.LayerNorm.bias", hidden)
    table = weights.take("embeddings.position_embeddings.weight", config.max_position_embeddings, hidden)
    unread = torch.zeros((POSITION_OFFSET, hidden), dtype=torch.float32)
    rows = torch.cat([unread, table[first_row : first_row + length]])
    result[f"{prefix}embeddings.position_embeddings.weight"] = rows
    result[f"{prefix}embeddings.position_ids"] = torch.arange(length)[None] + POSITION_OFFSET

    for layer in range(config.num_hidden_layers):
        for part in _LAYER_WEIGHTS:
            name = f"encoder.layer.{layer}.{part}"
            outputs = inner if part == "intermediate.dense" else hidden
            inputs = inner if part == "output.dense" else hidden
            keep(f"{name}.weight", *((outputs,) if part.endswith("LayerNorm") else (outputs, inputs)))
            keep(f"{name}.bias", outputs)
        # transformers' MRA fills narrow heads up to 32 before it scales by 1 / sqrt(width): undone in the query.
        head_dim = hidden // config.num_attention_heads
        if head_dim < BLOCK_SIZE:
            for kind in ("weight", "bias"):
                name = f"{prefix}encoder.layer.{layer}.attention.self.query.{kind}"
                scaled = result[name].to(torch.float64) * math.sqrt(BLOCK_SIZE / head_dim)
                result[name] = scaled.to(torch.float32)

    for name, *shape in _head_weights(config, family, task):
        source, target = name
        keep(source, *shape, to=target)
    if task.name == "fill-mask":
        result.update(_decoder(weights, config, family))
    return result


def _head_weights(config: Any, family: DenseFamily, task: Task) -> Iterator[tuple[Any, ...]]:
    """((name in the source, name in MRA), *shape) of the weights of a head, the decoder's excepted."""
    hidden, labels = config.hidden_size, config.num_labels
    roberta = family.fairseq_positions
    if task.name == "fill-mask":
        ours = "cls.predictions.transform"
        dense, norm = ("lm_head.dense", "lm_head.layer_norm") if roberta else (f"{ours}.dense", f"{ours}.LayerNorm")
        yield (f"{dense}.weight", f"{ours}.dense.weight"), hidden, hidden
        yield (f"{dense}.bias", f"{ours}.dense.bias"), hidden
        yield (f"{norm}.weight", f"{ours}.LayerNorm.weight"), hidden
        yield (f"{norm}.bias", f"{ours}.LayerNorm.bias"), hidden
    elif task.name == "text-classification":
        first, last = ("classifier.dense", "classifier.out_proj") if roberta else ("pooler.dense", "classifier")
        yield (f"{first}.weight", "classifier.dense.weight"), hidden, hidden
        yield (f"{first}.bias", "classifier.dense.bias"), hidden
        yield (f"{last}.weight", "classifier.out_proj.weight"), labels, hidden
        yield (f"{last}.bias", "classifier.out_proj.bias"), labels
    elif task.name == "token-classification":
        yield ("classifier.weight", "classifier.weight"), labels, hidden
        yield ("classifier.bias", "classifier.bias"), labels
    elif task.name == "question-answering":
        yield ("qa_outputs.weight", "qa_outputs.weight"), 2, hidden
        yield ("qa_outputs.bias", "qa_outputs.bias"), 2


def _decoder(weights: _Weights, config: Any, family: DenseFamily) -> dict[str, Tensor]:
    """The projection to the vocabulary, whose weight is the word embedding's where the two are tied."""
    import torch

    head = "lm_head" if family.fairseq_positions else "cls.predictions"
    target = "cls.predictions"
    vocab, hidden = config.vocab_size, config.hidden_size
    tied = getattr(config, "tie_word_embeddings", True) is not False
    # One parameter under two names; only an untied decoder has a bias of its own, and then the other is not used.
    names = [name for name in (f"{head}.decoder.bias", f"{head}.bias") if name in weights] or [f"{head}.bias"]
    biases = [weights.take(name, vocab) for name in names]
    if tied and not torch.equal(biases[0], biases[-1]):
        raise InputError(
            f"The weights {names[0]} and {names[-1]} are one parameter but differ. The checkpoint is damaged."
        )
    result = {f"{target}.bias": biases[0]}
    name = f"{head}.decoder.weight"
    if not tied:
        result[f"{target}.decoder.weight"] = weights.take(name, vocab, hidden)
        result[f"{target}.decoder.bias"] = biases[0].clone()
    elif name in weights and not torch.equal(
        weights.take(name, vocab, hidden), weights.take("embeddings.word_embeddings.weight", vocab, hidden)
    ):
        raise InputError(
            f"config.json ties {name} to the word embeddings, but the two differ. "
            "Set tie_word_embeddings to false there if the model was trained so."
        )
    return result


def _notes_on_weights(weights: _Weights, config: Any, task: Task) -> list[str]:
    """Refuses weights of the encoder that found no place; says which others were left out."""
    dropped: list[str] = []
    layers = 0
    for name in weights.left():
        if name.endswith(("position_ids", "token_type_ids")):
            continue
        part = name.split(".")
        if name.startswith("encoder.layer.") and part[2].isdigit() and int(part[2]) >= config.num_hidden_layers:
            layers = max(layers, int(part[2]) + 1)
        elif name.startswith(("encoder.", "embeddings.")):
            raise InputError(
                f"The checkpoint has a weight {name} that transformers' model of this kind does not use and MRA has "
                "no place for. Merge adapters into the weights first, or take a plain checkpoint."
            )
        else:
            dropped.append(name)
    notes = []
    if layers:
        kept = config.num_hidden_layers
        notes.append(f"There are weights of {layers} layers, but config.json says {kept}: so many has the result.")
    if any(name.startswith("pooler.") for name in dropped):
        notes.append("The pooler (pooler_output) was left out: MRA has none. last_hidden_state does not depend on it.")
    heads = sorted({name.split(".")[0] for name in dropped if not name.startswith("pooler.")})
    if heads:
        notes.append(f"Weights that {task.name} does not use were left out: {', '.join(heads)}.")
    halves = sorted(weights.dtypes - {"float32"})
    if halves:
        notes.append(f"Weights in {' and '.join(halves)} were written as float32, in which transformers' MRA runs.")
    return notes


def _copy_side_files(directory: Path, stage: Path, config: Any, family: DenseFamily, length: int) -> list[str]:
    """Carries tokenizer, sentence-transformers and licence files along; keeps their length limits within the table."""
    notes = []
    for name in SIDE_FILES:
        if (directory / name).is_file():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / name, stage / name)
    for folder in _module_folders(directory):
        for path in sorted((directory / folder).rglob("*")):
            if path.is_file():
                target = stage / path.relative_to(directory)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    if any((stage / name).is_file() for name in _TOKENIZER_FILES):
        path = stage / "tokenizer_config.json"
        settings = _json(path)
        # Without these, AutoTokenizer takes RoBERTa's class for "mra" and knows no limit.
        settings["tokenizer_class"] = (
            settings.get("tokenizer_class") or getattr(config, "tokenizer_class", None) or family.tokenizer_class
        )
        limit = settings.get("model_max_length")
        settings["model_max_length"] = length if not isinstance(limit, int) else min(limit, length)
        _write_json(path, settings)
    else:
        notes.append("The source has no tokenizer, so the result has none.")
    path = stage / "sentence_bert_config.json"
    settings = _json(path)
    limit = settings.get("max_seq_length")
    if isinstance(limit, int) and limit > length:
        settings["max_seq_length"] = length
        _write_json(path, settings)
        notes.append(f"max_seq_length in sentence_bert_config.json was lowered from {limit} to {length}.")
    return notes


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
)


def _module_folders(directory: Path) -> list[str]:
    """Folders of the sentence-transformers modules that follow the encoder."""
    path = directory / "modules.json"
    if not path.is_file():
        return []
    try:
        folders = [str(module["path"]) for module in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a valid list of modules: {error}") from error
    for folder in folders:
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
            raise InputError(f"{path} names the folder {folder!r}, which is outside the checkpoint. Mend it.")
    return [folder for folder in folders if folder not in ("", ".") and (directory / folder).is_dir()]


def _write_model_card(directory: Path, stage: Path, summary: str) -> None:
    """A README.md that says what was changed, ahead of the source's, whose front matter (licence, language) stays."""
    notice = (
        f"> Converted by mra-export {__version__} (`from-dense`): the self-attention was replaced by MRA-2 "
        f"(Zeng et al., 2022, arXiv 2207.10284); the weights are the source's. {summary}.\n"
    )
    source = directory / "README.md"
    text = source.read_text(encoding="utf-8", errors="replace") if source.is_file() else ""
    front, body = "", text
    lines = text.splitlines(keepends=True)
    if lines and lines[0].strip() == "---":
        end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
        if end is not None:
            front, body = "".join(lines[: end + 1]), "".join(lines[end + 1 :])
            front = front if front.endswith("\n") else front + "\n"
    if body.strip():
        notice += ">\n> What follows is the source's own description.\n\n"
    (stage / "README.md").write_text(f"{front}\n{notice}{body.lstrip()}".lstrip("\n"), encoding="utf-8")


def _save_weights(weights: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    # Sorted by name, and each weight a buffer of its own, so that the bytes depend on nothing but the values.
    save_file({name: weights[name].contiguous() for name in sorted(weights)}, path, metadata={"format": "pt"})


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}. Mend or remove it.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object. Mend or remove it.")
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

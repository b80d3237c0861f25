"""Loads checkpoints: finds the directory, the family and the task, and refuses what would not be the same model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.families import family_of, read_options
from mra_export.quiet import quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mra_export.families import Family

__all__ = ["SIDE_FILES", "TASKS", "Checkpoint", "Task", "load_checkpoint", "locate", "resolve_task"]

SIDE_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config_sentence_transformers.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "1_Pooling/config.json",
    "2_Normalize/config.json",
    "COPYING",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
)
"""Files beside the weights that travel with a checkpoint: tokenizer, sentence-transformers, licence."""


@dataclass(frozen=True)
class Task:
    """One kind of head.

    Attributes:
        name: as in `--task` and the hub's pipeline tags.
        auto_class: the transformers class that loads it.
        suffix: ending of the model class, by which a checkpoint's architecture names the task.
        outputs: the ONNX outputs, in order; attribute names of the model's output.
        per_token: whether the outputs have a value for each token, [batch, seq_len, ...].
    """

    name: str
    auto_class: str
    suffix: str
    outputs: tuple[str, ...]
    per_token: bool


TASKS = {
    task.name: task
    for task in (
        Task("feature-extraction", "AutoModel", "Model", ("last_hidden_state",), per_token=True),
        Task("fill-mask", "AutoModelForMaskedLM", "ForMaskedLM", ("logits",), per_token=True),
        Task("text-generation", "AutoModelForCausalLM", "ForCausalLM", ("logits",), per_token=True),
        Task(
            "text-classification",
            "AutoModelForSequenceClassification",
            "ForSequenceClassification",
            ("logits",),
            per_token=False,
        ),
        Task("multiple-choice", "AutoModelForMultipleChoice", "ForMultipleChoice", ("logits",), per_token=False),
        Task(
            "token-classification",
            "AutoModelForTokenClassification",
            "ForTokenClassification",
            ("logits",),
            per_token=True,
        ),
        Task(
            "question-answering",
            "AutoModelForQuestionAnswering",
            "ForQuestionAnswering",
            ("start_logits", "end_logits"),
            per_token=True,
        ),
    )
}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model.

    Attributes:
        directory: where its files are.
        family: what is particular to its kind of model.
        task: its head.
        config: the transformers configuration.
        model: the transformers model, float32, in evaluation mode.
        random_init: the seed if the weights are random, else None.
        options: of its family, each with its value.
    """

    directory: Path
    family: Family
    task: Task
    config: Any
    model: Any
    random_init: int | None
    options: dict[str, Any] = field(default_factory=dict)


def locate(source: str | Path, *, weights: bool = True) -> Path:
    """The directory of a checkpoint.

    Args:
        source: a directory, a `config.json`, or a hub id.
        weights: whether the weights are wanted too, where they have to be fetched.

    Returns:
        The directory; for a hub id, where the hub's client keeps it.

    Raises:
        InputError: there is no such directory or hub id, or it has no `config.json`.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".json":
        path = path.parent
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{path} has no config.json, so it is not a checkpoint. Give a transformers checkpoint.")
        return path
    if path.exists():
        raise InputError(f"{path} is not a checkpoint directory.")
    name = str(source)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name:
        raise InputError(f"{name} does not exist. Give a checkpoint directory or a hub id.")
    from huggingface_hub import snapshot_download

    patterns = [
        "*.json",
        "*.txt",
        "*.model",
        "*_*/config.json",
        "LICENSE*",
        "COPYING",
        "NOTICE*",
        "README.md",
        "chat_template.jinja",
    ]
    patterns += ["*.safetensors", "pytorch_model*.bin"] if weights else []
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise InputError(
            f"{name} is neither a directory here nor could it be had from the hub: {_first_line(error)}"
        ) from error


def load_config(directory: Path) -> Any:
    """The transformers configuration of a directory.

    Raises:
        InputError: `config.json` cannot be read, or transformers refuses it.
    """
    from transformers import AutoConfig

    path = directory / "config.json"
    try:
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, OSError, AttributeError) as error:
        raise InputError(f"{path} is not a valid configuration: {_first_line(error)}") from error
    if not model_type:
        raise InputError(f"{path} names no model_type, so the kind of model is not known.")
    try:
        return AutoConfig.from_pretrained(directory)
    except Exception as error:
        raise InputError(f"{path} was refused by transformers: {_first_line(error)}") from error


def resolve_task(config: Any, name: str = "auto") -> Task:
    """The task of a checkpoint.

    Args:
        config: the transformers configuration.
        name: one of `TASKS`, or "auto" to go by the checkpoint's architecture.

    Raises:
        InputError: the name is unknown, or the architecture names no task we know.
    """
    if name != "auto":
        if name not in TASKS:
            raise InputError(f"task {name!r} is unknown. Choose one of: auto, {', '.join(TASKS)}.")
        return TASKS[name]
    architectures = getattr(config, "architectures", None) or ["Model"]
    architecture = architectures if isinstance(architectures, str) else str(architectures[0])
    by_length = sorted(TASKS.values(), key=lambda task: -len(task.suffix))
    for task in by_length:
        if architecture.endswith(task.suffix):
            return task
    raise InputError(
        f"The checkpoint's architecture {architecture} is none that this tool exports. "
        f"Choose its head with --task ({', '.join(TASKS)})."
    )


def load_checkpoint(
    source: str | Path,
    *,
    task: str = "auto",
    random_init: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Loads a model in float32 and evaluation mode.

    Args:
        source: a checkpoint directory, a hub id, or with `random_init` a directory or file with `config.json` only.
        task: one of `TASKS`, or "auto".
        random_init: a seed; the weights are then drawn from it instead of loaded.
        options: of the model's family, name -> value; those that are left out have their defaults.

    Returns:
        The checkpoint.

    Raises:
        InputError: it cannot be found or read, is not of a family we know, its configuration or an option is outside the
            limits, weights are missing, do not fit or are not finite.
    """
    import torch
    import transformers

    directory = locate(source, weights=random_init is None)
    config = load_config(directory)
    family = family_of(config)
    family.validate(config)
    values = read_options(family, options or {})
    chosen = resolve_task(config, task)
    family.check_task(config, chosen.name)
    auto_class = getattr(transformers, chosen.auto_class)
    with quiet_transformers():
        if random_init is not None:
            torch.manual_seed(random_init)
            model = auto_class.from_config(config, dtype=torch.float32)
        else:
            model = _load_weights(auto_class, directory, config, chosen)
    model.eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise InputError(
                f"The weight {name} has {bad} values that are NaN or infinite, of {tensor.numel()}. "
                "The checkpoint is damaged, or training diverged; take another one."
            )
    family.prepare(model, values)
    return Checkpoint(directory, family, chosen, config, model, random_init, values)


def _load_weights(auto_class: Any, directory: Path, config: Any, task: Task) -> Any:
    import torch

    try:
        model, info = auto_class.from_pretrained(
            directory,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except Exception as error:
        has_weights = any((*directory.glob("*.safetensors"), *directory.glob("*.bin")))
        hint = "" if has_weights else " There are no weights; add --random-init SEED to go on with random ones."
        raise InputError(f"The weights in {directory} could not be loaded: {_first_line(error)}{hint}") from error
    mismatched = info.get("mismatched_keys")
    if mismatched:
        first = min(mismatched, key=str)  # (name, shape there, shape asked for); only the name in some releases
        name, *shapes = (first[0], *(str(list(shape)) for shape in first[1:])) if isinstance(first, tuple) else (first,)
        raise InputError(
            f"The weights in {directory} do not fit config.json: {name} is {' there and '.join(shapes)} by the configuration."
        )
    missing = sorted(info["missing_keys"])
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise InputError(
            f"The checkpoint {directory} has no weights for {shown}, which {type(model).__name__} needs. "
            f"They would be random. Choose the --task it was trained for (now {task.name})."
        )
    return model


def _first_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut to what fits in a message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " ..."

"""The heads that a model can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mra_export.errors import InputError

__all__ = ["TASKS", "Task", "resolve_task"]


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

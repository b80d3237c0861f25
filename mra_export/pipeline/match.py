"""Refuses to compare files of another model than the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError

if TYPE_CHECKING:
    from mra_export.checkpoint.load import Checkpoint
    from mra_export.engine.runner import EngineRunner
    from mra_export.export.onnx_model import OnnxModel
    from mra_export.openvino.ir import IrModel

__all__ = ["match", "match_engine", "match_family"]


def match_engine(checkpoint: Checkpoint, runner: EngineRunner) -> None:
    """Refuses an engine of another model than the checkpoint, by its manifest."""
    manifest = runner.manifest
    if manifest.plugin_name != (checkpoint.family.plugin or ""):
        raise InputError(
            f"{runner.engine} is of another family of models than the checkpoint, {checkpoint.family.title}."
        )
    try:
        attributes = [checkpoint.family.attributes_from(entry) for entry in manifest.attributes]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"The manifest of {runner.engine} has attributes that are not the operator's: {error}."
        ) from error
    # Without a plugin the engine does not say how many layers it has.
    layers = manifest.plugin_layers or len(checkpoint.family.attention_modules(checkpoint.model))
    if len(attributes) == 1:  # all layers agree
        attributes *= layers
    match(checkpoint, runner.engine, attributes, layers, manifest.task)


def match_family(checkpoint: Checkpoint, model: OnnxModel | IrModel) -> None:
    """Refuses a file of another family, or one that was exported with other options."""
    family = checkpoint.family
    if model.family.model_type != family.model_type:
        raise InputError(f"{model.path} is a {model.family.title} model, the checkpoint a {family.title} model.")
    for name, value in model.options.items():
        if value != checkpoint.options[name]:
            raise InputError(
                f"{model.path} was exported with {name}={value}, the checkpoint was loaded with {name}="
                f"{checkpoint.options[name]}. Add --option {name}={value}."
            )


def match(checkpoint: Checkpoint, path: Path, found: list[Any], num_layers: int, task: str | None) -> None:
    """Refuses a file whose operator or head is not that of the checkpoint."""
    layers = len(checkpoint.family.attention_modules(checkpoint.model))
    if num_layers != layers:
        raise InputError(f"{path} has {num_layers} attention nodes, the checkpoint {layers} layers.")
    if task is not None and task != checkpoint.task.name:
        raise InputError(
            f"{path} was exported for {task}, the checkpoint was loaded for {checkpoint.task.name}. Add --task {task}."
        )
    if len(found) != layers:
        raise InputError(
            f"{path} states the attributes of {len(found)} attention layers, the checkpoint has {layers}. Make it again."
        )
    for index, (attributes, wanted) in enumerate(
        zip(found, checkpoint.family.layer_attributes(checkpoint.config), strict=True)
    ):
        expected = wanted.as_dict()
        for name, value in attributes.as_dict().items():
            if abs(value - expected[name]) > 1e-6 * abs(expected[name]):
                raise InputError(
                    f"{path}: {name}={value} at layer {index}, but the checkpoint asks for {expected[name]}. "
                    "It was exported from another configuration; export it again."
                )

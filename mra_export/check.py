"""Finds what there is to compare and runs the parity check over it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.cases import build_cases
from mra_export.errors import DependencyError, InputError
from mra_export.export import Pooling, pooling_of
from mra_export.parity import Comparison, check_candidate
from mra_export.runners import (
    OnnxModel,
    OnnxReferenceRunner,
    OnnxRuntimeRunner,
    SpecificationRunner,
    TransformersRunner,
    read_onnx,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mra_export.checkpoint import Checkpoint
    from mra_export.runners import Runner

__all__ = ["BF16_MAX_SEQ_LEN", "check", "find_artifacts"]

BF16_MAX_SEQ_LEN = 512
"""The longest case for bfloat16 on the CPU: onnx's evaluator is slow."""


def find_artifacts(paths: list[Path]) -> list[Path]:
    """The .onnx files that paths name.

    Args:
        paths: .onnx files, or directories that hold them, themselves or under `onnx/`.

    Returns:
        The files, in order and once each.

    Raises:
        InputError: a path does not exist, is of another kind, or a directory holds none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted((*path.glob("*.onnx"), *path.glob("onnx/*.onnx")))
            if not inside:
                raise InputError(
                    f"{path} holds no .onnx file, neither itself nor under onnx/. "
                    "Name an exported directory: `mra-export check CHECKPOINT EXPORTED`."
                )
            found += inside
        elif not path.exists():
            raise InputError(f"{path} does not exist.")
        elif path.suffix == ".onnx":
            found.append(path)
        else:
            raise InputError(f"{path} is no .onnx file and no directory.")
    return list(dict.fromkeys(found))


def check(
    checkpoint: Checkpoint,
    artifacts: list[Path],
    *,
    library: Path | None = None,
    max_seq_len: int | None = None,
    kernel_sources: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Comparison]:
    """Compares the PyTorch model with exported files.

    Args:
        checkpoint: the model.
        artifacts: .onnx files.
        library: the ONNX Runtime library; each file is then run with it too.
        max_seq_len: the longest length to run, None for the model's own maximum.
        kernel_sources: a directory with MRA's original CUDA sources, for the PyTorch model on a GPU.
        progress: called with a line before each step.

    Returns:
        Two comparisons for each file and way of running it.

    Raises:
        InputError: a file is unreadable, not ours, or of another model than the checkpoint.
        DependencyError: the PyTorch model has no kernels.
    """
    models = [read_onnx(path) for path in artifacts]
    for model in models:
        _match(checkpoint, model)
    comparisons: list[Comparison] = []
    for model in models:
        pooling = Pooling()
        if "sentence_embedding" in model.outputs:
            pooling = pooling_of(model.path.parent.parent)
            if pooling.mode == "none":
                raise InputError(
                    f"{model.path} has the output sentence_embedding, but {model.path.parent.parent} has no modules.json "
                    "that says how it is pooled. Keep the exported directory together."
                )
        limit = max_seq_len
        if model.dtype == "bf16":
            limit = min(max_seq_len or checkpoint.config.max_position_embeddings, BF16_MAX_SEQ_LEN)
        cases, origin = build_cases(checkpoint, max_seq_len=limit)
        reference = TransformersRunner(checkpoint, pooling, kernel_sources=kernel_sources)
        specification = SpecificationRunner(checkpoint, pooling)
        for runner in _runners(model, library):
            progress(f"{runner.name}: {len(cases)} cases on {origin}")
            result = check_candidate(
                checkpoint,
                reference,
                runner,
                model.dtype,
                cases,
                specification=specification,
                progress=lambda name, runner=runner: progress(f"{runner.name}: {name}"),  # type: ignore[misc]
            )
            if limit != max_seq_len and checkpoint.config.max_position_embeddings > BF16_MAX_SEQ_LEN:
                result[-1].notes.append(
                    f"lengths up to {BF16_MAX_SEQ_LEN} only: ONNX Runtime's CPU provider has no bfloat16 kernels, "
                    "so onnx's slow evaluator ran it; longer lengths need a GPU."
                )
            comparisons += result
    return comparisons


def _runners(model: OnnxModel, library: Path | None) -> list[Runner]:
    if model.dtype == "bf16":
        return [OnnxReferenceRunner(model)]
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "ONNX Runtime is not installed, so the exported file cannot be run. "
            "Install it with `pip install onnxruntime` (or onnxruntime-gpu)."
        ) from error
    runners: list[Runner] = [OnnxRuntimeRunner(model)]
    if library is not None:
        runners.append(OnnxRuntimeRunner(model, library=library))
    return runners


def _match(checkpoint: Checkpoint, model: OnnxModel) -> None:
    """Refuses a file whose operator or head is not that of the checkpoint."""
    layers = len(checkpoint.family.attention_modules(checkpoint.model))
    if len(model.nodes) != layers:
        raise InputError(f"{model.path} has {len(model.nodes)} attention nodes, the checkpoint {layers} layers.")
    if model.task is not None and model.task != checkpoint.task.name:
        raise InputError(
            f"{model.path} was exported for {model.task}, the checkpoint was loaded for {checkpoint.task.name}. "
            f"Add --task {model.task}."
        )
    expected = checkpoint.family.attributes(checkpoint.config).as_dict()
    for index, attributes in enumerate(model.attributes):
        for name, value in attributes.as_dict().items():
            if abs(value - expected[name]) > 1e-6 * abs(expected[name]):
                raise InputError(
                    f"{model.path}: {name}={value} at layer {index}, but the checkpoint asks for {expected[name]}. "
                    "It was exported from another configuration; export it again."
                )

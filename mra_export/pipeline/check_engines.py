"""Compares engines with the PyTorch model, or with the ONNX file that they were built from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.checkpoint.modules import Module, from_pooling
from mra_export.engine.runner import EngineRunner, layers_of, missing_for_engine
from mra_export.errors import DependencyError, InputError
from mra_export.outputs import file_sha256
from mra_export.parity.cases import Case, build_cases
from mra_export.parity.compare import check_candidate, compare_outputs
from mra_export.parity.comparison import Comparison
from mra_export.runners.onnx_reference import OnnxReferenceRunner
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.torch import SpecificationRunner, TransformersRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.export.onnx_model import OnnxModel

__all__ = ["check_engine_runs", "engine_alone"]


def engine_alone(
    stand_in: Checkpoint, model: OnnxModel, engine: EngineRunner, every: list[Case], progress: Callable[[str], None]
) -> Comparison:
    """An engine against its ONNX file, end to end."""
    reference = OnnxReferenceRunner(model) if model.dtype == "bf16" else OnnxRuntimeRunner(model)
    if reason := missing_for_engine():
        why = f"whole, with a manifest that fits the ONNX file; {reason}."
        return Comparison.not_judged(reference.name, engine.name, why)
    cases = [case for case in every if engine.accepts(case.inputs)]
    if not cases:
        raise InputError(f"{engine.engine}: no case is within its profile {engine.manifest.inputs['input_ids']}.")
    progress(f"{engine.name}: {len(cases)} cases")
    try:
        with engine:
            found = compare_outputs(stand_in, reference, engine, engine.manifest.precision, cases)
    except DependencyError as error:
        return Comparison.not_judged(reference.name, engine.name, str(error))
    if len(cases) < len(every):
        found.notes.append(f"{len(every) - len(cases)} of {len(every)} cases are outside the engine's profile.")
    return found


def check_engine_runs(
    checkpoint: Checkpoint,
    runner: EngineRunner,
    models: list[OnnxModel],
    max_seq_len: int | None,
    kernel_sources: Path | None,
    progress: Callable[[str], None],
) -> list[Comparison]:
    """An engine against PyTorch, and against its ONNX file where that is at hand."""
    manifest = runner.manifest
    if reason := missing_for_engine():
        why = f"whole, with a manifest that fits the checkpoint; {reason}."
        return [Comparison.not_judged("PyTorch", runner.name, why)]
    modules: tuple[Module, ...] = ()
    if "sentence_embedding" in manifest.outputs:
        if manifest.pooling is None:
            raise InputError(
                f"{runner.engine} has the output sentence_embedding, but its manifest does not say how it is pooled. Build it "
                "from an exported directory, which has a modules.json."
            )
        modules = from_pooling(manifest.pooling)
    every, origin = build_cases(checkpoint, max_seq_len=max_seq_len)
    cases = [case for case in every if runner.accepts(case.inputs)]
    if not cases:
        raise InputError(f"{runner.engine}: no case is within its profile {manifest.inputs['input_ids']}.")
    note = f"{len(every) - len(cases)} of {len(every)} cases are outside the engine's profile and were left out."
    reference = TransformersRunner(checkpoint, modules, kernel_sources=kernel_sources)
    progress(f"{runner.name}: {len(cases)} cases on {origin}")
    with runner:
        if layers_of(manifest) and manifest.precision != "int8":
            found = check_candidate(
                checkpoint,
                reference,
                runner,
                manifest.precision,
                [c if all(map(runner.accepts, c.alone)) else replace(c, alone=()) for c in cases],
                specification=SpecificationRunner(checkpoint, modules),
                progress=lambda name: progress(f"{runner.name}: {name}"),
            )
        else:
            found = [compare_outputs(checkpoint, reference, runner, manifest.precision, cases)]
        for model in models:
            if file_sha256(model.path) == manifest.onnx_sha256 and model.dtype != "bf16":
                native = OnnxRuntimeRunner(model)
                found.append(compare_outputs(checkpoint, native, runner, manifest.precision, cases))
    if len(cases) < len(every):
        found[-1].notes.append(note)
    return found

"""Compares files of OpenVINO with the PyTorch model, or with the ONNX file that they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.checkpoint.modules import Module
from mra_export.checkpoint.text import read_contract
from mra_export.errors import InputError
from mra_export.export.onnx_model import layer_constants
from mra_export.outputs import file_sha256
from mra_export.parity.cases import build_cases
from mra_export.parity.compare import check_candidate, check_operator, compare_outputs
from mra_export.parity.fidelity import LIMITS, compare_vectors
from mra_export.parity.texts import proof_texts, samples_of
from mra_export.pipeline.check_texts import check_texts
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.openvino import IrRunner
from mra_export.runners.torch import SpecificationRunner, TransformersRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.export.onnx_model import OnnxModel
    from mra_export.openvino.ir import IrModel
    from mra_export.parity.comparison import Comparison
    from mra_export.trace import Inputs, Runner

__all__ = ["check_ir", "embedding_modules", "ir_against_onnx"]


def embedding_modules(model: OnnxModel | IrModel) -> tuple[Module, ...]:
    """What follows the encoder in an exported file, by the sentence-transformers files beside it.

    Raises:
        InputError: the file gives embeddings, and nothing says how.
    """
    if "sentence_embedding" not in model.outputs:
        return ()
    if modules := read_contract(model.directory).modules:
        return modules
    raise InputError(
        f"{model.path} has the output sentence_embedding, but {model.directory} has no modules.json "
        "that says how it is pooled. Keep the exported directory together."
    )


def check_ir(
    checkpoint: Checkpoint,
    ir: IrModel,
    models: list[OnnxModel],
    *,
    library: Path | None = None,
    max_seq_len: int | None = None,
    kernel_sources: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Comparison]:
    """A file of OpenVINO against PyTorch, and against its ONNX file where that is at hand.

    Args:
        checkpoint: the model.
        ir: the file; one that shows its attention layers is judged layer by layer, another one end to end.
        models: ONNX files, among which its own may be.
        library: OpenVINO's extension library; None to have it found where one is needed.
        max_seq_len: the longest length to run, None for the model's own maximum.
        kernel_sources: as for `TransformersRunner`.
        progress: called with a line before each step.

    Raises:
        InputError: the file was changed, or OpenVINO cannot read it.
        DependencyError: OpenVINO or the library is missing.
    """
    ir.check_weights()
    modules = embedding_modules(ir)
    runner = IrRunner(ir, library=library)
    cases, origin = build_cases(checkpoint, max_seq_len=max_seq_len)
    reference = TransformersRunner(checkpoint, modules, kernel_sources=kernel_sources)
    progress(f"{runner.name}: {len(cases)} cases on {origin}")

    def step(name: str) -> None:
        progress(f"{runner.name}: {name}")

    found: list[Comparison] = []
    if ir.precision != ir.dtype:
        samples = samples_of(ir, proof_texts(), random_ids=checkpoint.random_init is not None, longest=max_seq_len)
        found.append(_lost(reference, runner, samples, progress))
        if not ir.portable:
            judge = checkpoint.family.judge(ir.attributes, checkpoint.family.constants(checkpoint.model))
            names = [name for name, _ in checkpoint.family.attention_modules(checkpoint.model)]
            found += check_operator(runner, judge, names, ir.attention_dtype, cases, (), progress=step)
    elif ir.portable:
        found.append(compare_outputs(checkpoint, reference, runner, ir.dtype, cases, progress=step))
    else:
        specification = SpecificationRunner(checkpoint, modules)
        found += check_candidate(
            checkpoint, reference, runner, ir.dtype, cases, specification=specification, progress=step
        )
    if texts := check_texts(checkpoint, ir, reference, runner, max_seq_len=max_seq_len, progress=progress):
        found.append(texts)
    for model in models:
        if ir.precision == ir.dtype and file_sha256(*model.files) == ir.onnx_sha256:
            found.append(compare_outputs(checkpoint, OnnxRuntimeRunner(model), runner, ir.dtype, cases, progress=step))
    return found


def _lost(
    reference: Runner, runner: IrRunner, samples: Sequence[Inputs], progress: Callable[[str], None]
) -> Comparison:
    """What a file of int8 loses on texts; with another number of threads it has to give the same bits."""
    ir = runner.model
    limits = ir.metadata.get("int8.limits", "int8") if ir.precision == "int8" else ir.precision
    again = IrRunner(ir, library=runner.library, threads=1 if runner.threads != 1 else 2)
    progress(f"{runner.name}: {len(samples)} texts")
    return compare_vectors(reference, runner, samples, limits if limits in LIMITS else "int8", again=again)


def ir_against_onnx(
    stand_in: Checkpoint,
    ir: IrModel,
    model: OnnxModel,
    *,
    max_seq_len: int | None = None,
    library: Path | None = None,
    onnxruntime_library: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Comparison]:
    """A file of OpenVINO against the ONNX file that it was made from.

    Args:
        stand_in: what the directory of the ONNX file says of its checkpoint.
        ir: the file.
        model: the ONNX file, or the float32 file of which an int8 one was made.
        max_seq_len: the longest length to run, None for the model's own maximum.
        library: OpenVINO's extension library; None to have it found where one is needed.
        onnxruntime_library: the ONNX file is run with it; None for its function body.
        progress: called with the name of each case.

    Returns:
        The outputs of both, on the rows for which their attention chooses the same or has no choice, or of an int8 file what it
        loses on texts; and each attention layer against the specification where the file shows its layers.
    """
    runner = IrRunner(ir, library=library)
    reference = OnnxRuntimeRunner(model, library=onnxruntime_library if model.nodes else None)
    cases, origin = build_cases(stand_in, max_seq_len=max_seq_len)
    progress(f"{runner.name}: {len(cases)} cases on {origin}")

    def step(name: str) -> None:
        progress(f"{runner.name}: {name}")

    found: list[Comparison] = []
    other: Runner | None = reference
    if ir.precision != ir.dtype:
        other = None  # outputs of int8 are compared on texts
        found.append(_lost(reference, runner, samples_of(model, proof_texts(), longest=max_seq_len), progress))
    if not ir.portable:
        judge = model.family.judge(model.attributes, layer_constants(model))
        names = [layer.name for layer in model.layers]
        token_outputs = stand_in.task.outputs if stand_in.task.per_token else ()
        dtype = ir.attention_dtype
        found += check_operator(runner, judge, names, dtype, cases, token_outputs, reference=other, progress=step)
    elif other is not None:
        found.append(compare_outputs(stand_in, reference, runner, ir.dtype, cases, progress=step))
    return found

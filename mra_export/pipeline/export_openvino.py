"""ONNX file -> a directory of OpenVINO's own files that stock clients load, with proof that it is the same model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mra_export.checkpoint.files import side_files
from mra_export.checkpoint.layout import read_listing
from mra_export.errors import InputError
from mra_export.native.libraries import LIBRARY_FILES, find_library
from mra_export.openvino.core import check_library, operator_library, require_openvino
from mra_export.openvino.ir import ARITHMETIC, IR_FILE, IrModel, write_ir
from mra_export.outputs import check_target, staged_directory
from mra_export.parity.comparison import Comparison
from mra_export.pipeline.check_ir import check_ir, ir_against_onnx
from mra_export.pipeline.ranges import stand_in
from mra_export.pipeline.source import (
    ExportRequest,
    Proof,
    check_int8,
    compare_with_source,
    find_exported,
    in_int8,
    open_source,
)
from mra_export.runners.openvino import IrRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from mra_export.export.onnx_model import OnnxModel

__all__ = ["OpenVinoResult", "export_openvino"]


@dataclass(frozen=True)
class OpenVinoResult:
    """What `export_openvino` wrote.

    Attributes:
        directory: the directory.
        model: the .xml file in it.
        task: its task.
        precision: of `ARITHMETIC`.
        portable: whether stock OpenVINO runs it, without our library.
        release: of the OpenVINO that wrote it.
        attention_nodes: number of attention layers.
        size_bytes: of the .xml and the .bin file.
        notes: what a person should know.
    """

    directory: Path
    model: Path
    task: str
    precision: str
    portable: bool
    release: str
    attention_nodes: int
    size_bytes: int
    notes: tuple[str, ...]


def export_openvino(
    source: str | Path,
    output: Path,
    *,
    request: ExportRequest = ExportRequest(),  # noqa: B008  (frozen)
    precision: str | None = None,
    portable: bool = False,
    library: Path | None = None,
    prove: bool = True,
    comparisons: list[Comparison] | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> OpenVinoResult:
    """Writes a model for OpenVINO, in the layout that sentence-transformers and optimum-intel load.

    Args:
        source: an .onnx file, a directory that holds one, or a checkpoint that is exported first; a hub id too.
        output: the directory to write.
        request: how a checkpoint is exported, and whether the linear layers become int8, with activations by calibration.
        precision: "fp32", "bf16" (weights too) or "int8-weights" (without calibration); None for that of the file, or fp32.
        portable: whether stock OpenVINO is to run it, without our library.
        library: OpenVINO's extension library; None to have it found.
        prove: whether it is compared with the ONNX file, and with the checkpoint where `source` is one.
        comparisons: takes the comparisons.
        force: whether an existing output is replaced.
        progress: called with a line before each step.

    Raises:
        ParityError: it is not the same model.
        InputError: the source, an option or the output is wrong.
        DependencyError: OpenVINO or the library is missing, or the library is for another release.
    """
    if precision not in (None, *ARITHMETIC):
        raise InputError(f"precision={precision!r} must be one of {', '.join(ARITHMETIC)}.")
    request = replace(request, dtype="fp32")
    check_int8(request)
    file = find_exported(source, request)
    check_target(output, force=force, sources=[file or Path(source)])
    require_openvino()
    if not portable and (library is not None or find_library("openvino") is not None):
        check_library(operator_library(library))  # before what takes time
    made = comparisons if comparisons is not None else []
    proof = Proof(find_library("onnxruntime"), made) if prove else None
    notes: list[str] = []
    opening = open_source(source, request, proof=proof, notes=notes, progress=progress)
    with opening as exported, staged_directory(output, force=force) as stage:
        is_done = file is None  # an export is int8 already where that is asked for
        quantizing = in_int8(exported, None if is_done else request.int8, proof=proof, notes=notes, progress=progress)
        notes += _copy_side_files(exported, stage)
        (stage / IR_FILE).parent.mkdir()
        with quantizing as model:
            chosen = precision or ("int8" if model.precision == "int8" else "fp32")
            progress(f"writing {output / IR_FILE}, {chosen}, {len(model.layers)} attention layers")
            ir = write_ir(model, stage / IR_FILE, precision=chosen, portable=portable, library=library)
        if proof is not None:
            _prove(ir, exported, None if file else source, request, proof, library, progress)
        size = sum(each.stat().st_size for each in ir.files)
    return OpenVinoResult(
        directory=output,
        model=output / IR_FILE,
        task=ir.task or "feature-extraction",
        precision=ir.precision,
        portable=ir.portable,
        release=ir.release,
        attention_nodes=len(ir.attributes),
        size_bytes=size,
        notes=(*notes, *_advice(ir)),
    )


def _copy_side_files(model: OnnxModel, target: Path) -> list[str]:
    """Puts beside the model what lies beside the ONNX file: configuration, tokenizer, sentence-transformers' modules."""
    source = model.directory
    if not (source / "config.json").is_file():
        return [f"{source} has no config.json: what was written is the model alone, which stock clients do not load."]
    for name, path in {"config.json": source / "config.json", **side_files(source)}.items():
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target / name)
    for module in read_listing(source):
        if module.folder and (source / module.folder).is_dir():
            shutil.copytree(source / module.folder, target / module.folder, dirs_exist_ok=True)
    return []


def _prove(
    ir: IrModel,
    model: OnnxModel,
    checkpoint: str | Path | None,
    request: ExportRequest,
    proof: Proof,
    library: Path | None,
    progress: Callable[[str], None],
) -> None:
    """Compares what was written with its ONNX file, and with the checkpoint where the source is one."""
    if not (model.directory / "config.json").is_file():
        proof.judge([compare_with_source(model, IrRunner(ir, library=library), ir.dtype, progress)])
        return
    if checkpoint is not None:
        from mra_export.checkpoint.load import load_checkpoint

        loaded = load_checkpoint(
            checkpoint, task=request.task, random_init=request.random_init, options=request.options
        )
        proof.judge(check_ir(loaded, ir, [model], library=library, progress=progress))
        return
    found = ir_against_onnx(
        stand_in(model), ir, model, library=library, onnxruntime_library=proof.library, progress=progress
    )
    proof.judge(found)


def _advice(ir: IrModel) -> list[str]:
    """What who loads the file has to give along: OpenVINO's own choice of the arithmetic depends on the processor."""
    from mra_export.openvino.core import PRECISIONS

    hints = sorted({PRECISIONS["fp32"], PRECISIONS[ir.dtype]})
    shown = " or ".join(f'{{"INFERENCE_PRECISION_HINT": "{hint}"}}' for hint in hints)
    faster = f" ({PRECISIONS[ir.fastest_dtype]} is faster here)" if len(hints) > 1 else ""
    notes = [f"OpenVINO chooses the arithmetic by the processor; load it with {shown}{faster}."]
    if not ir.portable:
        notes.append(
            f"it runs with OpenVINO {ir.release} and {LIBRARY_FILES['openvino']}; --portable writes it for stock OpenVINO."
        )
    return notes

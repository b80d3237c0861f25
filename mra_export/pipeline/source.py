"""An ONNX file from whatever the user names: found, or exported and proven, in the type asked for."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.checkpoint.text import read_contract
from mra_export.checkpoint.tokenizer import load_tokenizer
from mra_export.errors import InputError, ParityError
from mra_export.export.int8 import Int8Request, check_family, check_quantizable
from mra_export.export.onnx_model import MODEL_FILE, OnnxModel, find_onnx, read_onnx
from mra_export.native.libraries import find_library
from mra_export.numerics import relative_error, worst
from mra_export.operators.judge import TOLERANCES
from mra_export.parity.comparison import Comparison, describe_failures
from mra_export.parity.texts import no_tokenizer
from mra_export.pipeline.quantize import check_request, to_int8
from mra_export.pipeline.ranges import file_range, random_inputs
from mra_export.runners.onnx_reference import OnnxReferenceRunner
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.session import check_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.export.exporter import ExportResult
    from mra_export.trace import Inputs, Runner

__all__ = [
    "ExportRequest",
    "Proof",
    "check_dtype",
    "check_int8",
    "compare_with_source",
    "export_checkpoint",
    "find_exported",
    "in_dtype",
    "in_int8",
    "open_source",
]


@dataclass(frozen=True)
class ExportRequest:
    """How a checkpoint is to be exported; what is None is left to the checkpoint.

    Attributes:
        task: one of `TASKS`, or "auto".
        random_init: as for `load_checkpoint`.
        options: of the checkpoint's family, as for `load_checkpoint`.
        dtype: "fp32", "fp16" or "bf16"; None for fp32.
        int8: how it is quantized; None for not at all. Of an exported file too.
        opset: as for `export_onnx`.
        pooling: "none" or one of `POOLING_MODES`.
        normalize: whether embeddings are scaled to length 1.
        embeddings: whether an encoder that says nothing of pooling gets the mean, so that embeddings come out.
    """

    task: str = "auto"
    random_init: int | None = None
    options: Mapping[str, Any] | None = None
    dtype: str | None = None
    opset: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    embeddings: bool = False
    int8: Int8Request | None = None

    def given(self) -> list[str]:
        """The options by name that were given and are of no use where there is an exported file."""
        values = {
            "--opset": self.opset,
            "--pooling": self.pooling,
            "--normalize": self.normalize,
            "--task": None if self.task == "auto" else self.task,
            "--option": self.options or None,
        }
        return [name for name, value in values.items() if value is not None]

    def pooling_for(self, checkpoint: Checkpoint) -> str | None:
        """The pooling of a checkpoint's export; None leaves it to the checkpoint.

        Raises:
            InputError: a setting of the checkpoint cannot be honoured.
        """
        is_open = self.pooling is None and self.embeddings and checkpoint.task.name == "feature-extraction"
        return "mean" if is_open and not read_contract(checkpoint.directory).modules else self.pooling


@dataclass(frozen=True)
class Proof:
    """How an export is compared with its checkpoint before it appears.

    Attributes:
        library: the ONNX Runtime library to check with too.
        comparisons: takes the comparisons.
        otherwise: ends the sentence "--no-check ... nevertheless" of a failure.
    """

    library: Path | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    otherwise: str = "writes it"

    def judge(self, found: list[Comparison]) -> None:
        """Keeps comparisons.

        Raises:
            ParityError: one of them failed.
        """
        self.comparisons.extend(found)
        if failed := describe_failures(found):
            raise ParityError(
                f"FAILED {'; '.join(failed)}\nNothing was written; --no-check {self.otherwise} nevertheless."
            )


def find_exported(source: str | Path, request: ExportRequest) -> Path | None:
    """The ONNX file of a source that is exported already; None for a checkpoint.

    Raises:
        InputError: it does not exist, is of another kind, or an option was given that is for a checkpoint only.
    """
    path = Path(source)
    if path.is_file() and path.suffix not in (".json", ".onnx"):
        raise InputError(f"{path} is neither an .onnx file nor a directory.")
    file = find_onnx(path) if request.random_init is None else None
    if file is None:
        if path.suffix == ".onnx":
            raise InputError(f"{path} does not exist.")
        return None
    if given := request.given():
        raise InputError(f"{', '.join(given)} is for a checkpoint, but {path} is already exported: leave it out.")
    return file


def export_checkpoint(
    source: str | Path,
    request: ExportRequest,
    output: Path,
    *,
    proof: Proof | None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> ExportResult:
    """Exports a checkpoint and compares the file with it; nothing appears if they are not the same model.

    Args:
        source: a checkpoint directory or a hub id.
        request: how.
        output: the ONNX directory to write.
        proof: None to write it without a comparison.
        force: whether an existing output is replaced.
        progress: called with a line before each step.

    Raises:
        InputError: the checkpoint, an option or the output is wrong.
        ParityError: the file is not the checkpoint's model.
        DependencyError: what the comparison needs is missing.
    """
    from mra_export.checkpoint.load import load_checkpoint
    from mra_export.export.exporter import export_onnx
    from mra_export.pipeline.check import check

    check_int8(request)
    progress(f"loading {source}")
    checkpoint = load_checkpoint(source, task=request.task, random_init=request.random_init, options=request.options)

    if request.int8 is not None:  # before the export, which takes time
        check_family(checkpoint.family)
        if request.random_init is None and load_tokenizer(checkpoint.directory) is None:
            raise no_tokenizer(checkpoint.directory)

    if proof is not None and checkpoint.family.plugin is not None:  # it has nodes for a library
        check_runtime(proof.library)

    notes: list[str] = []

    def finish(stage: Path) -> None:
        if proof is not None:
            proof.judge(check(checkpoint, [stage / MODEL_FILE], library=proof.library, progress=progress))
        if request.int8 is not None:
            exported, random_ids = read_onnx(stage / MODEL_FILE), request.random_init is not None
            made = in_int8(exported, request.int8, proof=proof, random_ids=random_ids, notes=notes, progress=progress)
            with made as quantized:
                for file in exported.files:
                    file.unlink()
                for file in quantized.files:
                    shutil.move(file, exported.path.parent)

    progress(f"exporting {type(checkpoint.model).__name__}")
    result = export_onnx(
        checkpoint,
        output,
        dtype=request.dtype or "fp32",
        opset=request.opset,
        pooling=request.pooling_for(checkpoint),
        normalize=request.normalize,
        force=force,
        finish=finish,
    )
    return replace(result, notes=(*result.notes, *notes))


@contextlib.contextmanager
def open_source(
    source: str | Path,
    request: ExportRequest,
    *,
    proof: Proof | None = None,
    notes: list[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[OnnxModel]:
    """The ONNX file of a source, read: the one that is there, or one exported for as long as the block runs.

    Args:
        source: an .onnx file, a directory that holds one, or a checkpoint; a hub id too.
        request: how a checkpoint is exported.
        proof: how an export is compared with its checkpoint; None to leave that out.
        notes: takes those of an export.
        progress: called with a line before each step.

    Raises:
        InputError: the source or an option is wrong.
        ParityError: the export is not the checkpoint's model.
        DependencyError: what the comparison needs is missing.
    """
    file = find_exported(source, request)
    if file is not None:
        yield read_onnx(file)
        return
    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        made = export_checkpoint(source, request, Path(folder) / "onnx", proof=proof, progress=progress)
        if notes is not None:
            notes += made.notes
        yield read_onnx(made.model)


def check_dtype(source: OnnxModel, dtype: str | None) -> None:
    """Refuses a type that a file cannot be had in.

    Args:
        source: the file.
        dtype: fp32, fp16, bf16; None for that of the file.

    Raises:
        InputError: the file has a half type or is int8, and another one is asked for.
    """
    if dtype not in (None, source.precision) and source.precision != "fp32":
        raise InputError(
            f"{source.path} is {source.precision}, and what was rounded once cannot become {dtype}. Export it again with "
            f"`mra-export onnx CHECKPOINT --dtype {dtype}`, or give the checkpoint to `mra-export trt --dtype {dtype}`."
        )


def check_int8(request: ExportRequest) -> None:
    """Refuses what --int8 cannot be combined with, and texts of no use, before any work is done.

    Raises:
        InputError: another type is asked for too, or there is no text.
    """
    if request.int8 is None:
        return
    if request.dtype not in (None, "fp32"):
        raise InputError(
            f"--int8 and --{request.dtype} exclude each other; what is not int8 is float32. Give one of them."
        )
    check_request(request.int8)


@contextlib.contextmanager
def in_int8(
    source: OnnxModel,
    request: Int8Request | None,
    *,
    proof: Proof | None,
    random_ids: bool = False,
    notes: list[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[OnnxModel]:
    """The file in int8, for as long as the block runs; the file itself where that is not asked for.

    Args:
        source: a float32 file, in its directory.
        request: how it is quantized; None for not at all.
        proof: takes the comparison with the float32 file; None to leave that out.
        random_ids: whether a model without a tokenizer is run on random ids.
        notes: takes what a person should know.
        progress: called with a line before each step.

    Raises:
        InputError: the file or the texts cannot be used.
        ParityError: it loses more than its limits allow.
    """
    if request is None:
        yield source
        return
    check_quantizable(source)
    library = (find_library("onnxruntime") if proof is None else proof.library) if source.nodes else None
    check_runtime(library)
    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        yield to_int8(
            source,
            Path(folder) / source.path.name,
            request,
            library=library,
            judge=None if proof is None else proof.judge,
            random_ids=random_ids,
            notes=notes,
            progress=progress,
        )


@contextlib.contextmanager
def in_dtype(
    source: OnnxModel, dtype: str | None, *, proof: Proof | None, progress: Callable[[str], None]
) -> Iterator[tuple[OnnxModel, Comparison | None]]:
    """The file in the type asked for, and how it compares with its source where it had to be converted.

    Args:
        source: the file.
        dtype: fp32, fp16, bf16; None for that of the file.
        proof: takes how far the tensors of a float16 file reach, unless it has that already; None to leave that out, and the
            comparison of a converted file with its source.
        progress: called with a line before each step.

    Yields:
        The file, for as long as the block runs, and the comparison or None.

    Raises:
        InputError: the file cannot be had in that type.
        ParityError: float16 does not hold its tensors, or the converted file is not the same model.
    """
    check_dtype(source, dtype)
    if dtype in (None, source.dtype):
        if source.dtype == "fp16" and proof is not None and not any(each.ranges for each in proof.comparisons):
            proof.judge([file_range(source, progress=progress)])
        yield source, None
        return
    from mra_export.export.half import convert

    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        progress(f"converting {source.path} to {dtype}")
        lost: list[str] = []
        converted = convert(source, str(dtype), Path(folder) / source.path.name, lost=lost)
        if converted.dtype == "fp16" and proof is not None:
            proof.judge([file_range(converted, source=source, lost=lost, progress=progress)])
        comparison = None
        if proof is not None:
            candidate = OnnxReferenceRunner(converted) if converted.dtype == "bf16" else OnnxRuntimeRunner(converted)
            comparison = compare_with_source(source, candidate, converted.dtype, progress)
        if comparison is not None and not comparison.ok:
            error = comparison.metrics["relative_error"]
            limit = comparison.tolerance["relative_error"]
            raise ParityError(
                f"FAILED {source.path} in {dtype} is not the float32 file: relative error {error:.1e} (limit {limit:g}). Nothing "
                "was written; try --bf16, or export the checkpoint in that type, which is compared layer by layer."
            )
        yield converted, comparison


PROOF_SEQ_LEN = 96
"""Tokens of the proof, where the attention makes no choice for so many."""


def compare_with_source(
    source: OnnxModel, candidate: Runner, dtype: str, progress: Callable[[str], None]
) -> Comparison:
    """Runs a file and what was made of it, and compares the outputs.

    There is no checkpoint, so that what the attention chooses cannot be compared apart; the length is one for which it has no
    choice, if there is one.

    Args:
        source: the float32 file.
        candidate: what was made of it.
        dtype: type of the candidate; one of `TOLERANCES`.
        progress: called with a line before each run.

    Returns:
        The comparison; its `ok` says whether the error is within that of the type.
    """
    reference = OnnxRuntimeRunner(source)
    inputs = _inputs(source)
    progress(f"{candidate.name}: comparing with the float32 file")
    expected, actual = reference.run(inputs), candidate.run(inputs)
    token_mask = inputs["attention_mask"].astype(bool)
    errors, largest = [], []
    for name, want in expected.items():
        got = actual[name]
        if want.shape[: token_mask.ndim] == token_mask.shape:  # padded tokens are of no use to anyone
            want, got = want[token_mask], got[token_mask]
        errors.append(relative_error(got, want))
        largest.append(float(np.abs(got - want).max(initial=0.0)))
    limit = TOLERANCES[dtype].outputs
    error = worst(errors)
    metrics: dict[str, float | None] = {"relative_error": error, "max_abs_error": worst(largest)}
    # NaN is not within any limit.
    return Comparison(reference.name, candidate.name, metrics, {"relative_error": limit}, error <= limit)


def _inputs(model: OnnxModel) -> Inputs:
    """Random ids, two examples of which one is padded, of a length for which no layer has a choice (if there is one)."""
    longest = min(PROOF_SEQ_LEN, model.position_limit or PROOF_SEQ_LEN)
    lengths = (n for n in range(longest, 0, -1) if all(model.family.makes_no_choice(a, n) for a in model.attributes))
    return random_inputs(model, next(lengths, longest))

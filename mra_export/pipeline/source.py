"""An ONNX file from whatever the user names: found, or exported and proven, in the type asked for."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.engine.backend import select_backend
from mra_export.engine.manifest import manifest_path
from mra_export.errors import InputError, ParityError
from mra_export.export.onnx_model import find_onnx
from mra_export.native.libraries import tensorrt_library
from mra_export.numerics import relative_error, worst
from mra_export.operators.judge import TOLERANCES
from mra_export.outputs import check_target
from mra_export.parity.comparison import Comparison
from mra_export.runners.onnx_reference import OnnxReferenceRunner
from mra_export.runners.onnxruntime import OnnxRuntimeRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mra_export.checkpoint.pooling import Pooling
    from mra_export.export.onnx_model import OnnxModel
    from mra_export.trace import Inputs

__all__ = ["check_dtype", "compare_with_source", "exported", "in_dtype"]


@contextlib.contextmanager
def exported(
    source: str,
    output: Path,
    *,
    task: str = "auto",
    random_init: int | None = None,
    options: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    opset: int | None = None,
    pooling: Callable[[Path], Pooling | None] | None = None,
    check: bool = True,
    backend: str = "auto",
    library: Path | None = None,
    comparisons: list[Comparison] | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Path]:
    """The ONNX file that `build_engine` shall read: that of `source`, or one exported from it for as long as the block runs.

    Args:
        source: an .onnx file, a directory that holds one, or a checkpoint; a hub id too.
        output: the engine that is to be written.
        task: of a checkpoint, as are `random_init`, `opset` and `pooling`.
        random_init: as for `load_checkpoint`.
        options: of the checkpoint's family, as for `load_checkpoint`.
        dtype: of the export, default fp32.
        opset: as for `export_onnx`.
        pooling: gives that of `export_onnx` for the checkpoint's directory; None leaves it to the checkpoint.
        check: whether an export is compared with the checkpoint.
        backend: as for `build_engine`; what it needs is looked for before the export begins.
        library: as for `build_engine`.
        comparisons: takes the comparisons.
        force: whether existing outputs are replaced.
        progress: called with a line before each step.

    Raises:
        InputError: the source, the output or an option is wrong.
        ParityError: the export is not the checkpoint's model.
        DependencyError: the backend or the plugin is missing.
    """
    path = Path(source)
    if path.is_file() and path.suffix != ".json" and path.suffix != ".onnx":
        raise InputError(f"{path} is neither an .onnx file nor a directory.")
    onnx_file = find_onnx(path) if random_init is None else None
    # An engine may lie in the directory of its ONNX file, and be replaced there.
    for target in (output, manifest_path(output)):
        check_target(target, force=force, sources=[onnx_file or path])
    select_backend(backend)
    if _needs_plugin(onnx_file, path):
        tensorrt_library(library)
    if onnx_file is not None:
        unused = {"--opset": opset, "--pooling or --normalize": pooling, "--option": options or None}
        given = [name for name, value in unused.items() if value is not None] + ["--task"] * (task != "auto")
        if given:
            raise InputError(f"{', '.join(given)} is for a checkpoint, but {path} is already exported: leave it out.")
        yield onnx_file
        return
    if path.suffix == ".onnx":
        raise InputError(f"{path} does not exist.")

    from mra_export.checkpoint.load import load_checkpoint
    from mra_export.export.exporter import export_onnx
    from mra_export.export.onnx_model import MODEL_FILE

    progress(f"loading {source}")
    checkpoint = load_checkpoint(source, task=task, random_init=random_init, options=options)

    def prove(stage: Path) -> None:
        from mra_export.native.libraries import find_library
        from mra_export.parity.comparison import describe_failures
        from mra_export.pipeline.check import check as compare

        found = compare(checkpoint, [stage / MODEL_FILE], library=find_library("onnxruntime"), progress=progress)
        if comparisons is not None:
            comparisons.extend(found)
        failed = describe_failures(found)
        if failed:
            raise ParityError(
                f"FAILED {'; '.join(failed)}\nNothing was written; --no-check builds the engine nevertheless."
            )

    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        progress(f"exporting {type(checkpoint.model).__name__}")
        yield export_onnx(
            checkpoint,
            Path(folder) / "onnx",
            dtype=dtype or "fp32",
            opset=opset,
            pooling=pooling(checkpoint.directory) if pooling is not None else None,
            finish=prove if check else None,
        ).model


def _needs_plugin(onnx_file: Path | None, source: Path) -> bool:
    """Whether an engine of a file, or else of a checkpoint, needs the plugin; true where that is not known yet."""
    from mra_export.families._registry import families

    if onnx_file is not None:
        from mra_export.export.onnx_model import read_onnx

        return read_onnx(onnx_file).family.plugin is not None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        config = json.loads(
            (source if source.suffix == ".json" else source / "config.json").read_text(encoding="utf-8")
        )
        family = families().get(config.get("model_type"))
        return family is None or family.plugin is not None
    return True


def check_dtype(source: OnnxModel, dtype: str | None) -> None:
    """Refuses a type that a file cannot be had in.

    Args:
        source: the file.
        dtype: fp32, fp16, bf16; None for that of the file.

    Raises:
        InputError: the file has a half type, and another one is asked for.
    """
    if dtype not in (None, source.dtype) and source.dtype != "fp32":
        raise InputError(
            f"{source.path} is {source.dtype}, and what was rounded once cannot become {dtype}. Export it again with "
            f"`mra-export onnx CHECKPOINT --dtype {dtype}`, or give the checkpoint to `mra-export trt --dtype {dtype}`."
        )


@contextlib.contextmanager
def in_dtype(
    source: OnnxModel, dtype: str | None, *, prove: bool, progress: Callable[[str], None]
) -> Iterator[tuple[OnnxModel, Comparison | None]]:
    """The file in the type asked for, and how it compares with its source where it had to be converted.

    Args:
        source: the file.
        dtype: fp32, fp16, bf16; None for that of the file.
        prove: whether a converted file is compared with its source.
        progress: called with a line before each step.

    Yields:
        The file, for as long as the block runs, and the comparison or None.

    Raises:
        InputError: the file cannot be had in that type.
        ParityError: the converted file is not the same model.
    """
    check_dtype(source, dtype)
    if dtype in (None, source.dtype):
        yield source, None
        return
    from mra_export.export.half import convert

    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        progress(f"converting {source.path} to {dtype}")
        converted = convert(source, str(dtype), Path(folder) / source.path.name)
        comparison = compare_with_source(source, converted, progress) if prove else None
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


def compare_with_source(source: OnnxModel, converted: OnnxModel, progress: Callable[[str], None]) -> Comparison:
    """Runs a converted file and its source, and compares the outputs.

    There is no checkpoint, so that what the attention chooses cannot be compared apart; the length is one for which it has no
    choice, if there is one.

    Args:
        source: the float32 file.
        converted: from `convert`.
        progress: called with a line before each run.

    Returns:
        The comparison; its `ok` says whether the error is within that of the type.
    """
    reference = OnnxRuntimeRunner(source)
    candidate = OnnxReferenceRunner(converted) if converted.dtype == "bf16" else OnnxRuntimeRunner(converted)
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
    limit = TOLERANCES[converted.dtype].outputs
    error = worst(errors)
    metrics: dict[str, float | None] = {"relative_error": error, "max_abs_error": worst(largest)}
    # NaN is not within any limit.
    return Comparison(reference.name, candidate.name, metrics, {"relative_error": limit}, error <= limit)


def _inputs(model: OnnxModel) -> Inputs:
    """Random ids, two examples of which one is padded, of a length for which no layer has a choice (if there is one)."""
    graph = model.proto.graph
    tables = {
        i.name.rsplit(".", 2)[-2]: int(i.dims[0]) for i in graph.initializer if i.name.endswith("embeddings.weight")
    }
    longest = min(PROOF_SEQ_LEN, model.position_limit or PROOF_SEQ_LEN)
    lengths = (n for n in range(longest, 0, -1) if all(model.family.makes_no_choice(a, n) for a in model.attributes))
    seq_len = next(lengths, longest)
    rank = next(len(i.type.tensor_type.shape.dim) for i in graph.input if i.name == "input_ids")
    shape = (2,) * (rank - 1) + (seq_len,)
    generator = np.random.default_rng(0)
    mask = np.ones(shape, np.int64)
    mask[-1, ..., seq_len - seq_len // 3 :] = 0
    inputs = {
        "input_ids": generator.integers(0, model.vocabulary or 100, shape),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, tables.get("token_type_embeddings", 1), shape),
    }
    return {name: inputs[name] for name in model.inputs}

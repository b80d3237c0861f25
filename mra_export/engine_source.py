"""What an engine is built from: the ONNX file that a path names, in the type asked for, and the sizes of its inputs."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError, ParityError
from mra_export.libraries import tensorrt_library
from mra_export.manifest import manifest_path
from mra_export.outputs import check_target
from mra_export.tensorrt_backend import select_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mra_export.checkpoint.pooling import Pooling
    from mra_export.parity import Comparison
    from mra_export.runners import OnnxModel

__all__ = [
    "RANGES",
    "Range",
    "check_dtype",
    "check_ranges",
    "distinct_attributes",
    "exported",
    "find_onnx",
    "in_dtype",
    "input_axes",
    "onnx_files",
    "parse_range",
    "position_limit",
    "ranges_of",
    "shapes_of",
]

RANGES = ("batch", "seq_len", "choices")
"""The arguments of `build_engine` that are a `Range`."""
MAX_SIZE = 2**31 - 1
"""TensorRT's shapes are int32 in places."""
DEFAULT_BATCH = (1, 8, 32)
DEFAULT_CHOICES = (1, 4, 8)
DEFAULT_OPT_SEQ_LEN = 128


@dataclass(frozen=True)
class Range:
    """Sizes of one axis: the least, the one to be fast at, the largest."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


def parse_range(text: str, name: str) -> Range:
    """The sizes of an axis from "MIN:OPT:MAX", or one number for all three.

    Args:
        text: as the user gives it.
        name: of the option, for messages.

    Raises:
        InputError: it is not that, or not 1 <= MIN <= OPT <= MAX <= 2**31 - 1.
    """
    parts = text.split(":")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise InputError(f"{name}={text} must be MIN:OPT:MAX, for example 1:8:32, or one number for all three.")
    low, best, high = numbers
    if low < 1:
        raise InputError(f"{name}={text}: the least size is {low}, but must be at least 1.")
    if not low <= best <= high:
        raise InputError(f"{name}={text} must not decrease: MIN <= OPT <= MAX.")
    if high > MAX_SIZE:
        raise InputError(f"{name}={text}: the largest size is {high}, but TensorRT's sizes end at {MAX_SIZE}.")
    return Range(low, best, high)


def find_onnx(source: Path) -> Path | None:
    """The ONNX file that a path names.

    Args:
        source: an .onnx file, or a directory with `onnx/model.onnx`, `model.onnx` or one other .onnx file.

    Returns:
        The file; None where a directory has none (it may be a checkpoint) or the path does not exist.

    Raises:
        InputError: the directory holds several and none is called model.onnx, or the file is of another kind.
    """
    if source.is_dir():
        found = sorted((*source.glob("*.onnx"), *source.glob("onnx/*.onnx")))
        preferred = [path for path in found if path.name == "model.onnx"] or found
        if len(preferred) > 1:
            raise InputError(
                f"{source} holds several ONNX files: {', '.join(p.name for p in preferred)}. Name one of them."
            )
        return preferred[0] if preferred else None
    if source.is_file() and source.suffix == ".onnx":
        return source
    return None


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
    from mra_export.export import MODEL_FILE, export_onnx

    progress(f"loading {source}")
    checkpoint = load_checkpoint(source, task=task, random_init=random_init, options=options)

    def prove(stage: Path) -> None:
        from mra_export.check import check as compare
        from mra_export.libraries import find_library
        from mra_export.parity import describe_failures

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
        from mra_export.runners import read_onnx

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
    from mra_export.half import compare_with_source, convert

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


def position_limit(model: OnnxModel) -> int | None:
    """The longest sequence that a model takes, in tokens; None where that cannot be seen.

    It is what the config.json says that lies beside the file or above its folder, and what the exporter noted in the file or
    else the table of positions in it holds; the smaller one where both are known.
    """
    from types import SimpleNamespace

    import onnx

    limits = []
    for folder in (model.path.parent.parent, model.path.parent):
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            limits.append(model.family.max_seq_len(SimpleNamespace(**values)))
    if "max_seq_len" in model.metadata:
        return min([*limits, int(model.metadata["max_seq_len"])])
    graph = onnx.load(str(model.path), load_external_data=False).graph
    for initializer in graph.initializer:
        if initializer.name.endswith("position_embeddings.weight") and len(initializer.dims) == 2:
            limits.append(int(initializer.dims[0]) - model.family.first_position)
    return min(limits) if limits else None


def onnx_files(model: OnnxModel) -> list[Path]:
    """The files that a model is in: the .onnx file, then its external data by name."""
    import onnx

    graph = onnx.load(str(model.path), load_external_data=False).graph
    names = {entry.value for i in graph.initializer for entry in i.external_data if entry.key == "location"}
    return [model.path, *(model.path.parent / name for name in sorted(names))]


def distinct_attributes(model: OnnxModel) -> list[dict[str, Any]]:
    """The operator's attributes, one entry for each attention layer that differs from the one before it."""
    found: list[dict[str, Any]] = []
    for attributes in model.attributes:
        if not found or found[-1] != attributes.as_dict():
            found.append(attributes.as_dict())
    return found


def input_axes(model: OnnxModel) -> dict[str, list[int | str]]:
    """The axes of the inputs: name -> a number or the axis' name for each."""
    import onnx

    return {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim
        ]
        for value in onnx.load(str(model.path), load_external_data=False).graph.input
    }


def ranges_of(
    model: OnnxModel,
    dims: dict[str, list[int | str]],
    batch: Range | None,
    seq_len: Range | None,
    choices: Range | None,
) -> dict[str, Range]:
    """The sizes of each axis, by the options and defaults.

    Args:
        model: the file.
        dims: from `input_axes`.
        batch: as the user gives it, or None.
        seq_len: as the user gives it, or None.
        choices: as the user gives it, or None.

    Returns:
        Axis -> sizes, of the axes that the file has.

    Raises:
        InputError: they do not fit the model.
    """
    limit = position_limit(model)
    axes = {axis for shape in dims.values() for axis in shape if isinstance(axis, str)}
    unknown = sorted(axes - {"batch", "sequence", "choices"})
    if unknown:
        raise InputError(
            f"{model.path} has inputs of the variable axes {', '.join(map(repr, unknown))}; known are batch, choices and "
            "sequence. Export the checkpoint again with `mra-export onnx`."
        )
    if choices is not None and "choices" not in axes:
        raise InputError(f"--choices={choices} is for multiple choice; {model.path} is {model.task or 'another task'}.")
    if seq_len is None:
        if limit is None:
            raise InputError(f"{model.path} does not say how long its sequences may be. Add --seq-len MIN:OPT:MAX.")
        seq_len = Range(1, min(DEFAULT_OPT_SEQ_LEN, limit), limit)
    ranges = {
        "batch": batch or Range(*DEFAULT_BATCH),
        "sequence": seq_len,
        "choices": choices or Range(*DEFAULT_CHOICES),
    }
    check_ranges(ranges, limit)
    return {axis: sizes for axis, sizes in ranges.items() if axis in axes}


def check_ranges(ranges: dict[str, Range], limit: int | None) -> None:
    """Refuses ranges that a model cannot run.

    Args:
        ranges: axis -> sizes.
        limit: the longest sequence, None where it is not known.

    Raises:
        InputError: a sequence would be longer than `limit`.
    """
    seq_len = ranges["sequence"]
    if limit is not None and seq_len.max > limit:
        raise InputError(
            f"--seq-len={seq_len}: the longest sequence is {seq_len.max}, but the model has max_position_embeddings={limit}. "
            f"Give at most {limit}."
        )


def shapes_of(axes: list[int | str], ranges: dict[str, Range]) -> dict[str, tuple[int, ...]]:
    """The least, best and largest shape of an input of these axes."""
    return {
        kind: tuple(axis if isinstance(axis, int) else getattr(ranges[axis], kind) for axis in axes)
        for kind in ("min", "opt", "max")
    }

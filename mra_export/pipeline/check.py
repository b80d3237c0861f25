"""Finds what there is to compare and runs the parity check over it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.bundle.manifest import MANIFEST_FILE, Bundle
from mra_export.bundle.verify import bundle_of, is_bundle, verify_bundle
from mra_export.checkpoint.layout import transformer_folder
from mra_export.engine.runner import EngineRunner, missing_for_engine
from mra_export.errors import DependencyError, InputError
from mra_export.export.int8 import is_int8
from mra_export.export.onnx_model import MODEL_FILE, OnnxModel, layer_constants, read_onnx
from mra_export.native.libraries import LIBRARY_FILES
from mra_export.openvino.core import PRECISIONS, operator_library
from mra_export.openvino.ir import read_ir
from mra_export.optional import require_onnxruntime
from mra_export.parity.cases import build_cases
from mra_export.parity.compare import check_candidate, check_operator
from mra_export.parity.comparison import Comparison
from mra_export.parity.range import check_range, lost_weights
from mra_export.pipeline.check_engines import check_engine_runs, engine_alone
from mra_export.pipeline.check_int8 import Int8Check
from mra_export.pipeline.check_ir import check_ir, embedding_modules, ir_against_onnx
from mra_export.pipeline.check_texts import check_texts
from mra_export.pipeline.match import match, match_engine, match_family
from mra_export.pipeline.ranges import stand_in
from mra_export.runners.onnx_reference import OnnxReferenceRunner
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.openvino import OpenVinoRunner
from mra_export.runners.session import check_runtime
from mra_export.runners.torch import SpecificationRunner, TransformersRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.openvino.ir import IrModel
    from mra_export.trace import Runner

__all__ = ["BF16_MAX_SEQ_LEN", "RUNTIMES", "bundle_alone", "check", "check_alone", "check_bundle", "find_artifacts"]


def bundle_alone(source: str, *, random_init: int | None = None, options: Mapping[str, Any] = {}) -> Path | None:
    """The bundle that `check` gets as its only argument; None where that is a checkpoint.

    Args:
        source: the argument.
        random_init: with a seed, `source` is a checkpoint, of which a config.json is enough.
        options: others by name, which a bundle alone has no use for; None where not given.

    Raises:
        InputError: it is an exported directory that is neither, or such an option was given.
    """
    path = Path(source)
    if not path.is_dir() or random_init is not None:
        return None
    if is_bundle(path):
        if given := [name for name, value in options.items() if value is not None]:
            raise InputError(
                f"{', '.join(given)} cannot be used with {path} alone: a bundle is checked with what is in it. Leave it out."
            )
        return path
    inner = transformer_folder(path)
    has_weights = any((*inner.glob("*.safetensors"), *inner.glob("*.bin")))
    if (path / MODEL_FILE).is_file() and not has_weights:
        raise InputError(
            f"{path / MANIFEST_FILE} is missing, so {path} is no whole bundle, and it has no weights, so it is no checkpoint. "
            f"An ONNX directory is checked with its checkpoint: `mra-export check CHECKPOINT {path}`."
        )
    return None


RUNTIMES = ("onnxruntime", "openvino")
"""In which exported files are run."""
BF16_MAX_SEQ_LEN = 512
"""The longest case for bfloat16 on the CPU: onnx's evaluator is slow."""


_PLACES = ("*.onnx", "onnx/*.onnx", "*.engine", "*.xml", "openvino/*.xml")
"""Of what a directory holds."""


def find_artifacts(paths: list[Path]) -> list[Path]:
    """The .onnx, .engine and .xml files that paths name.

    Args:
        paths: .onnx, .engine or .xml files, or directories that hold them; also under `onnx/` and `openvino/`.

    Returns:
        The files, in order and once each.

    Raises:
        InputError: a path does not exist, is of another kind, or a directory holds none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir() and is_bundle(path):
            found += [variant.file for variant in verify_bundle(path).variants]
        elif path.is_dir():
            inside = sorted(each for place in _PLACES for each in path.glob(place))
            if not inside:
                raise InputError(
                    f"{path} holds no .onnx, .engine or .xml file, neither itself nor under onnx/ and openvino/. "
                    "Name an exported directory: `mra-export check CHECKPOINT EXPORTED`."
                )
            found += inside
        elif not path.exists():
            raise InputError(f"{path} does not exist.")
        elif path.suffix in (".onnx", ".engine", ".xml"):
            found.append(path)
        else:
            raise InputError(f"{path} is no .onnx, .engine or .xml file and no directory.")
    return list(dict.fromkeys(found))


def check(
    checkpoint: Checkpoint,
    artifacts: list[Path],
    *,
    library: Path | None = None,
    plugin: Path | None = None,
    max_seq_len: int | None = None,
    kernel_sources: Path | None = None,
    runtimes: Sequence[str] = RUNTIMES[:1],
    progress: Callable[[str], None] = lambda _: None,
) -> list[Comparison]:
    """Compares the PyTorch model with exported files.

    Args:
        checkpoint: the model.
        artifacts: .onnx, .engine and .xml files; those of a bundle are run with the bundle's own libraries.
        library: the ONNX Runtime library; each .onnx file is then run with it too.
        plugin: the TensorRT plugin, None to have it found.
        max_seq_len: the longest length to run, None for the model's own maximum.
        kernel_sources: a directory with MRA's original CUDA sources, for the PyTorch model on a GPU.
        runtimes: of `RUNTIMES`, in which .onnx files are run.
        progress: called with a line before each step.

    Returns:
        Two comparisons for each file and way of running it (of an int8 file what it loses on texts, and its attention), one of
        texts where the checkpoint is one of sentence-transformers, and one for a float16 file, whose tensors are held against the
        range of that type; one for an engine or a file of OpenVINO that does not show its layers, and one more for an engine
        beside the ONNX file from which it was built.

    Raises:
        InputError: a file is unreadable, not ours, or of another model than the checkpoint.
        DependencyError: the PyTorch model has no kernels; or there are only engines, and none can be run here.
    """
    models = [read_onnx(path) for path in artifacts if path.suffix == ".onnx"]
    irs = [read_ir(path) for path in artifacts if path.suffix == ".xml"]
    engines = [
        EngineRunner(path, library=_own_library(path, "tensorrt", plugin))
        for path in artifacts
        if path.suffix == ".engine"
    ]
    every: list[OnnxModel | IrModel] = [*models, *irs]
    for exported in every:
        match_family(checkpoint, exported)
        match(checkpoint, exported.path, exported.attributes, len(exported.attributes), exported.task)
    for engine in engines:
        match_engine(checkpoint, engine)
    if engines and not models and not irs and (reason := missing_for_engine()):
        shown = ", ".join(engine.engine.name for engine in engines)
        raise DependencyError(
            f"{shown}: whole, with a manifest that fits the checkpoint; but {reason}. Run `mra-export check` on the machine "
            "that is to serve it, or check the ONNX file here."
        )
    comparisons: list[Comparison] = []
    longest = checkpoint.family.max_seq_len(checkpoint.config)
    for model in models:
        modules = embedding_modules(model)
        limit = max_seq_len
        if model.dtype == "bf16":
            limit = min(max_seq_len or longest, BF16_MAX_SEQ_LEN)
        cases, origin = build_cases(checkpoint, max_seq_len=limit)
        reference = TransformersRunner(checkpoint, modules, kernel_sources=kernel_sources)
        specification = SpecificationRunner(checkpoint, modules)
        runners = _runners(model, _own_library(model.path, "onnxruntime", library), runtimes)
        int8 = Int8Check.of(checkpoint, model, reference, max_seq_len, progress) if is_int8(model) else None
        for runner, dtype in runners:
            progress(f"{runner.name}: {len(cases)} cases on {origin}")
            if int8 is not None:
                token_outputs = checkpoint.task.outputs if checkpoint.task.per_token else ()
                comparisons += int8.run(runner, dtype, cases, token_outputs)
                continue
            result = check_candidate(
                checkpoint,
                reference,
                runner,
                dtype,
                cases,
                specification=specification,
                progress=lambda name, runner=runner: progress(f"{runner.name}: {name}"),  # type: ignore[misc]
            )
            if limit != max_seq_len and longest > BF16_MAX_SEQ_LEN:
                result[-1].notes.append(
                    f"lengths up to {BF16_MAX_SEQ_LEN} only: ONNX Runtime's CPU provider has no bfloat16 kernels, "
                    "so onnx's slow evaluator ran it; longer lengths need a GPU."
                )
            comparisons += result
        own = next(runner for runner, dtype in reversed(runners) if dtype == model.dtype)
        if texts := check_texts(checkpoint, model, reference, own, max_seq_len=max_seq_len, progress=progress):
            comparisons.append(texts)
        if model.dtype == "fp16":
            inputs, lost = [case.inputs for case in cases], lost_weights(checkpoint.model.state_dict())
            comparisons.append(check_range(model, inputs, lost=lost, origin=origin, progress=progress))
    for ir in irs:
        extension = _own_library(ir.path, "openvino", None)
        comparisons += check_ir(
            checkpoint, ir, models, library=extension, max_seq_len=max_seq_len, kernel_sources=kernel_sources,
            progress=progress,
        )  # fmt: skip
    for engine in engines:
        try:
            comparisons += check_engine_runs(checkpoint, engine, models, max_seq_len, kernel_sources, progress)
        except DependencyError as error:
            if bundle_of(engine.engine) is None:
                raise
            # A bundle has engines for several machines side by side.
            comparisons.append(Comparison.not_judged("PyTorch", engine.name, str(error)))
    return comparisons


def _own_library(artifact: Path, kind: str, otherwise: Path | None) -> Path | None:
    """The library to run a file with: the bundle's own where it lies in one, since that is what will serve it."""
    root = bundle_of(artifact)
    if root is None:
        return otherwise
    own = root / "lib" / LIBRARY_FILES[kind]
    return own if own.is_file() else None


def check_bundle(
    path: Path, *, max_seq_len: int | None = None, progress: Callable[[str], None] = lambda _: None
) -> tuple[Bundle, list[Comparison]]:
    """Verifies a bundle, and checks what can be checked without the checkpoint, with the libraries that are in it.

    Args:
        path: the directory.
        max_seq_len: as for `check_alone`.
        progress: called with a line before each step.

    Returns:
        The bundle, and the comparisons as by `check_alone`; and of OpenVINO's file with the ONNX file, where that release of
        OpenVINO is here.

    Raises:
        InputError: a file or a field is wrong; the message names it.
        DependencyError: ONNX Runtime is missing.
    """
    progress(f"verifying {path}")
    bundle = verify_bundle(path)
    engines = [EngineRunner(variant.file, library=variant.library) for variant in bundle.engines]
    model = read_onnx(bundle.model_file)
    comparisons = check_alone(
        model, library=bundle.library, engines=engines, max_seq_len=max_seq_len, progress=progress
    )
    if (variant := bundle.openvino) is not None:
        ir = read_ir(variant.file)
        try:
            comparisons += ir_against_onnx(
                stand_in(model), ir, model, max_seq_len=max_seq_len, library=variant.library,
                onnxruntime_library=bundle.library, progress=progress,
            )  # fmt: skip
        except DependencyError as error:  # it is for a machine with that release
            comparisons.append(Comparison.not_judged(model.path.name, f"{ir.path.name} {ir.precision}", str(error)))
    return bundle, comparisons


def check_alone(
    model: OnnxModel,
    *,
    library: Path | None = None,
    engines: Sequence[EngineRunner] = (),
    max_seq_len: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Comparison]:
    """Checks an exported file without the checkpoint that it was made from.

    Every attention node is held against the specification on its own inputs, and the native operator against the function
    body end to end. Whether the weights are the checkpoint's, only `check` can say.

    Args:
        model: the file, in an ONNX directory.
        library: the ONNX Runtime library; the file is then run with it too.
        engines: built from the file; on a machine with a GPU they are compared with it.
        max_seq_len: the longest length to run, None for the model's own maximum.
        progress: called with a line before each step.

    Returns:
        One comparison for the function body, two for the native operator, one of the range of a float16 file, one for each engine.

    Raises:
        InputError: the file is not in an ONNX directory with its configuration.
        DependencyError: ONNX Runtime is missing.
    """
    checkpoint = stand_in(model)
    task = checkpoint.task
    limit = max_seq_len
    if model.dtype == "bf16":
        limit = min(max_seq_len or checkpoint.family.max_seq_len(checkpoint.config), BF16_MAX_SEQ_LEN)
    cases, origin = build_cases(checkpoint, max_seq_len=limit)
    comparisons: list[Comparison] = []
    body: Runner | None = None
    for runner, dtype in _runners(model, library):
        progress(f"{runner.name}: {len(cases)} cases on {origin}")
        comparisons += check_operator(
            runner,
            model.family.judge(model.attributes, layer_constants(model)),
            [layer.name for layer in model.layers],
            dtype,
            cases,
            task.outputs if task.per_token else (),
            reference=None if is_int8(model) else body,  # rounding to int8 makes steps of differences in the last bit
            progress=lambda name, runner=runner: progress(f"{runner.name}: {name}"),  # type: ignore[misc]
        )
        body = runner
    if model.dtype == "fp16":
        comparisons.append(check_range(model, [case.inputs for case in cases], origin=origin, progress=progress))
    return comparisons + [engine_alone(checkpoint, model, engine, cases, progress) for engine in engines]


def _runners(
    model: OnnxModel, library: Path | None, runtimes: Sequence[str] = RUNTIMES[:1]
) -> list[tuple[Runner, str]]:
    """Ways of running a file, each with the type that it is judged by."""
    found: list[tuple[Runner, str]] = []
    if "openvino" in runtimes:
        if model.dtype == "bf16":
            raise InputError(f"{model.path} is bf16; in OpenVINO that is how a file of fp32 is run. Give that.")
        extension = operator_library() if model.nodes else None
        runs = [OpenVinoRunner(model, library=extension, precision=precision) for precision in PRECISIONS]
        found += [(run, model.dtype if run.precision == "fp32" else run.precision) for run in runs]
    return [*(_onnxruntime_runners(model, library) if "onnxruntime" in runtimes else ()), *found]


def _onnxruntime_runners(model: OnnxModel, library: Path | None) -> list[tuple[Runner, str]]:
    if model.dtype == "bf16":
        return [(OnnxReferenceRunner(model), model.dtype)]
    require_onnxruntime(", so the exported file cannot be run", " (or onnxruntime-gpu)")
    check_runtime(library if model.nodes else None)
    runners: list[Runner] = [OnnxRuntimeRunner(model)]
    if library is not None and model.nodes:
        runners.append(OnnxRuntimeRunner(model, library=library))
    return [(runner, model.dtype) for runner in runners]

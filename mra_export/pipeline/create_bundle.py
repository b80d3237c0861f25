"""The bundle: one directory with all that a server needs, written whole."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.bundle.manifest import MANIFEST_FILE, Bundle, read_bundle, seal
from mra_export.bundle.module_files import copy_modules
from mra_export.bundle.openvino_file import find_ir, match_ir, release_for
from mra_export.bundle.schema import FORMAT
from mra_export.bundle.verify import EMBEDDING, ENGINES, LIBRARIES, described, is_bundle, longest_of, verify_bundle
from mra_export.checkpoint.files import SIDE_FILES
from mra_export.checkpoint.layout import MODULES_FILE
from mra_export.checkpoint.load import load_config
from mra_export.checkpoint.modules import width_of
from mra_export.checkpoint.provenance import LICENSE_FILES, MODEL_CARD, licence_of, provenance_of
from mra_export.checkpoint.text import read_contract
from mra_export.checkpoint.text_ids import TOKENIZER_FILE, write_tokenizer
from mra_export.checkpoint.text_tables import write_tables
from mra_export.engine.manifest import Manifest, check_engine, manifest_path
from mra_export.errors import InputError, MraExportError, escaped
from mra_export.export.onnx_model import MODEL_FILE, OnnxModel
from mra_export.native.elf import check_whole
from mra_export.native.libraries import LIBRARY_FILES, find_library, openvino_library, tensorrt_library
from mra_export.openvino.ir import IR_FILE
from mra_export.outputs import check_target, file_sha256, staged_directory
from mra_export.parity.comparison import Comparison, as_json
from mra_export.pipeline.check import check_alone
from mra_export.pipeline.source import ExportRequest, Proof, find_exported, open_source
from mra_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mra_export.openvino.ir import IrModel


__all__ = ["create_bundle"]


def create_bundle(
    source: str | Path,
    output: Path,
    *,
    engines: Sequence[Path] = (),
    openvino: Path | None = None,
    request: ExportRequest = ExportRequest(),  # noqa: B008  (frozen)
    library: Path | None = None,
    plugin: Path | None = None,
    extension: Path | None = None,
    check: bool = True,
    triton: Callable[[Bundle, Path], None] | None = None,
    comparisons: list[Comparison] | None = None,
    notes: list[str] | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Writes a bundle; the same input gives the same bytes.

    Args:
        source: a checkpoint or hub id, which is exported first; or an ONNX directory, an .onnx file in one, or a bundle.
        output: the directory to write.
        engines: .engine files that were built from the same ONNX file, each with its manifest beside it.
        openvino: the directory that `mra-export openvino` wrote of the same export, in any precision; or its .xml file.
        request: how a checkpoint is exported, with embeddings if they can be had; an ONNX file that is there must have its dtype.
        library: the ONNX Runtime library, None for that of a bundle or to have it found; without any, the function body
            serves.
        plugin: the TensorRT plugin, None to have it found; looked for only if an engine needs it.
        extension: OpenVINO's extension library, likewise for `openvino`.
        check: whether the model is compared with the checkpoint, or without one as `check_alone` does.
        triton: called with the bundle and its directory `triton`, to write a model repository there.
        comparisons: takes the comparisons.
        notes: takes what a person should know of the source's settings, one sentence each.
        force: whether an existing output is replaced.
        progress: called with a line before each step.

    Returns:
        The bundle.

    Raises:
        InputError: the source, an engine, a library or the output is wrong.
        ParityError: the export is not the checkpoint's model, or the operator not the specification's.
        DependencyError: what the check or an engine needs is missing.
    """
    check_target(output, force=force, sources=[Path(source), *engines, *([openvino] if openvino else [])])
    ir = find_ir(openvino) if openvino is not None else None
    if library is None and is_bundle(Path(source)):
        library = read_bundle(Path(source)).library
    library = find_library("onnxruntime", library)
    opened, plugin = _open_engines(engines, plugin)
    proof = Proof(library, comparisons if comparisons is not None else [])
    said: list[str] = []
    with _open_model(source, request, check, proof, said, progress) as (model, stated):
        library = library if model.nodes else None  # standard operators need none
        _match_engines(opened, model, source)
        extension = _match_openvino(ir, model, extension)
        progress(f"writing {output}")
        shown = source if find_exported(source, request) is None else model.directory
        with staged_directory(output, force=force) as stage, _named(stage, shown):
            _copy_model(model, stage)
            of_source = _write_tokenizer(model, stage)
            if not said:  # else the export said the same, with the checkpoint's own path
                said += of_source
            _check_tokenizer(stage)
            if (stage / TOKENIZER_FILE).is_file():
                progress("tables of the tokenizer")
                said += write_tables(stage)
            _copy_engines(opened, stage)
            if ir is not None:
                for file in ir.files:
                    _copy(file, (stage / IR_FILE).with_suffix(file.suffix))
            for kind, path in (("onnxruntime", library), ("tensorrt", plugin), ("openvino", extension)):
                if path is not None:
                    check_whole(path)
                    _copy(path, stage / LIBRARIES / LIBRARY_FILES[kind])
            provenance = {**provenance_of(stage), "random_init": stated.pop("random_init")}
            told = _told({"license": licence_of(stage), "provenance": provenance})
            fields = {**described(stage), **stated, **told}
            _write_manifest(stage, fields)
            if triton is not None:
                progress("writing the model repository for Triton")
                triton(read_bundle(stage), stage / "triton")
                _write_manifest(stage, fields)
            read_bundle(stage)  # what a reader would refuse gets no name
    if notes is not None:
        notes += dict.fromkeys(said)
    return read_bundle(output)


@contextlib.contextmanager
def _open_model(
    source: str | Path,
    request: ExportRequest,
    check: bool,
    proof: Proof,
    notes: list[str],
    progress: Callable[[str], None],
) -> Iterator[tuple[OnnxModel, dict[str, Any]]]:
    """The model to bundle, exported from a checkpoint if need be; and parity, versions and random_init of the manifest.

    `notes` takes those of the export.
    """
    file = find_exported(source, request)
    stated: dict[str, Any] = {"random_init": request.random_init}
    packages = ["onnxruntime"] * check
    before = len(proof.comparisons)
    with open_source(
        source, replace(request, embeddings=True), proof=proof if check else None, notes=notes, progress=progress
    ) as model:
        if file is None:
            packages = ["onnx", "onnxscript", "torch", "transformers", *packages]
        elif request.dtype not in (None, model.dtype):
            raise InputError(
                f"{file} is {model.dtype}, not {request.dtype}. Give the checkpoint, or an export in that type."
            )
        elif is_bundle(Path(source)):
            old = verify_bundle(Path(source))
            stated["random_init"] = old.manifest["provenance"]["random_init"]
            if _same_file(old.library, proof.library):  # then its figures hold for the new bundle too
                yield model, {**{name: old.manifest[name] for name in ("parity", "versions")}, **stated}
                return
        if file is not None and check:
            proof.judge(check_alone(model, library=proof.library, progress=progress))
        parity = [as_json(comparison) for comparison in proof.comparisons[before:]]
        yield model, {**stated, "versions": _versions(*packages), "parity": parity or None}


def _same_file(one: Path | None, other: Path | None) -> bool:
    if one is None or other is None:
        return one is other
    return file_sha256(one) == file_sha256(other)


def _open_engines(engines: Sequence[Path], plugin: Path | None) -> tuple[list[tuple[Path, Manifest]], Path | None]:
    """The engines by name with their manifests, and the plugin if one needs it; refuses what cannot be bundled at all."""
    found: dict[str, tuple[Path, Manifest]] = {}
    for engine in engines:
        manifest = check_engine(engine)
        if engine.suffix != ".engine":
            raise InputError(f"{engine} must be called NAME.engine. Rename it and its manifest.")
        if engine.name in found:
            raise InputError(f"{found[engine.name][0]} and {engine} have the same name. Rename one, and its manifest.")
        if manifest.weights_stripped:
            raise InputError(
                f"{engine} was built with --strip-weights, so it cannot be served as it is. Build it without."
            )
        found[engine.name] = (engine, manifest)
    needing = [engine for engine, manifest in found.values() if manifest.plugin_name and not manifest.plugin_embedded]
    library = tensorrt_library(plugin) if needing else None
    for engine in needing:
        check_engine(engine, plugin=library)
    return [found[name] for name in sorted(found)], library


def _match_engines(opened: list[tuple[Path, Manifest]], model: OnnxModel, source: str | Path) -> None:
    """Refuses engines of another model."""
    once = "Export once with `mra-export onnx`, and give that directory to `trt` and to `bundle`."
    sha256 = file_sha256(*model.files) if opened else ""
    for engine, manifest in opened:
        if manifest.onnx_sha256 != sha256:
            raise InputError(
                f"{engine} was built from another ONNX file than that of {source}: the SHA-256 differs. {once}"
            )
        if manifest.attributes != model.stated_attributes or manifest.plugin_layers != len(model.nodes):
            raise InputError(f"{engine}: the operator's attributes in its manifest are not those of {source}. {once}")
        if missing := [name for name in model.outputs if name not in manifest.outputs]:
            raise InputError(f"{engine} lacks the output {', '.join(missing)} of {source}. {once}")


def _match_openvino(ir: IrModel | None, model: OnnxModel, extension: Path | None) -> Path | None:
    """The library that OpenVINO's file needs, None where there is no file or it needs none; refuses that of another model."""
    if ir is None:
        return None
    match_ir(ir, model)
    library = None if ir.portable else openvino_library(extension)
    release_for(ir, library)
    return library


def _copy_model(model: OnnxModel, stage: Path) -> None:
    """The ONNX file as `MODEL_FILE`, and what stock clients look for beside it."""
    root = model.directory
    if not (root / "config.json").is_file():
        raise InputError(
            f"{root} has no config.json, which a server needs. Give an ONNX directory that `mra-export onnx` wrote, whole."
        )
    if model.task is None:
        raise InputError(f"{model.path} does not say what its task is. Export the checkpoint again.")
    _copy(model.path, stage / MODEL_FILE)
    for data in model.files[1:]:
        if data.parent != model.path.parent:
            raise InputError(f"{model.path} keeps weights in {data}, which is not beside it. Export it again.")
        _copy(data, (stage / MODEL_FILE).parent / data.name)
    for name in dict.fromkeys(("config.json", MODEL_CARD, *SIDE_FILES, *LICENSE_FILES)):
        if (root / name).is_file():
            _copy(root / name, stage / name)
    modules = read_contract(root, embedding=EMBEDDING in model.outputs).modules
    copy_modules(modules, root, stage)
    if EMBEDDING in model.outputs and not modules:
        raise InputError(
            f"{model.path} has the output sentence_embedding, but {root} has no modules.json that says how it is pooled. "
            "Keep the exported directory together."
        )
    gives = [
        value.type.tensor_type.shape.dim[-1].dim_value for value in model.proto.graph.output if value.name == EMBEDDING
    ]
    if gives and gives[0] not in (0, says := width_of(modules, load_config(stage).hidden_size)):
        raise InputError(
            f"{model.path} gives vectors of {gives[0]} numbers, but {root / MODULES_FILE} makes {says}. Export the checkpoint "
            "again, and keep the exported directory together."
        )


@contextlib.contextmanager
def _named(stage: Path, source: str | Path) -> Iterator[None]:
    """Names the source in what is said of a copy of its files: that is gone when the message is read."""
    try:
        yield
    except MraExportError as error:
        if str(stage) not in str(error):
            raise
        raise type(error)(str(error).replace(str(stage), str(source))) from error


def _write_tokenizer(model: OnnxModel, stage: Path) -> list[str]:
    """Writes tokenizer.json, the one format that servers read, with all that sentence-transformers applies on top of it.

    An exported directory has it already; an older one, or one that was put together by hand, may not.
    """
    contract, config = read_contract(model.directory, embedding=EMBEDDING in model.outputs), load_config(stage)
    positions = longest_of(model, config)
    notes = write_tokenizer(model.directory, stage, contract, positions)
    return [*contract.notes, *notes]


def _check_tokenizer(stage: Path) -> None:
    """Refuses a tokenizer that is not the model's: its ids would end a request with a runtime's error."""
    path = stage / TOKENIZER_FILE
    if not path.is_file():
        return
    from tokenizers import Tokenizer

    try:
        largest = max(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values(), default=0)
    except Exception as error:  # the library raises this class itself
        first = " ".join(str(error).split())[:200]
        raise InputError(f"The checkpoint's {TOKENIZER_FILE} cannot be read: {first}. Mend or remove it.") from error
    if largest >= (size := load_config(stage).vocab_size):
        raise InputError(
            f"The checkpoint's {TOKENIZER_FILE} has the token id {largest}, but the model's vocab_size is {size}: they do not "
            "belong together."
        )


def _copy_engines(opened: list[tuple[Path, Manifest]], stage: Path) -> None:
    for engine, _ in opened:
        _copy(engine, stage / ENGINES / engine.name)
        _copy(manifest_path(engine), manifest_path(stage / ENGINES / engine.name))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_manifest(root: Path, fields: dict[str, Any]) -> None:
    """Gives every file its mode, whatever the umask, and lists it."""
    files = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        path.chmod(0o755 if path.is_dir() or path.parent == root / LIBRARIES else 0o644)
        if path.is_file() and name != MANIFEST_FILE:
            files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    root.chmod(0o755)
    manifest = root / MANIFEST_FILE
    manifest.write_bytes(seal({"format": FORMAT, "mra_export": __version__, **fields, "files": files}))
    manifest.chmod(0o644)


def _told(value: Any) -> Any:
    """What a model card or a configuration tells, with the control characters escaped that a manifest must not have."""
    if isinstance(value, dict):
        return {name: _told(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_told(inner) for inner in value]
    return escaped(value, keep="") if isinstance(value, str) else value


def _versions(*names: str) -> dict[str, str]:
    import importlib.metadata

    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found

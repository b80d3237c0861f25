"""Verifies a bundle: every file against the manifest, and the manifest against what the files say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mra_export.bundle.manifest import MANIFEST_FILE, Bundle, read_bundle
from mra_export.bundle.openvino_file import find_ir, match_ir, release_for
from mra_export.bundle.schema import refusal
from mra_export.checkpoint.json_files import is_pointer, read_json
from mra_export.checkpoint.load import load_config
from mra_export.checkpoint.modules import as_stated, width_of
from mra_export.checkpoint.text import TextContract, max_length, read_contract, tokenizer_limit
from mra_export.checkpoint.text_ids import TOKENIZER_FILE
from mra_export.checkpoint.text_tables import TABLES_FILE, made_from
from mra_export.engine.manifest import check_engine, manifest_path, read_manifest
from mra_export.errors import DependencyError, InputError
from mra_export.export.onnx_model import MODEL_FILE, OnnxModel, read_onnx
from mra_export.native.elf import check_whole
from mra_export.native.libraries import LIBRARY_FILES
from mra_export.openvino.ir import IR_FILE
from mra_export.outputs import file_sha256

__all__ = [
    "EMBEDDING",
    "ENGINES",
    "LIBRARIES",
    "TOLERATED",
    "bundle_of",
    "described",
    "is_bundle",
    "longest_of",
    "verify_bundle",
]

EMBEDDING = "sentence_embedding"
"""The output of a model that gives one vector a text."""
ENGINES = "engines"
LIBRARIES = "lib"
TOLERATED = (
    "/.git",  # a clone's folder, or the file that stands for it in a worktree
    ".gitattributes",  # the hub puts it into every repository
    ".gitignore",
    ".gitkeep",
    ".gitmodules",
    ".lfsconfig",
    "/.dvc",  # version control of data
    ".dvcignore",
    "/.hg",
    "/.svn",
    "/.cache/huggingface",  # the hub's client, beside what it downloaded to a folder
    "/.huggingface",  # the same of its release 0.23
    "/README.md",  # the model card that the hub's pages add
    "/lost+found",  # the root of a volume; only root may read it
    "/.snapshot",  # the root of a volume of NetApp and others
    "/.Trash-*",  # the root of a volume that a desktop has shown
    ".DS_Store",  # macOS
    "._*",  # macOS, on volumes of others
    ".nfs*",  # NFS, of a file that was removed while it was open
    "Thumbs.db",  # Windows
    "desktop.ini",
)
"""What storage and transport put beside a bundle's files, and nothing of ours reads: a path from the bundle's root where it
begins with a slash, a file of that name anywhere else. The C++ library has the same list."""


def is_bundle(path: Path) -> bool:
    """Whether a directory calls itself a bundle; `verify_bundle` says whether it is one."""
    return (path / MANIFEST_FILE).is_file()


def bundle_of(artifact: Path) -> Path | None:
    """The bundle that a model or an engine lies in, None where it lies in none."""
    root = artifact.parent.parent
    return root if is_bundle(root) else None


def verify_bundle(path: Path) -> Bundle:
    """Reads a bundle and holds every file against its manifest; nothing of it is run.

    Args:
        path: the directory.

    Returns:
        The bundle: every file is there and unchanged, none is unlisted or lies elsewhere, and what the manifest says of the
        model and its engines is what their files say.

    Raises:
        InputError: something is wrong; the message names the file or the field.
    """
    bundle = read_bundle(path)
    _check_tree(bundle)
    for name, entry in bundle.manifest["files"].items():
        file = bundle.path / name
        try:
            size = file.stat().st_size
            digest = file_sha256(file) if size == entry["bytes"] else None
        except OSError as error:
            raise refusal(file, f" cannot be read: {error.strerror or error}") from error
        if size != entry["bytes"] and is_pointer(file):
            raise refusal(file, " is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`")
        if size != entry["bytes"]:
            raise refusal(file, f" has {size} bytes, {MANIFEST_FILE} says {entry['bytes']}: it was cut off or replaced")
        if digest != entry["sha256"]:
            raise refusal(file, f" was changed: its SHA-256 is not that of {MANIFEST_FILE}")
    if TABLES_FILE in bundle.manifest["files"]:
        tokenizer = bundle.manifest["files"].get(TOKENIZER_FILE)
        if tokenizer is None or made_from(bundle.path / TABLES_FILE) != tokenizer["sha256"]:
            raise refusal(bundle.path / TABLES_FILE, f" was not made from the {TOKENIZER_FILE} beside it")
    for library in {variant.library for variant in bundle.variants if variant.library is not None}:
        check_whole(library)
    for variant in bundle.engines:
        try:
            check_engine(variant.file, plugin=variant.library)
        except DependencyError as error:  # what an engine needs belongs to the bundle, not to the machine
            raise InputError(str(error)) from error
    for name, value in described(bundle.path).items():
        _compare(bundle.manifest[name], value, name, bundle.path / MANIFEST_FILE)
    return bundle


def described(root: Path) -> dict[str, Any]:
    """The fields model, embedding, text, tokenizer and variants of a manifest, as the files of a bundle have them.

    Args:
        root: the bundle, or what becomes one.

    Raises:
        InputError: a file cannot be read.
    """
    model, config = read_onnx(root / MODEL_FILE), load_config(root)
    longest = longest_of(model, config)
    if (rows := model.vocabulary) is not None and config.vocab_size > rows:
        raise InputError(
            f"{root / 'config.json'} has vocab_size={config.vocab_size}, but {MODEL_FILE} has embeddings of {rows} tokens: they do "
            "not belong together. Export the checkpoint again."
        )
    names = getattr(config, "architectures", None) or [None]
    domain, kind = model.family.operator
    is_pooled = EMBEDDING in model.outputs
    contract = read_contract(root, embedding=is_pooled)
    return {
        "model": {
            "family": config.model_type,
            "architecture": names[0],
            "task": model.task,
            "dtype": model.dtype,
            "hidden_size": config.hidden_size,
            "max_seq_len": longest,
            "vocab_size": config.vocab_size,
            "pad_token_id": config.pad_token_id if isinstance(config.pad_token_id, int) else 0,
            "length_step": model.family.length_step,
            "inputs": list(model.inputs),
            "outputs": list(model.outputs),
            "operator": {
                "domain": domain,
                "type": kind,
                "version": model.family.operator_version,
                "nodes": len(model.nodes),
                "attributes": model.stated_attributes,
            },
        },
        "embedding": _embedding(contract, config.hidden_size) if is_pooled else None,
        "text": {"prompts": contract.prompts, "default_prompt": contract.default_prompt},
        "tokenizer": _tokenizer(root, contract, longest),
        "variants": _variants(root, model),
    }


def longest_of(model: OnnxModel, config: Any) -> int:
    """Tokens that a model takes at most, special tokens included."""
    return min(limit for limit in (model.position_limit, model.family.max_seq_len(config)) if limit)


def _embedding(contract: TextContract, hidden_size: int) -> dict[str, Any]:
    return {
        "dimension": width_of(contract.modules, hidden_size),
        "similarity": contract.similarity,
        "modules": [as_stated(module) for module in contract.modules],
    }


def _tokenizer(root: Path, contract: TextContract, longest: int) -> dict[str, Any] | None:
    file = root / TOKENIZER_FILE
    if not file.is_file():
        return None
    side = (read_json(file).get("truncation") or {}).get("direction", "Right")
    return {
        "file": TOKENIZER_FILE,
        "max_length": max_length(contract, tokenizer_limit(root), longest),
        "truncation_side": str(side).lower(),
    }


def _variants(root: Path, model: OnnxModel) -> list[dict[str, Any]]:
    def library(kind: str) -> str | None:
        path = Path(LIBRARIES) / LIBRARY_FILES[kind]
        return path.as_posix() if (root / path).is_file() else None

    found: list[dict[str, Any]] = [
        {
            "backend": "onnxruntime",
            "file": MODEL_FILE.as_posix(),
            "precision": model.precision,
            "library": library("onnxruntime"),
        }
    ]
    for engine in sorted((root / ENGINES).glob("*.engine")):
        made = read_manifest(engine)
        found.append(
            {
                "backend": made.backend,
                "file": engine.relative_to(root).as_posix(),
                "precision": made.precision,
                "library": None if made.plugin_embedded else library("tensorrt"),
                "manifest": manifest_path(engine).relative_to(root).as_posix(),
                "backend_version": made.backend_version,
                "version_compatible": made.version_compatible,
                "compute_capability": made.compute_capability,
                "hardware_compatible": made.hardware_compatible,
                "gpu": made.gpu,
                "profiles": made.inputs,
            }
        )
    if (root / IR_FILE).is_file():
        found.append(_openvino_variant(root, model, library("openvino")))
    return found


def _openvino_variant(root: Path, model: OnnxModel, library: str | None) -> dict[str, Any]:
    made = find_ir(root)
    match_ir(made, model)
    return {
        "backend": "openvino",
        "file": IR_FILE.as_posix(),
        "precision": made.precision,
        "library": None if made.portable else library,
        "backend_version": release_for(made, root / library if library else None),
    }


def _check_tree(bundle: Bundle) -> None:
    """Refuses what is missing, unlisted or not a file; nothing is opened before that.

    A file may be a link, wherever it leads: the hub's cache and other stores keep the files elsewhere, and the SHA-256 is that
    of what is read. A link to a directory is refused: no store makes one, and what lies below it is not the bundle's alone.
    """
    listed = set(bundle.manifest["files"])
    for name in sorted(listed):
        file = bundle.path / name
        if not os.path.lexists(file):
            raise refusal(file, f" is missing, but {MANIFEST_FILE} lists it")
        if not file.exists():  # false where links lead in a circle, too
            raise refusal(file, f" is a symbolic link to {file.readlink()}, where there is no file")
        if not file.is_file():
            raise refusal(file, f" is no file, but {MANIFEST_FILE} lists it as one")
    for folder, folders, files in os.walk(bundle.path):
        for name in [*folders, *files]:
            path = Path(folder) / name
            inside = path.relative_to(bundle.path).as_posix()
            is_folder = name in folders
            if inside in listed or inside == MANIFEST_FILE:
                continue
            if _is_tolerated(inside, is_folder):
                if is_folder:
                    folders.remove(name)  # not looked into
                continue
            if is_folder and path.is_symlink():
                raise InputError(f"{path} is a symbolic link to a directory. Put the directory itself there.")
            leads = any(entry.startswith(f"{inside}/") for entry in listed)
            if not is_folder or not (leads or any(entry.startswith(f"/{inside}/") for entry in TOLERATED)):
                raise InputError(f"{path} is not in {MANIFEST_FILE}. Remove it, or write the bundle again.")


def _is_tolerated(inside: str, is_folder: bool) -> bool:
    name = inside.rpartition("/")[2]
    for pattern in TOLERATED:
        subject = f"/{inside}" if pattern.startswith("/") else "" if is_folder else name
        if subject == pattern or (
            pattern.endswith("*") and "/" not in subject[1:] and subject.startswith(pattern[:-1])
        ):
            return True
    return False


def _compare(stated: Any, found: Any, where: str, file: Path) -> None:
    """Refuses a field that is not what the bundle's files say, and names it."""
    if isinstance(stated, dict) and isinstance(found, dict) and stated.keys() == found.keys():
        for name in stated:
            _compare(stated[name], found[name], f"{where}.{name}", file)
    elif isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        for index, (one, other) in enumerate(zip(stated, found, strict=True)):
            _compare(one, other, f"{where}[{index}]", file)
    elif stated != found:
        raise refusal(file, f": {where}={stated!r}, but the bundle's files say {found!r}")

"""What the tests of bundles share: what one is made from, its manifest edited and sealed again, the command line."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_checkpoint

from mra_export.bundle.manifest import MANIFEST_FILE, Bundle, seal
from mra_export.checkpoint.load import load_checkpoint
from mra_export.engine.manifest import Manifest, manifest_path, write_manifest
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import MODEL_FILE, read_onnx
from mra_export.native.libraries import find_library
from mra_export.openvino.ir import IR_FILE, write_ir
from mra_export.outputs import file_sha256
from mra_export.pipeline.create_bundle import create_bundle

CARD = "---\nlicense: apache-2.0\nbase_model: someone/dense-base\nlanguage: en\n---\n\n# A model\n"


NAME = "someone/mra-small"


STATED = "front matter of README.md"


FILES = [
    "1_Pooling/config.json",
    "LICENSE",
    "NOTICE",
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "engines/fast.engine",
    "engines/fast.engine.json",
    "engines/other.engine",
    "engines/other.engine.json",
    "lib/libmra_onnxruntime.so",
    "lib/libmra_tensorrt.so",
    "modules.json",
    "onnx/model.onnx",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def run(*arguments: object, capsys: pytest.CaptureFixture[str] | None = None) -> tuple[int, dict[str, Any]]:
    from mra_export.cli import main

    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments), "--json", "-q"])
    assert isinstance(stop.value.code, int)
    return stop.value.code, json.loads(capsys.readouterr().out) if capsys is not None else {}


def give_side_files(directory: Path) -> Path:
    """A tokenizer, sentence-transformers' files, a licence and a name."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "[PAD]", *(f"word{i}" for i in range(100))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        '{"model_max_length": 1000, "tokenizer_class": "TokenizersBackend"}'
    )
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 200}')
    for name in ("1_Pooling", "2_Normalize"):
        (directory / name).mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (directory / "2_Normalize" / "config.json").write_text("{}")
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (directory / "modules.json").write_text(json.dumps(modules))
    prompts = {"prompts": {"query": "word1 word2 ", "document": ""}, "default_prompt_name": "document"}
    (directory / "config_sentence_transformers.json").write_text(json.dumps({**prompts, "similarity_fn_name": "dot"}))
    (directory / "README.md").write_text(CARD)
    (directory / "LICENSE").write_text("Licence text.\n")
    (directory / "NOTICE").write_text("Notice.\n")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "_name_or_path": NAME}))
    return directory


def write_engine(engine: Path, onnx_file: Path, plugin: Path, **changes: Any) -> Path:
    """A file in the place of an engine, with a manifest that is true of it, the ONNX file and the plugin."""
    engine.write_bytes(f"engine {engine.name}".encode() * 40)
    model = read_onnx(onnx_file)
    shape = {"min": [1, 1], "opt": [8, 128], "max": [32, 256]}
    manifest = Manifest(
        format=1, mra_export="0.1.0", backend="tensorrt", backend_version="10.14.1.48", version_compatible=False,
        compute_capability="9.0", hardware_compatible=False, gpu="NVIDIA H200", engine_bytes=engine.stat().st_size,
        engine_sha256=file_sha256(engine), plugin_name="Mra2Attention", plugin_version="1",
        plugin_sha256=file_sha256(plugin), plugin_embedded=False, plugin_architectures="80-real,90",
        plugin_layers=len(model.nodes), precision="fp16", precision_proof="parsed", tensor_types={"HALF": 3},
        weights_stripped=False, task=model.task, inputs=dict.fromkeys(model.inputs, shape),
        outputs=list(model.outputs), onnx_sha256=file_sha256(*model.files), onnx_dtype="fp32",
        attributes=model.stated_attributes, pooling={"mode": "cls", "normalize": True}, parity=None, versions={"torch": None},
    )  # fmt: skip
    write_manifest(dataclasses.replace(manifest, **changes), manifest_path(engine))
    return engine


@dataclasses.dataclass(frozen=True)
class Parts:
    """What bundles are made from here."""

    checkpoint: Path
    onnx: Path
    plugin: Path
    library: Path
    engines: tuple[Path, ...]

    def bundle(self, output: Path, **options: Any) -> Bundle:
        given = {"engines": self.engines, "check": False, "library": self.library, "plugin": self.plugin, **options}
        return create_bundle(self.onnx, output, **given)


def make_parts(folder: Path) -> Parts:
    """A checkpoint, its export, and what stands in for a plugin and two engines."""
    checkpoint = give_side_files(save_checkpoint(folder / "checkpoint"))
    exported = export_onnx(load_checkpoint(checkpoint), folder / "onnx")
    plugin = folder / "libmra_tensorrt.so"
    plugin.write_bytes(b"the plugin")
    library = find_library("onnxruntime")
    if library is None:  # bytes are bytes for most of these tests; those that run it skip
        library = folder / "libmra_onnxruntime.so"
        library.write_bytes(b"the operator")
    engines = (
        write_engine(folder / "other.engine", exported.model, plugin, gpu="NVIDIA L4", compute_capability="8.9"),
        write_engine(folder / "fast.engine", exported.model, plugin, plugin_embedded=True, backend="rtx"),
    )
    return Parts(checkpoint, exported.directory, plugin, library, engines)


def with_openvino(source: Path, folder: Path, precision: str, extension: Path, **options: Any) -> Path:
    """A bundle of the ONNX file in `source`, with the file for OpenVINO that is made of it in `folder`."""
    target = folder / IR_FILE
    target.parent.mkdir(parents=True)
    write_ir(read_onnx(source / MODEL_FILE), target, precision=precision, library=extension, **options)
    return create_bundle(source, folder / "bundle", openvino=folder, extension=extension, check=False).path


def native(parts: Parts) -> Path:
    if parts.library.stat().st_size < 1000:
        pytest.skip("the native library is not built")
    return parts.library


def as_hub_cache(source: Path, cache: Path) -> Path:
    """A directory as the hub's client keeps it: links into a folder of files that are named by their content."""
    snapshot = cache / "models--someone--model" / "snapshots" / "0123abc"
    blobs = cache / "models--someone--model" / "blobs"
    blobs.mkdir(parents=True)
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        blob = blobs / file_sha256(file)
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def tree(root: Path) -> dict[str, tuple[int, str]]:
    """Name -> mode and SHA-256 of everything below a directory."""
    return {
        path.relative_to(root).as_posix(): (
            path.stat().st_mode & 0o7777,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [root, *root.rglob("*")]
    }


def change(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edits the manifest and seals it again, as an attacker or another program would."""
    manifest = json.loads((root / MANIFEST_FILE).read_text())
    edit(manifest)
    (root / MANIFEST_FILE).write_bytes(seal(manifest))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def keys(field: str) -> list[str | int]:
    """The keys that lead to a field: "variants[1].file" -> "variants", 1, "file"."""
    found: list[str | int] = []
    for part in field.split("."):
        name, _, index = part.partition("[")
        found += [name, int(index[:-1])] if index else [name]
    return found


def inside(value: Any, path: list[str | int]) -> Any:
    for key in path:
        value = value[key]
    return value


def sealed(folder: Path, manifest: dict[str, Any]) -> Path:
    (folder / MANIFEST_FILE).write_bytes(seal(manifest))
    return folder


def fill(whole: Bundle) -> dict[str, Any]:
    """The manifest with every optional field filled, and one file only."""
    manifest = copy.deepcopy(whole.manifest)
    comparison = {
        "reference": "r",
        "candidate": "c",
        "metrics": {"m": 1e-6, "n": None},
        "tolerance": {"m": 1},
        "ok": True,
    }
    manifest["parity"] = [{**comparison, "notes": ["n"], "layers": [{}], "cases": [{}]}]
    dense = {"in_features": 64, "out_features": 40, "bias": False, "activation": "GELU", "residual": True}
    manifest["embedding"]["dimension"] = 30
    manifest["embedding"]["modules"][1:] = [
        {"kind": "Dense", "folder": "2_Dense", **dense},
        {"kind": "LayerNorm", "folder": "3_LayerNorm", "dimension": 40},
        {"kind": "Normalize"},
        {"kind": "Truncate", "dimension": 30},
    ]
    for folder in ("2_Dense", "3_LayerNorm"):
        manifest["files"][f"{folder}/model.safetensors"] = {"bytes": 3, "sha256": "0" * 64}
    name = "openvino/openvino_model.xml"
    manifest["files"][name] = {"bytes": 3, "sha256": "0" * 64}
    made = {"precision": "int8", "library": manifest["variants"][0]["library"], "backend_version": "2026.4.1"}
    manifest["variants"].append({"backend": "openvino", "file": name, **made})
    manifest["license"].update(name="n", link="l")
    manifest["provenance"]["random_init"] = 3
    manifest["versions"] = {"torch": "2"}
    return manifest

"""Reads the manifest of a bundle, and refuses whatever else stands there."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mra_export.bundle.schema import FORMAT, MODULES, SCHEMA, VARIANTS, check, refusal
from mra_export.checkpoint.modules import Dense, LayerNorm, Module, Pooling, module_from, width_of
from mra_export.checkpoint.text import prompt_of
from mra_export.errors import InputError
from mra_export.schema import TEXT, check_texts, choice, shown

__all__ = ["MANIFEST_FILE", "MODULE_WEIGHTS", "Bundle", "Variant", "read_bundle", "seal"]

MANIFEST_FILE = "manifest.json"
MODULE_WEIGHTS = "model.safetensors"
"""Of a module after the encoder, in its folder; float32."""
MAX_MANIFEST_BYTES = 1 << 20

_ZEROS = "0" * 64


@dataclass(frozen=True)
class Variant:
    """One way of running the model of a bundle; what is only said of engines is None elsewhere.

    Attributes:
        backend: "onnxruntime", "tensorrt", "rtx" or "openvino".
        file: the .onnx, .engine or .xml file.
        precision: fp32, fp16, bf16 or int8; with OpenVINO also int8-weights.
        library: the native library that goes with it; None where it runs without one.
        backend_version: of the backend that built the engine; of OpenVINO the release that runs `library`, or wrote the file.
        version_compatible: whether a newer backend may run it.
        compute_capability: of the GPU that it is for, as in "9.0".
        hardware_compatible: whether that is the least one, instead of the only one.
        gpu: name of the GPU on which it was built, or "ahead of time".
        manifest: of the engine.
        profiles: input -> "min", "opt", "max" -> shape.
    """

    backend: str
    file: Path
    precision: str
    library: Path | None
    backend_version: str | None = None
    version_compatible: bool | None = None
    compute_capability: str | None = None
    hardware_compatible: bool | None = None
    gpu: str | None = None
    manifest: Path | None = None
    profiles: dict[str, dict[str, list[int]]] | None = None


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read; its files were looked at only if `verify_bundle` gave it.

    Attributes:
        path: the directory.
        manifest: the manifest, field by field as docs/bundle.md has it.
        variants: the ways of running it, the ONNX file first.
    """

    path: Path
    manifest: dict[str, Any]
    variants: tuple[Variant, ...]

    @property
    def model_file(self) -> Path:
        """The ONNX file."""
        return self.variants[0].file

    @property
    def library(self) -> Path | None:
        """The native operator for ONNX Runtime; None where the bundle has none, and the function body runs."""
        return self.variants[0].library

    @property
    def engines(self) -> tuple[Variant, ...]:
        """The variants that are engines of TensorRT or TensorRT-RTX."""
        return tuple(variant for variant in self.variants if variant.manifest is not None)

    @property
    def openvino(self) -> Variant | None:
        """The variant for OpenVINO, or None."""
        return next((variant for variant in self.variants if variant.backend == "openvino"), None)

    @property
    def modules(self) -> tuple[Module, ...]:
        """What follows the encoder: how the output `sentence_embedding` is made; empty where there is none."""
        embedding = self.manifest["embedding"]
        return () if embedding is None else tuple(module_from(stated) for stated in embedding["modules"])

    @property
    def dimension(self) -> int | None:
        """Numbers in an embedding; None where the model gives none."""
        embedding = self.manifest["embedding"]
        return None if embedding is None else int(embedding["dimension"])

    @property
    def similarity(self) -> str | None:
        """Of two embeddings, one of `SIMILARITIES`; None where the checkpoint does not say."""
        embedding = self.manifest["embedding"]
        return None if embedding is None else embedding["similarity"]

    @property
    def prompts(self) -> dict[str, str]:
        """Name -> what is put before a text."""
        return dict(self.manifest["text"]["prompts"])

    @property
    def default_prompt(self) -> str | None:
        """Name of the prompt that a text gets if none is asked for; None for none."""
        return self.manifest["text"]["default_prompt"]

    @property
    def include_prompt(self) -> bool:
        """Whether the tokens of a prompt count in the pooling."""
        return all(module.include_prompt for module in self.modules if isinstance(module, Pooling))

    @property
    def module_weights(self) -> tuple[Path, ...]:
        """The files with the weights of `modules`."""
        return tuple(
            self.path / module.folder / MODULE_WEIGHTS
            for module in self.modules
            if isinstance(module, Dense | LayerNorm)
        )

    def prompt(self, name: str | None = None, text: str | None = None) -> str:
        """What is put before a text.

        Args:
            name: of a prompt; None for the default.
            text: the prompt itself, "" for none; None for the one that `name` says.

        Raises:
            InputError: both are given, or there is no prompt of that name.
        """
        if text is None:
            return prompt_of(self.prompts, self.default_prompt, name)
        if name is not None:
            raise InputError(f"Both the prompt {name!r} by name and a prompt's text are given. Give one of them.")
        return text

    @property
    def tokenizer_file(self) -> Path | None:
        """`tokenizer.json`, or None."""
        tokenizer = self.manifest["tokenizer"]
        return None if tokenizer is None else self.path / tokenizer["file"]

    @property
    def tokenizer_max_length(self) -> int:
        """Tokens to which a text is cut, special tokens included; the model's longest where there is no tokenizer."""
        tokenizer = self.manifest["tokenizer"]
        return self.max_seq_len if tokenizer is None else int(tokenizer["max_length"])

    @property
    def truncation_side(self) -> str:
        """Where a text that is too long loses tokens: "left" or "right"."""
        tokenizer = self.manifest["tokenizer"]
        return "right" if tokenizer is None else str(tokenizer["truncation_side"])

    @property
    def task(self) -> str:
        """As in `--task`."""
        return str(self.manifest["model"]["task"])

    @property
    def dtype(self) -> str:
        """Type of the ONNX file: fp32, fp16 or bf16."""
        return str(self.manifest["model"]["dtype"])

    @property
    def family(self) -> str:
        """`model_type` of the checkpoint."""
        return str(self.manifest["model"]["family"])

    @property
    def length_step(self) -> int:
        """Tokens of a block: texts whose lengths round up to the same multiple of it may share a batch."""
        return int(self.manifest["model"]["length_step"])

    @property
    def hidden_size(self) -> int:
        """Numbers in the vector of a token."""
        return int(self.manifest["model"]["hidden_size"])

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 to this, excluded."""
        return int(self.manifest["model"]["vocab_size"])

    @property
    def max_seq_len(self) -> int:
        """Longest sequence, in tokens."""
        return int(self.manifest["model"]["max_seq_len"])

    @property
    def pad_token_id(self) -> int:
        """What stands at padding; its value does not matter, the mask does."""
        return int(self.manifest["model"]["pad_token_id"])

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model's inputs, in order."""
        return tuple(self.manifest["model"]["inputs"])

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs, in order."""
        return tuple(self.manifest["model"]["outputs"])


def seal(manifest: dict[str, Any]) -> bytes:
    """The bytes of a manifest, with `manifest_sha256` set: the SHA-256 of the same bytes with zeros in its place."""
    manifest = {**manifest, "manifest_sha256": _ZEROS}
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return text.replace(_seal_text(_ZEROS), _seal_text(hashlib.sha256(text.encode()).hexdigest())).encode()


def read_bundle(path: Path) -> Bundle:
    """Reads the manifest of a bundle: each field has its type, none is missing or unknown, and none was changed.

    Args:
        path: the directory.

    Returns:
        The bundle. Its files were not looked at; `verify_bundle` does that.

    Raises:
        InputError: it is no bundle, of another format, or a field is wrong; the message names the field.
    """
    path = Path(path)
    file = path / MANIFEST_FILE
    if not path.is_dir():
        raise InputError(f"{path} is not a directory. Give a bundle that `mra-export bundle` wrote.")
    content = _read(file)
    raw = _parse(content, file)
    stated = raw.get("format") if isinstance(raw, dict) else None
    if type(stated) is not int:
        raise refusal(file, f": format={shown(stated)} must be an integer: this is no manifest of a bundle")
    if stated != FORMAT:
        raise InputError(
            f"{file} has format={stated}, this mra-export reads {FORMAT}. Take the mra-export that wrote it "
            f"({shown(raw.get('mra_export'))}), or write the bundle again."
        )
    check(raw, SCHEMA, "", file)
    _check_seal(content, raw["manifest_sha256"], file)
    _check_names(raw, file)
    variants = []
    for index, entry in enumerate(raw["variants"]):
        where = f"variants[{index}]"
        check(entry, dict, where, file)
        backends = [name for name in VARIANTS if (name == "onnxruntime") == (index == 0)]
        check({"backend": entry["backend"]} if "backend" in entry else {}, {"backend": choice(*backends)}, where, file)
        check(entry, VARIANTS[entry["backend"]], where, file)
        for key in ("file", "library", "manifest"):
            _check_listed(raw, entry.get(key), f"variants[{index}].{key}", file)
        located = {k: path / entry[k] for k in ("file", "library", "manifest") if entry.get(k) is not None}
        variants.append(Variant(**{**entry, **located}))
    # Prompts are put before texts as they are, whatever characters they hold.
    check_texts({name: value for name, value in raw.items() if name != "text"}, "", lambda text: refusal(file, text))
    _check_modules(raw, file)
    _check_fit(raw, variants, file)
    return Bundle(path, raw, tuple(variants))


def _read(file: Path) -> bytes:
    try:
        if not file.is_file():
            raise refusal(file, f" does not exist, so {file.parent} is no bundle")
        if (size := file.stat().st_size) > MAX_MANIFEST_BYTES:
            raise refusal(file, f" has {size} bytes, more than a manifest can have")
        return file.read_bytes()
    except OSError as error:
        raise refusal(file, f" cannot be read: {error.strerror or error}") from error


def _parse(content: bytes, file: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
        return found

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text} is no finite number")
        return value

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise refusal(file, f" is not a readable manifest: {error}") from error


def _check_seal(content: bytes, stated: str, file: Path) -> None:
    sealed = _seal_text(stated).encode()
    found = hashlib.sha256(content.replace(sealed, _seal_text(_ZEROS).encode())).hexdigest()
    if content.count(sealed) != 1 or found != stated:
        raise refusal(
            file,
            f": manifest_sha256={stated[:12]}... is not that of this manifest ({found[:12]}...): it was changed after it was "
            "written",
        )


def _seal_text(digits: str) -> str:
    return f'"manifest_sha256": "{digits}"'


def _check_names(raw: dict[str, Any], file: Path) -> None:
    """Refuses names that lead out of the bundle, or that file systems do not agree on."""
    for name in raw["files"]:
        parts = name.split("/")
        if (
            not name.isprintable()
            or "\\" in name
            or PurePosixPath(name).is_absolute()
            or any(part in ("", ".", "..") for part in parts)
            or name == MANIFEST_FILE
        ):
            raise refusal(file, f": files[{name!r}] is not the name of a file inside the bundle")


def _check_listed(raw: dict[str, Any], name: str | None, where: str, file: Path) -> None:
    if name is not None and name not in raw["files"]:
        raise refusal(file, f": {where}={name!r} is not in files")


def _check_modules(raw: dict[str, Any], file: Path) -> None:
    """Refuses modules that are not what follows an encoder of that width."""
    embedding = raw["embedding"]
    if embedding is None:
        return
    for index, entry in enumerate(embedding["modules"]):
        where = f"embedding.modules[{index}]"
        check({"kind": entry["kind"]} if "kind" in entry else {}, {"kind": choice(*MODULES)}, where, file)
        if (entry["kind"] == "Pooling") != (index == 0):
            raise refusal(
                file, f": {where}.kind={entry['kind']} must be {'another' if index else 'Pooling'} at this place"
            )
        check(entry, {"kind": TEXT, **MODULES[entry["kind"]]}, where, file)
        if entry.get("modes") == []:
            raise refusal(file, f": {where}.modes is empty")
        if "folder" in entry:
            _check_listed(raw, f"{entry['folder']}/{MODULE_WEIGHTS}", f"{where}.folder", file)
    modules = [module_from(stated) for stated in embedding["modules"]]
    if not modules:
        raise refusal(file, ": embedding.modules is empty, but begins with a Pooling")
    width = raw["model"]["hidden_size"]
    for index, module in enumerate(modules):
        takes = {Dense: "in_features", LayerNorm: "dimension"}.get(type(module))
        if takes is not None and getattr(module, takes) != width:
            where = f"embedding.modules[{index}].{takes}={getattr(module, takes)}"
            raise refusal(file, f": {where}, but vectors of {width} numbers come in")
        width = width_of([module], width)
    if embedding["dimension"] != width:
        raise refusal(file, f": embedding.dimension={embedding['dimension']}, but the modules give {width}")


def _check_fit(raw: dict[str, Any], variants: list[Variant], file: Path) -> None:
    """Refuses fields that contradict each other."""

    def refuse(text: str) -> None:
        raise refusal(file, f": {text}")

    model, tokenizer = raw["model"], raw["tokenizer"]
    if not variants:
        refuse("variants is empty, but names at least the ONNX file")
    if variants[0].precision != model["dtype"] and (variants[0].precision, model["dtype"]) != ("int8", "fp32"):
        refuse(f"variants[0].precision={variants[0].precision} is not model.dtype={model['dtype']}")
    if len([variant for variant in variants if variant.backend == "openvino"]) > 1:
        refuse("variants has openvino twice")
    if not {"input_ids", "attention_mask"} <= set(model["inputs"]):
        refuse(f"model.inputs={model['inputs']} lacks input_ids or attention_mask")
    if ("sentence_embedding" in model["outputs"]) != (raw["embedding"] is not None):
        refuse(f"embedding={shown(raw['embedding'])} does not go with model.outputs={model['outputs']}")
    if (default := raw["text"]["default_prompt"]) is not None and default not in raw["text"]["prompts"]:
        refuse(f"text.default_prompt={shown(default)} is none of text.prompts")
    if model["pad_token_id"] >= model["vocab_size"]:
        refuse(f"model.pad_token_id={model['pad_token_id']} is not below model.vocab_size={model['vocab_size']}")
    if tokenizer is not None:
        _check_listed(raw, tokenizer["file"], "tokenizer.file", file)
        if tokenizer["max_length"] > model["max_seq_len"]:
            refuse(f"tokenizer.max_length={tokenizer['max_length']} is above model.max_seq_len={model['max_seq_len']}")
    if raw["license"] is not None:
        _check_listed(raw, raw["license"]["file"], "license.file", file)

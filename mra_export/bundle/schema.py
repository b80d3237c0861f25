"""The fields of a bundle's manifest and their types, and the words in which a wrong one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mra_export.checkpoint.modules import ACTIVATIONS, POOLING_MODES
from mra_export.checkpoint.text import SIMILARITIES
from mra_export.errors import InputError, escaped
from mra_export.schema import SHA256, TEXT, WORD, Int, Map, Or, Text, check_value, choice

__all__ = ["FORMAT", "MODULES", "SCHEMA", "VARIANTS", "check", "refusal"]

FORMAT = 3
"""Of the manifest; a reader refuses a newer one. A field more or less is a new format."""

_MEND = "Copy the bundle again, or write it again with `mra-export bundle`."


_DTYPE = choice("fp32", "fp16", "bf16")
_SIZES = [Int(1)]
_VARIANT = {"backend": TEXT, "file": WORD, "library": Or(WORD)}
_ENGINE_VARIANT = {
    **_VARIANT,
    "precision": _DTYPE,
    "backend_version": WORD,
    "version_compatible": bool,
    "compute_capability": Text("a compute capability, as in 9.0", r"[0-9]+\.[0-9]+"),
    "hardware_compatible": bool,
    "gpu": TEXT,
    "manifest": WORD,
    "profiles": Map({"min": _SIZES, "opt": _SIZES, "max": _SIZES}),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "onnxruntime": {**_VARIANT, "precision": choice("fp32", "fp16", "bf16", "int8")},
    "tensorrt": _ENGINE_VARIANT,
    "rtx": _ENGINE_VARIANT,
    "openvino": {**_VARIANT, "precision": choice("fp32", "bf16", "int8", "int8-weights"), "backend_version": WORD},
}
"""`backend` of an entry of `variants` -> its fields; the first entry is the only one of "onnxruntime"."""
MODULES: dict[str, dict[str, Any]] = {
    "Pooling": {"modes": [choice(*POOLING_MODES)], "include_prompt": bool},
    "Dense": {
        "folder": WORD,
        "in_features": Int(1),
        "out_features": Int(1),
        "bias": bool,
        "activation": choice(*ACTIVATIONS),
        "residual": bool,
    },
    "LayerNorm": {"folder": WORD, "dimension": Int(1)},
    "Normalize": {},
    "Truncate": {"dimension": Int(1)},
}
"""`kind` of an entry of `embedding.modules` -> its other fields."""
SCHEMA: dict[str, Any] = {
    "format": int,
    "mra_export": WORD,
    "manifest_sha256": SHA256,
    "model": {
        "family": WORD,
        "architecture": Or(WORD),
        "task": WORD,
        "dtype": _DTYPE,
        "hidden_size": Int(1),
        "max_seq_len": Int(1),
        "vocab_size": Int(1),
        "pad_token_id": Int(0),
        "length_step": Int(1),
        "inputs": [WORD],
        "outputs": [WORD],
        "operator": {
            "domain": WORD,
            "type": WORD,
            "version": Int(1),
            "nodes": Int(0),
            "attributes": [Map(float)],
        },
    },
    "embedding": Or(
        {
            "dimension": Int(1),
            "similarity": Or(choice(*SIMILARITIES)),
            "modules": [dict],  # of MODULES
        }
    ),
    "text": {"prompts": Map(TEXT), "default_prompt": Or(TEXT)},
    "tokenizer": Or({"file": WORD, "max_length": Int(1), "truncation_side": choice("left", "right")}),
    "variants": list,  # of VARIANTS
    "files": Map({"bytes": Int(0), "sha256": SHA256}),
    "parity": Or(
        [
            {
                "reference": WORD,
                "candidate": WORD,
                "metrics": Map(Or(float)),
                "tolerance": Map(float),
                "ok": Or(bool),
                "notes": [TEXT],
                "layers": [dict],
                "cases": [dict],
            }
        ]
    ),
    "versions": Map(WORD),
    "license": Or({"id": Or(WORD), "name": Or(WORD), "link": Or(WORD), "source": Or(WORD), "file": Or(WORD)}),
    "provenance": {"source": Or(WORD), "base_model": [WORD], "random_init": Or(Int(0))},
}


def refusal(subject: Path, text: str) -> InputError:
    """What to raise for a damaged bundle: the file, what is wrong with it (cut to a readable length), what to do."""
    text = escaped(text, keep="")
    text = text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"
    return InputError(f"{subject}{text}. {_MEND}")


def check(value: Any, kind: Any, where: str, file: Path) -> None:
    """`check_value` of a field of a bundle's manifest, with the words of `refusal`."""
    check_value(value, kind, where, lambda text: refusal(file, text), unknown=f"is not a field of format {FORMAT}")

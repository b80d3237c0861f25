"""Every field of the manifest: what it may be, what it says where it is wrong, and that it is documented."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle_support import (
    inside,
    keys,
    sealed,
)
from paths import REPO

from mra_export.bundle.manifest import MANIFEST_FILE, Bundle, read_bundle, seal
from mra_export.bundle.schema import FORMAT, MODULES, SCHEMA, VARIANTS
from mra_export.bundle.verify import verify_bundle
from mra_export.errors import InputError
from mra_export.schema import Int, Map, Or

OBJECT: list[Any] = [None, [], "x", 1]


LIST: list[Any] = [None, {}, "x", 1]


TEXT: list[Any] = [None, 3, [], {}, True]


WORD: list[Any] = [*TEXT, "", " x", "x\n", "a\nb"]


SIZE: list[Any] = [None, "1", 0, -1, 1.0, True, 1 << 70, []]


FLAG: list[Any] = [None, 0, "true"]


DTYPE: list[Any] = [*WORD, "fp64", "FP32"]


NUMBER: list[Any] = [None, "1", True, []]


HASH: list[Any] = [*WORD, "0" * 63, "0" * 65, "A" * 64]


SHAPE = [*LIST, [0], ["1"], [1.0]]


NULL_TOO: Callable[[list[Any]], list[Any]] = lambda values: values[1:]  # noqa: E731  # every list above begins with None


UNLISTED = [*WORD, "../config.json", "nowhere"]


WRONG: dict[str, list[Any]] = {
    "format": [None, "1", 1.0, True, FORMAT + 1, FORMAT - 1, 0, [], {}],
    "mra_export": WORD,
    "model": OBJECT,
    "model.family": WORD,
    "model.architecture": NULL_TOO(WORD),
    "model.task": WORD,
    "model.dtype": [*DTYPE, "fp16"],  # not that of the first variant
    "model.hidden_size": SIZE,
    "model.max_seq_len": [*SIZE, 10],  # below tokenizer.max_length
    "model.vocab_size": SIZE,
    "model.pad_token_id": [value for value in SIZE if value != 0 or value is None],
    "model.length_step": SIZE,
    "model.inputs": [*LIST, ["input_ids"], [3]],
    "model.outputs": [*LIST, ["last_hidden_state"], [3]],
    "model.operator": OBJECT,
    "model.operator.domain": WORD,
    "model.operator.type": WORD,
    "model.operator.version": SIZE,
    "model.operator.nodes": [value for value in SIZE if value != 0 or value is None],
    "model.operator.attributes": [*LIST, [1], [{"scale": "1"}], [{"scale": None}]],
    "embedding": [*OBJECT],
    "embedding.dimension": [*SIZE, 31],
    "embedding.similarity": NULL_TOO([*WORD, "Cosine"]),
    "embedding.modules": [*LIST, [], [None], [{}], [{"kind": "Normalize"}]],
    "embedding.modules[0]": OBJECT,
    "embedding.modules[0].kind": [*WORD, "Transformer", "Dense", "Normalize"],
    "embedding.modules[0].modes": [*LIST, [], ["none"], [3]],
    "embedding.modules[0].include_prompt": FLAG,
    "embedding.modules[1]": OBJECT,
    "embedding.modules[1].kind": [*WORD, "Pooling"],
    "embedding.modules[1].folder": UNLISTED,
    "embedding.modules[1].in_features": [*SIZE, 65],
    "embedding.modules[1].out_features": SIZE,
    "embedding.modules[1].bias": FLAG,
    "embedding.modules[1].activation": [*WORD, "Softmax"],
    "embedding.modules[1].residual": FLAG,
    "embedding.modules[2]": OBJECT,
    "embedding.modules[2].kind": [*WORD, "Pooling", "Dropout"],
    "embedding.modules[2].folder": UNLISTED,
    "embedding.modules[2].dimension": [*SIZE, 64],
    "embedding.modules[3]": OBJECT,
    "embedding.modules[3].kind": [*WORD, "normalize"],
    "embedding.modules[4]": OBJECT,
    "embedding.modules[4].kind": [*WORD, "Pooling"],
    "embedding.modules[4].dimension": [*SIZE, 29],
    "text": OBJECT,
    "text.prompts": [*OBJECT, {"query": None}, {"query": 3}, {}],  # the last lacks the default
    "text.prompts.query": TEXT,
    "text.prompts.document": TEXT,
    "text.default_prompt": NULL_TOO([*TEXT, "passage"]),
    "tokenizer": NULL_TOO(OBJECT),
    "tokenizer.file": UNLISTED,
    "tokenizer.max_length": [*SIZE, 257],
    "tokenizer.truncation_side": [*WORD, "Right", "middle"],
    "variants": [*LIST, [], [None], [{}]],
    "variants[0]": OBJECT,
    "variants[0].backend": [*WORD, "tensorrt", "openvino"],
    "variants[0].file": UNLISTED,
    "variants[0].precision": [*DTYPE, "bf16"],
    "variants[0].library": NULL_TOO(UNLISTED),
    "variants[1]": OBJECT,
    "variants[1].backend": [*WORD, "onnxruntime", "tensorrt-rtx"],
    "variants[1].file": UNLISTED,
    "variants[1].precision": DTYPE,
    "variants[1].library": NULL_TOO(UNLISTED),
    "variants[1].manifest": UNLISTED,
    "variants[1].backend_version": WORD,
    "variants[1].version_compatible": FLAG,
    "variants[1].compute_capability": [*WORD, "9", "nine", "9.0a"],
    "variants[1].hardware_compatible": FLAG,
    "variants[1].gpu": TEXT,
    "variants[1].profiles": [*OBJECT, {"input_ids": {}}],
    "variants[1].profiles.input_ids": OBJECT,
    "variants[1].profiles.input_ids.min": SHAPE,
    "variants[1].profiles.input_ids.opt": SHAPE,
    "variants[1].profiles.input_ids.max": SHAPE,
    "variants[3]": OBJECT,
    "variants[3].backend": [*WORD, "onnxruntime"],
    "variants[3].file": UNLISTED,
    "variants[3].precision": [*DTYPE, "fp16"],
    "variants[3].library": NULL_TOO(UNLISTED),
    "variants[3].backend_version": WORD,
    "files": [*OBJECT, {}],
    "files.NOTICE": OBJECT,
    "files.NOTICE.bytes": [None, "1", -1, 1.0, True],
    "files.NOTICE.sha256": HASH,
    "parity": NULL_TOO(LIST),
    "parity[0]": OBJECT,
    "parity[0].reference": WORD,
    "parity[0].candidate": WORD,
    "parity[0].metrics": [*OBJECT, {"m": "1"}],
    "parity[0].metrics.m": NULL_TOO(NUMBER),
    "parity[0].tolerance": OBJECT,
    "parity[0].tolerance.m": NUMBER,
    "parity[0].ok": NULL_TOO(FLAG),
    "parity[0].notes": [*LIST, [3]],
    "parity[0].layers": [*LIST, [3]],
    "parity[0].cases": [*LIST, [3]],
    "versions": OBJECT,
    "versions.torch": WORD,
    "license": NULL_TOO(OBJECT),
    "license.id": NULL_TOO(WORD),
    "license.name": NULL_TOO(WORD),
    "license.link": NULL_TOO(WORD),
    "license.source": NULL_TOO(WORD),
    "license.file": NULL_TOO(UNLISTED),
    "provenance": OBJECT,
    "provenance.source": NULL_TOO(WORD),
    "provenance.base_model": [*LIST, [3]],
    "provenance.random_init": ["1", -1, 1.0, True],
}
"""Field -> values that it cannot have."""


FREE_NAMES = ("files", "versions", "metrics", "tolerance", "profiles", "prompts")
"""Objects that may have any names."""


def refused(folder: Path, manifest: dict[str, Any], word: str) -> None:
    """Sealed again, so that it is the field that is refused and not the hash."""
    with pytest.raises(InputError) as caught:
        read_bundle(sealed(folder, manifest))
    assert "manifest.json" in str(caught.value)
    assert word in str(caught.value), caught.value


def test_the_table_of_wrong_values_has_every_field(full: dict[str, Any], tmp_path: Path) -> None:
    read_bundle(sealed(tmp_path, full))

    def names(value: Any, at: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield f"{at}.{key}".lstrip(".")
                yield from names(inner, f"{at}.{key}".lstrip("."))
        elif isinstance(value, list) and at in ("variants", "parity", "embedding.modules"):
            for index, inner in enumerate(value):
                yield f"{at}[{index}]"
                yield from names(inner, f"{at}[{index}]")

    left_out = ("files.", "variants[2]", "variants[1].profiles.attention_mask", "variants[1].profiles.token_type_ids")
    found = {name for name in names(full) if not name.startswith(left_out) and "metrics.n" not in name}
    assert found - set(WRONG) == {"manifest_sha256"}


def test_the_least_of_every_number() -> None:
    """A size is at least 1; what may be none is listed."""

    def leasts(kind: Any, at: str) -> Iterator[tuple[str, int]]:
        if isinstance(kind, Int):
            yield at, kind.least
        elif isinstance(kind, dict):
            for name, inner in kind.items():
                yield from leasts(inner, f"{at}.{name}")
        elif isinstance(kind, list):
            yield from leasts(kind[0], at)
        elif isinstance(kind, Map | Or):
            yield from leasts(kind.kind, at)

    found = dict(leasts({"manifest": SCHEMA, "modules": MODULES, "variants": VARIANTS}, ""))
    none = {".manifest.model.pad_token_id", ".manifest.model.operator.nodes", ".manifest.files.bytes"}
    none.add(".manifest.provenance.random_init")
    assert {name for name, least in found.items() if least == 0} == none
    assert {least for name, least in found.items() if name not in none} == {1}
    sizes = {
        f".modules.{name}"
        for name in ("Dense.in_features", "Dense.out_features", "LayerNorm.dimension", "Truncate.dimension")
    }
    assert sizes <= set(found)


def test_every_field_is_documented() -> None:
    page = (REPO / "docs" / "bundle.md").read_text()
    table = "".join(line for line in page.splitlines() if line.startswith("|"))
    # `check --json` says what is in parity
    inner = ("parity[0]", "files.NOTICE", "versions.", "variants[1].profiles.", "text.prompts.")
    for field in WRONG:
        name = keys(field)[-1]
        assert field.startswith(inner) or isinstance(name, int) or re.search(rf"[`.]{name}[`.\[]", table), field


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_is_named(field: str, full: dict[str, Any], tmp_path: Path) -> None:
    *path, last = keys(field)
    name = str(last) if isinstance(last, str) else field
    for value in WRONG[field]:
        manifest = copy.deepcopy(full)
        inside(manifest, path)[last] = value
        refused(tmp_path, manifest, name)
    if isinstance(last, str) and (not path or path[-1] not in FREE_NAMES):
        manifest = copy.deepcopy(full)
        del inside(manifest, path)[last]
        refused(tmp_path, manifest, "format" if field == "format" else f"{last}. Copy the bundle again")
        manifest = copy.deepcopy(full)
        inside(manifest, path)[f"{last}_"] = 1
        refused(tmp_path, manifest, f"{last}_ is not a field of format {FORMAT}")


@pytest.mark.parametrize("value", HASH)
def test_a_wrong_seal_is_named(value: Any, full: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps({**full, "manifest_sha256": value}, indent=2, sort_keys=True)
    (tmp_path / MANIFEST_FILE).write_text(text)
    with pytest.raises(InputError, match="manifest_sha256"):
        read_bundle(tmp_path)


JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    1 << 80,
    1e300,
    "",
    "..",
    "\u2028",
    "x" * 100_000,
    [],
    {},
    [[]],
    {"": {}},
    ["a", "a"],
    {"a": None},
]


def test_random_damage_is_refused_in_words(full: dict[str, Any], whole: Bundle, bundle: Path) -> None:
    """Sealed again each time: whatever the reader meets, it answers with a message or with a bundle that is true."""
    true = {**full, **{name: whole.manifest[name] for name in ("embedding", "files", "variants")}}
    verify_bundle(sealed(bundle, true))
    generator = random.Random(0)
    refusals = 0
    for _ in range(400):
        manifest = copy.deepcopy(true)
        for _ in range(generator.randrange(1, 4)):
            here: Any = manifest
            while True:
                key = generator.choice(list(here)) if isinstance(here, dict) else generator.randrange(len(here))
                if not isinstance(here[key], dict | list) or not here[key] or generator.random() < 0.1:
                    break
                here = here[key]
            here[key] = generator.choice([*JUNK, copy.deepcopy(manifest)])
        (bundle / MANIFEST_FILE).write_bytes(seal(manifest))
        said = ""
        try:
            verify_bundle(bundle)
        except InputError as error:
            said = str(error)
        assert len(said) < 1000
        refusals += bool(said)
    assert refusals > 300

"""One validator for both manifests: what is of its kind passes, what is not is named with its place and its value."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mra_export.engine.manifest import FORMAT, Manifest, manifest_path, read_manifest
from mra_export.errors import InputError
from mra_export.schema import SHA256, TEXT, WORD, Int, Map, Or, check_texts, check_value, choice, shown

SCHEMA = {
    "name": WORD,
    "mode": Or(choice("cls", "mean")),
    "sizes": [Int(1)],
    "limits": Map(float),
    "digest": SHA256,
    "is_on": bool,
    "rest": dict,
}
GOOD = {
    "name": "a b",
    "mode": None,
    "sizes": [1, 2],
    "limits": {"x": 1, "y": 0.5},
    "digest": "0" * 64,
    "is_on": True,
    "rest": {},
}


def refuse(text: str) -> InputError:
    return InputError(f"m.json{text}")


def test_what_is_of_its_kind_passes() -> None:
    check_value(GOOD, SCHEMA, "", refuse)
    check_value({**GOOD, "mode": "mean"}, SCHEMA, "", refuse)
    check_value((1 << 62) - 1, Int(0), "n", refuse)
    check_value("", TEXT, "n", refuse)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [{"b": "x\x1b"}]}, r"m.json: a\[0\].b=.* holds a control character"),
        ({"a": {"x\x7f": 1}}, r"m.json: a has the name 'x\\x7f', which holds a control character"),
        ({"x\u2028": 1}, "m.json: the manifest has the name .*, which holds a control character"),
        ("\ud800", "m.json: the manifest=.* holds a control character"),
    ],
)
def test_text_that_would_steer_a_terminal_is_refused_wherever_it_is(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_texts(value, "", refuse)
    check_texts(
        {"notes": ["two\nlines", "a\ttab", "naïve 日本語 😀", "non\xa0breaking"], "n": [1, None, True]}, "", refuse
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": " a"}, 'm.json: name=" a" must be text on one line, without space around it'),
        ({"name": 3}, "m.json: name=3 must be text on one line"),
        ({"mode": "max"}, 'm.json: mode="max" must be one of cls, mean'),
        ({"sizes": [1, 0]}, r"m.json: sizes\[1\]=0 must be an integer of at least 1"),
        ({"sizes": [True]}, r"m.json: sizes\[0\]=true must be an integer"),
        ({"sizes": [1 << 62]}, r"m.json: sizes\[0\]=4611686018427387904 must be an integer"),
        ({"sizes": {}}, r"m.json: sizes=\{\} must be a list"),
        ({"limits": {"x": "1"}}, r"""m.json: limits\['x'\]="1" must be a number"""),
        ({"limits": {"x": True}}, r"m.json: limits\['x'\]=true must be a number"),
        ({"limits": []}, r"m.json: limits=\[\] must be an object"),
        ({"digest": "0" * 63}, "must be 64 hexadecimal digits, in lower case"),
        ({"digest": "A" * 64}, "must be 64 hexadecimal digits, in lower case"),
        ({"is_on": 1}, "m.json: is_on=1 must be true or false"),
        ({"rest": None}, "m.json: rest=null must be an object"),
        ({"more": 1}, "m.json: more is not known"),
        ({"name": "x" * 200 + "\n"}, r'm.json: name="x{79} \.\.\. must be'),  # cut to what fits in a message
    ],
)
def test_what_is_not_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_value({**GOOD, **change}, SCHEMA, "", refuse)


def test_a_value_is_shown_up_to_eighty_characters() -> None:
    assert shown("x" * 78) == '"' + "x" * 78 + '"'
    assert shown("x" * 79) == '"' + "x" * 79 + " ..."
    assert shown({"ä": None}) == '{"ä": null}'


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match=r"^m.json lacks digest$"):
        check_value({name: value for name, value in GOOD.items() if name != "digest"}, SCHEMA, "", refuse)
    with pytest.raises(InputError, match=r"^m.json: the manifest=\[\] must be an object$"):
        check_value([], SCHEMA, "", refuse)


FIELDS: dict[str, Any] = {
    field.name: {"int": 1, "str": "x", "bool": False}.get(str(field.type)) for field in dataclasses.fields(Manifest)
} | {
    "format": FORMAT,
    "tensor_types": {"HALF": 3},
    "inputs": {"input_ids": {"min": [1, 1], "opt": [1, 2], "max": [2, 2]}},
    "outputs": ["logits"],
    "attributes": [{"scale": 0.125, "num_heads": 2}],
    "pooling": {"mode": "cls", "normalize": True},
    "parity": [{"ok": True}],
    "versions": {"torch": None},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine_bytes": "1000"}, 'engine_bytes="1000" must be an integer'),
        ({"plugin_embedded": 1}, "plugin_embedded=1 must be true or false"),
        ({"precision": None}, "precision=null must be text"),
        ({"task": 3}, "task=3 must be text"),
        ({"inputs": "x"}, 'inputs="x" must be an object'),
        ({"inputs": {"input_ids": {"min": [1], "opt": [1]}}}, r"lacks inputs\['input_ids'\]\.max"),
        (
            {"inputs": {"input_ids": {"min": [-1], "opt": [1], "max": [1]}}},
            r"\.min\[0\]=-1 must be an integer of at least 0",
        ),
        ({"outputs": [1]}, r"outputs\[0\]=1 must be text"),
        ({"attributes": [{"scale": "1"}]}, r"""attributes\[0\]\['scale'\]="1" must be a number"""),
        ({"attributes": {}}, r"attributes=\{\} must be a list"),
        ({"parity": [1]}, r"parity\[0\]=1 must be an object"),
        ({"pooling": "cls"}, 'pooling="cls" must be an object'),
        ({"tensor_types": {"HALF": 0.5}}, r"tensor_types\['HALF'\]=0.5 must be an integer"),
        ({"versions": {"torch": 2}}, r"versions\['torch'\]=2 must be text"),
    ],
)
def test_an_engines_manifest_is_checked_to_its_leaves(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    engine = tmp_path / "m.engine"
    manifest_path(engine).write_text(json.dumps({**FIELDS, "of_a_newer_writer": 1}))
    assert read_manifest(engine).inputs == FIELDS["inputs"]
    manifest_path(engine).write_text(json.dumps({**FIELDS, **change}))
    with pytest.raises(InputError, match=rf"m\.engine\.json.*{message}.*Build the engine again"):
        read_manifest(engine)

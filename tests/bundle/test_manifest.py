"""The manifest is read as it was written, or refused: its seal, its format, names that lead out of the bundle."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import pytest

from mra_export.bundle.manifest import MANIFEST_FILE, Bundle, read_bundle
from mra_export.errors import InputError


def test_the_seal_can_be_checked_without_a_json_library(whole: Bundle) -> None:
    content = (whole.path / MANIFEST_FILE).read_bytes()
    start = content.index(b'"manifest_sha256": "') + len(b'"manifest_sha256": "')
    zeroed = content[:start] + b"0" * 64 + content[start + 64 :]
    assert hashlib.sha256(zeroed).hexdigest().encode() == content[start : start + 64]


def test_a_manifest_cut_off_or_changed_anywhere(whole: Bundle, tmp_path: Path) -> None:
    content = (whole.path / MANIFEST_FILE).read_bytes()
    for position in range(0, len(content), 61):
        changed = bytearray(content)
        changed[position] ^= 1
        for text in (content[:position], bytes(changed)):
            (tmp_path / MANIFEST_FILE).write_bytes(text)
            with pytest.raises(InputError, match=r"manifest\.json"):
                read_bundle(tmp_path)


NAMES = [
    "../x",
    "/etc/hostname",
    "a/../../x",
    "./config.json",
    "a//b",
    "a/",
    "",
    "a\\b",
    "a\nb",
    "a\x00b",
    "\ud800",
    MANIFEST_FILE,
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_lead_out_of_the_bundle(name: str, whole: Bundle, tmp_path: Path) -> None:
    manifest = copy.deepcopy(whole.manifest)
    manifest["files"][name] = manifest["files"]["config.json"]
    text = json.dumps({**manifest, "manifest_sha256": "0" * 64}, indent=2, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / MANIFEST_FILE).write_text(
        text.replace('"manifest_sha256": "' + "0" * 64, f'"manifest_sha256": "{digest}')
    )
    with pytest.raises(InputError, match=r"is not the name of a file inside the bundle"):
        read_bundle(tmp_path)


NOT_MANIFESTS = {
    "empty": "",
    "not JSON": "{",
    "not UTF-8": b'{"format": 1, "a": "\xff"}',
    "a list": "[]",
    "no format": "{}",
    "format is text": '{"format": "1"}',
    "format is a fraction": '{"format": 1.0}',
    "format is true": '{"format": true}',
    "format of the future": '{"format": 99, "mra_export": "9.9"}',
    "format of the past": '{"format": 1}',
    "two formats": '{"format": 1, "format": 1}',
    "NaN": '{"format": 1, "a": NaN}',
    "infinite": '{"format": 1, "a": -Infinity}',
    "beyond a double": '{"format": 1, "a": 1e999}',
    "deep": '{"a":' + "[" * 100_000,
    "huge number": '{"format": ' + "9" * 5000 + "}",
    "two objects": '{"format": 1}{}',
}


@pytest.mark.parametrize("kind", NOT_MANIFESTS)
def test_what_is_no_manifest(kind: str, tmp_path: Path) -> None:
    text = NOT_MANIFESTS[kind]
    (tmp_path / MANIFEST_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"manifest\.json.*(format|readable)"):
        read_bundle(tmp_path)

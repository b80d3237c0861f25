"""What a checkpoint says of its licence and where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bundle_support import (
    STATED,
)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"README.md": "# No front matter\nlicense: mit\n"}, None),
        ({"README.md": "---\nlanguage: en\n---\n"}, None),
        ({"README.md": "---\nlicense: mit\n---\n"}, ("mit", None, None, STATED, None)),
        ({"README.md": "---\nlicense:\n- mit\n- cc-by-4.0\n---\n"}, ("mit, cc-by-4.0", None, None, STATED, None)),
        (
            {"README.md": "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n", "LICENSE": "x"},
            ("other", "own", "LICENSE", STATED, "LICENSE"),
        ),
        ({"LICENSE.txt": "x"}, (None, None, None, None, "LICENSE.txt")),
        ({"COPYING": "x", "LICENSE.md": "y"}, (None, None, None, None, "LICENSE.md")),
    ],
)  # fmt: skip
def test_the_licence_is_what_is_stated(
    files: dict[str, str], expected: tuple[str | None, ...] | None, tmp_path: Path
) -> None:
    from mra_export.checkpoint.provenance import licence_of

    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = licence_of(tmp_path)
    assert (found if found is None else tuple(found[k] for k in ("id", "name", "link", "source", "file"))) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("someone/model", "someone/model"),
        ("model", "model"),
        ("/home/me/model", None),
        ("./model", None),
        ("a/b/c", None),
        ("", None),
        (3, None),
    ],
)
def test_a_path_is_no_provenance(name: Any, expected: str | None, tmp_path: Path) -> None:
    from mra_export.checkpoint.provenance import name_or_path

    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": name}))
    assert name_or_path(tmp_path) == expected

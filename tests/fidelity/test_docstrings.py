"""Text from docstrings: which of them count, and that the parts share nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mra_export.fidelity import docstrings as module
from mra_export.fidelity.docstrings import builtin_texts, retrieval_set
from mra_export.fidelity.retrieval import Queries

LONG = "What it does is told here at some length. " * 6


def write(root: Path, name: str, *docstrings: tuple[str, str]) -> None:
    path = root / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(
        f'def f{number}():\n    """{first}\n\n    {rest}\n    """\n' for number, (first, rest) in enumerate(docstrings)
    )
    path.write_text(body)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(12):
        write(tmp_path, f"m{number}", (f"Finds number {number} in a table.", f"{LONG}{number}"))
    write(tmp_path, "package/inner", ("Says what is inside of it.", f"{LONG}inside"), ("Too short.", LONG))
    write(
        tmp_path,
        "twins",
        ("Says the same as the other one.", f"{LONG}a"),
        ("Says the same as the other one.", f"{LONG}b"),
    )
    write(tmp_path, "brief", ("Has nothing to say beyond that.", "Almost."))
    write(tmp_path, "test/test_it", ("Is a test and not documentation.", f"{LONG}test"))
    (tmp_path / "broken.py").write_text("def (")
    return tmp_path


def test_the_first_line_is_the_query_and_the_rest_the_document(root: Path) -> None:
    documents, queries = retrieval_set(roots=[root])
    assert set(documents) == {*(f"m{n}.f0" for n in range(12)), "package.inner.f0"}
    assert queries.texts["m3.f0"] == "Finds number 3 in a table."
    assert documents["m3.f0"] == f"{LONG}3"
    assert queries.relevant["m3.f0"] == {"m3.f0": 1}
    assert set(documents) == set(queries.texts) == set(queries.relevant)
    assert retrieval_set(roots=[root], least=1000) == ({}, Queries({}, {}))


def test_the_parts_share_no_module(root: Path) -> None:
    train, held_out = (retrieval_set(part, roots=[root])[0] for part in ("train", "held-out"))
    modules = [{name.rpartition(".")[0] for name in each} for each in (train, held_out)]
    assert modules[0]
    assert modules[1]
    assert not modules[0] & modules[1]
    assert {**train, **held_out} == retrieval_set(roots=[root])[0]


def test_whole_modules_are_long_documents(root: Path) -> None:
    (root / "whole.py").write_text(
        f'"""Knows all about it, as it says.\n\n{LONG}\n"""\ndef f():\n    """And more."""\n'
    )
    documents, queries = retrieval_set(roots=[root], whole_modules=True)
    assert list(documents) == ["whole"]  # others have no docstring of the module itself
    assert queries.texts["whole"] == "Knows all about it, as it says."
    assert documents["whole"].endswith("\n\nAnd more.")


def test_a_text_is_a_modules_documentation(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_standard_library", lambda: root)
    monkeypatch.setattr(module, "_PARTS", {"train": (0, 1, 2)})
    found = builtin_texts()
    assert len(found) == 12 + 3
    assert any(text.startswith("Says what is inside of it.\n\n") and "\n\nToo short.\n\n" in text for text in found)


@pytest.mark.slow
def test_the_standard_library_has_enough() -> None:
    texts = builtin_texts()
    assert len(texts) > 150
    assert sum(len(text) > 8000 for text in texts) > 15
    _, queries = retrieval_set("held-out")
    assert len(queries.texts) > 200
    whole, _ = retrieval_set("held-out", whole_modules=True)
    assert len(whole) > 50
    assert sum(len(text) > 2000 for text in whole.values()) > 20
    assert not set(whole.values()) & set(texts)

"""Text from docstrings: which of them count, and that the parts share nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mra_export.fidelity import docstrings as module
from mra_export.fidelity.docstrings import builtin_texts, retrieval_set

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
    found = retrieval_set(roots=[root])
    assert set(found.queries) == {*(f"m{n}.f0" for n in range(12)), "package.inner.f0"}
    assert found.queries["m3.f0"] == "Finds number 3 in a table."
    assert found.documents["m3.f0"] == f"{LONG}3"
    assert found.relevant["m3.f0"] == {"m3.f0"}
    assert set(found.documents) == set(found.queries)


def test_the_parts_share_no_module(root: Path) -> None:
    train, held_out = (retrieval_set(part, [root]) for part in ("train", "held-out"))
    modules = [{name.rpartition(".")[0] for name in each.documents} for each in (train, held_out)]
    assert modules[0]
    assert modules[1]
    assert not modules[0] & modules[1]
    assert {**train.documents, **held_out.documents} == retrieval_set(roots=[root]).documents


def test_a_text_is_a_modules_documentation(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_standard_library", lambda: root)
    found = builtin_texts()
    assert len(found) == 12 + 3
    assert any(text.startswith("Says what is inside of it.\n\n") and "\n\nToo short.\n\n" in text for text in found)


@pytest.mark.slow
def test_the_standard_library_has_enough() -> None:
    texts = builtin_texts()
    assert len(texts) > 200
    assert sum(len(text) > 8000 for text in texts) > 20
    held_out = retrieval_set("held-out")
    assert len(held_out.queries) > 200

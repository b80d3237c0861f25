"""Queries and what they are to find, as files have them; and the measures, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mra_export.errors import InputError
from mra_export.fidelity.retrieval import Queries, read_identified, read_queries, scores

DOCUMENTS = {"a": "first", "b": "second", "3": "third"}


def lines(path: Path, *entries: Any) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in entries))
    return path


def queries(folder: Path) -> Path:
    return lines(folder / "q.jsonl", {"_id": "x", "text": "what"}, {"_id": "y", "text": "who"})


def test_texts_by_their_ids(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "d.jsonl",
        {"_id": "b", "title": "A title", "text": "and a text"},
        {"id": 3, "text": "a text", "title": ""},
        "",
        {"_id": "a", "text": "", "title": None},
    )
    assert read_identified(path) == {"b": "A title and a text", "3": "a text", "a": ""}
    assert list(read_identified(path)) == ["b", "3", "a"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["a text"], "line 1 is not JSON: .*With queries the texts are a .jsonl file"),
        ([{"_id": "a", "text": "t"}, "", ["a"]], r"line 3: \[\"a\"\] must be an object with `_id` and `text`"),
        ([{"text": "t"}], "line 1: .* must be an object with `_id`"),
        ([{"_id": "a", "text": 7}], "line 1: .* must be an object"),
        ([{"_id": True, "text": "t"}], "line 1: .* must be an object"),
        ([{"_id": 1, "text": "t"}, {"_id": "1", "text": "u"}], "line 2: the id '1' is there twice"),
        ([], "is empty"),
    ],
)
def test_what_has_no_ids_is_refused(tmp_path: Path, entries: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_identified(lines(tmp_path / "d.jsonl", *entries))


def test_a_file_that_is_not_there_or_not_a_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_identified(tmp_path / "none.jsonl")
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="text file in UTF-8"):
        read_identified(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    "given",
    [
        ["query-id\tcorpus-id\tscore", "x\ta\t1", "x\t3\t2", "x\tb\t0"],
        ["x 0 a 1", "x 0 3 2", "y 0 b -1"],
        ["x\ta\t1", "", "x\t3\t2.0"],
    ],
)
def test_both_forms_of_what_is_relevant(tmp_path: Path, given: list[str]) -> None:
    found = read_queries(queries(tmp_path), lines(tmp_path / "qrels", *given), DOCUMENTS)
    assert found == Queries({"x": "what"}, {"x": {"a": 1, "3": 2}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["x\tc\t1"], "line 1: there is no 'c' in the texts"),
        (["query-id\tcorpus-id\tscore", "z\ta\t1"], "line 2: there is no 'z' in .*q.jsonl"),
        (["x\ta\t1", "x\tb\tmuch"], "line 2: .* must be query, document and score"),
        (["x a"], "line 1: 'x a' must be query, document and score"),
        (["x\ta\t0"], "has no query with a relevant document"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path: Path, given: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_queries(queries(tmp_path), lines(tmp_path / "qrels", *given), DOCUMENTS)


def test_the_measures() -> None:
    pytest.importorskip("ir_measures", reason="the package ir-measures is not installed")
    asked = Queries({"x": "", "y": ""}, {"x": {"a": 1}, "y": {"a": 1, "b": 1}})
    angles = np.array([0.0, 0.3, 2.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # of a, b and 3
    wanted = np.array([0.2, 2.1])  # x finds b, a, 3; y finds 3, b, a
    found = scores(asked, np.stack([np.cos(wanted), np.sin(wanted)], axis=1), ["a", "b", "3"], vectors)
    assert found["RR@10"] == pytest.approx(0.5)
    assert found["R@10"] == found["R@100"] == 1.0
    gain = 1 / math.log2(3)
    assert found["nDCG@10"] == pytest.approx((gain + (gain + 0.5) / (1 + gain)) / 2)

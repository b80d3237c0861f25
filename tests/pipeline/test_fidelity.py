"""What one model loses against another: nothing where all blocks are selected, else what, by length and by text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from dense_support import VOCABULARY, save, tiny, write_files
from fidelity_support import letters, save_dense

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.cli.app import cli
from mra_export.errors import DependencyError, InputError
from mra_export.fidelity.encoders import open_encoder
from mra_export.fidelity.retrieval import Queries
from mra_export.pipeline import fidelity as module
from mra_export.pipeline.bench import BenchResult, BenchRow
from mra_export.pipeline.fidelity import fidelity
from mra_export.pipeline.fidelity_report import write_fidelity

LENGTHS = [250, 30, 64, 90, 240, 200, 255, 33, 20, 100, 110, 256]
TEXTS = letters(LENGTHS)
NAMED = {f"d{n}": text for n, text in enumerate(TEXTS)}
ASKED = Queries({f"q{n}": TEXTS[n][:40] for n in (0, 4, 6)}, {f"q{n}": {f"d{n}": 1} for n in (0, 4, 6)})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The dense one, one with all blocks, and one with two blocks per row."""
    folder = tmp_path_factory.mktemp("models")
    dense = save_dense(folder / "dense")
    from_dense(dense, folder / "full")
    from_dense(dense, folder / "two", block_per_row=2)
    return dense, folder / "full", folder / "two"


def write_set(folder: Path) -> tuple[Path, Path, Path]:
    """The texts, the first words of some as queries, and which is which, as files."""
    paths = folder / "d.jsonl", folder / "q.jsonl", folder / "qrels.tsv"
    for path, texts in zip(paths, (NAMED, ASKED.texts), strict=False):
        path.write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts.items()))
    lines = [f"{query}\t{document}\t1\n" for query, found in ASKED.relevant.items() for document in found]
    paths[2].write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return paths


def test_all_blocks_lose_nothing(models: tuple[Path, Path, Path]) -> None:
    result = fidelity(models[0], models[1], texts=NAMED)
    assert result.agreement.least > 1 - 1e-6
    assert result.neighbours == {1: 1.0, 5: 1.0, 10: 1.0}
    assert (result.dense, result.mra, result.pays, result.retrieval) == ("dense", "full", False, None)
    assert result.notes[0].startswith("12 of 12 texts are so short that every layer selects all their blocks")
    assert "All blocks lose nothing" not in result.notes[1]


def test_what_is_lost_is_told_by_length_and_by_text(models: tuple[Path, Path, Path]) -> None:
    result = fidelity(models[0], models[2], texts=NAMED)
    vectors = [open_encoder(each).encode(TEXTS)[0] for each in (models[0], models[2])]
    cosines = (vectors[0] * vectors[1]).sum(axis=1)
    np.testing.assert_allclose(result.cosines, cosines)
    assert result.agreement.mean == pytest.approx(cosines.mean())
    assert [(row.first, row.last, row.agreement.texts) for row in result.lengths] == [
        (1, 32, 2), (33, 64, 2), (65, 128, 3), (129, 256, 5),
    ]  # fmt: skip
    assert result.lengths[1].agreement.least > 1 - 1e-6  # 16 blocks hold 128 tokens
    assert result.lengths[3].agreement.mean == pytest.approx(cosines[[0, 4, 5, 6, 11]].mean())
    order = np.argsort(cosines)[:5].tolist()
    assert result.worst == [(f"d{n}", LENGTHS[n], pytest.approx(cosines[n])) for n in order]
    assert result.worst[0][2] < 1 - 1e-4
    assert result.pays is False
    assert result.notes[0].startswith("7 of 12 texts")
    assert (
        "half of the tokens are in texts of 240 or more, where the budget is 2 of 8 blocks per row" in result.notes[1]
    )
    assert result.notes[1].startswith("MRA does not pay at these lengths")
    assert "a model with 4 is 1.11 times as fast as dense attention at 512 tokens" in result.notes[1]


def test_it_pays_where_the_benchmark_says_so(models: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "faster_than_dense", lambda tokens, per_row: (1024, 4, 1.25))
    result = fidelity(models[0], models[2], texts=NAMED)
    assert result.pays is True
    assert result.notes[1].startswith("MRA pays at these lengths")


def test_a_second_model_without_a_budget_is_not_judged_by_it(models: tuple[Path, Path, Path]) -> None:
    result = fidelity(models[2], models[0], texts={"d0": TEXTS[0]})
    assert (result.pays, result.notes, result.neighbours) == (None, [], {})


def test_retrieval_of_both_and_of_the_two_together(
    models: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handed to the measures: vectors of the queries and the texts of which model."""
    asked: list[tuple[Any, ...]] = []

    def scores(queries: Any, wanted: Any, names: Any, vectors: Any) -> dict[str, float]:
        asked.append((queries, wanted, names, vectors))
        return {"nDCG@10": float(len(asked))}

    monkeypatch.setattr(module, "scores", scores)
    monkeypatch.setattr(module, "require_measures", lambda: None)
    result = fidelity(models[0], models[2], texts=NAMED, queries=ASKED)
    assert result.retrieval == {"dense": {"nDCG@10": 1.0}, "mra": {"nDCG@10": 2.0}, "mixed": {"nDCG@10": 3.0}}
    assert result.queries == 3
    own = [open_encoder(each) for each in (models[0], models[2])]
    texts = [each.encode(TEXTS)[0] for each in own]
    words = [each.encode([TEXTS[n][:40] for n in (0, 4, 6)], "query")[0] for each in own]
    for (given, wanted, names, vectors), (q, d) in zip(asked, ((0, 0), (1, 1), (0, 1)), strict=True):
        assert given is ASKED
        assert names == list(NAMED)
        np.testing.assert_allclose(wanted, words[q])
        np.testing.assert_allclose(vectors, texts[d])


def test_without_texts_it_is_documentation_with_its_first_lines(
    models: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(module, "retrieval_set", lambda part, whole_modules: (asked.append(part), (NAMED, ASKED))[1])
    monkeypatch.setattr(module, "scores", lambda *_: {"nDCG@10": 0.5})
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    result = fidelity(models[0], models[2])
    assert (result.retrieval, result.queries, asked) == (None, 0, ["held-out"])
    assert "documentation in Python's standard library" in result.notes[-2]
    assert "ir-measures, which is not installed" in result.notes[-1]
    monkeypatch.setattr(module, "require_measures", lambda: None)
    result = fidelity(models[0], models[2])
    assert (result.queries, result.agreement.texts) == (3, 12)
    assert result.retrieval is not None


def test_what_cannot_be_compared_is_refused(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, full, _ = models
    with pytest.raises(InputError, match="There are no texts: the file is empty"):
        fidelity(dense, full, texts={})
    narrow = tmp_path / "narrow"
    save(tiny("bert", "Model", heads=1, positions=256), narrow)
    write_files(narrow, {"vocab.txt": VOCABULARY, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}})
    with pytest.raises(InputError, match="narrow gives vectors of 32 numbers, full of 64: they are not of one model"):
        fidelity(narrow, full, texts=NAMED)
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(DependencyError, match=r"ir-measures, which is not installed. .*mra-export\[retrieval\]"):
        fidelity(dense, full, texts=NAMED, queries=ASKED)


def test_only_an_exported_file_is_timed(models: tuple[Path, Path, Path]) -> None:
    with pytest.raises(InputError, match=r"Only an exported file is timed, and .*two is none"):
        fidelity(models[0], models[2], texts=NAMED, timed=True)


def test_it_is_timed_at_the_lengths_of_the_texts(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    row = BenchRow(
        "MRA", 1, 240, 7.25, 8.0, 1.0, 1.5, 5, "onnxruntime", "fp32", "MRA", 7.0, 1.4, 2.0, 8, None, None
    )  # fmt: skip

    def timed(model: Any, **options: Any) -> BenchResult:
        asked.append((model, options["batches"], options["seq_lens"]))
        return BenchResult([row], ["a note of bench"])

    monkeypatch.setattr(module, "bench", timed)
    monkeypatch.setattr(module, "find_onnx", lambda path: path / "model.onnx")
    monkeypatch.setattr(module, "read_onnx", lambda path: path)
    result = fidelity(models[0], models[2], texts=NAMED, timed=True)
    assert asked == [(models[2] / "model.onnx", [1], [240, 256])]
    assert result.speed == [row]
    assert result.notes[-1] == "a note of bench"
    write_fidelity(tmp_path / "page.html", result)
    assert "<td>7.25</td><td>1.50</td><td>1.40</td>" in (tmp_path / "page.html").read_text()


def test_the_page_has_the_figures_and_is_the_same_for_the_same(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    result = fidelity(models[0], models[2], texts=NAMED)
    for name in ("a.html", "b.html"):
        write_fidelity(tmp_path / name, result)
    page = (tmp_path / "a.html").read_text()
    assert page == (tmp_path / "b.html").read_text()
    assert "<h1>two against dense</h1>" in page
    assert f"<td>{result.agreement.mean:.5f}</td>" in page
    assert "129 to 256 tokens" in page
    assert "MRA does not pay at these lengths" in page
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_the_command(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("ir_measures", reason="the package ir-measures is not installed")
    documents, queries, qrels = map(str, write_set(tmp_path))
    command = ["fidelity", str(models[0]), str(models[2]), "--texts", documents, "-q"]
    report = str(tmp_path / "report.html")
    found = CliRunner().invoke(
        cli, [*command, "--queries", queries, "--qrels", qrels, "--report", report, "--json"], catch_exceptions=False
    )
    said = json.loads(found.stdout)
    expected = fidelity(models[0], models[2], texts=NAMED)
    assert said["cosine"]["mean"] == pytest.approx(expected.agreement.mean)
    assert said["outputs"] == [report]
    assert [row["texts"] for row in said["lengths"]] == [2, 2, 3, 5]
    assert said["worst"][0]["text"] == expected.worst[0][0]
    alone = CliRunner().invoke(cli, [*command, "--queries", queries])
    assert "give both --queries and --qrels, or neither" in str(alone.exception)
    without = CliRunner().invoke(cli, [*command[:3], "--queries", queries, "--qrels", qrels])
    assert (without.exit_code, "--queries and --qrels go with --texts" in without.output) == (2, True)
    assert set(said["retrieval"]) == {"dense", "mra", "mixed"}
    assert set(said["retrieval"]["dense"]) == {"nDCG@10", "RR@10", "R@10", "R@100"}
    assert said["retrieval"]["dense"]["R@100"] == 1.0
    assert "Retrieval" in Path(report).read_text()
    text = CliRunner().invoke(cli, command, catch_exceptions=False).stdout
    assert text.startswith("two against dense: cosine mean 0.")
    assert "neighbours that stay: " in text
    assert "note: MRA does not pay at these lengths" in text

"""A dense checkpoint with the budgets that were asked for, that a search found, or that pay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fidelity_support import LAYERS, letters, save_dense

from mra_export.checkpoint.from_dense import convert
from mra_export.checkpoint.load import load_checkpoint
from mra_export.cli.app import cli
from mra_export.errors import InputError
from mra_export.fidelity import search
from mra_export.fidelity.layered import LayeredModel
from mra_export.fidelity.memory import memory_path
from mra_export.pipeline import convert_dense as module
from mra_export.pipeline.convert_dense import from_dense

TEXTS = [*letters([250, 240, 235, 230, 255, 248, 200, 215, 245, 251]), *letters([20, 30])]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("dense") / "dense")


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels and priors: enough to choose from."""
    monkeypatch.setattr(search, "_LEVELS", (1, 2, 4))
    monkeypatch.setattr(search, "_PRIORS", ((0, 1), (1, 0)))
    monkeypatch.setattr(search, "_EXCHANGES", 3)


def config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def test_a_given_cost(dense: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = from_dense(dense, tmp_path / "mra", mean_block_per_row=3, texts=TEXTS, progress=said.append)
    stated = config(tmp_path / "mra")
    blocks = stated["mra_export"]["num_blocks"]
    assert tuple(blocks) == result.layer_num_blocks
    assert sum(blocks) <= 3 * 8 * LAYERS < sum(blocks) + 8
    assert stated["block_per_row"] == -(-max(blocks) // 8)
    assert result.exact_up_to == int(min(blocks) ** 0.5) * 32
    measured = result.measured
    assert measured is not None
    assert measured["num_blocks"] == blocks
    assert (measured["texts"], measured["long_enough"], measured["longest"], measured["held_out"]) == (
        12,
        10,
        255,
        True,
    )
    assert (measured["chosen_by"]["texts"], measured["judged_by"]["texts"]) == (5, 5)
    assert 0 < measured["judged_by"]["least"] < measured["judged_by"]["mean"] < 1
    assert len(measured["sensitivity"]) == LAYERS
    assert measured["mean_block_per_row"] <= 3
    assert any("10 of 12 texts are long enough" in note for note in result.notes)
    assert any("does not pay on a CPU" in note for note in result.notes)
    assert any("layer 2 of 3 alone: 3 budgets on 5 texts" in line for line in said)
    assert [path.name for path in tmp_path.iterdir()] == ["mra"]
    assert "each layer has a budget of its own" in (tmp_path / "mra" / "README.md").read_text()


def test_what_was_measured_is_what_the_checkpoint_computes(dense: Path, tmp_path: Path) -> None:
    """The mean on the held-out texts, by the reference operator in the whole model."""
    import numpy as np
    import torch
    import transformers
    from dense_support import run_mra

    from mra_export.fidelity.samples import sampled_ids, split

    result = from_dense(dense, tmp_path / "mra", mean_block_per_row=2, texts=TEXTS)
    assert result.measured is not None
    ids = split(sampled_ids(dense, TEXTS, 256) or [], longer_than=64, tokens=module._TOKENS).judged_by
    original = transformers.AutoModel.from_pretrained(dense).eval()
    cosines = []
    for each in ids:
        inputs = {"input_ids": torch.tensor([each]), "attention_mask": torch.ones(1, len(each), dtype=torch.int64)}
        with torch.no_grad():
            a = original(**inputs).last_hidden_state.mean(1)
        b = run_mra(load_checkpoint(tmp_path / "mra"), inputs).last_hidden_state.mean(1)
        cosines.append(float(torch.nn.functional.cosine_similarity(a, b)))
    assert np.mean(cosines) == pytest.approx(result.measured["judged_by"]["mean"], abs=1e-5)
    assert min(cosines) == pytest.approx(result.measured["judged_by"]["least"], abs=1e-5)


def test_a_target(dense: Path, tmp_path: Path) -> None:
    low, high = (
        from_dense(dense, tmp_path / str(target), target_cosine=target, texts=TEXTS).measured
        for target in (0.995, 0.9995)
    )
    assert low is not None
    assert high is not None
    assert low["chosen_by"]["mean"] >= 0.995
    assert high["chosen_by"]["mean"] >= 0.9995
    assert low["mean_block_per_row"] < high["mean_block_per_row"] < 8


def test_killed_and_begun_again_it_gives_the_same(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = from_dense(dense, tmp_path / "whole", mean_block_per_row=3, texts=TEXTS)
    runs: list[int] = []
    vectors = LayeredModel.vectors

    def counted(self: LayeredModel, batch: Any, plans: Any) -> Any:
        runs.append(len(plans))
        if len(runs) == limit:
            raise SystemExit
        return vectors(self, batch, plans)

    monkeypatch.setattr(LayeredModel, "vectors", counted)
    limit = 10**9
    from_dense(dense, tmp_path / "counted", mean_block_per_row=3, texts=TEXTS)
    needed, limit = sum(runs), len(runs) // 2
    runs.clear()
    with pytest.raises(SystemExit):
        from_dense(dense, tmp_path / "mra", mean_block_per_row=3, texts=TEXTS)
    assert not (tmp_path / "mra").exists()
    assert memory_path(tmp_path / "mra").is_dir()
    limit = 10**9
    runs.clear()
    said: list[str] = []
    again = from_dense(dense, tmp_path / "mra", mean_block_per_row=3, texts=TEXTS[::-1], progress=said.append)
    assert any(line.startswith("going on: ") for line in said)
    assert sum(runs) < 0.8 * needed
    assert again.measured == whole.measured
    for name in whole.files:
        assert (tmp_path / "mra" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not memory_path(tmp_path / "mra").exists()


def test_a_disk_that_is_full_at_the_end_costs_no_measurement(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = convert.save_weights
    paths: list[Path] = []

    def once(weights: Any, path: Path) -> None:
        paths.append(path)
        if len(paths) == 2:
            raise OSError(28, "No space left on device")
        save(weights, path)

    monkeypatch.setattr(convert, "save_weights", once)
    with pytest.raises(InputError, match=r"mra could not be written: No space left"):
        from_dense(dense, tmp_path / "mra", mean_block_per_row=2, texts=TEXTS)
    monkeypatch.setattr(LayeredModel, "vectors", None)
    assert from_dense(dense, tmp_path / "mra", mean_block_per_row=2, texts=TEXTS).measured is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mean_block_per_row": 2, "target_cosine": 0.9},
            "--mean-block-per-row and --target-cosine exclude each other",
        ),
        ({"block_per_row": 2, "target_cosine": 0.9}, "--block-per-row and --target-cosine exclude each other"),
        ({"block_per_row": 2, "texts": TEXTS}, "--texts is for budgets that are searched"),
        ({"mean_block_per_row": 0.5}, "mean_block_per_row=0.5 must be a number of at least 1"),
        ({"mean_block_per_row": float("inf")}, "mean_block_per_row=inf must be a number"),
        ({"target_cosine": 1.0}, "target_cosine=1 must be above 0 and at most 0.9999"),
        ({"target_cosine": float("nan")}, "target_cosine=nan must be above 0"),
        ({"target_cosine": 0.9, "texts": []}, "There are no texts: the file is empty"),
        ({"target_cosine": 0.9, "texts": ["", " "]}, "None of the 0 texts can lose anything"),
        (
            {"target_cosine": 0.9, "texts": letters([50, 64])},
            "the longest has 64 tokens, and up to 64 tokens the smallest budget.*--max-position 64",
        ),
    ],
)
def test_what_cannot_be_chosen_by_is_refused(dense: Path, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_dense(dense, tmp_path / "mra", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_not_replaced_by_what_a_search_finds(dense: Path) -> None:
    with pytest.raises(InputError, match="would replace the source"):
        from_dense(dense, dense, target_cosine=0.9, texts=TEXTS, force=True)
    assert not memory_path(dense).exists()


def test_of_a_head_the_encoder_is_measured(tmp_path: Path) -> None:
    from dense_support import VOCABULARY, save, tiny, write_files

    source = save(tiny("bert", "ForMaskedLM", positions=256), tmp_path / "dense")
    write_files(source, {"vocab.txt": VOCABULARY, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}})
    result = from_dense(source, tmp_path / "mra", mean_block_per_row=8, texts=TEXTS)
    assert (result.task, result.layer_num_blocks) == ("fill-mask", (64, 64))
    assert result.measured is not None
    assert result.measured["judged_by"]["least"] > 1 - 1e-6
    assert result.measured["curve"]["1"] < 1 - 1e-4


def test_without_a_tokenizer_nothing_can_be_measured(dense: Path, tmp_path: Path) -> None:
    bare = save_dense(tmp_path / "bare")
    for name in ("vocab.txt", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(InputError, match=r"has no tokenizer.*or give --block-per-row"):
        from_dense(bare, tmp_path / "mra", target_cosine=0.9, texts=TEXTS)


def test_short_models_get_all_blocks(dense: Path, tmp_path: Path) -> None:
    result = from_dense(dense, tmp_path / "mra")
    assert config(tmp_path / "mra")["block_per_row"] == 8
    assert "mra_export" not in config(tmp_path / "mra")
    assert (result.layer_num_blocks, result.measured) == ((64,) * LAYERS, None)
    assert "All blocks are selected, so that nothing is lost: at 256 tokens" in result.notes[-1]
    assert "docs/benchmarks/cpu.md a model with 8 blocks per row is 1.08 times" in result.notes[-1]
    assert "all-MiniLM-L6-v2 at 512 tokens keeps a mean cosine of" in result.notes[-1]


@pytest.mark.parametrize("bare", [False, True])
def test_long_models_get_the_least_that_keeps_the_target(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: bool
) -> None:
    monkeypatch.setattr(module, "pays_from", lambda: 256)
    monkeypatch.setattr(module, "builtin_texts", lambda: TEXTS)
    source = dense
    if bare:
        source = save_dense(tmp_path / "bare")
        for name in ("vocab.txt", "tokenizer_config.json"):
            (source / name).unlink()
    result = from_dense(source, tmp_path / "mra")
    stated = config(tmp_path / "mra")
    assert "mra_export" not in stated
    if bare:
        assert stated["block_per_row"] == 8
        assert "without a tokenizer" in result.notes[-1]
        return
    assert result.measured is not None
    curve = result.measured["curve"]
    assert stated["block_per_row"] == result.measured["block_per_row"]
    assert curve[stated["block_per_row"]] >= 0.99
    assert all(cosine < 0.99 for rows, cosine in curve.items() if rows < stated["block_per_row"])
    assert "are the least tried that keep a mean cosine of 0.99" in result.notes[-2]
    assert "documentation in Python's standard library" in result.notes[-1]


def test_a_stated_budget_is_as_ever(dense: Path, tmp_path: Path) -> None:
    ours = from_dense(dense, tmp_path / "a", block_per_row=2)
    plain = convert.from_dense(dense, tmp_path / "b", block_per_row=2)
    for name in plain.files:
        assert (ours.output / name).read_bytes() == (plain.output / name).read_bytes()
    assert "mra_export" not in config(tmp_path / "a")


def test_the_command_shows_and_reports_it(dense: Path, tmp_path: Path) -> None:
    texts, report = tmp_path / "texts.txt", tmp_path / "report.html"
    texts.write_text("".join(f"{text}\n" for text in TEXTS))
    command = ["from-dense", str(dense), "--texts", str(texts), "--mean-block-per-row", "2", "-q"]
    found = CliRunner().invoke(
        cli, [*command, "-o", str(tmp_path / "a"), "--report", str(report), "--json"], catch_exceptions=False
    )
    said = json.loads(found.stdout)
    assert said["outputs"] == [str(tmp_path / "a"), str(report)]
    assert said["num_blocks"] == said["measured"]["num_blocks"] == config(tmp_path / "a")["mra_export"]["num_blocks"]
    page = report.read_text()
    assert f"{said['measured']['judged_by']['mean']:.5f}" in page
    assert "Sensitivity by layer" in page
    text = CliRunner().invoke(cli, [*command, "-o", str(tmp_path / "b")], catch_exceptions=False).stdout
    shown = ", ".join(map(str, said["num_blocks"]))
    assert f"MraModel, 3 layers, {shown} blocks per head" in text
    assert "held-out texts the mean cosine" in text
    plain = ["from-dense", str(dense), "-o", str(tmp_path / "c"), "--report", str(tmp_path / "none.html")]
    assert (
        "nothing was measured, so there is no report" in CliRunner().invoke(cli, plain, catch_exceptions=False).output
    )
    assert not (tmp_path / "none.html").exists()

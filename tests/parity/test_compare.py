"""The parity check passes what is right, and names what is wrong and where."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import save_checkpoint

from mra_export.checkpoint.load import Checkpoint, load_checkpoint
from mra_export.errors import InputError
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import MODEL_FILE, read_onnx
from mra_export.parity.cases import Case, build_cases
from mra_export.parity.compare import check_candidate
from mra_export.parity.comparison import as_json
from mra_export.parity.html_report import write_report
from mra_export.pipeline.check import check, find_artifacts
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.torch import SpecificationRunner, TransformersRunner


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


def verdicts(checkpoint: Checkpoint, path: Path, cases: list[Case]) -> list:
    return check_candidate(
        checkpoint,
        TransformersRunner(checkpoint),
        OnnxRuntimeRunner(read_onnx(path)),
        "fp32",
        cases,
        specification=SpecificationRunner(checkpoint),
    )


@pytest.fixture(scope="module")
def cases(checkpoint: Checkpoint) -> list[Case]:
    return [c for c in build_cases(checkpoint)[0] if c.seq_len > 200]


def edited(source: Path, target: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(str(source / MODEL_FILE))
    edit(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(target))
    return target


def test_the_right_model_passes(checkpoint: Checkpoint, tiny_export: Path) -> None:
    for comparison in check(checkpoint, find_artifacts([tiny_export])):
        assert comparison.ok, comparison
        assert comparison.metrics["selection_agreement"] == 1.0
        assert comparison.metrics["cosine_min"] > 0.99999
        assert comparison.metrics["judged_rows"] == comparison.metrics["rows"] > 8


def test_a_wrong_weight_is_arithmetic_before_its_layer(
    checkpoint: Checkpoint, tiny_export: Path, tmp_path: Path, cases: list[Case]
) -> None:
    def edit(model: onnx.ModelProto) -> None:
        name = next(n for n in model.graph.node if n.name == "layer.1.Mra2Attention").input[2]
        bias = next(n for n in model.graph.node if name in n.output)
        assert bias.op_type == "Add"
        node = onnx.helper.make_node("Mul", [name, "wrong"], ["scaled"])
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.01), "wrong"))
        index = list(model.graph.node).index(bias)
        model.graph.node.insert(index + 1, node)
        next(n for n in model.graph.node if n.name == "layer.1.Mra2Attention").input[2] = "scaled"

    comparison = verdicts(checkpoint, edited(tiny_export, tmp_path / "onnx" / "model.onnx", edit), cases)[1]
    assert comparison.ok is False
    assert "starts in layer.1: arithmetic before its attention" in comparison.notes[0]
    assert comparison.layers[0].problem is None


def test_a_wrong_selection_is_told_from_wrong_arithmetic(
    checkpoint: Checkpoint, tiny_export: Path, tmp_path: Path, cases: list[Case]
) -> None:
    def choose_the_worst(model: onnx.ModelProto) -> None:
        next(
            a for n in model.functions[0].node if n.op_type == "TopK" for a in n.attribute if a.name == "largest"
        ).i = 0

    comparison = verdicts(checkpoint, edited(tiny_export, tmp_path / "a" / "model.onnx", choose_the_worst), cases)[1]
    assert comparison.ok is False
    assert "starts in layer.0: selection of the attention" in comparison.notes[0]

    def forget_the_epsilon_and_more(model: onnx.ModelProto) -> None:
        node = next(n for n in model.functions[0].node if n.output[0] == "normalizer_epsilon")
        node.attribute[0].f = 0.05

    path = edited(tiny_export, tmp_path / "b" / "model.onnx", forget_the_epsilon_and_more)
    one_token = [c for c in build_cases(checkpoint)[0] if c.seq_len == 1]
    comparison = verdicts(checkpoint, path, [*one_token, *cases])[1]
    assert comparison.ok is False
    assert "starts in layer.0: arithmetic of the attention" in comparison.notes[0]


@pytest.mark.slow
def test_a_wrong_head_is_named(tmp_path: Path, cases: list[Case]) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "c", "MraForTokenClassification"))
    exported = export_onnx(checkpoint, tmp_path / "o").directory

    def edit(model: onnx.ModelProto) -> None:
        bias = next(i for i in model.graph.initializer if i.name.endswith("classifier.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))

    comparisons = verdicts(checkpoint, edited(exported, tmp_path / "e" / "model.onnx", edit), cases)
    assert [c.ok for c in comparisons] == [False, False]
    assert "after the last attention layer (layer.1)" in comparisons[1].notes[0]


def test_nan_never_passes(checkpoint: Checkpoint, tiny_export: Path, tmp_path: Path, cases: list[Case]) -> None:
    def edit(model: onnx.ModelProto) -> None:
        name = next(n for n in model.graph.node if n.name == "layer.1.Mra2Attention").output[0]
        for node in model.graph.node:
            if name in node.input:
                node.input[list(node.input).index(name)] = "poisoned"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32("nan"), "nan"))
        index = next(i for i, n in enumerate(model.graph.node) if name in n.output)
        model.graph.node.insert(index + 1, onnx.helper.make_node("Add", [name, "nan"], ["poisoned"]))

    comparisons = verdicts(checkpoint, edited(tiny_export, tmp_path / "model.onnx", edit), cases)
    assert [c.ok for c in comparisons] == [False, False]


@pytest.mark.slow
def test_an_output_as_wide_as_the_input_is_long_is_not_taken_for_tokens(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "c", "MraForSequenceClassification", num_labels=64))
    exported = export_onnx(checkpoint, tmp_path / "o")
    batch = [c for c in build_cases(checkpoint, max_seq_len=64)[0] if c.name.startswith("mixed")]
    assert batch[0].seq_len == 64
    assert [c.ok for c in verdicts(checkpoint, exported.model, batch)] == [True, True]


@pytest.mark.slow
def test_ties_are_said_and_not_judged(tmp_path: Path) -> None:
    # Every pair but one is within the prior, so the cut falls among the rows' best blocks, which all score 0.
    source = save_checkpoint(tmp_path / "c", initial_prior_first_n_blocks=1, block_per_row=2, vocab_size=2)
    checkpoint = load_checkpoint(source)
    exported = export_onnx(checkpoint, tmp_path / "o")
    whole = [c for c in build_cases(checkpoint)[0] if c.name.startswith(("maximal", "whole blocks, 256"))]
    comparisons = verdicts(checkpoint, exported.model, whole)
    assert comparisons[0].ok is None
    assert any("equal scores at the cut" in note for note in comparisons[0].notes)
    assert comparisons[1].ok is True


@pytest.mark.slow
def test_half_types_pass_by_their_own_tolerances(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "c"))
    for dtype in ("fp16", "bf16"):
        exported = export_onnx(checkpoint, tmp_path / dtype, dtype=dtype)
        comparisons = check(checkpoint, [exported.model], max_seq_len=128)
        assert comparisons[1].ok is True, comparisons[1]
        assert comparisons[1].metrics["relative_error"] > 1e-5  # it did run in half precision


def test_files_of_another_model_are_refused(checkpoint: Checkpoint, tiny_export: Path, tmp_path: Path) -> None:
    other = load_checkpoint(save_checkpoint(tmp_path / "other", block_per_row=2))
    with pytest.raises(InputError, match="num_blocks=32 at layer 0, but the checkpoint asks for 16"):
        check(other, [tiny_export / MODEL_FILE])
    deeper = load_checkpoint(save_checkpoint(tmp_path / "deeper", num_hidden_layers=3))
    with pytest.raises(InputError, match="has 2 attention nodes, the checkpoint 3 layers"):
        check(deeper, [tiny_export / MODEL_FILE])
    head = load_checkpoint(save_checkpoint(tmp_path / "head", "MraForMaskedLM"))
    with pytest.raises(InputError, match="Add --task feature-extraction"):
        check(head, [tiny_export / MODEL_FILE])


@pytest.mark.slow
def test_missing_weights_beside_a_file_are_named(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: Any) -> None:
    from mra_export.export import onnx_model

    monkeypatch.setattr(onnx_model, "EXTERNAL_DATA_THRESHOLD", 1000)
    exported = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "o")
    (tmp_path / "o" / "onnx" / "model.onnx_data").unlink()
    with pytest.raises(InputError, match=r"needs model\.onnx_data beside it, which is not there"):
        read_onnx(exported.model)


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"not an ONNX file")
    with pytest.raises(InputError, match="is not a readable ONNX file"):
        read_onnx(garbage)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
    other = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(graph), str(other))
    with pytest.raises(InputError, match="was not written by this tool"):
        read_onnx(other)
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(InputError, match=r"holds no \.onnx, \.engine or \.xml file"):
        find_artifacts([folder])


@pytest.mark.slow
def test_the_report_is_one_page_with_plots(checkpoint: Checkpoint, tiny_export: Path, tmp_path: Path) -> None:
    comparisons = check(checkpoint, [tiny_export / MODEL_FILE], max_seq_len=64)
    comparisons[0].notes.append("<script>alert(1)</script>")
    write_report(tmp_path / "a.html", comparisons, title="A & B")
    write_report(tmp_path / "b.html", comparisons, title="A & B")
    page = (tmp_path / "a.html").read_text()
    assert page == (tmp_path / "b.html").read_text()
    assert page.count("<svg") == len(comparisons) >= 2
    assert page.count("PASSED") >= len(comparisons)
    assert "A &amp; B" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!#)", page)


def test_json_of_a_comparison_is_plain(checkpoint: Checkpoint, tiny_export: Path) -> None:
    comparison = check(checkpoint, [tiny_export / MODEL_FILE], max_seq_len=64)[1]
    data = as_json(dataclasses.replace(comparison, metrics={**comparison.metrics, "relative_error": float("nan")}))
    assert {"reference", "candidate", "metrics", "tolerance", "ok"} <= set(data)
    assert data["metrics"]["relative_error"] is None
    assert data["layers"][0]["name"] == "layer.0"

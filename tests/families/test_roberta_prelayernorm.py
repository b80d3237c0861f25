"""RoBERTa-PreLayerNorm through every command, against transformers' eager attention."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from mra_export.checkpoint.load import Checkpoint, load_checkpoint
from mra_export.checkpoint.modules import Normalize, Pooling
from mra_export.cli import main
from mra_export.errors import InputError
from mra_export.export.exporter import ExportResult, export_onnx
from mra_export.export.half import convert
from mra_export.export.onnx_model import read_onnx
from mra_export.parity.cases import build_cases
from mra_export.pipeline.bench import bench
from mra_export.pipeline.check import check
from mra_export.pipeline.source import compare_with_source
from mra_export.runners.onnx_reference import OnnxReferenceRunner
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.torch import SpecificationRunner, TransformersRunner

CLASSES = {
    "feature-extraction": "Model",
    "fill-mask": "ForMaskedLM",
    "text-generation": "ForCausalLM",
    "text-classification": "ForSequenceClassification",
    "multiple-choice": "ForMultipleChoice",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}
PAD = 1


def save(directory: Path, suffix: str = "Model", **settings: Any) -> Path:
    """A small checkpoint whose attention is far from uniform."""
    small = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 72,
        "type_vocab_size": 2,
        "pad_token_id": PAD,
        "num_labels": 2 if suffix == "ForQuestionAnswering" else 3,
        "is_decoder": suffix == "ForCausalLM",
    }
    torch.manual_seed(0)
    config = transformers.RobertaPreLayerNormConfig(**{**small, **settings})
    model = getattr(transformers, f"RobertaPreLayerNorm{suffix}")(config)
    with torch.no_grad():
        for layer in model.base_model.encoder.layer:
            layer.attention.self.query.weight *= 6
            layer.attention.self.key.weight *= 6
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zeros hide a bias that is left out
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def export_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Checkpoint, ExportResult]]:
    """Exports a class with the defaults, the bare encoder with mean pooling; each class once."""

    @functools.cache
    def export(task: str) -> tuple[Checkpoint, ExportResult]:
        folder = tmp_path_factory.mktemp(task)
        checkpoint = load_checkpoint(save(folder / "c", CLASSES[task]))
        return checkpoint, export_onnx(checkpoint, folder / "o", **pooling_for(task))

    return export


def pooling_for(task: str) -> dict[str, Any]:
    return {"pooling": "mean", "normalize": True} if task == "feature-extraction" else {}


@pytest.fixture(
    scope="module",
    params=[pytest.param(task, marks=[pytest.mark.slow] * (task != "feature-extraction")) for task in CLASSES],
)
def exported(request: pytest.FixtureRequest, export_of: Any) -> tuple[Checkpoint, ExportResult]:
    """Each class."""
    return export_of(request.param)


@pytest.fixture(scope="module")
def encoder(export_of: Any) -> tuple[Checkpoint, Path]:
    """The bare encoder with mean pooling: the checkpoint and its ONNX directory."""
    checkpoint, result = export_of("feature-extraction")
    return checkpoint, result.directory


def run(*arguments: object) -> int:
    """The exit code of the command line."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def masks(shape: tuple[int, ...]) -> np.ndarray:
    """[rows, seq_len]: whole, padding at the right, at the left, holes, one token, nothing but padding."""
    rows = np.ones((6, shape[-1]), np.int64)
    rows[1, shape[-1] // 3 :] = 0
    rows[2, : shape[-1] // 3] = 0
    rows[3, 1::3] = 0
    rows[4, 1:] = 0
    rows[5] = 0
    return rows.reshape(shape)


def test_every_class_is_the_model_for_every_mask(exported: tuple[Checkpoint, ExportResult]) -> None:
    checkpoint, result = exported
    assert checkpoint.task.name in CLASSES
    shape = (3, 2, 21) if checkpoint.task.name == "multiple-choice" else (6, 21)
    generator = np.random.default_rng(0)
    modules = (Pooling(("mean",)), Normalize()) if checkpoint.task.name == "feature-extraction" else ()
    inputs = {"attention_mask": masks(shape), "token_type_ids": generator.integers(0, 2, shape)}
    for ids in (generator.integers(0, 60, shape), np.where(masks(shape) == 1, generator.integers(2, 60, shape), PAD)):
        inputs["input_ids"] = ids
        expected = TransformersRunner(checkpoint, modules).run(inputs)
        actual = OnnxRuntimeRunner(read_onnx(result.model)).run(inputs)
        assert tuple(actual) == result.outputs == tuple(expected)
        for name, value in expected.items():
            assert np.isfinite(actual[name]).all()
            np.testing.assert_allclose(actual[name], value, rtol=0, atol=2e-5)  # at padding, too


def test_every_class_passes_the_check(exported: tuple[Checkpoint, ExportResult]) -> None:
    checkpoint, result = exported
    comparisons = check(checkpoint, [result.model])
    assert [c.reference for c in comparisons] == [f"PyTorch, transformers {transformers.__version__}", "specification"]
    for comparison in comparisons:
        assert comparison.ok, comparison
        assert comparison.metrics["judged_rows"] == comparison.metrics["rows"] > 8
        assert comparison.metrics["selection_agreement"] is None
    assert comparisons[1].metrics["operator_error"] > 0
    assert max(case.seq_len for case in comparisons[0].cases) == 70


def test_the_ids_that_a_file_takes_are_read_from_it(exported: tuple[Checkpoint, ExportResult]) -> None:
    assert read_onnx(exported[1].model).vocabulary == 60  # the table has another name where it is tied to the head


def test_the_default_is_the_operator_attention_and_nothing_of_our_own(
    exported: tuple[Checkpoint, ExportResult],
) -> None:
    _, result = exported
    model = onnx.load(str(result.model))
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 23)}
    assert not model.functions
    nodes = [n for n in model.graph.node if n.op_type == "Attention"]
    assert [n.name for n in nodes] == ["layer.0.Attention", "layer.1.Attention"]
    assert len({n.input[3] for n in nodes}) == 1  # one mask for all layers
    assert [n.input[0] for n in nodes] == ["layer.0.query", "layer.1.query"]
    assert result.attention_nodes == 2
    described = read_onnx(result.model)
    assert (described.nodes, len(described.layers)) == ([], 2)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["Model", "ForCausalLM"])
def test_older_opsets_get_the_plain_form(suffix: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path / "c", suffix))
    result = export_onnx(checkpoint, tmp_path / "o", opset=18)
    model = onnx.load(str(result.model))
    kinds = [n.op_type for n in model.graph.node]
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 18)}
    assert (kinds.count("Attention"), kinds.count("Softmax")) == (0, 2)
    shape = (6, 21)
    generator = np.random.default_rng(0)
    inputs = {name: generator.integers(0, 2, shape) for name in result.inputs}
    inputs |= {"attention_mask": masks(shape), "input_ids": generator.integers(0, 60, shape)}
    expected = TransformersRunner(checkpoint).run(inputs)
    for name, value in OnnxRuntimeRunner(read_onnx(result.model)).run(inputs).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=2e-5)
    assert all(c.ok for c in check(checkpoint, [result.model]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_types(dtype: str, encoder: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    checkpoint, directory = encoder
    result = export_onnx(checkpoint, tmp_path / "o", dtype=dtype, pooling="mean", normalize=True)
    comparisons = check(checkpoint, [result.model])
    assert [c.ok for c in comparisons] == [True] * (3 if dtype == "fp16" else 2)  # and its range
    assert comparisons[1].metrics["relative_error"] > 1e-5  # it did run in half precision
    inputs = {
        "input_ids": np.full((6, 21), 7),
        "attention_mask": masks((6, 21)),
        "token_type_ids": np.zeros((6, 21), int),
    }
    runner = OnnxRuntimeRunner if dtype == "fp16" else OnnxReferenceRunner
    assert all(np.isfinite(value).all() for value in runner(read_onnx(result.model)).run(inputs).values())
    # Where the checkpoint is not at hand, the float32 file gives the same.
    source = read_onnx(directory / "onnx" / "model.onnx")
    converted = convert(source, dtype, tmp_path / "converted.onnx")
    assert compare_with_source(source, runner(converted), dtype, lambda _: None).ok
    files = [onnx.load(str(path)) for path in (result.model, converted.path)]
    weights = [{i.name: onnx.numpy_helper.to_array(i) for i in f.graph.initializer} for f in files]
    assert sorted(n.op_type for n in files[0].graph.node) == sorted(n.op_type for n in files[1].graph.node)
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_positions_are_counted_from_the_tokens(encoder: tuple[Checkpoint, Path]) -> None:
    checkpoint, directory = encoder
    ids = np.random.default_rng(1).integers(2, 60, (1, 12))
    alone = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}
    left = {name: np.pad(value, ((0, 0), (5, 0)), constant_values=PAD if name == "input_ids" else 0)
            for name, value in alone.items()}  # fmt: skip
    moved = {**left, "input_ids": np.where(left["input_ids"] == PAD, 9, left["input_ids"])}
    runner = OnnxRuntimeRunner(read_onnx(directory / "onnx" / "model.onnx"))
    states = [runner.run(inputs)["last_hidden_state"][:, -12:] for inputs in (alone, left, moved)]
    np.testing.assert_allclose(states[1], states[0], rtol=0, atol=2e-5)
    assert np.abs(states[2] - states[0]).max() > 0.01
    for inputs, value in zip((alone, left, moved), states, strict=True):
        reference = SpecificationRunner(checkpoint, (Pooling(("mean",)), Normalize())).run(inputs)["last_hidden_state"]
        np.testing.assert_allclose(value, reference[:, -12:], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_decoder_sees_nothing_that_comes_later(export_of: Any) -> None:
    _, result = export_of("text-generation")
    runner = OnnxRuntimeRunner(read_onnx(result.model))
    ids = np.random.default_rng(2).integers(2, 60, (1, 20))
    changed = ids.copy()
    changed[0, 11] = (ids[0, 11] + 1) % 58 + 2
    first, second = (
        runner.run({"input_ids": x, "attention_mask": np.ones_like(x), "token_type_ids": x * 0})["logits"]
        for x in (ids, changed)
    )
    assert np.array_equal(first[:, :11], second[:, :11])
    assert np.abs(first[:, 11:] - second[:, 11:]).max() > 0.01


def test_the_table_of_positions_is_the_limit(
    encoder: tuple[Checkpoint, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, directory = encoder
    model = read_onnx(directory / "onnx" / "model.onnx")
    assert model.position_limit == 70
    with pytest.raises(
        InputError, match="max_seq_len=71 is above the model's max_position_embeddings=72, which has room for 70"
    ):
        build_cases(checkpoint, max_seq_len=71)
    rows = bench(model, batches=[1], seq_lens=[70], seconds=0.01).rows
    assert (rows[0].backend, rows[0].faster_than_dense) == ("dense attention", 1.0)
    assert {(row.attention, row.seq_len, row.blocks) for row in rows} == {("dense attention", 70, None)}
    assert all(row.cosine_min > 0.999 for row in rows if row.cosine_min is not None)
    assert run("bench", directory, "--seq-len", "71") == 2
    assert "Give at most 70" in capsys.readouterr().err


def edited(source: Path, target: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(str(source / "onnx" / "model.onnx"))
    edit(model)
    target.parent.mkdir(parents=True)
    onnx.save(model, str(target))
    (target.parent.parent / "modules.json").write_bytes((source / "modules.json").read_bytes())
    (target.parent.parent / "1_Pooling").mkdir()
    (target.parent.parent / "1_Pooling" / "config.json").write_bytes((source / "1_Pooling/config.json").read_bytes())
    return target


def test_the_check_says_where_a_difference_starts(encoder: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    checkpoint, directory = encoder

    def other_scale(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name == "layer.1.Attention")
        next(a for a in node.attribute if a.name == "scale").f *= 1.5

    found = check(checkpoint, [edited(directory, tmp_path / "a" / "onnx" / "model.onnx", other_scale)])
    assert [c.ok for c in found] == [False, False]
    assert "starts in layer.1: arithmetic of the attention" in found[1].notes[0]

    def other_weight(model: onnx.ModelProto) -> None:
        bias = next(i for i in model.graph.initializer if i.name.endswith("layer.0.attention.self.key.bias"))
        query = next(i for i in model.graph.initializer if i.name.endswith("layer.0.attention.self.query.bias"))
        query.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, query.name))

    found = check(checkpoint, [edited(directory, tmp_path / "b" / "onnx" / "model.onnx", other_weight)])
    assert "starts in layer.0: arithmetic before its attention" in found[1].notes[0]

    def see_padding(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "Where")
        node.input[2] = node.input[1]

    found = check(checkpoint, [edited(directory, tmp_path / "c" / "onnx" / "model.onnx", see_padding)])
    assert [c.ok for c in found] == [False, False]


WRONG = {
    "heads": ({"num_attention_heads": 3}, [], "hidden_size=32 must be a positive multiple of num_attention_heads=3"),
    "no layers": ({"num_hidden_layers": 0}, [], "num_hidden_layers=0 must be at least 1"),
    "epsilon": ({"layer_norm_eps": 0.0}, [], "layer_norm_eps=0.0 must be positive"),
    "no padding token": ({"pad_token_id": 60}, [], "pad_token_id=60 must be between 0 and vocab_size - 1 = 59"),
    "short table": (
        {"max_position_embeddings": 2},
        [],
        "max_position_embeddings=2 must be at least pad_token_id \\+ 2 = 3",
    ),
    "activation": ({"hidden_act": "nothing"}, [], "hidden_act='nothing' is none that transformers has"),
    "relative": ({"position_embedding_type": "relative_key"}, [], 'only "absolute" is supported'),
    "cross": ({"is_decoder": True, "add_cross_attention": True}, [], "add_cross_attention=true"),
    "attentions": ({"output_attentions": True}, [], "fused attention gives no attention matrix"),
    "encoder": ({}, ["--task", "text-generation"], "text-generation needs is_decoder=true"),
    "labels": (
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        ["--task", "question-answering"],
        "num_labels=3, but question-answering has 2",
    ),
    "old opset": ({}, ["--opset", "16"], "opset=16 must be between 17 and"),
    "option": ({}, ["--option", "seed=1"], "RoBERTa-PreLayerNorm has no option seed. Its options: none"),
    "no value": ({}, ["--option", "seed"], "'seed' must be NAME=VALUE"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_ends_with_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, arguments, message = WRONG[name]
    config = transformers.RobertaPreLayerNormConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    ).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, **settings}))
    assert run("onnx", tmp_path, "-o", tmp_path / "out", "--random-init", "0", "-q", *arguments) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_kernel_sources_are_not_for_it(encoder: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="RoBERTa-PreLayerNorm needs none"):
        check(encoder[0], [encoder[1] / "onnx" / "model.onnx"], kernel_sources=tmp_path)


@pytest.mark.engine
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_engines_have_no_plugin(dtype: str, encoder: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
    pytest.importorskip("polygraphy", reason="the package polygraphy is not installed")
    from mra_export.engine.manifest import check_engine
    from mra_export.engine.runner import layers_of
    from mra_export.pipeline.build_engine import build_engine

    source = encoder[1] / "onnx" / "model.onnx"
    made = build_engine(
        source, tmp_path / "model.engine", dtype=dtype, backend="rtx", library=None, layer_outputs=True, prove=False
    ).manifest
    assert (made.plugin_layers, made.plugin_name, made.precision) == (0, "", dtype)
    assert made.inputs["input_ids"]["max"] == [32, 70]
    assert layers_of(made) == ["layer.0.Attention", "layer.1.Attention"]
    assert made.attributes == [{"num_heads": 2, "is_causal": 0, "scale": 0.25}]
    assert check_engine(tmp_path / "model.engine", plugin=tmp_path / "not there") == made
    # Checked as far as it can be without a GPU, beside the file that it was built from.
    comparisons = check(encoder[0], [tmp_path / "model.engine", source])
    assert comparisons[-1].candidate.startswith(f"model.engine {dtype}, rtx")
    with pytest.raises(InputError, match="an engine of RoBERTa-PreLayerNorm needs no plugin"):
        build_engine(source, tmp_path / "other.engine", backend="rtx", embed_plugin=True)

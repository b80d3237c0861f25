"""The range of float16: a tensor that is too large is found wherever it is, by name, and what is harmless is not."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from checkpoints import save_checkpoint
from onnx import numpy_helper

from mra_export.checkpoint.load import Checkpoint, load_checkpoint
from mra_export.export.exporter import export_onnx
from mra_export.export.half import LARGEST_FLOAT16
from mra_export.export.onnx_model import OnnxModel, read_onnx
from mra_export.export.probes import Probe
from mra_export.parity import range as module
from mra_export.parity.cases import build_cases
from mra_export.parity.comparison import Comparison, LayerRange, as_json, describe_failures
from mra_export.parity.range import MARGIN, check_range, lost_weights, recorded
from mra_export.trace import Inputs

LIMIT = LARGEST_FLOAT16 / MARGIN
SMALL: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 40, "type_vocab_size": 2, "pad_token_id": 1, "num_labels": 3,
}  # fmt: skip


def save(folder: Path, class_name: str, **settings: Any) -> Path:
    """A small checkpoint of any family; MRA's biases are not 0, the others' are."""
    if class_name.startswith("Mra"):
        return save_checkpoint(folder, class_name, **{"max_position_embeddings": 32, **settings})
    kind = getattr(transformers, class_name)
    torch.manual_seed(0)
    kind(kind.config_class(**{**SMALL, **settings})).save_pretrained(folder)
    return folder


Exported = tuple[OnnxModel, list[Inputs]]
Export = Callable[..., Exported]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A float16 file of a class, and what it is run with; each once."""

    @functools.cache
    def made(class_name: str, opset: int | None = None, **settings: Any) -> Exported:
        folder = tmp_path_factory.mktemp("range")
        return exported(load_checkpoint(save(folder / "c", class_name, **settings)), folder, opset)

    return made


def exported(checkpoint: Checkpoint, folder: Path, opset: int | None = None) -> Exported:
    model = read_onnx(export_onnx(checkpoint, folder / "o", dtype="fp16", opset=opset).model)
    cases, origin = build_cases(checkpoint)
    assert origin == "random ids"
    return model, [case.inputs for case in cases]


def filled(model: OnnxModel, name: str, value: float) -> OnnxModel:
    """The file with a parameter whose values are all the same."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    (parameter,) = (each for each in proto.graph.initializer if each.name == name)
    array = numpy_helper.to_array(parameter)
    parameter.CopyFrom(numpy_helper.from_array(np.full_like(array, value), name))
    return dataclasses.replace(model, proto=proto)


@pytest.mark.slow
def test_field_case_a2(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path / "c", "MraModel"))
    layer = checkpoint.model.encoder.layer[1]
    with torch.no_grad():
        layer.intermediate.dense.weight *= 40000
        layer.intermediate.dense.bias.fill_(60000)
        layer.output.dense.weight *= 1e-4
    found = check_range(*exported(checkpoint, tmp_path), lost=lost_weights(checkpoint.model.state_dict()))
    assert found.ok is False
    (text,) = describe_failures([found])
    assert re.match(
        r"model\.onnx fp16 is beyond float16's range \(ends at 65504, margin 2\): layer 1, intermediate\.dense: \d+\.?\d* "
        r"\(the first of 2 that are too large\); "
        r"float16 ends at 65504, and 32752 is allowed\. Use --bf16\. too small for float16: "
        r"encoder\.layer\.1\.output\.dense\.weight \(largest \d\.\de-06; \d+ of 6144 values become 0, relative error \d\.\d%\)\.$",
        text,
    ), text
    assert [each.name for each in found.ranges] == ["embeddings", "layer 0", "layer 1"]
    assert found.ranges[2].largest == found.metrics["largest_value"] > LARGEST_FLOAT16  # type: ignore[operator]
    assert [each["largest"] > LIMIT for each in as_json(found)["layers"]] == [False, False, True]
    kept = recorded([found])
    assert kept is not None
    assert (kept["limit"], kept["tensor"]) == (32752.0, "layer 1, intermediate.dense")


@pytest.mark.parametrize(
    ("class_name", "parameter", "expected"),
    [
        ("MraModel", "encoder.layer.0.attention.self.query.bias", "layer 0, attention.self.query"),
        ("MraModel", "encoder.layer.0.attention.self.key.bias", "layer 0, attention.self.key"),
        ("MraModel", "encoder.layer.1.attention.self.value.bias", "layer 1, attention.self.value"),
        ("MraModel", "encoder.layer.1.output.dense.bias", "layer 1, output.dense"),
        ("MraModel", "encoder.layer.0.output.LayerNorm.bias", "layer 0, output.LayerNorm"),
        ("MraModel", "embeddings.LayerNorm.bias", "embeddings, LayerNorm"),
        ("MraForSequenceClassification", "classifier.out_proj.bias", "classifier, out_proj"),
        ("MraForMaskedLM", "cls.predictions.decoder.bias", "cls, predictions.decoder"),
    ],
)
@pytest.mark.parametrize("value", [50000.0, -50000.0])
@pytest.mark.slow
def test_what_is_too_large_is_named(
    class_name: str, parameter: str, expected: str, value: float, export: Export
) -> None:
    model, inputs = export(class_name)
    found = check_range(filled(model, f"model.{parameter}", value), inputs)
    assert found.ok is False
    assert re.search(rf"margin 2\): {re.escape(expected)}: (49|50)\d{{3}}[.;\d]* ", describe_failures([found])[0]), (
        found.notes
    )
    assert 49000 < found.metrics["largest_value"] < 130000  # type: ignore[operator]


@pytest.mark.parametrize(
    ("class_name", "opset", "settings"),
    [
        ("MraModel", None, {}),
        ("MraForQuestionAnswering", None, {"num_labels": 2}),
        ("YosoModel", None, {}),
        ("RobertaPreLayerNormModel", 23, {}),
        ("RobertaPreLayerNormModel", 18, {}),
        ("RobertaPreLayerNormForCausalLM", 23, {"is_decoder": True}),
        ("RobertaPreLayerNormForCausalLM", 18, {"is_decoder": True}),
    ],
)
@pytest.mark.slow
def test_an_ordinary_model_passes(class_name: str, opset: int | None, settings: dict[str, Any], export: Export) -> None:
    """The mask of standard attention, -32752, is large on purpose."""
    found = check_range(*export(class_name, opset, **settings))
    assert found.ok is True, found.notes
    assert {"embeddings", "layer 0", "layer 1"} <= {each.name for each in found.ranges}
    assert 0.5 < found.metrics["largest_value"] < 50  # type: ignore[operator]
    assert found.notes == []


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
def test_logits_of_standard_attention(opset: int, tmp_path: Path) -> None:
    """Query and key fit, and their product does not."""
    checkpoint = load_checkpoint(save(tmp_path / "c", "RobertaPreLayerNormModel"))
    own = checkpoint.model.encoder.layer[1].attention.self
    with torch.no_grad():
        own.query.bias.fill_(300)
        own.key.bias.fill_(-150)
    found = check_range(*exported(checkpoint, tmp_path, opset))
    assert found.ok is False
    assert re.match(r"layer 1, (attention )?logits: \d{5,6}", found.notes[0]), found.notes
    assert all(each.largest < 400 for each in found.ranges if each.name != "layer 1")


@pytest.mark.slow
def test_the_residual_stream_of_a_model_that_normalizes_before(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path / "c", "RobertaPreLayerNormModel"))
    with torch.no_grad():
        for layer in checkpoint.model.encoder.layer:
            layer.output.dense.bias.fill_(20000)  # each fits, their sum does not
    found = check_range(*exported(checkpoint, tmp_path))
    assert found.ok is False
    assert re.match(r"layer 1, (attention\.)?output \(Add\): (39|40)\d{3}", found.notes[0]), found.notes


@pytest.mark.slow
def test_the_convolution_of_yoso(tmp_path: Path) -> None:
    """Values and weights fit; their convolution is the context."""
    checkpoint = load_checkpoint(save(tmp_path / "c", "YosoModel", conv_window=3))
    own = checkpoint.model.encoder.layer[0].attention.self
    with torch.no_grad():
        own.value.bias.fill_(200)
        own.conv.weight.fill_(300)
    found = check_range(*exported(checkpoint, tmp_path))
    assert found.ok is False
    assert re.match(
        r"layer 0, attention context: 1[78]\d{4}; layer 0|layer 0, attention context: 1[78]\d{4}", found.notes[0]
    )


@pytest.mark.slow
def test_what_saturates_may_be_infinite(tmp_path: Path) -> None:
    """GELU by tanh: the cube of 100 is beyond float16, and its tanh is 1 all the same."""
    checkpoint = load_checkpoint(save(tmp_path / "c", "MraModel", hidden_act="gelu_new"))
    with torch.no_grad():
        checkpoint.model.encoder.layer[0].intermediate.dense.bias.fill_(100)
    model, inputs = exported(checkpoint, tmp_path)
    assert "Tanh" in {node.op_type for node in model.proto.graph.node}
    found = check_range(model, inputs)
    assert found.ok is True, found.notes
    assert 90 < found.metrics["largest_value"] < 200  # type: ignore[operator]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_fails(value: float, export: Export) -> None:
    model, inputs = export("MraModel")
    found = check_range(filled(model, "model.encoder.layer.0.output.dense.bias", value), inputs)
    assert found.ok is False
    assert f"layer 0, output.dense: {value}" in found.notes[0]
    assert as_json(found)["metrics"]["largest_value"] is None


def test_between_the_margin_and_the_end(export: Export) -> None:
    """Other texts have to fit too."""
    model, inputs = export("MraModel")
    name = "model.encoder.layer.0.output.dense.bias"
    assert check_range(filled(model, name, 32000.0), inputs).ok is True
    assert check_range(filled(model, name, 33500.0), inputs).ok is False


def test_weights_that_are_too_small() -> None:
    torch.manual_seed(0)
    usual = torch.randn(64, 64) * 0.02
    tiny = torch.full((4, 4), 1e-9)
    part = usual.clone()
    part[:2] = 1e-9  # 3 % of the values
    kept = {"usual": usual, "zeros": torch.zeros(4), "ids": torch.arange(4), "large": torch.full((4,), 6e4)}
    assert lost_weights(kept) == []
    assert lost_weights({"epsilon": torch.tensor(1e-12), "tiny": tiny, "part": part, "rough": usual * 1e-4}) == [
        "epsilon (largest 1.0e-12; 1 of 1 values become 0, relative error 100.0%)",
        "tiny (largest 1.0e-09; 16 of 16 values become 0, relative error 100.0%)",
        f"part (largest {float(part.abs().max()):.1e}; 128 of 4096 values become 0, relative error 0.0%)",
        lost_weights({"rough": usual * 1e-4})[0],
    ]


def test_what_is_recorded_is_the_largest_of_the_first_that_has_ranges() -> None:
    ranges = [
        LayerRange("embeddings", "LayerNorm", 3.0),
        LayerRange("layer 0", "x", 5.0),
        LayerRange("layer 1", "y", 4.0),
    ]
    others = [
        Comparison("a", "b", {}, {}, True),
        Comparison("c", "d", {}, {"largest_value": 9.0}, True, ranges=ranges[:1]),
    ]
    assert recorded(others[:1]) is None
    assert recorded([]) is None
    assert recorded([others[0], Comparison("a", "b", {}, {"largest_value": 7.0}, True, ranges=ranges), others[1]]) == {
        "limit": 7.0,
        "largest": 5.0,
        "tensor": "layer 0, x",
        "layers": [{"name": r.name, "tensor": r.tensor, "largest": r.largest} for r in ranges],
    }


PROBES = [
    ("embeddings", "LayerNorm"),
    ("layer 0", "query"),
    ("layer 0", "output"),
    ("layer 1", "query"),
    ("layer 0", "query"),
]


def held(monkeypatch: pytest.MonkeyPatch, *runs: list[float], **settings: Any) -> Comparison:
    """The verdict on a file whose tensors, `PROBES`, have these largest values in each run; only the session is made up."""
    left = iter(runs)

    def run(names: list[str], given: Inputs) -> list[Any]:
        assert names == [f"probe_{index}" for index in range(len(PROBES))]
        assert set(given) == {"input_ids"}
        return [np.float32(value) for value in next(left)]

    session = SimpleNamespace(run=run, get_inputs=lambda: [SimpleNamespace(name="input_ids")])
    probes = [Probe(f"probe_{index}", *place) for index, place in enumerate(PROBES)]
    monkeypatch.setattr(module, "write_probed", lambda model, path: probes)
    monkeypatch.setattr(module, "open_session", lambda *_, **__: session)
    given: Inputs = {"input_ids": np.zeros((1, 1), np.int64), "attention_mask": np.ones((1, 1), np.int64)}
    model: Any = SimpleNamespace(path=Path("there") / "model.onnx")
    found = check_range(model, [given] * len(runs), **settings)
    assert next(left, None) is None
    return found


def test_the_largest_of_all_runs_and_of_all_tensors_of_a_layer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = held(monkeypatch, [1, 2, 3, 4, 5], [2, 1, 7, 3, 0], [0, 0, 0, 0, 6])
    assert found.ranges == [
        LayerRange("embeddings", "LayerNorm", 2.0),
        LayerRange("layer 0", "output", 7.0),
        LayerRange("layer 1", "query", 4.0),
    ]
    assert (found.ok, found.notes) == (True, [])
    assert (found.metrics, found.tolerance) == ({"largest_value": 7.0}, {"largest_value": 32752.0})
    assert found.reference == "float16's range (ends at 65504, margin 2)"
    assert found.candidate == "model.onnx fp16"
    assert held(monkeypatch, [1, 2, 3, 4, 5]).ranges[1] == LayerRange("layer 0", "query", 5.0)
    assert held(monkeypatch).metrics == {"largest_value": 0.0}


def test_the_first_that_is_too_large_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert held(monkeypatch, [32752, 0, 0, 0, 0]).ok is True
    found = held(monkeypatch, [0, 0, 32753.5, 1, 0])
    assert (found.ok, found.notes) == (
        False,
        ["layer 0, output: 32753.5; float16 ends at 65504, and 32752 is allowed. Use --bf16."],
    )
    found = held(monkeypatch, [0, 0, 40000, 50000, 0])
    assert found.notes[0].startswith("layer 0, output: 40000 (the first of 2 that are too large); float16 ends")


def test_the_first_that_is_not_finite_stands_for_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = held(monkeypatch, [1, 2, math.nan, math.inf, 3], [1, 9, 1, 1, 3])
    assert found.ok is False
    assert [each.tensor for each in found.ranges] == ["LayerNorm", "output", "query"]
    assert math.isnan(found.ranges[1].largest)
    assert math.isnan(found.metrics["largest_value"] or 0.0)
    assert found.notes[0].startswith("layer 0, output: nan (the first of 2 that are too large)")
    found = held(monkeypatch, [1, math.inf, math.nan, 1, 3])
    assert found.ranges[1] == LayerRange("layer 0", "query", math.inf)


@pytest.mark.parametrize(
    ("count", "said"), [(1, "a."), (3, "a; b; c."), (4, "a; b; c and 1 more."), (5, "a; b; c and 2 more.")]
)
def test_weights_that_are_lost_are_said_and_pass(count: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = held(monkeypatch, [1, 2, 3, 4, 5], lost=list("abcde")[:count])
    assert (found.ok, found.notes) == (True, [f"too small for float16: {said}"])


def test_progress_says_where_the_ids_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for origin in ("", "text"):
        held(monkeypatch, [0] * 5, origin=origin, progress=said.append)
    assert said == ["model.onnx fp16: the range of its tensors", "model.onnx fp16: the range of its tensors on text"]

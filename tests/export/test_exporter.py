"""Checkpoint -> ONNX: every task, type and length; the file's form; what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from checkpoints import save_checkpoint

import mra_export.export.exporter as export_module
from mra_export.checkpoint.load import load_checkpoint
from mra_export.checkpoint.modules import Normalize, Pooling, read_modules
from mra_export.checkpoint.tasks import TASKS
from mra_export.checkpoint.text import read_contract
from mra_export.errors import InputError, MraExportError
from mra_export.export import onnx_model
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import MODEL_FILE, read_onnx
from mra_export.runners.onnx_reference import OnnxReferenceRunner
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.torch import SpecificationRunner
from mra_export.version import __version__

CLASSES = {
    "feature-extraction": "MraModel",
    "fill-mask": "MraForMaskedLM",
    "text-classification": "MraForSequenceClassification",
    "multiple-choice": "MraForMultipleChoice",
    "token-classification": "MraForTokenClassification",
    "question-answering": "MraForQuestionAnswering",
}


def random_inputs(shape: tuple[int, ...], types: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.ones(shape, np.int64)
    if shape[0] > 1:
        mask[1, ..., shape[-1] * 2 // 3 + 1 :] = 0
    inputs = {"input_ids": rng.integers(0, 120, shape), "attention_mask": mask}
    return {**inputs, "token_type_ids": inputs["input_ids"] % 2} if types else inputs


def close(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], mask: np.ndarray, limit: float) -> None:
    assert set(actual) == set(expected)
    for name, want in expected.items():
        got = actual[name]
        assert got.shape == want.shape
        assert got.dtype == np.float32
        if want.shape[: mask.ndim] == mask.shape:
            got, want = got[mask.astype(bool)], want[mask.astype(bool)]
        assert np.linalg.norm(got - want) <= limit * np.linalg.norm(want), name


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=[pytest.mark.slow] * (task != "feature-extraction")) for task in CLASSES]
)
def test_every_task(task: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "c", CLASSES[task]))
    assert checkpoint.task.name == task  # chosen from the architecture
    seen: list[Path] = []

    def finish(stage: Path) -> None:
        assert (stage / MODEL_FILE).is_file()
        assert not (tmp_path / "o").exists()
        seen.append(stage)

    result = export_onnx(checkpoint, tmp_path / "o", finish=finish)
    assert len(seen) == 1
    assert (result.directory, result.model) == (tmp_path / "o", tmp_path / "o" / MODEL_FILE)
    assert (result.task, result.dtype, result.opset, result.attention_nodes) == (task, "fp32", 20, 2)
    assert result.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert result.size_bytes == result.model.stat().st_size
    assert result.outputs == TASKS[task].outputs
    model = read_onnx(result.model)
    runner, reference = OnnxRuntimeRunner(model), SpecificationRunner(checkpoint)
    for seq_len in (1, 31, 64, 256):
        shape = (3, 2, seq_len) if task == "multiple-choice" else (2, seq_len)
        inputs = random_inputs(shape)
        close(runner.run(inputs), reference.run(inputs), inputs["attention_mask"], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "limit"), [("fp16", 2e-2), ("bf16", 1e-1)])
def test_half_types_keep_their_interface(dtype: str, limit: float, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "c"))
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    result = export_onnx(checkpoint, tmp_path / "o", dtype=dtype, pooling="mean", normalize=True)
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    model = onnx.load(str(result.model))
    assert {i.type.tensor_type.elem_type for i in model.graph.input} == {onnx.TensorProto.INT64}
    assert {o.type.tensor_type.elem_type for o in model.graph.output} == {onnx.TensorProto.FLOAT}
    half = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[dtype]
    weights = [
        i.data_type for i in model.graph.initializer if len(i.dims) == 2 and i.data_type != onnx.TensorProto.INT64
    ]
    assert weights
    assert set(weights) == {half}
    described = read_onnx(result.model)
    assert described.dtype == dtype
    inputs = random_inputs((2, 40))
    runner = OnnxRuntimeRunner(described) if dtype == "fp16" else OnnxReferenceRunner(described)
    reference = SpecificationRunner(checkpoint, (Pooling(("mean",)), Normalize()))
    close(runner.run(inputs), reference.run(inputs), inputs["attention_mask"], limit)


@pytest.mark.slow
def test_the_file_is_deterministic_and_tells_nothing_of_this_machine(tiny_checkpoint: Path, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        result = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / name)
        files.append(result.model.read_bytes())
    assert files[0] == files[1]
    for word in (str(Path(export_module.__file__).parent), str(tmp_path), "site-packages", ".py", "torch/"):
        assert word.encode() not in files[0], word


def test_one_mask_and_one_function_serve_all_layers(tiny_export: Path) -> None:
    model = onnx.load(str(tiny_export / MODEL_FILE))
    nodes = [n for n in model.graph.node if n.domain == "mra"]
    assert [n.name for n in nodes] == ["layer.0.Mra2Attention", "layer.1.Mra2Attention"]
    masks = {n.input[3] for n in nodes}
    assert len(masks) == 1
    producers = [n for n in model.graph.node if n.output[0] in masks]
    assert [n.op_type for n in producers] == ["Cast"]
    assert [(f.domain, f.name) for f in model.functions] == [("mra", "Mra2Attention")]
    axes = [[d.dim_param for d in i.type.tensor_type.shape.dim] for i in model.graph.input]
    assert axes == [["batch", "sequence"]] * 3
    onnx.checker.check_model(model, full_check=True)


def test_what_a_file_says_of_itself(tiny_export: Path) -> None:
    model = onnx.load(str(tiny_export / MODEL_FILE))
    assert {each.key: each.value for each in model.metadata_props} == {
        "task": "feature-extraction",
        "dtype": "fp32",
        "family": "mra",
        "max_seq_len": "256",
        "vocab_size": "120",
        "pad_token_id": "1",
        "length_step": "32",
    }
    assert (model.producer_name, model.producer_version, model.graph.name) == ("mra-export", __version__, "mra")
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"embeddings.Add", "embeddings.Add_2", "encoder.layer.1.attention.self.value.MatMul"} <= set(names)
    parts = (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer, model.graph, model)
    assert not any(each.doc_string for each in parts)
    assert not any(each.metadata_props for each in parts[:-1])


@pytest.mark.parametrize(
    ("task", "longest", "shape", "opset", "asked"),
    [
        ("feature-extraction", 512, (2, 40), 17, 18),
        ("fill-mask", 24, (2, 24), 18, 18),
        ("multiple-choice", 512, (2, 3, 40), 20, 20),
    ],
)
def test_what_the_exporter_is_asked_for(
    task: str, longest: int, shape: tuple[int, ...], opset: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each axis has a name, the last one a limit, and no size is one that the exporter takes for a constant."""
    taken: dict[str, Any] = {}

    def export(module: str, example: tuple[torch.Tensor, ...], **options: Any) -> Any:
        taken.update(options, module=module, example=example)
        return SimpleNamespace(model="the program")

    monkeypatch.setattr(torch.onnx, "export", export)
    monkeypatch.setattr(export_module, "_wrapped", lambda *_: "the module")
    checkpoint: Any = SimpleNamespace(
        task=SimpleNamespace(name=task), family=SimpleNamespace(max_seq_len=lambda config: longest), config=None
    )
    contract: Any = None
    names = ("input_ids", "attention_mask", "token_type_ids")
    made: Any = export_module._trace(checkpoint, names, ("logits",), torch.float32, opset, contract)
    assert (made, taken["module"]) == ("the program", "the module")
    assert [tuple(each.shape) for each in taken["example"]] == [shape] * 3
    assert {each.dtype for each in taken["example"]} == {torch.int64}
    assert [float(each.float().mean()) for each in taken["example"]] == [0.0, 1.0, 0.0]
    axes = ["batch", "choices", "sequence"] if len(shape) == 3 else ["batch", "sequence"]
    for dims in taken["dynamic_shapes"]:
        assert {axis: dim.__name__ for axis, dim in dims.items()} == dict(enumerate(axes))
        assert dims[len(axes) - 1].max == longest
    assert (taken["input_names"], taken["output_names"]) == (list(names), ["logits"])
    assert (taken["opset_version"], taken["dynamo"], taken["verbose"]) == (asked, True, False)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    with pytest.raises(MraExportError, match=r"torch\.onnx\.export returned nothing"):
        export_module._trace(checkpoint, names, ("logits",), torch.float32, opset, contract)


def test_nodes_are_named_by_their_modules() -> None:
    def node(operator: str, scopes: str | None, domain: str = "") -> ir.Node:
        properties = {} if scopes is None else {"pkg.torch.onnx.name_scopes": scopes}
        return ir.node(operator, [], domain=domain, name="before", metadata_props=properties)

    nodes = [
        node("Add", "['', 'model', 'model.pooler', 'add']"),
        node("Add", "['', 'model', 'model.pooler', 'add_1']"),
        node("Mul", "['', 'model', 'model.pooler', 'mul']"),
        node("Add", "['', 'model', 'model.pooler', 'add_2']"),
        node("Mra2Attention", "['', 'model', 'model.pooler', 'attention']", "mra"),
        node("Cast", "['', 'to']"),
        node("Cast", "['model.x', 'to']"),
        node("Cast", "['to']"),
        node("Cast", None),
        node("Sub", "['', 'model', 'sub']"),
    ]
    export_module._name_nodes(ir.Graph([], [], nodes=nodes))
    kept = ["before"] * 3
    assert [each.name for each in nodes] == [
        "pooler.Add", "pooler.Add_2", "pooler.Mul", "pooler.Add_3", "before", "before", "x.Cast", *kept,
    ]  # fmt: skip


@pytest.mark.parametrize(("stated", "noted"), [(7, 7), (0, 0), (None, 0), ([1, 2], 0)])
def test_what_a_server_holds_against_its_settings(stated: object, noted: int) -> None:
    family = SimpleNamespace(max_seq_len=lambda config: config.vocab_size - 1, length_step=16)
    checkpoint: Any = SimpleNamespace(family=family, config=SimpleNamespace(vocab_size=50, pad_token_id=stated))
    assert export_module._served_facts(checkpoint) == {
        "max_seq_len": 49,
        "vocab_size": 50,
        "pad_token_id": noted,
        "length_step": 16,
    }


def test_modules_that_a_task_leaves_out_are_named(tmp_path: Path) -> None:
    assert export_module._unused(tmp_path, "fill-mask") == []
    (tmp_path / "modules.json").touch()
    assert export_module._unused(tmp_path, "feature-extraction") == []
    (note,) = export_module._unused(tmp_path, "fill-mask")
    assert note.endswith("modules.json is for embeddings, and fill-mask gives none: --task feature-extraction does.")


def test_a_weight_beyond_the_type_is_named(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    contract = read_contract(tiny_checkpoint)
    weight = checkpoint.model.encoder.layer[1].output.dense.bias
    with torch.no_grad():
        weight[3] = -70000.0
    with pytest.raises(
        InputError, match=r"layer\.1\.output\.dense\.bias reaches 70000, beyond .* can hold \(65504\)\. .* --bf16"
    ):
        export_module._wrapped(checkpoint, ("last_hidden_state",), torch.float16, contract)
    export_module._wrapped(checkpoint, ("last_hidden_state",), torch.bfloat16, contract)
    assert weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "is_refused"),
    [
        ({"pooling": "mean"}, True),
        ({"normalize": True}, True),
        ({"pooling": "none", "normalize": True}, True),
        ({"pooling": "none"}, False),
        ({"normalize": False}, False),
    ],
)
def test_pooling_is_for_embeddings(
    options: dict[str, Any], is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(export_module, "read_contract", reached)
    checkpoint: Any = SimpleNamespace(
        family=SimpleNamespace(min_opset=17, default_opset=20),
        task=SimpleNamespace(name="fill-mask"),
        directory=tmp_path,
    )
    error = (
        pytest.raises(InputError, match="needs the task feature-extraction; this is fill-mask")
        if is_refused
        else (pytest.raises(ZeroDivisionError))
    )
    with error:
        export_onnx(checkpoint, tmp_path / "o", **options)


@pytest.mark.parametrize(("opset", "is_refused"), [(16, True), (17, False), (25, False), (26, True)])
def test_the_oldest_and_the_newest_opset(
    opset: int, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 30)
    checkpoint: Any = SimpleNamespace(family=SimpleNamespace(min_opset=17), task=SimpleNamespace(name="fill-mask"))
    message = f"opset={opset} must be between 17 and 25" if is_refused else "dtype='x' must be one of fp32, fp16, bf16"
    with pytest.raises(InputError, match=message):
        export_onnx(checkpoint, tmp_path / "o", opset=opset, dtype="x")


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 21, 23, 25])
def test_the_opset_is_selectable(opset: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    result = export_onnx(checkpoint, tmp_path / "o", opset=opset)
    assert {(o.domain, o.version) for o in onnx.load(str(result.model)).opset_import} == {("", opset), ("mra", 1)}
    inputs = random_inputs((2, 70))
    expected = SpecificationRunner(checkpoint).run(inputs)
    close(OnnxRuntimeRunner(read_onnx(result.model)).run(inputs), expected, inputs["attention_mask"], 1e-4)


@pytest.mark.slow
def test_large_weights_go_to_a_file_of_their_own(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    inside = export_onnx(checkpoint, tmp_path / "inside")
    monkeypatch.setattr(onnx_model, "EXTERNAL_DATA_THRESHOLD", 1000)
    outside = export_onnx(checkpoint, tmp_path / "outside")
    assert (outside.directory / "onnx" / "model.onnx_data").stat().st_size > 100_000
    assert outside.model.stat().st_size < inside.model.stat().st_size / 2
    inputs = random_inputs((2, 70))
    runs = [OnnxRuntimeRunner(read_onnx(r.model)) for r in (inside, outside)]
    for a, b in zip(*(r.run(inputs).values() for r in runs), strict=True):
        assert np.array_equal(a, b)
    assert len(runs[1].trace(inputs).layers) == 2


@pytest.mark.slow
def test_a_model_without_token_types_has_no_such_input(tmp_path: Path) -> None:
    result = export_onnx(load_checkpoint(save_checkpoint(tmp_path / "c", type_vocab_size=1)), tmp_path / "o")
    assert result.inputs == ("input_ids", "attention_mask")
    assert set(OnnxRuntimeRunner(read_onnx(result.model)).run(random_inputs((2, 40), types=False))) == {
        "last_hidden_state"
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"max_position_embeddings": 512, "block_per_row": 4, "num_hidden_layers": 12},
        # The layers are alike, and long ones slow: two show what the length changes.
        {
            "max_position_embeddings": 4096,
            "block_per_row": 8,
            "initial_prior_diagonal_n_blocks": 3,
            "num_hidden_layers": 2,
        },
    ],
    ids=["512-4", "4096-8"],
)
def test_the_published_configurations_at_full_width(settings: dict, tmp_path: Path) -> None:
    full_size = {
        "vocab_size": 50265,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "type_vocab_size": 1,
    }
    source = save_checkpoint(tmp_path / "c", "MraForMaskedLM", **full_size, **settings)
    checkpoint = load_checkpoint(source)
    result = export_onnx(checkpoint, tmp_path / "o")
    assert result.attention_nodes == settings["num_hidden_layers"]
    inputs = random_inputs((1, settings["max_position_embeddings"]), types=False)
    logits = OnnxRuntimeRunner(read_onnx(result.model)).run(inputs)["logits"]
    expected = SpecificationRunner(checkpoint).run(inputs)["logits"]
    # At full length a tie within rounding may fall differently in some head: the check proper looks into that.
    per_token = np.linalg.norm(logits - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert np.median(per_token) < 1e-4


def test_pooling_follows_the_checkpoint_and_can_be_changed(minilm: Path, tmp_path: Path) -> None:
    assert read_modules(minilm)[0] == (Pooling(("mean",)), Normalize())
    checkpoint = load_checkpoint(minilm)
    own = export_onnx(checkpoint, tmp_path / "own")
    assert own.outputs == ("last_hidden_state", "sentence_embedding")
    assert read_modules(own.directory)[0] == (Pooling(("mean",)), Normalize())
    changed = export_onnx(checkpoint, tmp_path / "changed", pooling="cls", normalize=False)
    assert read_modules(changed.directory)[0] == (Pooling(("cls",)),)
    none = export_onnx(checkpoint, tmp_path / "none", pooling="none")
    assert none.outputs == ("last_hidden_state",)
    assert not (none.directory / "modules.json").exists()
    assert [(folder / "1_Pooling").is_dir() for folder in (minilm, own.directory, none.directory)] == [
        True,
        True,
        False,
    ]
    assert (none.directory / "tokenizer.json").is_file()
    inputs = random_inputs((2, 40))
    runs = [OnnxRuntimeRunner(read_onnx(r.model)).run(inputs) for r in (own, changed)]
    assert np.allclose(np.linalg.norm(runs[0]["sentence_embedding"], axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(runs[1]["sentence_embedding"], runs[1]["last_hidden_state"][:, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 16}, "opset=16 must be between 17 and"),
        ({"opset": 99}, "opset=99 must be between 17 and"),
        ({"dtype": "int8"}, "dtype='int8' must be one of"),
        ({"pooling": "first"}, "pooling='first' must be one of none, cls, max"),
        ({"pooling": "none", "normalize": True}, "needs --pooling, one of cls, max"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "o", **options)
    assert not list(tmp_path.iterdir())


def test_a_stock_session_needs_no_library(tiny_export: Path) -> None:
    session = onnxruntime.InferenceSession(str(tiny_export / MODEL_FILE), providers=["CPUExecutionProvider"])
    inputs = random_inputs((4, 33))
    assert session.run(None, inputs)[0].shape == (4, 33, 64)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        session.run(None, {**inputs, "input_ids": inputs["input_ids"].astype(np.float32)})

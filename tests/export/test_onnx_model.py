"""What is read of an exported file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mra_export.errors import InputError
from mra_export.export import onnx_model
from mra_export.export.half import convert
from mra_export.export.onnx_model import OnnxModel, find_onnx, layer_constants, read_onnx, save_program
from mra_export.families._base import OnnxLayer


def test_the_limit_is_read_from_the_configuration_or_from_the_file(model: Path, tmp_path: Path) -> None:
    assert read_onnx(model).position_limit == 256
    shutil.copy(model, tmp_path / "alone.onnx")
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 256  # the table of positions
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 100}')
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 100
    (tmp_path / "config.json").write_text("not json")
    assert read_onnx(tmp_path / "alone.onnx").position_limit == 256


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with pytest.raises(InputError, match=r"model\.onnx is a pointer of Git LFS, not the file itself"):
        read_onnx(path)


def test_a_directory_that_is_no_export_is_a_checkpoint(tiny_checkpoint: Path, tiny_export: Path) -> None:
    assert find_onnx(tiny_checkpoint) is None
    assert find_onnx(tiny_export) == tiny_export / "onnx" / "model.onnx"


@pytest.mark.parametrize("first", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_type_is_that_of_the_weights_and_not_of_a_constant(first: int, model: Path, tmp_path: Path) -> None:
    """A half file keeps some constants in float32; which of its tensors stands first says nothing."""
    half = convert(read_onnx(model), "fp16", tmp_path / "half.onnx").path
    for path, expected in ((half, "fp16"), (model, "fp32")):
        proto = onnx.load(path)
        proto.graph.initializer.insert(0, helper.make_tensor("constant", first, [2], [1.0, 2.0]))
        onnx.save(proto, tmp_path / "other.onnx")
        assert read_onnx(tmp_path / "other.onnx").dtype == expected


POSITIONS = "embeddings.position_embeddings.weight"


def weight(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> Any:
    return TensorProto(name=name, dims=shape, data_type=kind, raw_data=b"")


def described(
    path: Path,
    weights: Sequence[Any] = (),
    nodes: Sequence[Any] = (),
    metadata: dict[str, str] | None = None,
    **family: Any,
) -> OnnxModel:
    """A file as it was read, of a family whose models end 2 positions before their table."""
    axes = {"input_ids": ["batch", 7], "attention_mask": ["batch", "sequence"]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, each) for name, each in axes.items()]
    proto = helper.make_model(helper.make_graph(nodes, "g", inputs, [], weights))
    stub: Any = SimpleNamespace(
        **{"first_position": 2, "max_seq_len": lambda config: config.max_position_embeddings - 2, **family}
    )
    attention = [
        helper.make_node("Own", ["q", "k", "v", "m", *constants], ["c"]) for constants in (["x", "y"], ["y", "z"])
    ]
    layers = [
        OnnxLayer(f"layer.{index}", "q", "k", "v", "c", SimpleNamespace(as_dict=lambda n=n: {"heads": n}), node)
        for index, (n, node) in enumerate(zip((2, 2, 3, 2), (*attention, None, None), strict=True))
    ]
    return OnnxModel(path, stub, layers, tuple(axes), ("y",), "fp32", None, 20, [], metadata or {}, proto)


def test_what_is_seen_in_a_file() -> None:
    model = described(Path("d") / "m.onnx")
    assert len(model.nodes) == 2
    assert [each.as_dict() for each in model.attributes] == [{"heads": n} for n in (2, 2, 3, 2)]
    assert model.stated_attributes == [{"heads": n} for n in (2, 2, 3, 2)]
    model.layers[2:] = []
    assert model.stated_attributes == [{"heads": 2}]
    assert model.input_axes == {"input_ids": ["batch", 7], "attention_mask": ["batch", "sequence"]}
    assert model.directory == Path("d")
    assert described(Path("d") / "onnx" / "m.onnx").directory == Path("d")


def test_the_files_of_a_model_are_its_own_and_its_data_by_name() -> None:
    weights = []
    for name, file in (("a", "z.data"), ("b", "c.data"), ("c", "z.data")):
        weights.append(weight(name, 3))
        onnx.external_data_helper.set_external_data(weights[-1], file, 4, 12)
    assert described(Path("d") / "m.onnx", [*weights, weight("d", 3)]).files == [
        Path("d") / "m.onnx",
        Path("d") / "c.data",
        Path("d") / "z.data",
    ]


def test_the_smallest_limit_of_positions_counts(tmp_path: Path) -> None:
    def limit(*weights: Any, metadata: dict[str, str] | None = None) -> int | None:
        return described(tmp_path / "onnx" / "model.onnx", list(weights), metadata=metadata).position_limit

    assert limit() is None
    assert limit(weight("other.weight", 5, 3), weight(POSITIONS, 5)) is None
    assert limit(weight(POSITIONS, 66, 3)) == 64
    assert limit(weight(POSITIONS, 66, 3), metadata={"max_seq_len": "70"}) == 70  # the exporter knows better
    (tmp_path / "onnx").mkdir()
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 52}')
    assert (limit(), limit(weight(POSITIONS, 66, 3)), limit(metadata={"max_seq_len": "70"})) == (50, 50, 50)
    assert limit(metadata={"max_seq_len": "40"}) == 40
    (tmp_path / "onnx" / "config.json").write_text('{"max_position_embeddings": 32}')
    assert limit() == 30
    (tmp_path / "onnx" / "config.json").write_text("[]")
    assert limit() == 50
    (tmp_path / "config.json").write_text("{}")
    assert limit(weight(POSITIONS, 66, 3)) == 64


@pytest.mark.parametrize(
    ("nodes", "rows"),
    [
        ([("Gather", "words input_ids")], 9),
        ([("Cast", "input_ids"), ("Identity", "Cast"), ("Reshape", "Identity shape"), ("Gather", "words Reshape")], 9),
        ([("Gather", "types attention_mask"), ("Gather", "words input_ids")], 9),
        ([("Add", "input_ids input_ids"), ("Gather", "words Add")], None),
        ([("Gather", "flat input_ids")], None),
        ([("Gather", "input_ids words")], None),
        ([("Mul", "words input_ids")], None),
        ([], None),
    ],
)
def test_the_vocabulary_is_the_table_that_the_ids_look_up(nodes: list[tuple[str, str]], rows: int | None) -> None:
    made = [helper.make_node(operator, inputs.split(), [operator]) for operator, inputs in nodes]
    weights = [weight("types", 2, 3), weight("words", 9, 3), weight("flat", 5)]
    assert described(Path("m.onnx"), weights, made).vocabulary == rows


def test_the_constants_of_attention_nodes(tmp_path: Path) -> None:
    values = {"x": [1.0], "y": [2.0, 3.0], "z": [4.0], "w": [5.0]}
    weights = [numpy_helper.from_array(np.array(value, np.float16), name) for name, value in values.items()]
    found = layer_constants(described(tmp_path / "m.onnx", weights))
    assert [[each.tolist() for each in layer] for layer in found] == [[[1.0], [2.0, 3.0]], [[2.0, 3.0], [4.0]]]
    assert {str(each.dtype) for layer in found for each in layer} == {"torch.float32"}
    with pytest.raises(InputError, match=r"m\.onnx: the constant y of an attention node is not in the file"):
        layer_constants(described(tmp_path / "m.onnx", [weights[0]]))


def test_the_options_that_the_exporter_noted() -> None:
    option = SimpleNamespace(default=3, help="a number", check=lambda value: None)
    options = {"rounds": option, "seed": SimpleNamespace(default=0.5, help="a number", check=lambda value: None)}
    metadata = {"option.rounds": "7", "option.other": "1", "rounds": "9"}
    assert described(Path("m.onnx"), metadata=metadata, options=options).options == {"rounds": 7, "seed": 0.5}


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ([], "fp32"),
        ([weight("ids", 1000, kind=TensorProto.INT64)], "fp32"),
        ([weight("ids", 1000, kind=TensorProto.INT64), weight("w", 2, 3, kind=TensorProto.BFLOAT16)], "bf16"),
        ([weight("a", 3), weight("b", 2, 2, kind=TensorProto.FLOAT16)], "fp16"),
        ([weight("a", 5), weight("b", 2, 2, kind=TensorProto.FLOAT16)], "fp32"),
        ([weight("a", 5), *(weight(n, 3, kind=TensorProto.FLOAT16) for n in "bc")], "fp16"),
    ],
)
def test_the_type_is_that_of_most_weights(weights: list[Any], dtype: str) -> None:
    assert onnx_model._dtype(SimpleNamespace(initializer=weights)) == dtype


@pytest.mark.parametrize(
    ("offset", "length", "size", "is_whole"), [(4, 8, 12, True), (4, 8, 11, False), (None, None, 0, True)]
)
def test_data_that_was_cut_off_is_named(
    offset: int | None, length: int | None, size: int, is_whole: bool, tmp_path: Path
) -> None:
    data = weight("far", 2)
    onnx.external_data_helper.set_external_data(data, "m.data", offset, length)
    graph = SimpleNamespace(graph=SimpleNamespace(initializer=[weight("near", 2), data]))
    with pytest.raises(InputError, match=r"m\.onnx needs m\.data beside it, which is not there"):
        onnx_model._check_external_data(tmp_path / "m.onnx", graph)
    (tmp_path / "m.data").write_bytes(b"x" * size)
    if is_whole:
        onnx_model._check_external_data(tmp_path / "m.onnx", graph)
    else:
        with pytest.raises(InputError, match=r"m\.data has 11 bytes, but far reaches to byte 12: it was cut off"):
            onnx_model._check_external_data(tmp_path / "m.onnx", graph)


def test_the_file_that_a_path_names(tmp_path: Path) -> None:
    assert find_onnx(tmp_path / "nowhere") is None
    (tmp_path / "onnx").mkdir()
    for name in ("b.onnx", "onnx/a.onnx", "x.bin"):
        (tmp_path / name).touch()
    assert find_onnx(tmp_path / "b.onnx") == tmp_path / "b.onnx"
    assert find_onnx(tmp_path / "x.bin") is None
    with pytest.raises(InputError, match=r"holds several ONNX files: b\.onnx, a\.onnx\. Name one of them"):
        find_onnx(tmp_path)
    (tmp_path / "b.onnx").unlink()
    assert find_onnx(tmp_path) == tmp_path / "onnx" / "a.onnx"
    (tmp_path / "onnx" / "model.onnx").touch()
    assert find_onnx(tmp_path) == tmp_path / "onnx" / "model.onnx"
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match=r"model\.onnx, model\.onnx\. Name one"):
        find_onnx(tmp_path)


def test_what_is_no_file_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"nowhere\.onnx does not exist\.$"):
        read_onnx(tmp_path / "nowhere.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(InputError, match=r"empty\.onnx is not a readable ONNX file: it has no graph"):
        read_onnx(tmp_path / "empty.onnx")

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("the reason\nand a stack")

    monkeypatch.setattr(onnx, "load", fail)
    with pytest.raises(InputError, match=r"empty\.onnx is not a readable ONNX file: the reason$"):
        read_onnx(tmp_path / "empty.onnx")


@pytest.mark.parametrize(("limit", "is_outside"), [(80, False), (79, True)])
def test_weights_beyond_the_limit_go_to_a_file_of_their_own(
    limit: int, is_outside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_model, "EXTERNAL_DATA_THRESHOLD", limit)
    values = [ir.Value(name=name, const_value=ir.tensor(np.ones((5, 2), np.float32))) for name in "ab"]
    graph = ir.Graph([], [], nodes=[ir.node("Add", values)], initializers=values, opset_imports={"": 18})
    save_program(ir.Model(graph, ir_version=8), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx_data").is_file() is is_outside
    loaded = onnx.load(tmp_path / "m.onnx")
    assert [numpy_helper.to_array(each).sum() for each in loaded.graph.initializer] == [10.0, 10.0]

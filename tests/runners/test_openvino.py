"""Exported files in OpenVINO, with the native operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from yoso_cases import draw
from yoso_models import ALL, error, feeds, yoso_model

from mra_export.checkpoint.load import load_checkpoint
from mra_export.export.onnx_model import OnnxModel, read_onnx
from mra_export.native.libraries import find_library
from mra_export.numerics import relative_error
from mra_export.openvino.core import compile_model, open_core
from mra_export.operators.mra2_attention.reference import mra2_attention
from mra_export.operators.yoso_attention.reference import yoso_attention
from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes
from mra_export.pipeline.check import check
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.openvino import OpenVinoRunner

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def library(extension: Path) -> Path:
    return extension


@pytest.fixture(scope="module")
def model(tiny_export: Path) -> OnnxModel:
    return read_onnx(tiny_export / "onnx" / "model.onnx")


def inputs_of(batch: int, seq_len: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seq_len)
    mask = np.ones((batch, seq_len), np.int64)
    mask[-1, seq_len - seq_len // 3 :] = 0
    ids = generator.integers(0, 100, (batch, seq_len))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def test_the_operator_alone_is_the_specification(library: Path, model: OnnxModel) -> None:
    attributes = model.attributes[0]
    generator = torch.Generator().manual_seed(1)
    hidden = attributes.num_heads * 16
    query, key, value = (torch.randn(2, 75, hidden, generator=generator) for _ in range(3))
    mask = torch.ones(2, 75, dtype=torch.int32)
    mask[1, 60:] = 0
    found = OpenVinoRunner(model, library=library).run_operator(
        attributes, [tensor.numpy() for tensor in (query, key, value)], mask.numpy()
    )
    assert found is not None
    truth = mra2_attention(query.double(), key.double(), value.double(), mask, attributes)
    assert relative_error(found, truth.numpy()) <= 1e-5


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("bf16", 3e-2)])
def test_outputs_are_those_of_onnx_runtime(library: Path, model: OnnxModel, precision: str, limit: float) -> None:
    runner, other = OpenVinoRunner(model, library=library, precision=precision), OnnxRuntimeRunner(model)
    for batch, seq_len in ((1, 1), (2, 33), (3, 64)):
        inputs = inputs_of(batch, seq_len)
        got, want = runner.run(inputs), other.run(inputs)
        assert set(got) == set(want)
        keep = inputs["attention_mask"] != 0
        for name in want:
            error = relative_error(got[name][keep], want[name][keep])
            assert error <= limit
            assert precision == "fp32" or error > 1e-4  # it was bfloat16


def test_an_empty_batch(library: Path, model: OnnxModel) -> None:
    found = OpenVinoRunner(model, library=library).run(inputs_of(1, 8) | {k: v[:0] for k, v in inputs_of(1, 8).items()})
    assert found["last_hidden_state"].shape[0] == 0


@pytest.mark.slow
def test_check_judges_both_precisions(library: Path, tiny_checkpoint: Path, tiny_export: Path) -> None:
    found = check(
        load_checkpoint(tiny_checkpoint), [tiny_export / "onnx" / "model.onnx"], runtimes=["openvino"], max_seq_len=96
    )
    assert [c.ok for c in found] == [True] * 4
    assert [("fp32" in c.candidate, "bf16" in c.candidate) for c in found] == [(True, False)] * 2 + [(False, True)] * 2
    assert all("OpenVINO (native operator)" in c.candidate for c in found)


@pytest.mark.slow
def test_texts_are_judged_by_the_type_of_the_file(
    library: Path, sentence_checkpoint: Path, sentence_export: Path
) -> None:
    """Not by bfloat16, in which the file is run last; and tensors that OpenVINO merges keep all of their names."""
    exported = sentence_export / "onnx" / "model.onnx"
    found = check(load_checkpoint(sentence_checkpoint), [exported], runtimes=["openvino"], max_seq_len=64)
    assert [comparison.ok for comparison in found] == [True] * 5
    assert found[-1].candidate == "tokenizer.json + model.onnx fp32, OpenVINO (native operator)"
    assert found[-1].tolerance["relative_error"] == 1e-4


@ALL
@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])  # in the extension, and as a node in Python
def test_the_other_operator(library: Path, attributes: YosoAttentionAttributes, kind: str) -> None:
    drawn = draw(1, attributes, 24, 150)
    tensors, constants = [x.float() for x in drawn[:3]], drawn[3:]
    constants = [c if c.dtype == torch.int32 else c.float() for c in constants]
    mask = (torch.rand(2, 150, generator=torch.Generator().manual_seed(0)) < 0.8).int()
    core = open_core(find_library(kind))
    model = core.read_model(yoso_model(attributes, 24, constants, functions=False).SerializeToString())
    found = compile_model(core, model, "fp32")(feeds(tensors, mask))
    assert error(next(iter(found.values())), yoso_attention(*tensors, mask, attributes, *constants)) <= 2e-5

"""RoBERTa-PreLayerNorm through export, ONNX Runtime and the parity check, against transformers' eager attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from mra_export.check import check
from mra_export.checkpoint import Checkpoint, load_checkpoint
from mra_export.export import ExportResult, Pooling, export_onnx
from mra_export.runners import OnnxRuntimeRunner, TransformersRunner, read_onnx

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


@pytest.fixture(scope="module", params=CLASSES)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, ExportResult]:
    """Each class, exported with the defaults."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = load_checkpoint(save(folder / "c", CLASSES[request.param]))
    return checkpoint, export_onnx(checkpoint, folder / "o")


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
    inputs = {"attention_mask": masks(shape), "token_type_ids": generator.integers(0, 2, shape)}
    for ids in (generator.integers(0, 60, shape), np.where(masks(shape) == 1, generator.integers(2, 60, shape), PAD)):
        inputs["input_ids"] = ids
        expected = TransformersRunner(checkpoint, Pooling()).run(inputs)
        actual = OnnxRuntimeRunner(read_onnx(result.model)).run(inputs)
        assert tuple(actual) == checkpoint.task.outputs
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

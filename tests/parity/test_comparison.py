"""What is said of comparisons, as sentences and as plain data."""

from __future__ import annotations

import json
import math

import numpy as np

from mra_export.operators.judge import LayerReport
from mra_export.parity.comparison import CaseReport, Comparison, LayerRange, as_json, describe_failures


def test_a_sentence_for_each_that_failed() -> None:
    ranges = [LayerRange("layer 0", "x", 7e4)]
    comparisons = [
        Comparison("PyTorch", "a.onnx", {}, {}, True, ["not said"]),
        Comparison("PyTorch", "b.onnx", {}, {}, None, ["not said"]),
        Comparison("PyTorch", "c.onnx", {}, {}, False),
        Comparison("float16's range", "d.onnx", {}, {}, False, ["One.", "Two."], ranges=ranges),
    ]
    assert describe_failures(comparisons) == [
        "c.onnx is not PyTorch: see the numbers",
        "d.onnx is beyond float16's range: One. Two.",
    ]


def test_one_that_could_not_be_made() -> None:
    comparison = Comparison.not_judged("TensorRT", "a.onnx", "no GPU here.")
    assert (comparison.reference, comparison.candidate, comparison.ok) == ("TensorRT", "a.onnx", None)
    assert (comparison.metrics, comparison.tolerance, comparison.notes) == ({}, {}, ["no GPU here."])
    assert describe_failures([comparison]) == []


def test_plain_data_has_no_numbers_that_json_lacks() -> None:
    comparison = Comparison(
        "PyTorch",
        "a.onnx",
        {"relative_error": math.nan, "cosine_min": 0.5, "rows": None},
        {"relative_error": math.inf},
        False,
        ["a note"],
        [LayerReport("layer.0", operator_error=-math.inf, near_ties=2, shared=3, selected=4)],
        [CaseReport("one", 1, None, math.nan, 1.0, 0.75, 1, 2)],
        [LayerRange("embeddings", "LayerNorm", math.inf), LayerRange("layer 0", "dense", 2.5)],
    )
    data = as_json(comparison)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["metrics"] == {"relative_error": None, "cosine_min": 0.5, "rows": None}
    assert data["tolerance"] == {"relative_error": None}
    assert (data["ok"], data["notes"], data["reference"], data["candidate"]) == (False, ["a note"], "PyTorch", "a.onnx")
    layer = {"name": "layer.0", "input_error": 0.0, "operator_error": None, "selection_agreement": 1.0}
    assert data["layers"] == [
        {**layer, "swapped_gap": 0.0, "near_ties": 2, "problem": None},
        {"name": "embeddings", "tensor": "LayerNorm", "largest": None},
        {"name": "layer 0", "tensor": "dense", "largest": 2.5},
    ]
    assert data["cases"][0]["max_abs_error"] is None
    assert data["cases"][0]["selection_agreement"] == 0.75
    assert "ranges" not in data
    assert comparison.layers[0].shared == 3  # what was given stays as it was
    assert np.isinf(comparison.ranges[0].largest)

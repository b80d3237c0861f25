"""YOSO models as a whole: all heads, both modes, by the commands; and where transformers' own model errs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from mra_export.checkpoint.load import load_checkpoint
from mra_export.cli import main
from mra_export.errors import InputError
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import MODEL_FILE, layer_constants, read_onnx
from mra_export.native.libraries import find_library
from mra_export.pipeline.check import check

LSH = {"use_expectation": False, "num_hash": 12, "hash_code_len": 6}


def save_yoso(directory: Path, class_name: str = "YosoModel", **settings: Any) -> Path:
    """A small checkpoint whose attention is far from uniform: with plain random weights errors would hide."""
    small = {
        "vocab_size": 120,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 96,
        "type_vocab_size": 2,
        "num_labels": 2,
    }
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(transformers.YosoConfig(**{**small, **settings}))
    with torch.no_grad():
        for layer in model.base_model.encoder.layer:
            layer.attention.self.query.weight *= 6
            layer.attention.self.key.weight *= 6
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zeros hide a bias that is left out
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


def run(*arguments: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("class_name", "settings", "dtype"),
    [
        pytest.param("YosoModel", {"conv_window": 5}, "fp32", marks=pytest.mark.slow),
        ("YosoModel", {**LSH, "conv_window": 3, "use_fast_hash": False}, "fp32"),
        pytest.param(*("YosoModel", {**LSH}, "fp16"), marks=pytest.mark.slow),
        pytest.param(*("YosoForMaskedLM", {}, "fp32"), marks=pytest.mark.slow),
        pytest.param(*("YosoForSequenceClassification", {**LSH}, "fp32"), marks=pytest.mark.slow),
        pytest.param(*("YosoForMultipleChoice", {}, "fp32"), marks=pytest.mark.slow),
        pytest.param(*("YosoForTokenClassification", {**LSH, "use_fast_hash": False}, "fp32"), marks=pytest.mark.slow),
        pytest.param(*("YosoForQuestionAnswering", {"conv_window": 3}, "fp16"), marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_every_head_is_the_same_model(class_name: str, settings: dict, dtype: str, tmp_path: Path) -> None:
    layers = 2 if class_name == "YosoModel" else 1
    directory = save_yoso(tmp_path / "checkpoint", class_name, num_hidden_layers=layers, **settings)
    checkpoint = load_checkpoint(directory)
    result = export_onnx(checkpoint, tmp_path / "onnx", dtype=dtype)
    comparisons = check(checkpoint, [result.model], library=find_library("onnxruntime"), max_seq_len=40)
    assert len(comparisons) >= 2
    for comparison in comparisons:
        assert comparison.ok, (comparison.candidate, comparison.notes, comparison.metrics)
    against_model = [c for c in comparisons if c.reference.startswith("PyTorch")]
    assert all(any("its mask becomes 1 for every token" in note for note in c.notes) for c in against_model)
    specified = [c for c in comparisons if c.reference.startswith("specification")]
    assert all((c.metrics["selection_agreement"] is not None) == ("num_hash" in settings) for c in specified)


@pytest.mark.slow
def test_the_mask_error_of_transformers_is_measured(tmp_path: Path) -> None:
    """What `check` says of it is the difference between the model as it is and the row without its padding."""
    directory = save_yoso(tmp_path / "checkpoint")
    model = transformers.YosoModel.from_pretrained(directory).eval()
    ids = torch.arange(2, 42)[None]
    mask = torch.ones(1, 40, dtype=torch.int64)
    mask[:, 30:] = 0
    with torch.no_grad():
        padded = model(ids, attention_mask=mask).last_hidden_state[:, :30]
        alone = model(ids[:, :30]).last_hidden_state
        zeros = model(ids, attention_mask=torch.zeros_like(mask)).last_hidden_state
        assert torch.equal(zeros, model(ids, attention_mask=torch.ones_like(mask)).last_hidden_state)
    theirs = float((padded - alone).norm() / alone.norm())
    assert theirs > 1e-3
    result = export_onnx(load_checkpoint(directory), tmp_path / "onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(result.model))
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": np.zeros((1, 40), np.int64)}
    ours = session.run(None, inputs)[0][:, :30]
    assert float(np.linalg.norm(ours - alone.numpy()) / alone.norm()) <= 1e-5


@pytest.mark.slow
def test_the_seed_makes_the_constants_and_travels_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = save_yoso(tmp_path / "checkpoint", **LSH)
    hashes = {}
    for name, seed in (("a", 0), ("b", 7), ("c", 7)):
        command = ["onnx", str(directory), "-o", str(tmp_path / name), "--no-check", "-q"]
        assert run(*command, *(["--option", f"seed={seed}"] if seed else [])) == 0
        model = read_onnx(tmp_path / name / MODEL_FILE)
        assert model.options == {"seed": seed}
        constants = layer_constants(model)
        assert not torch.equal(constants[0][0], constants[1][0]), "each layer has its own"
        hashes[name] = (tmp_path / name / MODEL_FILE).read_bytes(), constants[0][0]
    assert hashes["b"][0] == hashes["c"][0]
    assert not torch.equal(hashes["a"][1], hashes["b"][1])
    types = {i.name: i.data_type for i in onnx.load(str(tmp_path / "a" / MODEL_FILE)).graph.initializer}
    node = read_onnx(tmp_path / "a" / MODEL_FILE).nodes[0]
    assert types[node.input[4]] == onnx.TensorProto.INT32

    capsys.readouterr()
    assert run("check", str(directory), str(tmp_path / "b")) == 2
    assert "--option seed=7" in capsys.readouterr().err
    limited = ("--option", "seed=7", "--max-seq-len", "40", "--json", "-q")
    assert run("check", str(directory), str(tmp_path / "b"), *limited) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    for option, message in (
        ("seed", "must be NAME=VALUE"),
        ("seed=x", "must be of type int"),
        ("seed=-1", "must be between 0 and 4294967295"),
        ("speed=1", "YOSO has no option speed"),
    ):
        assert run("onnx", str(directory), "-o", str(tmp_path / "no"), "--option", option) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_wrong_constants_and_wrong_codes_are_found(tmp_path: Path) -> None:
    """A file with another layer's hash constants computes well, but is not this model."""
    checkpoint = load_checkpoint(save_yoso(tmp_path / "checkpoint", **LSH))
    result = export_onnx(checkpoint, tmp_path / "onnx")
    model = onnx.load(str(result.model))
    nodes = [n for n in model.graph.node if n.op_type == "YosoAttention"]
    nodes[0].input[4], nodes[1].input[4] = nodes[1].input[4], nodes[0].input[4]
    onnx.save(model, str(result.model))
    comparisons = check(checkpoint, [result.model], max_seq_len=40)
    failed = [c for c in comparisons if c.reference.startswith("specification")]
    assert all(c.ok is False and "layer.0" in c.notes[0] for c in failed), failed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_window": 4}, "conv_window=4 must be odd"),
        ({"conv_window": 0}, "conv_window=0 must be odd, or null"),
        ({"hash_code_len": 17}, "hash_code_len=17 must be between 1 and 16"),
        ({"num_attention_heads": 16}, "head_dim=4 must be a multiple of 8"),
        ({**LSH, "num_hash": 0}, "num_hash=0 must be between 1 and 1024"),
        ({"add_cross_attention": True}, "add_cross_attention=true"),
        ({"output_attentions": True}, "output_attentions=true"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0 must be positive"),
    ],
)
def test_configurations_outside_the_operator_are_refused(settings: dict, message: str, tmp_path: Path) -> None:
    base = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 100}
    transformers.YosoConfig(**{**base, **settings}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path, random_init=0)

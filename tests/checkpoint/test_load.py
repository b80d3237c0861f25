"""A checkpoint that would not be the model that was trained is refused by the name of the weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bundle_support import run
from checkpoints import save_checkpoint
from dense_support import edit_config, edit_weights

from mra_export.checkpoint.load import load_checkpoint
from mra_export.errors import InputError

QUERY = "encoder.layer.0.attention.self.query"


def add(directory: Path, *names: str) -> Path:
    edit_weights(directory, lambda weights: weights.update({name: torch.ones(4) for name in names}))
    return directory


@pytest.mark.parametrize("class_name", ["MraModel", "MraForMaskedLM", "YosoModel", "RobertaPreLayerNormModel"])
@pytest.mark.parametrize("name", [f"{QUERY}.lora_A.weight", f"{QUERY}.base_layer.bias", "embeddings.extra.weight"])
def test_a_weight_without_a_place_in_the_encoder(class_name: str, name: str, tmp_path: Path) -> None:
    import transformers

    directory = save_other(tmp_path, class_name)
    prefix = "" if class_name.endswith("Model") else getattr(transformers, class_name).base_model_prefix + "."
    with pytest.raises(InputError, match=f"has a weight {prefix}{name} that {class_name} does not use.*Merge adapters"):
        load_checkpoint(add(directory, prefix + name))


def save_other(folder: Path, class_name: str) -> Path:
    import transformers

    if class_name.startswith("Mra"):
        return save_checkpoint(folder / "model", class_name, max_position_embeddings=32)
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=1, type_vocab_size=2,
    )  # fmt: skip
    model_class(config).save_pretrained(folder / "model")
    return folder / "model"


def test_what_is_not_of_the_encoder_is_left_out(tmp_path: Path) -> None:
    """A head that the task does not use, the pooler of a dense model, and what older releases wrote."""
    directory = save_checkpoint(tmp_path / "model", max_position_embeddings=32)
    names = ("pooler.dense.weight", "cls.predictions.bias", "classifier.weight", "embeddings.token_type_ids")
    assert load_checkpoint(add(directory, *names)).notes == ()


def test_layers_beyond_those_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = save_checkpoint(tmp_path / "model", max_position_embeddings=32)
    edit_config(directory, num_hidden_layers=1)
    checkpoint = load_checkpoint(directory)
    assert checkpoint.notes == ("There are weights of 2 layers, but config.json says 1: so many has the result.",)
    assert len(checkpoint.model.encoder.layer) == 1
    code, result = run("onnx", directory, "-o", tmp_path / "onnx", "--no-check", capsys=capsys)
    assert (code, result["notes"]) == (0, list(checkpoint.notes))

"""The inputs by which a converted file is compared with its source."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mra_export.export.onnx_model import read_onnx
from mra_export.pipeline import source
from mra_export.pipeline.source import PROOF_SEQ_LEN


def like(model: Any, *exact_up_to: int, position_limit: int | None = None) -> Any:
    """As much of a model as the inputs are made for: each of its layers makes no choice up to so many tokens."""
    family = SimpleNamespace(makes_no_choice=lambda limit, seq_len: seq_len <= limit)
    return SimpleNamespace(
        proto=model.proto, inputs=model.inputs, vocabulary=model.vocabulary,
        attributes=list(exact_up_to), family=family, position_limit=position_limit,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("exact_up_to", "position_limit", "expected"),
    [
        ((1000,), None, PROOF_SEQ_LEN),
        ((PROOF_SEQ_LEN - 1,), None, PROOF_SEQ_LEN - 1),
        ((95, 32), None, 32),  # every layer, and the longest such length
        ((95, 32, 64), None, 32),
        ((1,), None, 1),
        ((0, 95), None, PROOF_SEQ_LEN),  # where a layer chooses at any length, the longest
        ((1000,), 40, 40),
        ((1000,), 4000, PROOF_SEQ_LEN),
    ],
)
def test_the_longest_length_at_which_no_layer_has_a_choice(
    exact_up_to: tuple[int, ...], position_limit: int | None, expected: int, model: Path
) -> None:
    made = source._inputs(like(read_onnx(model), *exact_up_to, position_limit=position_limit))
    assert {name: value.shape for name, value in made.items()} == dict.fromkeys(made, (2, expected))


def test_the_inputs_of_a_real_file(model: Path) -> None:
    read = read_onnx(model)
    made = source._inputs(read)
    assert list(made) == list(read.inputs)
    assert made["input_ids"].shape == (2, PROOF_SEQ_LEN)  # 9 pairs of blocks, of which 32 could be selected
    assert read.attributes[0].num_blocks == 32
    assert made["input_ids"].max() < 120
    assert len(np.unique(made["input_ids"])) > 60
    assert set(np.unique(made["token_type_ids"])) == {0, 1}
    assert made["attention_mask"].sum(1).tolist() == [PROOF_SEQ_LEN, PROOF_SEQ_LEN - PROOF_SEQ_LEN // 3]
    assert made["attention_mask"][1, : PROOF_SEQ_LEN - PROOF_SEQ_LEN // 3].all()

"""Texts as inputs of a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mra_export.errors import InputError
from mra_export.export.onnx_model import read_onnx
from mra_export.parity.texts import calibration_texts, proof_texts, samples_of, tuning_texts


def test_no_text_is_judged_by_what_it_was_made_of() -> None:
    sets = [set(calibration_texts()), set(tuning_texts()), set(proof_texts())]
    assert [len(each) for each in sets] == [64, 24, 64]
    assert len(set.union(*sets)) == 64 + 24 + 64


def test_each_text_alone_without_padding_and_cut_to_what_the_model_takes(sentence_export: Path) -> None:
    model = read_onnx(sentence_export / "onnx" / "model.onnx")
    texts = ["Paris", "The quick brown fox jumped " * 40]
    short, long = samples_of(model, texts)
    assert set(short) == set(model.inputs)
    assert short["input_ids"].shape == (1, 3)
    assert long["input_ids"].shape == (1, model.position_limit)
    assert all(sample["attention_mask"].all() for sample in (short, long))
    assert samples_of(model, texts, longest=9)[1]["input_ids"].shape == (1, 9)


def test_random_ids_only_where_they_are_asked_for(tiny_export: Path) -> None:
    model = read_onnx(tiny_export / "onnx" / "model.onnx")
    with pytest.raises(InputError, match=r"has no tokenizer.*Put its tokenizer\.json or vocab\.txt"):
        samples_of(model, ["a"])
    one, other = (samples_of(model, ["a", "b", "c"], random_ids=True) for _ in range(2))
    assert [sample["input_ids"].shape for sample in one] == [(1, 3), (1, 5), (1, 9)]
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(one, other, strict=True))


def test_a_tokenizer_of_another_model(sentence_export: Path, tiny_export: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_export, tmp_path / "onnx")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(sentence_export / name, tmp_path / "onnx" / name)
    with pytest.raises(InputError, match=r"has \d+ tokens, but the model has 120"):
        samples_of(read_onnx(tmp_path / "onnx" / "onnx" / "model.onnx"), ["a"])

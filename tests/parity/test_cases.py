"""What a parity check runs: which lengths, which masks, which ids, to the number."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mra_export.errors import InputError
from mra_export.parity import cases as module
from mra_export.parity.cases import SENTENCES, Case, build_cases


def checkpoint(
    directory: Path, *, longest: int = 512, table: int = 512, task: str = "feature-extraction", **config: Any
) -> Any:
    """What `build_cases` looks at; a directory without files has no tokenizer."""
    return SimpleNamespace(
        family=SimpleNamespace(max_seq_len=lambda config: longest),
        config=SimpleNamespace(**{"max_position_embeddings": table, "vocab_size": 50, "type_vocab_size": 2, **config}),
        directory=directory,
        task=SimpleNamespace(name=task),
    )


def built(directory: Path, max_seq_len: int | None = None, seed: int = 0, **settings: Any) -> list[Case]:
    cases, origin = build_cases(checkpoint(directory, **settings), max_seq_len=max_seq_len, seed=seed)
    assert origin == "random ids"
    return cases


def starting(cases: list[Case], name: str) -> Case:
    (found,) = (case for case in cases if case.name.startswith(name))
    return found


@pytest.mark.parametrize(
    ("longest", "asked", "expected"),
    [
        (
            512,
            None,
            "one token, 1; odd, 31; whole blocks, 64; odd, 101; holes in the mask, 200; whole blocks, 256; mixed padding, 384; "
            "maximal, 512",
        ),
        (512, 64, "one token, 1; odd, 31; maximal, 64; mixed padding, 64; holes in the mask, 64"),
        (
            101,
            None,
            "one token, 1; odd, 31; whole blocks, 64; maximal, 101; mixed padding, 101; holes in the mask, 101",
        ),
        (30, 30, "one token, 1; maximal, 30; mixed padding, 30; holes in the mask, 30"),
        (4, 1, "maximal, 1; mixed padding, 1; holes in the mask, 1"),
    ],
)
def test_lengths(longest: int, asked: int | None, expected: str, tmp_path: Path) -> None:
    cases = built(tmp_path, asked, longest=longest)
    assert "; ".join(case.name for case in cases) == expected
    assert [case.seq_len for case in cases] == [int(case.name.rpartition(" ")[2]) for case in cases]
    for case in cases:
        if not case.name.startswith(("mixed", "holes")):
            assert case.inputs["attention_mask"].tolist() == [[1] * case.seq_len]
            assert case.alone == ()


@pytest.mark.parametrize(
    ("width", "lengths"), [(384, [384, 240, 42, 9]), (80, [80, 50, 8, 2]), (8, [8, 5, 1, 1]), (1, [1, 1, 1, 1])]
)
def test_mixed_padding(width: int, lengths: list[int], tmp_path: Path) -> None:
    case = starting(built(tmp_path, None if width == 384 else width), "mixed")
    positions = np.arange(width)
    mask, types = case.inputs["attention_mask"], case.inputs["token_type_ids"]
    assert mask.tolist() == [(positions < length).astype(int).tolist() for length in lengths]
    assert types.tolist() == [(positions >= length // 2).astype(int).tolist() for length in lengths]
    assert len(case.alone) == 4
    for row, alone in enumerate(case.alone):
        assert alone.keys() == case.inputs.keys()
        for name, values in alone.items():
            assert values.tolist() == [case.inputs[name][row].tolist()]


def test_ids_are_those_of_the_vocabulary_at_tokens_and_at_padding(tmp_path: Path) -> None:
    """What stands at padding is random: a model must not look at it."""
    case = starting(built(tmp_path, vocab_size=2), "mixed")
    ids, mask = case.inputs["input_ids"], case.inputs["attention_mask"]
    for place in (0, 1):
        values = ids[mask == place]
        assert set(values.tolist()) == {0, 1}
        assert 0.4 < values.mean() < 0.6
    assert {each.dtype for each in case.inputs.values()} == {np.dtype(np.int64)}


def test_holes_in_the_mask(tmp_path: Path) -> None:
    """Three of ten tokens are left out, others in each row; the first one stays."""
    case = starting(built(tmp_path), "holes")
    mask = case.inputs["attention_mask"]
    assert mask.shape == (2, 200)
    assert set(mask.ravel().tolist()) == {0, 1}
    assert mask[:, 0].tolist() == [1, 1]
    assert all(0.6 < each < 0.8 for each in mask.mean(axis=1))
    assert mask[0].tolist() != mask[1].tolist()
    firsts = [starting(built(tmp_path, seed=seed), "holes").inputs["attention_mask"][:, :2] for seed in range(9)]
    assert all(each[:, 0].tolist() == [1, 1] for each in firsts)
    assert {0, 1} == set(np.concatenate(firsts)[:, 1].tolist())


def test_the_seed_says_what_is_random(tmp_path: Path) -> None:
    first, again, other = (starting(built(tmp_path, seed=seed), "maximal").inputs["input_ids"] for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    default = build_cases(checkpoint(tmp_path))[0]
    assert starting(default, "maximal").inputs["input_ids"].tolist() == first.tolist()


def test_choices_are_an_axis_of_their_own(tmp_path: Path) -> None:
    case = starting(built(tmp_path, task="multiple-choice"), "mixed")
    assert {name: value.shape for name, value in case.inputs.items()} == dict.fromkeys(case.inputs, (4, 3, 384))
    assert case.inputs["attention_mask"].sum(axis=2).tolist() == [[n] * 3 for n in (384, 240, 42, 9)]
    assert {alone["input_ids"].shape for alone in case.alone} == {(1, 3, 384)}
    assert case.seq_len == 384


def test_a_model_without_types_gets_none(tmp_path: Path) -> None:
    assert set(built(tmp_path, type_vocab_size=1)[0].inputs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(("table", "room"), [(512, ""), (514, ", which has room for 512 tokens")])
def test_a_length_beyond_the_model_is_refused(table: int, room: str, tmp_path: Path) -> None:
    assert starting(built(tmp_path, 512, table=table), "maximal").seq_len == 512
    with pytest.raises(InputError) as caught:
        built(tmp_path, 513, table=table)
    assert str(caught.value) == f"max_seq_len=513 is above the model's max_position_embeddings={table}{room}."


class Words:
    """A tokenizer with an id for each place in the text; it refuses lengths below 8, as one with many special tokens."""

    size = 50

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str, *, truncation: bool, max_length: int) -> dict[str, list[int]]:
        assert truncation is True
        assert max_length >= 8
        words = text.split()
        assert len(words) >= max_length + 56
        self.texts.append(text)
        return {"input_ids": [index % self.size for index in range(len(words))][:max_length]}


def test_ids_of_running_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Words()
    monkeypatch.setattr(module, "load_tokenizer", lambda directory: tokenizer if directory == tmp_path else None)
    cases, origin = build_cases(checkpoint(tmp_path))
    assert origin == "text"
    for case in cases:
        ids = case.inputs["input_ids"]
        for row, length in enumerate([384, 240, 42, 9] if case.name.startswith("mixed") else [case.seq_len] * len(ids)):
            assert ids[row, :length].tolist() == [index % 50 for index in range(length)]
    sentences = {line for line in SENTENCES.read_text(encoding="utf-8").split("\n") if line}
    assert sum(text.startswith(tuple(sentences)) for text in tokenizer.texts) == len(tokenizer.texts) == 12
    assert len({text[:200] for text in tokenizer.texts}) > 9


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_tokenizer", lambda directory: Words())
    with pytest.raises(
        InputError, match=r"has 50 tokens, but the model's vocab_size is 49: they do not belong together"
    ):
        build_cases(checkpoint(tmp_path, vocab_size=49))

"""Texts as token ids: what is taken of them, in which parts, and in which batches."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fidelity_support import letters, save_dense

from mra_export.fidelity import samples as module
from mra_export.fidelity.samples import batches_of, blocks_of, sampled_ids, split, split_to_train


def test_ids_are_the_tokenizers_and_do_not_depend_on_the_order_of_the_texts(dense: Path) -> None:
    texts = letters([5, 40, 9, 300])
    found = sampled_ids(dense, [*texts, texts[0], "", "  "], 256)
    assert found is not None
    assert sorted(map(len, found)) == [5, 9, 40, 256]  # once each, cut at the positions, none of blanks
    assert all((ids[0], ids[-1]) == (2, 3) for ids in found)
    assert sampled_ids(dense, texts[::-1], 256) == found


def test_the_default_prompt_counts(tmp_path: Path) -> None:
    directory = save_dense(tmp_path / "dense")
    (directory / "config_sentence_transformers.json").write_text(
        '{"prompts": {"p": "a a "}, "default_prompt_name": "p"}'
    )
    assert [len(ids) for ids in sampled_ids(directory, letters([10]), 256) or ()] == [12]


def test_without_a_tokenizer_there_are_none(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((dense / "config.json").read_text())
    assert sampled_ids(tmp_path, ["a"], 256) is None


def test_of_many_texts_the_same_ones_are_taken(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TEXTS", 5)
    texts = letters(list(range(3, 30)))
    found = sampled_ids(dense, texts, 256)
    random.Random(1).shuffle(texts)
    assert found is not None
    assert len(found) == 5
    assert sampled_ids(dense, texts, 256) == found


def test_the_parts_are_disjoint_and_of_texts_that_are_long_enough() -> None:
    ids = [(text, *range(length)) for text, length in enumerate([10, 200, 99, 100, 180, 150, 40, 170, 160, 190, 110])]
    found = split(ids, longer_than=100, tokens=10_000)
    assert (found.seen, found.longest, found.long_enough) == (11, 201, 8)
    assert not set(found.chosen_by) & set(found.judged_by)
    assert {*found.chosen_by, *found.judged_by} == {each for each in ids if len(each) > 100}
    assert found.is_held_out


def test_parts_end_at_their_tokens_but_have_four_texts() -> None:
    ids = [(text, *range(99)) for text in range(40)]
    found = split(ids, longer_than=50, tokens=700)
    assert [len(found.chosen_by), len(found.judged_by)] == [7, 7]
    found = split(ids, longer_than=50, tokens=100)
    assert [len(found.chosen_by), len(found.judged_by)] == [4, 4]


def test_few_texts_are_in_both_parts() -> None:
    ids = [(text, *range(99)) for text in range(7)]
    found = split([*ids, *ids], longer_than=50, tokens=10_000)
    assert found.chosen_by == found.judged_by == tuple(ids)
    assert not found.is_held_out


def test_a_batch_has_texts_of_as_many_blocks() -> None:
    ids = [(7,) * length for length in (33, 1, 64, 32, 65, 60)]
    found = batches_of(ids)
    assert [(batch.blocks, sorted(batch.places)) for batch in found] == [(1, [1, 3]), (2, [0, 2, 5]), (3, [4])]
    for batch in found:
        assert batch.mask.sum(1).tolist() == [len(ids[place]) for place in batch.places]
        assert (batch.ids * (1 - batch.mask)).sum() == 0
        assert {blocks_of(len(ids[place])) for place in batch.places} == {batch.blocks}


def test_batches_are_bounded() -> None:
    found = batches_of([(7,) * 512] * 9)
    assert [len(batch.places) for batch in found] == [4, 4, 1]


def test_a_fifth_is_held_out_of_training() -> None:
    ids = [tuple(range(number, number + 100)) for number in range(20)]
    samples = split_to_train([*ids, (1, 2), ids[3]], longer_than=50, tokens=10**6)
    assert samples.judged_by == tuple(ids[::5])
    assert set(samples.chosen_by) | set(samples.judged_by) == set(ids)
    assert not set(samples.chosen_by) & set(samples.judged_by)
    assert (samples.seen, samples.longest, samples.long_enough) == (22, 100, 20)
    more = [*ids, *(tuple(range(number, number + 100)) for number in range(20, 60))]
    assert len(split_to_train(more, longer_than=50, tokens=500).judged_by) == 5
    assert split_to_train(ids[:15], longer_than=50, tokens=500).judged_by == ()


def test_the_size_of_a_batch_is_its_callers_choice() -> None:
    ids = [tuple(range(100))] * 8
    assert [len(batch.places) for batch in batches_of(ids, tokens=256)] == [2, 2, 2, 2]
    assert [len(batch.places) for batch in batches_of(ids)] == [8]

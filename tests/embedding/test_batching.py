"""Batches by blocks: every text once, little padding, and vectors that do not depend on the company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embed_support import HIDDEN, make_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from mra_export.embedding.batching import Batch, batches_run, blocks_of, collate, padded_width, plan_batches
from mra_export.errors import InputError, MraExportError

LENGTHS = st.lists(st.integers(0, 300), max_size=60)


@given(LENGTHS, st.integers(1, 2000))
def test_a_plan_holds_each_text_once_with_its_own_blocks(lengths: list[int], max_tokens: int) -> None:
    batches = plan_batches(lengths, max_tokens=max_tokens, step=32)
    assert sorted(int(row) for batch in batches for row in batch.rows) == list(range(len(lengths)))
    assert [batch.width for batch in batches] == sorted((batch.width for batch in batches), reverse=True)
    for batch in batches:
        assert len(batch.rows) * batch.width <= max_tokens or len(batch.rows) == 1
        assert batch.width == max(1, *(lengths[row] for row in batch.rows))
        for row in batch.rows:
            assert max(1, -(-lengths[row] // 32)) == -(-batch.width // 32)
            assert 0 <= batch.width - max(1, lengths[row]) < 32
    for blocks in {-(-batch.width // 32) for batch in batches}:
        group = [batch for batch in batches if -(-batch.width // 32) == blocks]
        sizes = [len(batch.rows) for batch in group]
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-sum(sizes) // max(1, max_tokens // group[0].width))


@pytest.mark.parametrize(("length", "blocks"), [(0, 1), (1, 1), (32, 1), (33, 2), (64, 2), (512, 16)])
def test_the_blocks_of_a_text(length: int, blocks: int) -> None:
    assert blocks_of(length, 32) == blocks


@pytest.mark.parametrize(
    ("length", "limit", "width"),
    [(0, None, 32), (1, None, 32), (32, None, 32), (33, None, 64), (65, 80, 80), (512, 512, 512)],
)
def test_the_width_is_the_end_of_the_last_block(length: int, limit: int | None, width: int) -> None:
    assert padded_width(length, 32, limit) == width


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="81 tokens is longer than the model's 80"):
        padded_width(81, 32, 80)
    with pytest.raises(InputError, match="81 tokens is longer than the model's 80"):
        plan_batches([3, 81], max_tokens=100, step=32, max_length=80)
    assert plan_batches([3, 80], max_tokens=100, step=32, max_length=80)[0].width == 80
    with pytest.raises(InputError, match="max_tokens=0 must be at least 1"):
        plan_batches([3], max_tokens=0, step=32)


def test_the_inputs_of_a_batch() -> None:
    inputs = collate(Batch(np.array([2, 0]), 4), [[5, 6], [], [7, 8, 9]], [[0, 1], [], [1, 1, 0]], pad_id=3)
    assert inputs["input_ids"].tolist() == [[7, 8, 9, 3], [5, 6, 3, 3]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert inputs["token_type_ids"].tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]
    assert all(value.dtype == np.int64 for value in inputs.values())
    assert not collate(Batch(np.array([0]), 4), [[5]])["token_type_ids"].any()


def _describe(inputs: dict[str, Any]) -> np.ndarray:
    """A stand-in for the model: each row's tokens and blocks."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    return np.stack([(ids * mask).sum(1), mask.sum(1), np.full(len(ids), -(-ids.shape[1] // 32))], axis=1).astype(
        np.float32
    )


@given(LENGTHS, st.integers(1, 2000), st.randoms(use_true_random=False))
def test_vectors_belong_to_their_texts_whatever_the_company(lengths: list[int], max_tokens: int, rng: Any) -> None:
    texts = [[rng.randint(4, 99) for _ in range(length)] for length in lengths]
    made = list(batches_run(_describe, texts, max_tokens=max_tokens, step=32, hidden_size=3))
    plan = plan_batches(lengths, max_tokens=max_tokens, step=32)
    assert [(batch.rows.tolist(), batch.width) for batch, _ in made] == [(b.rows.tolist(), b.width) for b in plan]
    for batch, vectors in made:
        assert vectors.dtype == np.float32
        expected = [[sum(texts[row]), len(texts[row]), blocks_of(len(texts[row]), 32)] for row in batch.rows]
        assert vectors.tolist() == expected


@given(LENGTHS, st.sets(st.integers(0, 59)))
def test_a_batch_that_is_done_is_left_out_and_the_others_stay_as_they_are(lengths: list[int], done: set[int]) -> None:
    texts = [[5] * length for length in lengths]
    plan = plan_batches(lengths, max_tokens=300, step=32)
    made = batches_run(_describe, texts, max_tokens=300, step=32, hidden_size=3, done=done)
    left = [batch.rows.tolist() for batch in plan if not done.issuperset(batch.rows.tolist())]
    assert [batch.rows.tolist() for batch, _ in made] == left


def test_a_model_of_another_size_is_refused() -> None:
    with pytest.raises(MraExportError, match=r"shape \[2, 3\] for 2 texts; expected is \[2, 5\]"):
        list(batches_run(_describe, [[1], [2]], max_tokens=64, step=32, hidden_size=5))


@pytest.fixture
def bundle(embed_bundle: Path) -> Path:
    return embed_bundle


@pytest.mark.slow
@pytest.mark.parametrize(
    "native", [pytest.param(True, marks=pytest.mark.native), False], ids=["native", "function body"]
)
def test_a_vector_has_the_same_bits_in_any_company(bundle: Path, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the real model, for any other texts, order, batch size and number of threads; rounding only for the function body."""
    from mra_export.bundle.manifest import Bundle, read_bundle
    from mra_export.embedding.encoder import Encoder

    opened = read_bundle(bundle)
    if native and opened.library is None:
        pytest.skip("the native library is not built")
    if not native:
        monkeypatch.setattr(Bundle, "library", None)
    texts = make_texts(40, seed=3)
    alone = Encoder(opened, threads=1, batch_tokens=1)
    expected = np.concatenate([alone.encode([text]).vectors for text in texts])
    assert expected.shape == (40, HIDDEN)
    encoders = [
        Encoder(opened, threads=threads, batch_tokens=tokens) for threads, tokens in ((1, 512), (2, 4096), (3, 64))
    ]

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.integers(0, 39), min_size=1, max_size=40), st.integers(0, 2))
    def compare(rows: list[int], which: int) -> None:
        vectors = encoders[which].encode([texts[row] for row in rows]).vectors
        if native:
            assert np.array_equal(vectors.view(np.int32), expected[rows].view(np.int32))
        else:
            np.testing.assert_allclose(vectors, expected[rows], atol=2e-6)

    compare()


def test_padding_into_another_block_is_what_changes_a_vector(bundle: Path) -> None:
    """Why buckets are by blocks: one block more is another result, by far more than rounding."""
    from mra_export.bundle.manifest import read_bundle
    from mra_export.embedding.encoder import Encoder

    run = Encoder(read_bundle(bundle), threads=1)._run
    ids = np.random.default_rng(0).integers(4, 120, (20, 70)).tolist()
    rows = np.arange(20)
    narrow, within, wide = (run(collate(Batch(rows, width), ids, pad_id=1)) for width in (96, 70, 256))
    assert np.abs(narrow - within).max() < 1e-6
    assert np.abs(narrow - wide).max() > 5e-5

"""What counts as the same vectors, and how a model is caught whose results depend on more than the text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mra_export.parity.fidelity import LIMITS, Limits, Vectors, compare_vectors, vectors_of

Outputs = dict[str, np.ndarray]
SAMPLES = [{"input_ids": np.arange(n)[None] + 7 * n, "attention_mask": np.ones((1, n), np.int64)} for n in range(2, 18)]


class Fake:
    """A model whose token vectors are a function of the ids."""

    name = "fake"

    def __init__(self, change: Any = lambda hidden, inputs: hidden, output: str = "last_hidden_state") -> None:
        self.change = change
        self.output = output

    def run(self, inputs: Outputs) -> Outputs:
        ids = inputs["input_ids"][..., None]
        hidden = np.sin(ids * np.arange(1, 9) ** 1.5).astype(np.float32)
        return {self.output: self.change(hidden, inputs)}


def test_the_same_model_has_cosine_one_and_keeps_its_neighbours() -> None:
    found = compare_vectors(Fake(), Fake(), SAMPLES, "int8", again=Fake())
    assert found.ok
    assert found.metrics["cosine_min"] == pytest.approx(1)
    assert found.metrics["neighbour_agreement"] == 1
    assert found.metrics["row_error"] == found.metrics["batch_invariance_error"] == found.metrics["thread_error"] == 0


def beside(hidden: np.ndarray, _: Outputs) -> np.ndarray:
    return hidden + np.float32(1e-5) * hidden.sum()  # of the whole batch, as quantize_dynamic takes its scales


def alone(hidden: np.ndarray, inputs: Outputs) -> np.ndarray:
    return hidden + np.float32(1e-3 * (len(hidden) > 1))


def broken(hidden: np.ndarray, _: Outputs) -> np.ndarray:
    return hidden * np.float32(np.nan)


@pytest.mark.parametrize(
    ("change", "metric"), [(beside, "row_error"), (alone, "batch_invariance_error"), (broken, "cosine_min")]
)
def test_what_must_not_be(change: Any, metric: str) -> None:
    found = compare_vectors(Fake(), Fake(change), SAMPLES, "int8")
    assert found.ok is False
    assert found.metrics[metric] != 0
    assert metric in found.tolerance


def test_another_number_of_threads_must_give_the_same_bits() -> None:
    other = Fake(lambda hidden, _: hidden + np.float32(1e-7) * (np.abs(hidden) > 0.5))
    found = compare_vectors(Fake(), Fake(), SAMPLES, "int8", again=other)
    assert found.ok is False
    assert 0 < (found.metrics["thread_error"] or 0) < 1e-6


def test_a_lost_vector_is_seen_in_its_cosine() -> None:
    def lost(hidden: np.ndarray, inputs: Outputs) -> np.ndarray:
        is_it = (inputs["input_ids"][:, 0] == SAMPLES[5]["input_ids"][0, 0])[:, None, None]
        return np.where(is_it, hidden[..., ::-1], hidden)

    found = compare_vectors(Fake(), Fake(lost), SAMPLES, "int8")
    assert (found.ok, found.metrics["cosine_min"] < 0.9) == (False, True)  # type: ignore[operator]
    assert found.metrics["neighbour_agreement"] < 1  # type: ignore[operator]


def test_logits_are_compared_by_their_distance_in_units_of_their_usual_length() -> None:
    want = Vectors([np.array([[3.0, 4.0]]), np.array([[0.01, 0.0]])], is_embedding=False)
    got = Vectors([np.array([[3.0, 4.0]]), np.array([[0.0, 0.01]])], is_embedding=False)
    # An angle of 90 degrees between logits that are both nearly 0; the usual squared length is 12.5.
    assert want.agreements(got) == pytest.approx([1, 1 - 2e-4 / 25], abs=1e-7)
    as_vectors = Vectors(want.values, True).agreements(Vectors(got.values, True))
    assert as_vectors == pytest.approx([1, 0])


@pytest.mark.parametrize(("output", "is_embedding"), [("sentence_embedding", True), ("logits", False)])
def test_what_is_compared(output: str, is_embedding: bool) -> None:
    found = vectors_of(Fake(output=output), SAMPLES)
    assert found.is_embedding is is_embedding
    assert found.values[3].shape == ((1, 40) if is_embedding else (5, 8))


def test_limits() -> None:
    limits = Limits(0.999, 0.99)
    assert limits.hold({"cosine_mean": 0.999, "cosine_min": 0.99})
    for mean, low in ((0.9989, 1.0), (1.0, 0.9899), (float("nan"), 1.0), (1.0, None)):
        assert not limits.hold({"cosine_mean": mean, "cosine_min": low})
    assert LIMITS["int8"] == Limits(0.999, 0.997)
    assert LIMITS["int8-all"] == Limits(0.997, 0.99)

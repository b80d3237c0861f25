"""Budgets go where they are worth most: on models whose losses are known, so that the best choice is known too."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mra_export.errors import InputError
from mra_export.fidelity import search as module
from mra_export.fidelity.memory import Memory
from mra_export.fidelity.samples import Samples
from mra_export.fidelity.search import (
    Meter,
    Scale,
    _hull,
    agreement,
    as_json,
    check_long_enough,
    least_even,
    least_for,
    place,
)
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

COMMON = Mra2AttentionAttributes(2, 8, 0, 0, 0, 1.0)
SCALE = Scale(COMMON, 8, 8)
IDS = [(1,) * 250, (2,) * 255, (3,) * 240]


class Losing:
    """A model of which a layer loses weight / blocks per row, less with the prior that it likes, and more beside another."""

    def __init__(self, weights: tuple[float, ...], liked: dict[int, tuple[int, int]] | None = None) -> None:
        self.weights, self.layers = weights, len(weights)
        self.liked = liked or {}
        self.runs = 0
        self.broken_after = 10**9

    def loss(self, plan: Any) -> float:
        total = 0.0
        for layer, (each, weight) in enumerate(zip(plan, self.weights, strict=True)):
            if each.num_blocks >= 64:
                continue
            priors = (each.initial_prior_first_n_blocks, each.initial_prior_diagonal_n_blocks)
            factor = 1.0 if priors == (0, 0) else 0.5 if self.liked.get(layer) == priors else 1.2
            total += factor * weight * (8 / each.num_blocks - 1 / 8)
        return total

    def vectors(self, batch: Any, plans: Any) -> list[np.ndarray]:
        self.runs += len([plan for plan in plans if plan is not None])
        if self.runs > self.broken_after:
            raise MemoryError
        angles = [0.0 if plan is None else np.arccos(1 - self.loss(plan)) for plan in plans]
        return [np.array([[np.cos(angle), np.sin(angle)]] * len(batch.places)) for angle in angles]


def meters(model: Losing, memory: Memory | None = None) -> tuple[Meter, Meter]:
    return tuple(Meter(model, ids, memory, part) for ids, part in ((IDS, "a"), (IDS[:2], "b")))  # type: ignore[return-value, arg-type]


def per_row(found: Any) -> list[float]:
    return [each.num_blocks / 8 for each in found.plan]


def best(model: Losing, total: int) -> float:
    """The least loss of any budgets without priors that cost so much."""
    plans = (
        tuple(SCALE.layer(rows) for rows in each)
        for each in itertools.product(range(1, 9), repeat=model.layers)
        if sum(each) <= total
    )
    return min((model.loss(plan) for plan in plans), default=np.inf)


@pytest.mark.parametrize("mean", [1, 2, 3.5, 6])
def test_the_cost_is_kept_and_the_place_is_the_best(mean: float) -> None:
    model = Losing((0.001, 0.004, 0.03))
    found = place(*meters(model), SCALE, mean)
    assert found.mean_block_per_row <= mean
    assert found.mean_block_per_row > mean - 1 / model.layers - 1e-9
    assert model.loss(found.plan) <= 1.05 * best(model, int(mean * 3)) + 1e-9
    assert found.chosen_by.mean == pytest.approx(1 - model.loss(found.plan))
    assert found.even.mean == pytest.approx(1 - model.loss((SCALE.layer(found.mean_block_per_row),) * 3))
    assert (found.chosen_by.texts, found.judged_by.texts) == (3, 2)


def test_priors_are_taken_where_they_help_and_nowhere_else() -> None:
    model = Losing((0.01, 0.01, 0.01), {0: (0, 1), 2: (1, 1)})
    found = place(*meters(model), SCALE, 4)
    priors = [(each.initial_prior_first_n_blocks, each.initial_prior_diagonal_n_blocks) for each in found.plan]
    assert priors == [(0, 1), (0, 0), (1, 1)]


def test_priors_are_left_out_where_the_budget_does_not_hold_them() -> None:
    """8 blocks of the diagonal and 15 of the first row and column, one of which is in both; and one of each row."""
    for blocks, first, diagonal, kept in ((16, 0, 1, True), (15, 0, 1, False), (23, 1, 0, True), (22, 1, 0, False)):
        found = SCALE.layer(blocks / 8, first, diagonal)
        stated = (found.initial_prior_first_n_blocks, found.initial_prior_diagonal_n_blocks)
        assert (found.num_blocks, stated) == (blocks, (first, diagonal) if kept else (0, 0))
    assert SCALE.layer(30 / 8, 1, 1).initial_prior_first_n_blocks == 1
    assert SCALE.layer(29 / 8, 1, 1).initial_prior_first_n_blocks == 0


def test_a_layer_that_measures_better_than_it_promised_gets_blocks_by_exchange() -> None:
    """The losses alone say that all layers are alike; together the last one loses thrice."""

    class Together(Losing):
        def loss(self, plan: Any) -> float:
            alone = sum(each.num_blocks < 64 for each in plan) == 1
            self.weights = (0.01, 0.01, 0.01 if alone else 0.03)
            return super().loss(plan)

    found = place(*meters(Together((0.01, 0.01, 0.01))), SCALE, 3)
    assert per_row(found)[2] > 3 > per_row(found)[0]
    assert sum(per_row(found)) == 9


@pytest.mark.parametrize("target", [0.975, 0.985, 0.999])
def test_the_target_is_reached_at_the_least_cost(target: float) -> None:
    model = Losing((0.001, 0.004, 0.03))
    found = least_for(*meters(model), SCALE, target)
    total = round(sum(per_row(found)))
    assert found.chosen_by.mean >= target
    assert best(model, total - 2) > 1 - target  # by one more than the least, since between levels losses are guessed


def test_a_target_that_everything_reaches_costs_least() -> None:
    assert per_row(least_for(*meters(Losing((1e-6, 1e-6))), SCALE, 0.99)) == [1, 1]


@pytest.mark.parametrize(("target", "expected"), [(0.5, 1), (0.985, 3), (0.9999, 8)])
def test_the_least_budget_for_all_layers(target: float, expected: int) -> None:
    model = Losing((0.02, 0.03))
    chosen, measured = least_even(meters(model)[0], SCALE, target)
    assert chosen == expected
    assert measured[8] == 1.0
    assert all(cosine == pytest.approx(1 - model.loss((SCALE.layer(rows),) * 2)) for rows, cosine in measured.items())


def test_after_a_kill_nothing_is_measured_twice_and_the_choice_is_the_same(tmp_path: Path) -> None:
    weights = (0.001, 0.004, 0.03)
    whole = Losing(weights, {1: (0, 3)})
    expected = place(*meters(whole), SCALE, 3)
    model = Losing(weights, {1: (0, 3)})
    model.broken_after = whole.runs // 2
    with pytest.raises(MemoryError), Memory.open(tmp_path / "mra", {}) as memory:
        place(*meters(model, memory), SCALE, 3)
    before, model.broken_after = model.runs, 10**9
    with Memory.open(tmp_path / "mra", {}) as memory:
        assert memory.found > 0
        assert as_json(place(*meters(model, memory), SCALE, 3)) == as_json(expected)
    assert model.runs - before < whole.runs * 0.8


def test_the_last_block_that_is_not_whole_can_be_had() -> None:
    scale = Scale(COMMON, 3, 4)  # 100 to 127 positions
    assert scale.most == 6
    assert [scale.layer(each).num_blocks for each in (1, 5, 6, 7)] == [3, 15, 16, 16]
    assert scale.mean((scale.layer(1), scale.layer(5))) == 3.0


def test_between_levels_losses_are_straight_lines_that_fall_ever_more_slowly() -> None:
    assert _hull({1: 0.8, 2: 0.5, 4: 0.3, 8: 0.0}, 8) == pytest.approx([0.8, 0.5, 0.4, 0.3, 0.225, 0.15, 0.075, 0.0])
    assert _hull({1: 0.4, 2: 0.39, 4: 0.1, 5: 0.0}, 5) == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    assert _hull({1: 0.1, 2: 0.2, 3: 0.0}, 3) == pytest.approx([0.1, 0.05, 0.0])


def test_agreement_has_the_worst_texts_in_it() -> None:
    found = agreement([1.0] * 19 + [0.5])
    assert (found.mean, found.least, found.texts) == (pytest.approx(0.975), 0.5, 20)
    assert 0.5 < found.low < 1.0


def test_texts_that_lose_nothing_are_refused() -> None:
    check_long_enough(Samples(((1,),), (), 5, 300, 1), 64, 512)
    with pytest.raises(
        InputError,
        match=r"None of the 5 texts can lose anything: the longest has 50 tokens, and up to 96 .* --max-position 64",
    ):
        check_long_enough(Samples((), (), 5, 50, 0), 96, 512)
    with pytest.raises(InputError, match=r"that the model is to serve\.$"):
        check_long_enough(Samples((), (), 5, 32, 0), 32, 32)


def test_few_levels_are_measured() -> None:
    """Of a model of 6 layers and 16 blocks: what the hour on a small machine goes by."""
    model = Losing((0.001, 0.002, 0.003, 0.004, 0.005, 0.03))
    place(*meters(model), Scale(COMMON, 16, 16), 8)
    assert model.runs < 3 * (6 * 7 + 25 + 7 + 2 * module._EXCHANGES + 10) + 10

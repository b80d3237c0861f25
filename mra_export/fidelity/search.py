"""Searches the budget of each layer: by what each layer loses alone, measured, then by what whole models lose, measured too.

The loss of a text is 1 - cosine of its vector with the dense model's. The losses of layers add up well enough to begin with:
blocks go one by one to the layer that gains most by the next one. Exchanges between layers and the priors are tried on top of
that, and kept where the measured mean of whole models is better. Nothing is drawn at random: the same texts give the same budgets.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.errors import InputError
from mra_export.families.mra import FAMILY
from mra_export.fidelity.samples import batches_of, blocks_of
from mra_export.operators.mra2_attention.spec import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mra_export.fidelity.layered import LayeredModel, Plan
    from mra_export.fidelity.memory import Memory
    from mra_export.fidelity.samples import Batch, Ids, Samples
    from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes
    from mra_export.trace import Array

__all__ = [
    "Agreement",
    "Found",
    "Meter",
    "Scale",
    "agreement",
    "as_json",
    "check_long_enough",
    "least_even",
    "least_for",
    "place",
]

_LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Blocks per row at which the loss of a layer is measured; between them it is a straight line."""
_PRIORS = ((0, 1), (0, 3), (1, 0), (1, 1), (2, 1))
"""First blocks and diagonal blocks that are tried in each layer."""
_EXCHANGES = 12
"""Exchanges between two layers that are measured in a round, those that promise most."""
_ROUNDS = 2
_GAIN = 1e-5
"""By how much the mean has to rise for a change to be kept: less is no more than these texts' chance."""


@dataclass(frozen=True)
class Scale:
    """Budgets of a model in blocks per row at its longest length.

    Attributes:
        common: attributes of a layer.
        rows: whole blocks in the longest length, in which `block_per_row` counts.
        blocks: all of them, the last one too if it is not whole.
    """

    common: Mra2AttentionAttributes
    rows: int
    blocks: int

    @classmethod
    def of(cls, config: Any) -> Scale:
        """That of a configuration."""
        positions = int(config.max_position_embeddings)
        return cls(FAMILY.attributes(config), positions // BLOCK_SIZE, blocks_of(positions))

    @property
    def most(self) -> int:
        """Blocks per row from which all are selected."""
        return math.ceil(self.blocks**2 / self.rows)

    def layer(self, per_row: float, first: int = 0, diagonal: int = 0) -> Mra2AttentionAttributes:
        """The attributes of a layer with so many blocks per row.

        Priors are left out where the budget does not hold their blocks and one more of each row: there the cut falls among equal
        scores, so that what is selected has no reason, and what transformers computes is not well defined.
        """
        num_blocks = max(1, min(int(per_row * self.rows), self.blocks**2))
        if num_blocks < self._preferred(first, diagonal) + self.blocks:
            first = diagonal = 0
        return replace(
            self.common,
            num_blocks=num_blocks,
            initial_prior_first_n_blocks=first,
            initial_prior_diagonal_n_blocks=diagonal,
        )

    def _preferred(self, first: int, diagonal: int) -> int:
        """Blocks that priors prefer at the longest length."""
        index = np.arange(self.blocks)
        near = np.abs(index[:, None] - index[None, :]) <= (diagonal // 2 if diagonal else -1)
        return int((near | (index < first)[:, None] | (index < first)[None, :]).sum())

    def mean(self, plan: Plan) -> float:
        """Blocks per row on average over the layers."""
        return sum(each.num_blocks for each in plan) / len(plan) / self.rows


@dataclass(frozen=True)
class Agreement:
    """Cosines of texts with the dense model's vectors.

    Attributes:
        mean: of them.
        low: that 5 % of the texts are below.
        least: the smallest.
        texts: how many there are.
    """

    mean: float
    low: float
    least: float
    texts: int


def agreement(cosines: Sequence[float] | Array) -> Agreement:
    """Cosines in three numbers."""
    values = np.asarray(cosines)
    return Agreement(float(values.mean()), float(np.quantile(values, 0.05)), float(values.min()), len(values))


class Meter:
    """Measures what budgets lose on texts, each once.

    Args:
        model: the model.
        ids: the texts.
        memory: what is measured is kept there; None for nowhere.
        part: of the memory, for these texts.
        say: called with a line now and then.
    """

    def __init__(
        self,
        model: LayeredModel,
        ids: Sequence[Ids],
        memory: Memory | None,
        part: str,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model = model
        self.measured = 0
        self._texts = len(ids)
        self._batches = batches_of(ids)
        self._dense: list[Array | None] = [None] * len(self._batches)
        self._memory = memory
        self._part = part
        self._say = say
        self._known: dict[str, list[float]] = {}

    def cosines(self, plans: Sequence[Plan], what: str) -> list[Array]:
        """Of each text with the dense model, for each of the budgets.

        Args:
            plans: the budgets.
            what: they are for, to be told.
        """
        names = [_name(self._part, plan) for plan in plans]
        missing: dict[str, Plan] = {}
        for name, plan in zip(names, plans, strict=True):
            if name not in self._known and self._memory is not None and (kept := self._memory.get(name)) is not None:
                self._known[name] = kept
            if name not in self._known:
                missing[name] = plan
        if missing:
            self._say(f"{what}: {len(missing)} budgets on {self._texts} texts")
            results = {name: np.zeros(self._texts) for name in missing}
            for index, batch in enumerate(self._batches):
                self._run(index, batch, missing, results)
            self.measured += len(missing)
            self._known |= {name: values.tolist() for name, values in results.items()}
            if self._memory is not None:
                self._memory.put([(name, self._known[name]) for name in missing])
        return [np.array(self._known[name]) for name in names]

    def means(self, plans: Sequence[Plan], what: str) -> list[float]:
        """The means of `cosines`."""
        return [float(each.mean()) for each in self.cosines(plans, what)]

    def _run(self, index: int, batch: Batch, plans: Mapping[str, Plan], results: Mapping[str, Array]) -> None:
        dense = self._dense[index]
        vectors = self.model.vectors(batch, [*plans.values(), *([None] if dense is None else [])])
        if dense is None:
            dense = self._dense[index] = vectors.pop()
        for name, found in zip(plans, vectors, strict=True):
            results[name][list(batch.places)] = (found * dense).sum(axis=1)


def _name(part: str, plan: Plan) -> str:
    numbers = [
        (each.num_blocks, each.initial_prior_first_n_blocks, each.initial_prior_diagonal_n_blocks) for each in plan
    ]
    return f"{part} {json.dumps(numbers)}"


@dataclass(frozen=True)
class Found:
    """What a search chose.

    Attributes:
        plan: the attributes of each layer.
        mean_block_per_row: what they cost: blocks per row at the longest length, on average over the layers.
        chosen_by: agreement on the texts that the budgets were chosen by.
        judged_by: on those that had no part in it.
        even: agreement, on the latter, of one budget for all layers at the same cost.
        sensitivity: of each layer, blocks per row -> mean loss of the model with that budget in this layer alone.
        curve: mean blocks per row -> mean cosine of whole models with budgets placed by sensitivity.
    """

    plan: Plan
    mean_block_per_row: float
    chosen_by: Agreement
    judged_by: Agreement
    even: Agreement
    sensitivity: tuple[Mapping[int, float], ...]
    curve: Mapping[float, float]


class _Search:
    """One search: the curves of the layers, and what is placed by them."""

    def __init__(self, meter: Meter, scale: Scale) -> None:
        self.meter, self.scale = meter, scale
        self.layers = meter.model.layers
        self.levels = [*(level for level in _LEVELS if level < scale.most), scale.most]
        self.sensitivity = [self._alone(layer) for layer in range(self.layers)]
        self.curves = [_hull(each, scale.most) for each in self.sensitivity]
        self.curve: dict[float, float] = {}

    def _alone(self, layer: int) -> dict[int, float]:
        full = self.scale.layer(self.scale.most)
        plans = [
            tuple(self.scale.layer(level) if other == layer else full for other in range(self.layers))
            for level in self.levels[:-1]
        ]
        means = self.meter.means(plans, f"layer {layer + 1} of {self.layers} alone")
        return {**{level: 1 - mean for level, mean in zip(self.levels, means, strict=False)}, self.levels[-1]: 0.0}

    def placed(self, total: int) -> list[int]:
        """Blocks per row of each layer, so many in all, where the curves promise the least loss."""
        chosen = [1] * self.layers
        for _ in range(total - self.layers):
            gains = [
                curve[now - 1] - curve[now] if now < self.scale.most else -1.0
                for curve, now in zip(self.curves, chosen, strict=True)
            ]
            # Of equal gains, as where nothing is lost any more, the last layer: it is the one that most depends on.
            best = max(range(self.layers), key=lambda layer: (round(gains[layer], 9), layer))
            chosen[best] += 1
        return chosen

    def plan(self, per_row: Sequence[int], priors: Sequence[tuple[int, int]] | None = None) -> Plan:
        """The attributes of budgets."""
        priors = priors or [(0, 0)] * self.layers
        return tuple(self.scale.layer(rows, *each) for rows, each in zip(per_row, priors, strict=True))

    def mean_of(self, total: int, priors: Sequence[tuple[int, int]] | None = None) -> float:
        """The measured mean of so many blocks per row in all, placed."""
        (mean,) = self.meter.means(
            [self.plan(self.placed(total), priors)], f"{total / self.layers:.3g} blocks per row on average"
        )
        if priors is None:
            self.curve[total / self.layers] = mean
        return mean

    def least(self, target: float, most: int, priors: Sequence[tuple[int, int]] | None = None) -> int:
        """The least total that reaches a mean, by halves; `most` does."""
        low, high = self.layers - 1, most
        while high - low > 1:
            middle = (low + high) // 2
            if self.mean_of(middle, priors) >= target:
                high = middle
            else:
                low = middle
        return high

    def priors(self, per_row: list[int]) -> list[tuple[int, int]]:
        """The priors of each layer that measured better than none, first alone, then together."""
        start = self.plan(per_row)
        tried = [
            (layer, each, (*start[:layer], self.scale.layer(per_row[layer], *each), *start[layer + 1 :]))
            for layer in range(self.layers)
            if per_row[layer] < self.scale.most
            for each in _PRIORS
        ]
        before, *means = self.meter.means([start, *(plan for _, _, plan in tried)], "priors, layer by layer")
        best: dict[int, tuple[float, tuple[int, int]]] = {}
        for (layer, each, _), mean in zip(tried, means, strict=True):
            if mean > max(before + _GAIN, best.get(layer, (0.0, each))[0]):
                best[layer] = (mean, each)
        order = sorted(best, key=lambda layer: (-best[layer][0], layer))
        together: list[list[tuple[int, int]]] = [[(0, 0)] * self.layers]
        for layer in order:
            together.append([best[layer][1] if other == layer else now for other, now in enumerate(together[-1])])
        means = self.meter.means([self.plan(per_row, each) for each in together], "priors together")
        return together[int(np.argmax(means))]

    def exchanged(self, per_row: list[int], priors: list[tuple[int, int]]) -> list[int]:
        """Budgets after exchanges between two layers, each kept where it measured better."""
        step = max(1, self.scale.most // 16)
        for _ in range(_ROUNDS):
            (now,) = self.meter.means([self.plan(per_row, priors)], "exchanges between layers")
            moves = []
            for giver in range(self.layers):
                for taker in range(self.layers):
                    after = list(per_row)
                    after[giver] -= step
                    after[taker] += step
                    if giver != taker and after[giver] >= 1 and after[taker] <= self.scale.most:
                        loss = sum(curve[rows - 1] for curve, rows in zip(self.curves, after, strict=True))
                        moves.append((loss, after))
            tried = [after for _, after in sorted(moves)[:_EXCHANGES]]
            if not tried:
                break
            means = self.meter.means([self.plan(each, priors) for each in tried], "exchanges between layers")
            if max(means) < now + _GAIN:
                break
            per_row = tried[int(np.argmax(means))]
        return per_row

    def found(self, plan: Plan, judge: Meter) -> Found:
        """What a choice is worth, on the texts that had no part in it too."""
        mean = self.scale.mean(plan)
        even = (self.scale.layer(mean),) * self.layers
        (here,) = self.meter.cosines([plan], "the choice")
        there, other = judge.cosines([plan, even], "the choice, and one budget for all layers, on held-out texts")
        for level in self.levels[:-1]:
            self.mean_of(level * self.layers)
        return Found(
            plan,
            mean,
            agreement(here),
            agreement(there),
            agreement(other),
            tuple(self.sensitivity),
            dict(sorted(self.curve.items())),
        )


def place(meter: Meter, judge: Meter, scale: Scale, mean_block_per_row: float) -> Found:
    """The best budgets of a given cost.

    Args:
        meter: on the texts that they are chosen by.
        judge: on the texts that they are judged by.
        scale: of the model.
        mean_block_per_row: the cost, on average over the layers.
    """
    search = _Search(meter, scale)
    total = min(int(mean_block_per_row * search.layers + 1e-9), scale.most * search.layers)
    per_row = search.placed(total)
    priors = search.priors(per_row)
    return search.found(search.plan(search.exchanged(per_row, priors), priors), judge)


def least_for(meter: Meter, judge: Meter, scale: Scale, target: float) -> Found:
    """The budgets of least cost whose mean cosine reaches a target.

    Args:
        meter: on the texts that they are chosen by.
        judge: on the texts that they are judged by.
        scale: of the model.
        target: the mean cosine.
    """
    search = _Search(meter, scale)
    total = search.least(target, scale.most * search.layers)
    priors = search.priors(search.placed(total))
    if any(each != (0, 0) for each in priors):
        total = search.least(target, total, priors)
    return search.found(search.plan(search.placed(total), priors), judge)


def least_even(meter: Meter, scale: Scale, target: float) -> tuple[int, dict[int, float]]:
    """The least budget for all layers whose mean cosine reaches a target.

    Args:
        meter: on the texts.
        scale: of the model.
        target: the mean cosine.

    Returns:
        Blocks per row, and the mean cosine of each number of them that was measured.
    """
    levels = [*(level for level in _LEVELS if level < scale.most), scale.most]
    low, high = -1, len(levels) - 1
    measured = {levels[-1]: 1.0}
    while high - low > 1:
        middle = (low + high) // 2
        plan = (scale.layer(levels[middle]),) * meter.model.layers
        (measured[levels[middle]],) = meter.means([plan], f"{levels[middle]} blocks per row in all layers")
        low, high = (low, middle) if measured[levels[middle]] >= target else (middle, high)
    return levels[high], dict(sorted(measured.items()))


def _hull(losses: Mapping[int, float], most: int) -> list[float]:
    """The losses of 1, 2, ... blocks per row: straight lines under what was measured, falling ever more slowly."""
    points: list[tuple[int, float]] = []
    for level, loss in sorted(losses.items()):
        while len(points) > 1:
            (x1, y1), (x2, y2) = points[-2:]
            if (y2 - y1) * (level - x1) < (loss - y1) * (x2 - x1):
                break
            points.pop()
        points.append((level, loss))
    xs, ys = zip(*points, strict=True)
    return [float(each) for each in np.interp(range(1, most + 1), xs, ys)]


def check_long_enough(samples: Samples, exact_up_to: int, positions: int) -> None:
    """Refuses texts that lose nothing whatever the budget is.

    Args:
        samples: the texts.
        exact_up_to: tokens up to which the smallest budget holds every block.
        positions: the longest input of the model, in tokens.

    Raises:
        InputError: none of the texts is long enough.
    """
    if samples.long_enough:
        return
    shorter = max(1, blocks_of(samples.longest)) * BLOCK_SIZE
    advice = f", or convert for their length: --max-position {shorter}" if shorter < positions else ""
    raise InputError(
        f"None of the {samples.seen} texts can lose anything: the longest has {samples.longest} tokens, and up to {exact_up_to} "
        f"tokens the smallest budget, one block per row of {positions} positions, already holds every block. Give texts as long as "
        f"those that the model is to serve{advice}."
    )


def as_json(found: Found) -> dict[str, Any]:
    """A choice as plain data."""
    return {
        "num_blocks": [each.num_blocks for each in found.plan],
        "initial_prior_first_n_blocks": [each.initial_prior_first_n_blocks for each in found.plan],
        "initial_prior_diagonal_n_blocks": [each.initial_prior_diagonal_n_blocks for each in found.plan],
        "mean_block_per_row": found.mean_block_per_row,
        **{name: vars(getattr(found, name)) for name in ("chosen_by", "judged_by", "even")},
        "sensitivity": [{str(level): loss for level, loss in each.items()} for each in found.sensitivity],
        "curve": {f"{mean:g}": cosine for mean, cosine in found.curve.items()},
    }

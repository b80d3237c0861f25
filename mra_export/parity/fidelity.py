"""What a file of lower precision loses: its vectors of real texts against those of the float32 model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mra_export.numerics import least, neighbour_overlap, top1_agreement, worst
from mra_export.parity.comparison import Comparison

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mra_export.trace import Array, Inputs, Runner

__all__ = ["LIMITS", "Limits", "Vectors", "compare_vectors", "vectors_of"]


@dataclass(frozen=True)
class Limits:
    """The least agreements that pass, over the texts.

    Attributes:
        mean: of the cosines.
        least: of the cosines.
    """

    mean: float
    least: float

    def hold(self, metrics: Mapping[str, float | None]) -> bool:
        """Whether the cosines are within them; NaN is not."""
        mean, low = metrics["cosine_mean"], metrics["cosine_min"]
        return mean is not None and low is not None and mean >= self.mean and low >= self.least


LIMITS = {
    "bf16": Limits(0.9999, 0.995),
    "int8": Limits(0.999, 0.997),
    "int8-all": Limits(0.997, 0.99),
    "int8-weights": Limits(0.998, 0.995),
}
"""By precision: "int8" leaves the layers in float that lose most, "int8-all" none; "int8-weights" measures nothing before."""

ALONE = 1e-4
"""How much a text's numbers may change from its batch to itself alone at the same width. Shapes of products and sums differ then,
and with them the order in which float32 adds up, which may round a number to another int8. Quantizers that take their scales from
the whole batch change them by 2e-2."""
NEIGHBOURS = 10
_BATCH = 4
"""Texts of the batch in which they are compared with themselves alone."""
_WIDTH = 128
"""Tokens of that batch at most."""


@dataclass(frozen=True)
class Vectors:
    """What a model makes of texts.

    Attributes:
        values: of each text float64 [rows, numbers]: one row, or for a head that answers for each token a row a token.
        is_embedding: whether a text's vector is compared by its angle: `sentence_embedding`, or the mean of the token vectors.
            The numbers of a head are compared by their distance, since angles between two or three logits near 0 say nothing.
    """

    values: list[Array]
    is_embedding: bool

    def agreements(self, other: Vectors) -> list[float]:
        """Of each text with the `other`'s: the cosine of embeddings, and of a head what is a cosine at small distances.

        That is 1 - d^2 / 2, where d is the distance per row in units of the usual length of a row over all texts of `self`.
        """
        if self.is_embedding:
            return [
                float((a * b).sum() / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
                for a, b in zip(self.values, other.values, strict=True)
            ]
        usual = float(np.mean(np.concatenate([(a**2).sum(axis=1) for a in self.values])))
        return [
            float(1 - ((a - b) ** 2).sum(axis=1).mean() / (2 * max(usual, 1e-30)))
            for a, b in zip(self.values, other.values, strict=True)
        ]


def vectors_of(runner: Runner, samples: Sequence[Inputs]) -> Vectors:
    """The vectors of texts, batches of one without padding."""
    found = [_vector(runner.run(sample)) for sample in samples]
    return Vectors([value for value, _ in found], found[0][1])


def _vector(outputs: dict[str, Array]) -> tuple[Array, bool]:
    for name, axes in (("sentence_embedding", None), ("last_hidden_state", 1)):
        if name in outputs:
            value = outputs[name].astype(np.float64)
            return (value if axes is None else value.mean(axis=axes)).reshape(1, -1), True
    # Logits [batch, labels], [batch, tokens, labels] or start and end of an answer, each [batch, tokens].
    found = [value[0].astype(np.float64) for value in outputs.values()]
    return (found[0] if found[0].ndim == 2 else np.concatenate(found)[None]), False


def compare_vectors(
    reference: Runner,
    candidate: Runner,
    samples: Sequence[Inputs],
    precision: str,
    *,
    again: Runner | None = None,
    expected: Vectors | None = None,
) -> Comparison:
    """Compares a model of lower precision with the float32 one on real texts.

    Args:
        reference: the float32 model.
        candidate: what is judged.
        samples: the texts, batches of one without padding.
        precision: of `LIMITS`.
        again: the candidate with another number of threads, which must give the same bits; None to leave that out.
        expected: the vectors of `reference`, where they are known.

    Returns:
        The comparison: cosines by their limits; how many of the nearest neighbours stay, or of a head the answers; and how much a
        text's result changes by what the texts beside it in a batch are and by the number of threads, which has to be 0, and from
        a batch to itself alone (`ALONE`).
    """
    limits = LIMITS[precision]
    expected = expected or vectors_of(reference, samples)
    actual = vectors_of(candidate, samples)
    cosines = expected.agreements(actual)
    metrics: dict[str, float | None] = {
        "cosine_mean": float(np.mean(cosines)),
        "cosine_min": least(cosines),
        "neighbour_agreement": None,
        "top1_agreement": None,
    }
    if not expected.is_embedding:
        pairs = zip(expected.values, actual.values, strict=True)
        metrics["top1_agreement"] = float(np.mean([top1_agreement(want, got) for want, got in pairs]))
    elif len(samples) > NEIGHBOURS:
        before, after = (np.concatenate(each.values) for each in (expected, actual))
        metrics["neighbour_agreement"] = neighbour_overlap(before, after, [NEIGHBOURS])[NEIGHBOURS]
    together, alone, others = _batches(samples)
    result = candidate.run(together)
    metrics["row_error"] = _largest(_first(result), _first(candidate.run(others)), _first(together))
    metrics["batch_invariance_error"] = _largest(result, _stacked([candidate.run(each) for each in alone]), together)
    bounds = {"cosine_mean": limits.mean, "cosine_min": limits.least, "row_error": 0.0}
    bounds["batch_invariance_error"] = ALONE
    if again is not None:
        metrics["thread_error"] = _largest(result, again.run(together), together)
        bounds["thread_error"] = 0.0
    errors = [(metrics[name], bound) for name, bound in bounds.items() if name.endswith("error")]
    ok = limits.hold(metrics) and all(error is not None and error <= bound for error, bound in errors)  # NaN is not
    return Comparison(reference.name, candidate.name, metrics, bounds, ok)


def _batches(samples: Sequence[Inputs]) -> tuple[Inputs, list[Inputs], Inputs]:
    """Texts of different lengths as one padded batch, each alone at the same width, and the first beside other texts."""
    fitting = sorted(samples, key=lambda sample: sample["input_ids"].shape[-1])
    fitting = [sample for sample in fitting if sample["input_ids"].shape[-1] <= _WIDTH] or fitting[:1]
    chosen = [fitting[round(i * (len(fitting) - 1) / (_BATCH - 1))] for i in range(_BATCH)]
    width = max(sample["input_ids"].shape[-1] for sample in chosen)
    alone = []
    for sample in chosen:
        missing = width - sample["input_ids"].shape[-1]
        padding = [(0, 0)] * (sample["input_ids"].ndim - 1) + [(0, missing)]
        alone.append({name: np.pad(value, padding) for name, value in sample.items()})
    return _stacked(alone), alone, _stacked([alone[0], *[alone[-1]] * (_BATCH - 1)])


def _first(many: dict[str, Array]) -> dict[str, Array]:
    return {name: value[:1] for name, value in many.items()}


def _stacked(many: Sequence[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([each[name] for each in many]) for name in many[0]}


def _largest(one: dict[str, Array], other: dict[str, Array], inputs: Inputs) -> float:
    """The largest difference of outputs, without what stands at padding."""
    tokens = inputs["attention_mask"].astype(bool)
    found = []
    for name, value in one.items():
        difference = np.abs(value - other[name])
        found.append(difference[tokens] if difference.shape[: tokens.ndim] == tokens.shape else difference)
    return worst([float(each.max(initial=0.0)) for each in found])

"""What a model loses against another on texts: cosines by length, neighbours, retrieval, and whether it pays at these lengths."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mra_export.errors import DependencyError, InputError
from mra_export.export.onnx_model import find_onnx, read_onnx
from mra_export.fidelity.docstrings import retrieval_set
from mra_export.fidelity.encoders import Encoder, open_encoder
from mra_export.fidelity.retrieval import Queries, require_measures, scores
from mra_export.fidelity.samples import blocks_of
from mra_export.fidelity.search import Agreement, agreement
from mra_export.fidelity.speed import PAYS, SOURCE, faster_than_dense
from mra_export.numerics import neighbour_overlap
from mra_export.pipeline.bench import BenchRow, bench

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mra_export.trace import Array

__all__ = ["FidelityResult", "LengthRow", "fidelity"]

NEIGHBOURS = (1, 5, 10)
WORST = 5


@dataclass(frozen=True)
class LengthRow:
    """Texts of some lengths.

    Attributes:
        first: tokens of the shortest that belong here.
        last: of the longest.
        agreement: their cosines.
    """

    first: int
    last: int
    agreement: Agreement


@dataclass(frozen=True)
class FidelityResult:
    """What one model loses against another.

    Attributes:
        dense: name of the model that is held to be right.
        mra: of the other.
        agreement: the cosines of all texts.
        lengths: by length, shortest first; what there is of it.
        worst: id of a text, its tokens and cosine, the least cosine first.
        neighbours: count -> share of the nearest neighbours among the texts that stay; none where there are too few texts.
        retrieval: "dense", "mra" and "mixed" (the dense model's queries, the other's documents) -> measure -> mean; None without
            queries.
        queries: how many there are.
        pays: whether the budget pays at these lengths by the benchmark; None where the second model has none.
        notes: what to know of it.
        speed: of `bench`, at the length that half of the tokens are in texts of or above and at the longest; none unless timed.
        tokens: of each text.
        cosines: of each text.
    """

    dense: str
    mra: str
    agreement: Agreement
    lengths: list[LengthRow]
    worst: list[tuple[str, int, float]]
    neighbours: dict[int, float]
    retrieval: dict[str, dict[str, float]] | None
    queries: int
    pays: bool | None
    notes: list[str]
    speed: list[BenchRow]
    tokens: Array = field(repr=False)
    cosines: Array = field(repr=False)


def fidelity(
    dense: str | Path,
    mra: str | Path,
    *,
    texts: Mapping[str, str] | None = None,
    queries: Queries | None = None,
    library: Path | None = None,
    timed: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> FidelityResult:
    """Compares the vectors of two models on texts.

    Args:
        dense: the model that is held to be right: a checkpoint, a hub id, an ONNX directory or an .onnx file.
        mra: the other, of any of these kinds.
        texts: id -> text; None for documentation in Python's standard library, by modules that `from-dense` does not choose by, and
            the first line of each as its query.
        queries: what is looked for in the texts.
        library: the ONNX Runtime library for exported files; None to run their function body.
        timed: whether the second model, which has to be an exported file, is timed beside dense attention, as `bench` does it.
        progress: called with a line now and then.

    Raises:
        InputError: a model cannot be read, there are no texts, vectors differ in width, or what is no exported file is to be timed.
        DependencyError: ONNX Runtime or ir-measures is missing.
    """
    notes: list[str] = []
    file = find_onnx(Path(mra)) if timed else None
    if timed and file is None:
        raise InputError(
            f"Only an exported file is timed, and {mra} is none. Export it with `mra-export onnx`, and give that directory."
        )
    if texts is None:
        texts, queries = _builtin(notes)
    elif queries is not None:
        require_measures()
    if not texts:
        raise InputError(
            "There are no texts: the file is empty. Give texts as long as those that the model is to serve."
        )
    models: list[Encoder] = []
    vectors: list[Array] = []
    tokens: Array = np.zeros(0)
    for source in (dense, mra):
        progress(f"loading {source}")
        model = open_encoder(source, library=library)
        rows, own = model.encode(list(texts.values()), "document", progress)
        models.append(model)
        vectors.append(rows)
        tokens = np.maximum(tokens, own) if len(models) > 1 else own
    if vectors[0].shape != vectors[1].shape:
        raise InputError(
            f"{models[0].name} gives vectors of {vectors[0].shape[1]} numbers, {models[1].name} of {vectors[1].shape[1]}: they are "
            "not of one model. Compare an MRA model with the dense one that it was made from."
        )
    cosines = (vectors[0] * vectors[1]).sum(axis=1)
    found, names = None, list(texts)
    if queries is not None:
        wanted = [model.encode(list(queries.texts.values()), "query", progress)[0] for model in models]
        pairs = {"dense": (0, 0), "mra": (1, 1), "mixed": (0, 1)}
        found = {name: scores(queries, wanted[q], names, vectors[d]) for name, (q, d) in pairs.items()}
    counts = [count for count in NEIGHBOURS if count < len(texts)]
    order = np.argsort(cosines, kind="stable")[:WORST].tolist()
    pays, said = _verdict(models[1], tokens)
    speed = []
    if file is not None:
        lengths = sorted({_half_of_the_tokens(tokens), int(tokens.max())})
        result = bench(
            read_onnx(file), batches=[1], seq_lens=lengths, runtimes=["onnxruntime"], library=library, progress=progress
        )
        speed, notes = result.rows, [*notes, *result.notes]
    return FidelityResult(
        models[0].name,
        models[1].name,
        agreement(cosines),
        _by_length(tokens, cosines),
        [(names[place], int(tokens[place]), float(cosines[place])) for place in order],
        neighbour_overlap(vectors[0], vectors[1], counts) if counts else {},
        found,
        0 if queries is None else len(queries.texts),
        pays,
        [*said, *notes],
        speed,
        tokens,
        cosines,
    )


def _builtin(notes: list[str]) -> tuple[dict[str, str], Queries | None]:
    """The texts for want of the user's, and their queries where these can be measured."""
    texts, queries = retrieval_set("held-out", whole_modules=True)
    notes.append(
        "Measured on the documentation in Python's standard library, for want of texts of yours: --texts FILE gives them."
    )
    try:
        require_measures()
    except DependencyError as error:
        notes.append(str(error))
        return texts, None
    return texts, queries


def _by_length(tokens: Array, cosines: Array) -> list[LengthRow]:
    """Up to 32 tokens, 64, 128 and so on."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place, count in enumerate(tokens.tolist()):
        last = 32
        while last < count:
            last *= 2
        groups[last].append(place)
    return [
        LengthRow(last // 2 + 1 if last > 32 else 1, last, agreement(cosines[groups[last]])) for last in sorted(groups)
    ]


def _verdict(model: Encoder, tokens: Array) -> tuple[bool | None, list[str]]:
    """Whether the budget pays at these lengths, and what to say of it."""
    if not model.plan:
        return None, []
    exact = min(each.num_blocks for each in model.plan)
    short = int(sum(blocks_of(int(count)) ** 2 <= exact for count in tokens))
    notes = [
        f"{short} of {len(tokens)} texts are so short that every layer selects all their blocks: there nothing is lost."
    ]
    typical = _half_of_the_tokens(tokens)
    blocks = blocks_of(typical)
    per_row = statistics.fmean(min(each.num_blocks / blocks, blocks) for each in model.plan)
    at, measured, factor = faster_than_dense(typical, per_row)
    fact = (
        f"half of the tokens are in texts of {typical} or more, where the budget is {per_row:.3g} of {blocks} blocks per row; by "
        f"{SOURCE} a model with {measured} is {factor:.2f} times as fast as dense attention at {at} tokens"
    )
    pays = factor >= PAYS
    if pays:
        notes.append(f"MRA pays at these lengths: {fact}.")
    else:
        advice = "" if short == len(tokens) else " All blocks lose nothing: from-dense with --block-per-row left out."
        notes.append(f"MRA does not pay at these lengths: {fact}.{advice}")
    return pays, notes


def _half_of_the_tokens(tokens: Array) -> int:
    """The length with as many tokens in longer texts as in shorter ones."""
    ordered = np.sort(tokens)
    return int(ordered[int(np.searchsorted(np.cumsum(ordered), ordered.sum() / 2))])

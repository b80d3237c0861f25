"""Which blocks an implementation selects, found from outside; and what is said of those that are not the specification's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mra_export.operators.judge import TOLERANCES, LayerReport
from mra_export.operators.mra2_attention.judge import SelectionJudge, _near_tie, _real_pairs, probe_selection
from mra_export.operators.mra2_attention.reference import mra2_attention, select_blocks
from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes
from mra_export.trace import LayerTrace


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("approx_mode", [0, 1])
def test_the_probe_sees_the_selection_through_the_output(seed: int, approx_mode: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(2, 300, 32, generator=generator) for _ in range(2))
    mask = torch.ones(2, 300, dtype=torch.int32)
    mask[1, 200:] = 0
    mask[0, 40:51] = 0
    attributes = Mra2AttentionAttributes(2, 23, approx_mode, 0, 1, 0.2)
    choice = select_blocks(query, key, mask, attributes)

    def run(tensors: list[np.ndarray]) -> np.ndarray:
        return mra2_attention(*(torch.from_numpy(t) for t in tensors), mask, attributes).numpy()

    found = probe_selection(run, query.numpy(), key.numpy(), mask.numpy(), 2)
    blocks = choice.selected.shape[-1]
    holds = torch.nn.functional.pad(mask, (0, blocks * 32 - 300)).reshape(2, blocks, 32).any(2)
    real = (holds[:, :, None] & holds[:, None])[:, None]
    assert torch.equal(found, choice.selected & real)


HEADS, HEAD_DIM, TOKENS = 2, 8, 128
ATTRIBUTES = Mra2AttentionAttributes(HEADS, 5, 0, 0, 0, 0.5)


def qkv(rows: int = 2, tokens: int = TOKENS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(rows, tokens, HEADS * HEAD_DIM, generator=generator) for _ in range(3)]


class Candidate:
    """An implementation that selects the blocks it is given; it may not show its operator alone."""

    name = "a file"

    def __init__(self, selected: torch.Tensor, mask: torch.Tensor, *, shows: bool = True, factor: float = 1.0) -> None:
        self.selected, self.mask, self.shows, self.factor = selected, mask, shows, factor

    def run_operator(self, attributes: Any, tensors: Any, mask: Any) -> Any:
        if not self.shows:
            return None
        given = (torch.from_numpy(np.asarray(x)) for x in tensors)
        context = mra2_attention(*given, self.mask, ATTRIBUTES, selected=self.selected)
        return (context * self.factor).numpy()


def judged(tensors: list[torch.Tensor], mask: torch.Tensor, candidate: Any) -> tuple[torch.Tensor, LayerReport]:
    report = LayerReport("layer.0")
    shows, candidate.shows = candidate.shows, True
    context = candidate.run_operator(ATTRIBUTES, tensors, mask)
    candidate.shows = shows
    layer = LayerTrace(*(x.numpy() for x in tensors), context)
    made = SelectionJudge(mra2_attention, [ATTRIBUTES])
    return made.operator(0, layer, mask, candidate, TOLERANCES["fp32"], report), report


def swap(selected: torch.Tensor, score: torch.Tensor, row: int, head: int, rank: int = 0) -> torch.Tensor:
    """One head takes its best block that was left out in the place of its worst that was not."""
    found = selected.clone()
    flat, numbers = found[row, head].flatten(), score[row, head].flatten()
    worst = numbers.masked_fill(~flat, torch.inf).argmin()
    best = numbers.masked_fill(flat, -torch.inf).argsort(descending=True)[rank]
    flat[worst], flat[best] = False, True
    found[row, head] = flat.reshape(found[row, head].shape)
    return found


@pytest.mark.parametrize("shows", [True, False])
def test_the_right_blocks_pass(shows: bool) -> None:
    tensors, mask = qkv(), torch.ones(2, TOKENS, dtype=torch.int32)
    own = select_blocks(*tensors[:2], mask, ATTRIBUTES).selected
    found, report = judged(tensors, mask, Candidate(own, mask, shows=shows))
    assert torch.equal(found, own)
    assert (report.problem, report.near_ties, report.operator_error) == (None, 0, 0.0)


@pytest.mark.parametrize(
    ("shows", "factor", "cause"),
    [
        (True, 1.0, "selection of the attention (head 1:"),
        (False, 1.0, "arithmetic of the attention (head 1:"),
        (True, 1.5, "selection of the attention (head 0:"),
        (True, float("nan"), "arithmetic of the attention (head 0:"),
    ],
)
def test_wrong_blocks_are_told_where_they_can_be_seen(shows: bool, factor: float, cause: str) -> None:
    tensors, mask = qkv(), torch.ones(2, TOKENS, dtype=torch.int32)
    choice = select_blocks(*tensors[:2], mask, ATTRIBUTES)
    wrong = swap(choice.selected, choice.score, 1, 1)
    found, report = judged(tensors, mask, Candidate(wrong, mask, shows=shows, factor=factor))
    assert torch.equal(found, choice.selected)
    assert report.problem is not None
    assert report.problem.startswith(cause)
    assert report.near_ties == 0


def tied(mask: torch.Tensor) -> tuple[list[torch.Tensor], Any]:
    """Tensors whose heads of the first row have equal scores at the cut."""
    tensors = qkv()
    for tensor in tensors[:2]:
        tensor[0] = tensor[0, :32].repeat(TOKENS // 32, 1)
    return tensors, select_blocks(*tensors[:2], mask, ATTRIBUTES)


def test_the_other_side_of_a_tie_is_as_right() -> None:
    mask = torch.ones(2, TOKENS, dtype=torch.int32)
    tensors, choice = tied(mask)
    other = swap(swap(choice.selected, choice.score, 0, 0), choice.score, 0, 1)
    found, report = judged(tensors, mask, Candidate(other, mask))
    assert torch.equal(found, other)
    assert (report.problem, report.near_ties) == (None, 2)
    assert report.operator_error <= TOLERANCES["fp32"].operator
    found, report = judged(tensors, mask, Candidate(other, mask, factor=1.01))  # it is wrong on either side
    assert torch.equal(found, choice.selected)
    assert (report.problem is not None, report.near_ties) == (True, 0)
    wrong = swap(other, choice.score, 1, 0)
    found, report = judged(tensors, mask, Candidate(wrong, mask))
    assert torch.equal(found, other)
    assert report.near_ties == 2
    assert report.problem is not None
    assert report.problem.startswith("selection of the attention (head 0:")


def test_a_swap_is_whole() -> None:
    """A block more is no swap, although its score is that of the cut."""
    mask = torch.ones(2, TOKENS, dtype=torch.int32)
    tensors, choice = tied(mask)
    more = choice.selected.clone()
    more[0, :, 3, 3] = True
    found, report = judged(tensors[:], mask, Candidate(more, mask))
    assert torch.equal(found, choice.selected)
    assert (report.problem is not None, report.near_ties) == (True, 0)


def test_the_same_blocks_and_what_they_share() -> None:
    mask = torch.ones(2, TOKENS, dtype=torch.int32)
    mask[1, 64:] = 0  # two blocks of four
    tensors = qkv()
    choice = select_blocks(*tensors[:2], mask, ATTRIBUTES)
    layer = LayerTrace(*(x.numpy() for x in (*tensors, tensors[2])))
    made, report = SelectionJudge(mra2_attention, [ATTRIBUTES]), LayerReport("x")
    same, ties = made.same(0, layer, choice.selected, mask)
    assert (same.tolist(), ties.tolist()) == ([True, True], choice.tied_tokens.any(1).tolist())
    real = _real_pairs(mask, HEADS)
    total = int((choice.selected & real).sum())
    assert made.overlap(0, layer, choice.selected, mask, report) == (total, total)
    assert report.swapped_gap == 0.0

    elsewhere = choice.selected.clone()
    elsewhere[1, :, 3] = ~elsewhere[1, :, 3]  # of no token
    assert made.same(0, layer, elsewhere, mask)[0].tolist() == [True, True]
    assert made.overlap(0, layer, elsewhere, mask, report) == (total, total)

    swapped = swap(choice.selected, choice.score, 0, 1, rank=2)
    assert made.same(0, layer, swapped, mask)[0].tolist() == [False, True]
    assert made.overlap(0, layer, swapped, mask, report) == (total - 1, total)
    flat = choice.score[0, 1].flatten()
    gap = float(flat[(choice.selected & ~swapped)[0, 1].flatten()] - flat[(swapped & ~choice.selected)[0, 1].flatten()])
    assert report.swapped_gap == pytest.approx(gap)
    twice = swap(swapped, choice.score, 0, 0)
    assert made.overlap(0, layer, twice, mask, report) == (total - 2, total)
    assert report.swapped_gap == pytest.approx(gap)  # the largest stays
    assert torch.equal(made.rows_of(twice, slice(1, 2)), twice[1:])


def test_what_is_said_of_blocks() -> None:
    made = SelectionJudge(mra2_attention, [ATTRIBUTES])
    assert made.specification == "specification, same blocks"
    assert made.tie_note(3).startswith("3 row(s) have equal scores at the cut of the selection")
    assert made.unseen_note(2, 9).startswith("judged on 2 of 9 rows, those so short that all blocks are selected")


def test_a_block_is_real_by_its_tokens() -> None:
    mask = torch.zeros(2, 70)
    mask[0, :33] = 1
    mask[1, 69] = mask[1, 40] = mask[1, 41] = 2
    pairs = _real_pairs(mask, 3)
    assert pairs.shape == (2, 3, 3, 3)
    assert pairs[0, 2].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert pairs[1, 0].int().tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]
    two = _real_pairs(mask, 3, least_keys=2)
    assert two[0, 1].int().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert two[1, 1].int().tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_near_is_what_float32_cannot_tell() -> None:
    """A hundred thousandth of the largest score up to a thousand, and four steps of a lowest score that is larger."""
    score = torch.tensor([[[[8.0, 2.0], [2.0 - 7e-5, 2.0 - 9e-5]]]])
    selected = torch.tensor([[[[True, True], [False, False]]]])
    assert _near_tie(score, selected).flatten().tolist() == [False, True, True, False]
    score = torch.tensor([[[[5e6, 1e6], [1e6 - 0.4, 1e6 - 0.75]]]], dtype=torch.float64)
    assert _near_tie(score, selected).flatten().tolist() == [False, True, True, False]  # 1e-2 + 0.477
    two = torch.cat([torch.tensor([[[[8.0, 2.0], [1.0, 0.0]]]]), torch.tensor([[[[9.0, 8.0], [2.0, 0.0]]]])], dim=1)
    assert _near_tie(two, selected.expand(1, 2, 2, 2)).flatten().tolist() == [False, True, False, False] * 2


def test_the_probe_goes_over_the_channels_of_a_head() -> None:
    """More blocks than a head has numbers, some without a pair of tokens."""
    attributes = Mra2AttentionAttributes(1, 30, 1, 0, 0, 1.0)
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(1, 330, 8, generator=generator) for _ in range(2))
    mask = torch.ones(1, 330, dtype=torch.int32)
    mask[0, 65:96] = 0  # one token is left
    mask[0, 96:128] = 0
    choice = select_blocks(query, key, mask, attributes)
    sums: list[float] = []

    def run(tensors: list[np.ndarray]) -> np.ndarray:
        sums.append(float(np.abs(tensors[2].sum(1)).max()))
        return mra2_attention(*(torch.from_numpy(t) for t in tensors), mask, attributes).numpy()

    found = probe_selection(run, query.numpy(), key.numpy(), mask.numpy(), 1)
    assert torch.equal(found, choice.selected & _real_pairs(mask, 1, least_keys=2))
    assert sums == [0.0, 0.0]
    assert found.shape == (1, 1, 11, 11)

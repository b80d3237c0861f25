"""A model run layer by layer gives what the whole model gives, and what budgets share is computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fidelity_support import LAYERS, letters

from mra_export.checkpoint.load import Checkpoint
from mra_export.families._mra_budgets import as_stated
from mra_export.fidelity.layered import LayeredModel, Plan
from mra_export.fidelity.samples import Batch, batches_of, sampled_ids
from mra_export.fidelity.search import Scale
from mra_export.runners.torch import SpecificationRunner


@pytest.fixture
def batches(dense: Path) -> list[Batch]:
    return batches_of(sampled_ids(dense, letters([250, 200, 90, 95, 20]), 256) or [])


def scale(checkpoint: Checkpoint) -> Scale:
    return Scale(checkpoint.family.attributes(checkpoint.config), 8, 8)


def means(hidden: Any, batch: Batch) -> np.ndarray:
    weight = batch.mask.numpy()[:, :, None].astype(np.float64)
    vectors = (np.asarray(hidden, np.float64) * weight).sum(1) / weight.sum(1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_each_layer_has_its_budget(full: Checkpoint, batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    of = scale(full)
    plan: Plan = (of.layer(1, 1, 0), of.layer(8), of.layer(2, 0, 1))
    model = LayeredModel(full)
    found = [model.vectors(batch, [plan])[0] for batch in batches]
    monkeypatch.setattr(full.config, "mra_export", as_stated(plan), raising=False)
    runner = SpecificationRunner(full)
    for batch, vectors in zip(batches, found, strict=True):
        inputs = {"input_ids": batch.ids.numpy(), "attention_mask": batch.mask.numpy()}
        expected = means(runner.run(inputs)["last_hidden_state"], batch)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_dense_attention_is_that_of_the_dense_model(full: Checkpoint, dense: Path, batches: list[Batch]) -> None:
    original = transformers.AutoModel.from_pretrained(dense).eval()
    model = LayeredModel(full)
    for batch in batches:
        with torch.no_grad():
            hidden = original(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        dense_vectors, all_blocks, one = model.vectors(
            batch, [None, (scale(full).layer(8),) * LAYERS, (scale(full).layer(1),) * LAYERS]
        )
        np.testing.assert_allclose(dense_vectors, means(hidden, batch), atol=1e-5)
        np.testing.assert_array_equal(all_blocks, dense_vectors)
        assert (batch.blocks > 2) == bool(np.abs(one - dense_vectors).max() > 1e-4)  # 8 blocks hold 2 x 2


def test_what_budgets_share_is_computed_once(full: Checkpoint, batches: list[Batch]) -> None:
    of = scale(full)
    model = LayeredModel(full)
    run: list[int] = []
    for index, layer in enumerate(model._model.encoder.layer):
        layer.register_forward_hook(lambda *_, index=index: run.append(index))
    a, b = of.layer(1), of.layer(2)
    longest = max(batches, key=lambda batch: batch.blocks)
    together = model.vectors(longest, [(a, a, a), (a, a, b), (a, b, a), None])
    assert sorted(run) == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    for vectors, plan in zip(together, [(a, a, a), (a, a, b), (a, b, a), None], strict=True):
        np.testing.assert_array_equal(vectors, model.vectors(longest, [plan])[0])

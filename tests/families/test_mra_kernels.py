"""The primitives that make transformers' own model run, against loops, and the model with them against the specification."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save_checkpoint
from transformers.models.mra import modeling_mra

from mra_export.checkpoint.load import load_checkpoint
from mra_export.checkpoint.modules import Normalize, Pooling
from mra_export.errors import DependencyError, InputError
from mra_export.families import _mra_kernels
from mra_export.runners.torch import SpecificationRunner, TransformersRunner

N, A, B, D, T = 2, 3, 4, 64, 5


@pytest.fixture
def indices() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm((A - 1) * B, generator=generator)[:T] for _ in range(N)]  # the last query block has none
    return torch.stack(rows).int()


def test_mm_to_sparse(indices: torch.Tensor) -> None:
    a, b = torch.randn(N, A, D, 32), torch.randn(N, B, D, 32)
    result = _mra_kernels.mm_to_sparse(a, b, indices)
    for n in range(N):
        for t in range(T):
            i = int(indices[n, t])
            torch.testing.assert_close(result[n, t], b[n, i % B].T @ a[n, i // B])


def test_sparse_dense_mm_and_reduce_sum(indices: torch.Tensor) -> None:
    sparse, b = torch.randn(N, T, 32, 32), torch.randn(N, B, D, 32)
    product = torch.zeros(N, A, D, 32)
    total = torch.zeros(N, A, 32)
    for n in range(N):
        for t in range(T):
            i = int(indices[n, t])
            product[n, i // B] += b[n, i % B] @ sparse[n, t]
            total[n, i // B] += sparse[n, t].sum(0)
    torch.testing.assert_close(_mra_kernels.sparse_dense_mm(sparse, indices, b, A), product)
    torch.testing.assert_close(_mra_kernels.reduce_sum(sparse, indices, A, B), total)


def test_index_max(indices: torch.Tensor) -> None:
    values = torch.randn(N, 32, T) - 50  # an initial 0 or 1e-3 steps would show
    maxima, scattered = _mra_kernels.index_max(values, indices, A, B)
    expected = torch.full((N, A, 32), -1e5)
    for n in range(N):
        for t in range(T):
            row = int(indices[n, t]) // B
            expected[n, row] = torch.maximum(expected[n, row], values[n, :, t])
    torch.testing.assert_close(maxima.reshape(N, A, 32), expected)
    assert bool((maxima.reshape(N, A, 32)[:, -1] == -1e5).all())
    for n in range(N):
        for t in range(T):
            torch.testing.assert_close(scattered[n, :, t], expected[n, int(indices[n, t]) // B])


def test_a_model_without_kernels_is_refused(tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint).model
    _mra_kernels.uninstall()
    with pytest.raises(DependencyError, match="attention does nothing"):
        _mra_kernels.probe_attention(model)
    with _mra_kernels.installed() as source:
        assert source.name == "torch"
        _mra_kernels.probe_attention(model)
    assert modeling_mra.mra_cuda_kernel is None


def test_sources_that_are_incomplete_are_named(tmp_path: Path) -> None:
    (tmp_path / "cuda_kernel.cu").touch()
    with pytest.raises(InputError, match=r"has no cuda_launch.cu, torch_extension.cpp"):
        _mra_kernels.install("cuda", sources=tmp_path)


def test_without_hub_and_sources_a_gpu_gets_torch() -> None:
    with _mra_kernels.installed("cuda") as source:
        assert source.name in {"torch", "hub"}
        assert source.name == "hub" or "plain torch operations on cuda" in source.detail


def test_guarded_kernels_fall_back_where_the_original_is_wrong(indices: torch.Tensor) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"{name} was called outside its sizes")

    record = _mra_kernels.KernelSource("sources", "test")
    guarded = _mra_kernels._guarded(Broken(), record)
    sparse, b = torch.randn(N, T, 32, 32), torch.randn(N, B, 40, 32)
    torch.testing.assert_close(
        guarded.sparse_dense_mm(sparse, indices, b, A), _mra_kernels.sparse_dense_mm(sparse, indices, b, A)
    )
    guarded.mm_to_sparse(b, b, indices)
    guarded.index_max(torch.randn(N, 32, T), indices, A, B)
    guarded.reduce_sum(sparse, indices, A, B)
    assert record.fallbacks == {"sparse_dense_mm": 1, "mm_to_sparse": 1, "index_max": 1, "reduce_sum": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"approx_mode": "sparse"},
        {"initial_prior_first_n_blocks": 1, "initial_prior_diagonal_n_blocks": 1, "block_per_row": 6},
        {"num_attention_heads": 8},  # head_dim 8: transformers fills it up to 32 before it scales
        {"max_position_embeddings": 200},
    ],
    ids=str,
)
def test_the_unmodified_model_agrees_with_the_specification(settings: dict, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "c", **settings))
    rng = np.random.default_rng(0)
    width = checkpoint.config.max_position_embeddings - 3
    mask = np.ones((3, width), np.int64)
    mask[1, 90:] = 0
    mask[2] = rng.random(width) < 0.8
    inputs = {"input_ids": rng.integers(0, 120, mask.shape), "attention_mask": mask}
    inputs["token_type_ids"] = inputs["input_ids"] % 2
    keep = mask.astype(bool)
    original = TransformersRunner(checkpoint, (Pooling(("mean",)), Normalize())).trace(inputs)
    ours = SpecificationRunner(checkpoint, (Pooling(("mean",)), Normalize())).trace(inputs)
    for name, value in ours.outputs.items():
        kept = value[keep] if value.ndim == 3 else value
        np.testing.assert_allclose(
            kept, original.outputs[name][keep] if value.ndim == 3 else original.outputs[name], atol=2e-4
        )
    for layer, (theirs, mine) in enumerate(zip(original.layers, ours.layers, strict=True)):
        np.testing.assert_allclose(mine.context[keep], theirs.context[keep], atol=2e-4, err_msg=f"layer {layer}")

"""Makes transformers' own MRA model run: supplies the primitives of its CUDA module, which is missing in most installations.

Without that module `MraModel` returns zeros from every attention layer and says nothing. The primitives are wrapped in autograd
functions by transformers, so plain torch operations serve on every device. Shapes below: A is the query side, B the key side,
`indices[n, t] = a * B_num_block + b`; dense operands are [n, blocks, head_dim, 32] with the token last, sparse blocks are
[n, T, 32 keys, 32 queries].
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mra_export.errors import DependencyError, InputError
from mra_export.operators.mra2_attention.spec import BLOCK_SIZE, NO_BLOCK_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from mra_export.trace import Array

__all__ = [
    "CUDA_SOURCES",
    "KernelSource",
    "index_max",
    "install",
    "installed",
    "mended_mask",
    "mm_to_sparse",
    "probe_attention",
    "reduce_sum",
    "sparse_dense_mm",
    "uninstall",
]


@contextlib.contextmanager
def mended_mask(model: Any, mask: Array) -> Iterator[None]:
    """Gives transformers 4 the additive mask that its attention expects.

    There `MraSelfAttention` undoes -10000 of an additive mask, but the model adds the lowest float: a padded token gets
    the weight -2**31 instead of 0. transformers 5 has this mended.
    """
    import torch
    import transformers

    if int(transformers.__version__.split(".")[0]) >= 5:
        yield
        return
    additive = (torch.from_numpy(mask).float().to(model.device) - 1.0)[:, None, None, :] * 10000.0
    base = model.base_model
    base.get_extended_attention_mask = lambda *args, **kwargs: additive
    try:
        yield
    finally:
        del base.get_extended_attention_mask


CUDA_SOURCES = ("cuda_kernel.cu", "cuda_launch.cu", "torch_extension.cpp")
"""The files of the original module, as in the wheel transformers 4.46.3 under transformers/kernels/mra."""

_MAX_SHARED_SEQ_LEN = 12288
"""The original `index_max` keeps one float per token in 48 KiB of shared memory."""


@dataclass
class KernelSource:
    """Where the primitives that were installed come from.

    Attributes:
        name: "hub" (the `kernels` package), "sources" (compiled CUDA sources) or "torch" (plain torch operations).
        detail: a line for people.
        fallbacks: per primitive, the calls whose sizes the CUDA kernel gets wrong and that torch computed instead.
    """

    name: str
    detail: str
    fallbacks: dict[str, int] = field(default_factory=dict)


def index_max(index_vals: Tensor, indices: Tensor, A_num_block: int, B_num_block: int) -> tuple[Tensor, Tensor]:
    """Row maxima over the blocks of each row.

    Exact where the original rounds toward zero to 1/1000.

    Args:
        index_vals: float [n, 32, T], the maximum of each block over its keys.
        indices: int [n, T].
        A_num_block: query blocks.
        B_num_block: key blocks.

    Returns:
        The maxima [n, A_num_block * 32], -1e5 where a row has no block; and the same for each block, [n, 32, T].
    """
    import torch

    rows = torch.div(indices, B_num_block, rounding_mode="floor").long()
    rows = rows[:, None, :].expand_as(index_vals)  # [n, 32, T]
    shape = (index_vals.shape[0], BLOCK_SIZE, A_num_block)
    maxima = torch.full(shape, NO_BLOCK_MAX, dtype=index_vals.dtype, device=index_vals.device)
    maxima = maxima.scatter_reduce(2, rows, index_vals, "amax", include_self=False)
    return maxima.transpose(1, 2).reshape(shape[0], A_num_block * BLOCK_SIZE), maxima.gather(2, rows)


def mm_to_sparse(dense_A: Tensor, dense_B: Tensor, indices: Tensor) -> Tensor:
    """Products of the chosen pairs of blocks.

    Args:
        dense_A: float [n, A_num_block, head_dim, 32].
        dense_B: float [n, B_num_block, head_dim, 32].
        indices: int [n, T].

    Returns:
        [n, T, 32 of B, 32 of A].
    """
    import torch

    example = torch.arange(indices.shape[0], device=indices.device)[:, None]
    B_num_block = dense_B.shape[1]
    a = dense_A[example, torch.div(indices, B_num_block, rounding_mode="floor").long()]
    b = dense_B[example, (indices % B_num_block).long()]
    return b.transpose(2, 3) @ a


def sparse_dense_mm(sparse_A: Tensor, indices: Tensor, dense_B: Tensor, A_num_block: int) -> Tensor:
    """Product of a block-sparse matrix with a dense one.

    Args:
        sparse_A: float [n, T, 32 of B, 32 of A].
        indices: int [n, T].
        dense_B: float [n, B_num_block, head_dim, 32].
        A_num_block: query blocks.

    Returns:
        [n, A_num_block, head_dim, 32].
    """
    import torch

    count, B_num_block, head_dim, _ = dense_B.shape
    example = torch.arange(count, device=indices.device)[:, None]
    tiles = dense_B[example, (indices % B_num_block).long()] @ sparse_A  # [n, T, head_dim, 32]
    row = torch.div(indices, B_num_block, rounding_mode="floor").long() + example * A_num_block
    out = torch.zeros((count * A_num_block, head_dim, BLOCK_SIZE), dtype=tiles.dtype, device=tiles.device)
    return out.index_add(0, row.flatten(), tiles.flatten(0, 1)).reshape(count, A_num_block, head_dim, BLOCK_SIZE)


def reduce_sum(sparse_A: Tensor, indices: Tensor, A_num_block: int, B_num_block: int) -> Tensor:
    """Row sums of a block-sparse matrix.

    Args:
        sparse_A: float [n, T, 32 of B, 32 of A].
        indices: int [n, T].
        A_num_block: query blocks.
        B_num_block: key blocks.

    Returns:
        [n, A_num_block, 32].
    """
    import torch

    count = indices.shape[0]
    example = torch.arange(count, device=indices.device)[:, None]
    row = torch.div(indices, B_num_block, rounding_mode="floor").long() + example * A_num_block
    out = torch.zeros((count * A_num_block, BLOCK_SIZE), dtype=sparse_A.dtype, device=sparse_A.device)
    return out.index_add(0, row.flatten(), sparse_A.sum(2).flatten(0, 1)).reshape(count, A_num_block, BLOCK_SIZE)


_TORCH_KERNELS = SimpleNamespace(
    index_max=index_max, mm_to_sparse=mm_to_sparse, sparse_dense_mm=sparse_dense_mm, reduce_sum=reduce_sum
)


def install(device: str = "cpu", *, sources: Path | None = None) -> KernelSource:
    """Supplies the primitives to the unmodified `transformers.models.mra`.

    On a GPU the order is: the kernels of the hub, if the package `kernels` can load them; the original CUDA sources, if
    `sources` names their directory; plain torch. Elsewhere it is plain torch.

    Args:
        device: "cpu" or a torch CUDA device.
        sources: a directory with `CUDA_SOURCES`; compiled with ninja and nvcc at first use.

    Returns:
        Which one it was.

    Raises:
        InputError: `sources` lacks a file.
        DependencyError: `sources` was named and does not compile.
    """
    from transformers.models.mra import modeling_mra

    if sources is not None:
        absent = [name for name in CUDA_SOURCES if not (sources / name).is_file()]
        if absent:
            raise InputError(
                f"{sources} has no {', '.join(absent)}. Name the directory of MRA's CUDA sources, "
                "transformers/kernels/mra of the wheel transformers 4.46.3."
            )
    chosen = KernelSource("torch", "plain torch operations")
    kernels: Any = _TORCH_KERNELS
    if device.startswith("cuda"):
        hub, reason = _load_from_hub()
        if hub is not None:
            chosen = KernelSource("hub", "kernels-community/mra from the hub")
            kernels = _guarded(hub, chosen)
        elif sources is not None:
            chosen = KernelSource("sources", f"CUDA sources compiled from {sources}")
            kernels = _guarded(_compile(sources), chosen)
        else:
            chosen = KernelSource("torch", f"plain torch operations on {device} ({reason})")
    modeling_mra.mra_cuda_kernel = kernels
    return chosen


def uninstall() -> None:
    """Takes the primitives away again."""
    from transformers.models.mra import modeling_mra

    modeling_mra.mra_cuda_kernel = None


@contextlib.contextmanager
def installed(device: str = "cpu", *, sources: Path | None = None) -> Iterator[KernelSource]:
    """`install` for the length of a block; what was there before is put back.

    Args:
        device: as `install`.
        sources: as `install`.

    Yields:
        Which kernels they are.
    """
    from transformers.models.mra import modeling_mra

    before = modeling_mra.mra_cuda_kernel
    try:
        yield install(device, sources=sources)
    finally:
        modeling_mra.mra_cuda_kernel = before


def probe_attention(model: Any) -> None:
    """Refuses a model whose attention does nothing: changing one token must change another token's output.

    Args:
        model: a transformers MRA model with any head.

    Raises:
        DependencyError: its attention layers have no kernels behind them.
    """
    import torch

    base = model.base_model
    config = model.config
    # Long enough for the budget: transformers' top-k is out of range on fewer blocks than it chooses.
    blocks = config.max_position_embeddings // BLOCK_SIZE
    budget = max(layer.attention.self.num_block for layer in base.encoder.layer)
    length = BLOCK_SIZE * next(n for n in range(1, blocks + 1) if n * n >= budget)
    device = next(model.parameters()).device
    ids = torch.arange(length, device=device).remainder(config.vocab_size)[None, :]
    changed = ids.clone()
    changed[0, length // 2] = (ids[0, length // 2] + 1) % config.vocab_size
    with torch.no_grad():
        first, second = (
            base(input_ids=x, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 0] for x in (ids, changed)
        )
    if torch.equal(first, second):
        raise DependencyError(
            "The PyTorch model's attention does nothing: changing one token changes no other token's output. "
            "transformers' MRA needs its kernels and is silent without them; "
            "supply them with mra_export.families._mra_kernels.install()."
        )


def _load_from_hub() -> tuple[Any, str]:
    try:
        from kernels import get_kernel  # the repository's kernels/ shadows it for mypy

        return get_kernel("kernels-community/mra", version=1), ""
    except ImportError:
        return None, "the package kernels is not installed"
    except Exception as error:  # the hub's client raises many kinds; none of them is fatal here
        return (
            None,
            f"kernels-community/mra could not be loaded: {str(error).splitlines()[0] if str(error) else error!r}",
        )


def _compile(sources: Path) -> Any:
    from torch.utils.cpp_extension import load

    try:
        return load("mra_cuda_kernel", [str(sources / name) for name in CUDA_SOURCES], verbose=False)
    except Exception as error:
        raise DependencyError(
            f"The CUDA sources in {sources} did not compile: {str(error).splitlines()[0]} "
            "They need nvcc, a C++ compiler and ninja (`pip install ninja`)."
        ) from error


def _guarded(kernels: Any, record: KernelSource) -> SimpleNamespace:
    """CUDA kernels where their sizes are within what they get right, torch elsewhere.

    `mm_to_sparse` runs over num_block / 4 groups and head_dim in steps of 16, `sparse_dense_mm` over num_block / 2 groups and
    head_dim in steps of 64 (otherwise it writes into the next block), `index_max` holds a row of maxima in shared memory.
    """

    def choose(name: str, right: bool, *arguments: Any) -> Any:
        if right:
            return getattr(kernels, name)(*arguments)
        record.fallbacks[name] = record.fallbacks.get(name, 0) + 1
        return getattr(_TORCH_KERNELS, name)(*arguments)

    def guarded_index_max(vals: Tensor, indices: Tensor, a: int, b: int) -> Any:
        right = indices.shape[1] % 8 == 0 and a * BLOCK_SIZE <= _MAX_SHARED_SEQ_LEN
        return choose("index_max", right, vals, indices, a, b)

    def guarded_mm_to_sparse(dense_a: Tensor, dense_b: Tensor, indices: Tensor) -> Any:
        right = indices.shape[1] % 4 == 0 and dense_a.shape[2] % 16 == 0
        return choose("mm_to_sparse", right, dense_a, dense_b, indices)

    def guarded_sparse_dense_mm(sparse: Tensor, indices: Tensor, dense: Tensor, a: int) -> Any:
        right = indices.shape[1] % 2 == 0 and dense.shape[2] % 64 == 0
        return choose("sparse_dense_mm", right, sparse, indices, dense, a)

    def guarded_reduce_sum(sparse: Tensor, indices: Tensor, a: int, b: int) -> Any:
        return choose("reduce_sum", indices.shape[1] % 4 == 0, sparse, indices, a, b)

    return SimpleNamespace(
        index_max=guarded_index_max,
        mm_to_sparse=guarded_mm_to_sparse,
        sparse_dense_mm=guarded_sparse_dense_mm,
        reduce_sum=guarded_reduce_sum,
    )

"""What is measured in a process that holds the GPU: times of the operators, of dense attention, and of what else can be had."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu.inputs import (
    ALL_BLOCKS,
    BLOCKS_PER_ROW,
    CASES,
    HEAD_DIM,
    NUM_HEADS,
    SEQ_LENS,
    Size,
    attributes_for,
    make_inputs,
    make_mask,
    num_blocks,
    set_count,
    tensor_bytes,
)
from gpu.kernels import Operator, milliseconds
from gpu.plan import Task
from gpu.profiles import kernel_rows
from gpu.report import Report, first_line, say
from gpu.session import Session, importable

if TYPE_CHECKING:
    from gpu.kernels import Prepared

YOSO_HASHES = (0, 8, 16, 32, 64)  # 0: the expectation, YOSO-E
PROFILED = (512, 4096, 16384)
PIPELINE = (Size(8, 512, 4), Size(8, 4096, 4), Size(1, 4096, 4), Size(8, 1024, 4), Size(8, 2048, 4), Size(1, 16384, 4))
PIPELINE_MAX_BYTES = 40 << 30  # transformers' pipeline keeps some 60 float32 tensors of the inputs' size
FLEX_SEQ_LENS = (2048, 8192)  # FlexAttention is compiled anew for each length
RACING = Size(8, 4096, 8)  # large enough that thread blocks race
COPIED, SIDE = 1 << 29, 8192  # of the ceilings: float32 elements of a copy, sides of a product of matrices
GRID_SECONDS = ((8, 5), (1, 4), (32, 8))  # batch, seconds a length
QUICK_SEQ_LENS = (512, 2048, 4096)


@dataclass
class Bench:
    """The measuring process: a session, the library in it, and torch's name of the GPU."""

    session: Session
    device: str = "cuda"

    @functools.cached_property
    def operator(self) -> Operator:
        """The library, loaded."""
        return Operator(self.session.library)

    @property
    def report(self) -> Report:
        """That of the session."""
        return self.session.report

    def ready(self) -> None:
        """Gives memory back; what an earlier size left behind is not in the way of the next."""
        import torch

        gc.collect()
        torch.cuda.empty_cache()

    def lost(self) -> bool:
        """Whether the GPU answers this process no more, as after an access to memory that is not its own."""
        import torch

        try:
            torch.cuda.synchronize()
        except Exception:
            return True
        return False

    def sets(self, size: Size) -> tuple[list[list[Any]], Any]:
        """Input sets that exceed twice the L2 cache together, and their mask."""
        self.ready()
        count = set_count(size.batch, size.seq_len, self.report.data["machine"]["l2_bytes"])
        return [self.inputs(size, seed) for seed in range(count)], self.mask(size)

    def inputs(self, size: Size, seed: int = 0) -> list[Any]:
        """Query, key and value."""
        return make_inputs(size.batch, size.seq_len, seed, size.case, self.device)

    def mask(self, size: Size) -> Any:
        """The attention mask."""
        return make_mask(size.batch, size.seq_len, size.case, self.device)


def figures_tasks(quick: bool) -> list[Task]:
    """The tasks of the part figures, the most telling first; the seconds are estimates for an H100."""

    def task(name: str, seconds: float, function: Any, *arguments: Any, profiled: bool = False) -> Task:
        return Task(name, "figures", seconds, lambda bench: function(bench, *arguments), profiled)

    lengths = [n for n in SEQ_LENS if not quick or n in QUICK_SEQ_LENS]
    first = [task("graph replays and two streams", 15, check_stages), task("ceilings", 4, measure_ceilings)]
    grid = {
        b: [task(f"benchmark, batch {b}, {n} tokens", s, measure_grid, b, n) for n in lengths] for b, s in GRID_SECONDS
    }
    kernels = [task(f"kernels, {n} tokens", 5, profile_kernels, n, profiled=True) for n in PROFILED if n in lengths]
    cases = [task(f"case: {size.name}", 4, measure_case, size) for size in CASES]
    if quick:
        return [*first, *grid[8], *kernels, *cases[:3]]
    yoso = [task(f"YOSO, {n} tokens", 4, measure_yoso, n) for n in lengths]
    pipeline = [task(f"pipeline: {size.name}", 6, measure_pipeline, size) for size in PIPELINE]
    flex = [task(f"FlexAttention, {n} tokens", 40, measure_flex, n) for n in FLEX_SEQ_LENS]
    return [*first, *grid[8], *cases, *kernels, *grid[1], *yoso, *grid[32], *pipeline, *flex]


@contextlib.contextmanager
def comparing(bench: Bench, step: str) -> Iterator[None]:
    """For what is only compared with: where it does not work, that is not our failure, and the figure is not to be had."""
    try:
        yield
    except Exception as error:
        bench.report.add(step, "skipped", f"{type(error).__name__}: {first_line(error)}")


def check_stages(bench: Bench) -> None:
    """Bitwise repeatability, in a graph and beside another call, at a size where thread blocks race."""
    import torch

    size = RACING
    mask = bench.mask(size)
    mask[size.batch // 2, size.seq_len // 4 :] = 0
    attributes = attributes_for(size.seq_len, size.blocks_per_row)
    calls = [bench.operator.prepare(*bench.inputs(size, seed), mask, attributes) for seed in (1, 2)]
    alone = []
    for call in calls:
        call.enqueue()
        torch.cuda.synchronize()
        alone.append(call.context.clone())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls[0].enqueue()
    same = 0
    for _ in range(20):
        calls[0].context.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        same += bool(torch.equal(calls[0].context, alone[0]))
    bench.report.add(
        "20 graph replays, bit for bit", "passed" if same == 20 else "FAILED", f"{same} of 20; {size.name}"
    )
    streams = [torch.cuda.Stream() for _ in calls]
    same = 0
    for _ in range(20):
        for call in calls:
            call.context.fill_(float("nan"))
        torch.cuda.synchronize()
        for _ in range(3):
            for call, stream in zip(calls, streams, strict=True):
                with torch.cuda.stream(stream):
                    call.enqueue()
        torch.cuda.synchronize()
        same += all(bool(torch.equal(call.context, expected)) for call, expected in zip(calls, alone, strict=True))
    step = "two streams at once, bit for bit"
    bench.report.add(step, "passed" if same == 20 else "FAILED", f"{same} of 20, 3 calls each; {size.name}")


def measure_ceilings(bench: Bench) -> None:
    import torch

    source = torch.randn(COPIED, device=bench.device, dtype=torch.float32)
    target = torch.empty_like(source)
    copy = 2 * source.numel() * 4 / milliseconds(lambda _: target.copy_(source), 1, graph=False) / 1e9
    a = torch.randn(SIDE, SIDE, device=bench.device, dtype=torch.bfloat16)
    b = torch.randn(SIDE, SIDE, device=bench.device, dtype=torch.bfloat16)
    product = 2 * SIDE**3 / milliseconds(lambda _: torch.mm(a, b), 1, graph=False) / 1e9
    bench.report.fact("copy_tb_per_s", copy)
    bench.report.fact("matmul_tflops", product)
    bench.report.add("ceilings", "measured", f"copy {copy:.2f} TB/s, bf16 {SIDE}^3 product {product:.0f} TFLOP/s")


def as_heads(tensors: list[Any], size: Size) -> list[Any]:
    return [t.view(size.batch, size.seq_len, NUM_HEADS, HEAD_DIM).transpose(1, 2) for t in tensors]


def measure_dense(sets: list[list[Any]], size: Size, mask: Any = None) -> dict[str, float]:
    """torch's dense attention by backend, in milliseconds; with a mask, by those backends that take one."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    if mask is not None:
        backends = {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    heads = [as_heads(tensors, size) for tensors in sets]
    keep = None if mask is None else mask.bool()[:, None, None, :].expand(-1, -1, size.seq_len, -1)
    result = {}
    for name, backend in backends.items():
        try:
            with sdpa_kernel(backend):
                attention = functools.partial(torch.nn.functional.scaled_dot_product_attention, attn_mask=keep)
                result[name] = milliseconds(lambda i, attention=attention: attention(*heads[i]), len(heads))
        except RuntimeError as error:
            say(f"  dense attention by {name}: skipped, {first_line(error)}")
    return result


def grid_row(
    size: Size, mra_ms: float, prepared: Prepared, dense: dict[str, float], copy: float | None
) -> dict[str, Any]:
    """A row of the tables "benchmark" and "cases"; the strict floor is four tensors moved once at the speed of a copy."""
    row: dict[str, Any] = {
        "batch": size.batch,
        "seq_len": size.seq_len,
        "blocks_per_row": size.blocks_per_row,
        "case": size.case,
    }
    best = min(dense.values()) if dense else None
    row |= {"mra_ms": mra_ms, "dense_ms": best, "speedup": best / mra_ms if best else None}
    row |= {f"dense_{name}_ms": value for name, value in dense.items()}
    row["share_of_copy"] = 4 * tensor_bytes(size.batch, size.seq_len) / mra_ms / 1e9 / copy if copy else None
    tiles = num_blocks(size.seq_len, size.blocks_per_row) * size.batch * NUM_HEADS
    row["high_tflops"] = tiles * 4096 * HEAD_DIM / mra_ms / 1e9
    row["workspace_bytes"] = prepared.workspace.numel()
    return row


def measure_mra(bench: Bench, size: Size, sets: list[list[Any]], mask: Any, dense: dict[str, float]) -> dict[str, Any]:
    attributes = attributes_for(size.seq_len, size.blocks_per_row)
    calls = [bench.operator.prepare(*tensors, mask, attributes) for tensors in sets]
    time = milliseconds(lambda i: calls[i].enqueue(), len(calls))
    return grid_row(size, time, calls[0], dense, bench.report.data.get("copy_tb_per_s")) | {"sets": len(sets)}


def measure_grid(bench: Bench, batch: int, seq_len: int) -> None:
    """The operator and dense attention; a row for each number of blocks per row."""
    sets, mask = bench.sets(Size(batch, seq_len, 0))
    dense = measure_dense(sets, Size(batch, seq_len, 0))
    for blocks_per_row in BLOCKS_PER_ROW:
        bench.report.row("benchmark", measure_mra(bench, Size(batch, seq_len, blocks_per_row), sets, mask, dense))


def measure_case(bench: Bench, size: Size) -> None:
    """Dense attention gets the mask too where there is padding."""
    sets, mask = bench.sets(size)
    dense = measure_dense(sets, size, mask if size.case == "padded" else None)
    bench.report.row("cases", measure_mra(bench, size, sets, mask, dense))


def profile_kernels(bench: Bench, seq_len: int) -> None:
    """The time of each kernel by itself, batch 8, 4 blocks per row and all blocks."""
    for blocks_per_row in (4, ALL_BLOCKS) if seq_len <= 512 else (4,):
        size = Size(8, seq_len, blocks_per_row)
        sets, mask = bench.sets(size)
        calls = [bench.operator.prepare(*tensors, mask, attributes_for(seq_len, blocks_per_row)) for tensors in sets]
        for row in kernel_rows([call.enqueue for call in calls], bench.session.folder):
            bench.report.row("kernels", {"batch": 8, "seq_len": seq_len, "blocks_per_row": blocks_per_row} | row)


def measure_yoso(bench: Bench, seq_len: int) -> None:
    """YOSO-E and YOSO-LSH against dense attention: float16, batch 8."""
    from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes

    size = Size(8, seq_len, 0)
    sets, mask = bench.sets(size)
    dense = measure_dense(sets, size)
    best = min(dense.values()) if dense else None
    for hashes in YOSO_HASHES:
        attributes = YosoAttentionAttributes(NUM_HEADS, int(hashes > 0), 9, hashes, int(hashes > 0), 0)
        calls = [bench.operator.prepare_yoso(*tensors, mask, attributes) for tensors in sets]
        time = milliseconds(lambda i, calls=calls: calls[i].enqueue(), len(calls))
        row = {"batch": 8, "seq_len": seq_len, "num_hash": hashes, "yoso_ms": time, "dense_ms": best}
        bench.report.row("yoso_benchmark", row | {"speedup": best / time if best else None})


def measure_pipeline(bench: Bench, size: Size) -> None:
    """transformers' mra2_attention, float32 as it must be; the row says what stands for MRA's CUDA kernels in it."""
    import torch

    step = f"transformers' pipeline, {size.name}"
    if not importable("transformers"):
        bench.report.add(step, "skipped", "transformers cannot be imported")
        return
    if tensor_bytes(size.batch, size.seq_len) * 2 * 60 > PIPELINE_MAX_BYTES:
        bench.report.add(step, "skipped", "it would not fit into memory")
        return
    from transformers.models.mra import modeling_mra

    from mra_export.families._mra_kernels import installed

    bench.ready()
    heads = [t.float().contiguous() for t in as_heads(bench.inputs(size), size)]
    mask = torch.ones(size.batch * NUM_HEADS, size.seq_len, device=bench.device)
    budget = num_blocks(size.seq_len, size.blocks_per_row)
    with comparing(bench, step), installed(bench.device, sources=bench.session.mra_sources) as kernels, torch.no_grad():
        time = milliseconds(lambda _: modeling_mra.mra2_attention(*heads, mask, budget, "full"), 1, graph=False)
        row = {"batch": size.batch, "seq_len": size.seq_len, "blocks_per_row": size.blocks_per_row, "pipeline_ms": time}
        bench.report.row("pipeline", row | {"kernels": kernels.name, "detail": kernels.detail})


def measure_flex(bench: Bench, seq_len: int) -> None:
    """FlexAttention over the same high-resolution blocks; it has no low-resolution part."""
    with comparing(bench, f"FlexAttention, {seq_len} tokens"):
        import torch
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        from mra_export.operators.mra2_attention.reference import select_blocks

        bench.ready()
        size = Size(8, seq_len, 4)
        tensors, mask = bench.inputs(size), bench.mask(size)
        selected = select_blocks(tensors[0].float(), tensors[1].float(), mask, attributes_for(seq_len, 4)).selected
        counts = selected.sum(3).to(torch.int32)
        indices = selected.to(torch.int32).argsort(dim=3, descending=True, stable=True).to(torch.int32)
        none = torch.zeros_like(counts), torch.zeros_like(indices)
        blocks = BlockMask.from_kv_blocks(*none, counts, indices, BLOCK_SIZE=32)
        heads = as_heads(tensors, size)
        compiled = torch.compile(flex_attention, dynamic=False)
        options = {"BLOCK_M": 32, "BLOCK_N": 32}
        time = milliseconds(lambda _: compiled(*heads, block_mask=blocks, kernel_options=options), 1, graph=False)
        bench.report.row("flex", {"batch": size.batch, "seq_len": seq_len, "blocks_per_row": 4, "flex_ms": time})

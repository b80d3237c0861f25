"""The kernels on torch's tensors and stream, and how long a call takes."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.inputs import HEAD_DIM


@dataclass
class Prepared:
    """A call that can be enqueued on torch's current stream any number of times; it keeps its tensors."""

    context: Any  # float16 [batch, seq_len, hidden]
    workspace: Any  # uint8
    enqueue: Callable[[], None]


class Operator:
    """The library that build_device built."""

    def __init__(self, library: Path) -> None:
        import cuda_host

        self.host = cuda_host
        self.library = ctypes.CDLL(str(library))
        self.functions: dict[str, tuple[Any, Any]] = {}
        for name, call in (("mra_cuda", cuda_host.Call), ("mra_yoso", cuda_host.YosoCall)):
            workspace_size = self.library[f"{name}_workspace_size"]
            workspace_size.restype = ctypes.c_uint64
            workspace_size.argtypes = [ctypes.POINTER(call)]
            enqueue = self.library[f"{name}_enqueue"]
            enqueue.argtypes = [ctypes.POINTER(call), ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
            self.functions[name] = workspace_size, enqueue

    def prepare(self, query: Any, key: Any, value: Any, mask: Any, attributes: Any) -> Prepared:
        """mra::Mra2Attention."""
        import torch

        context = torch.empty_like(query)
        call = self.host.make_call(query, key, value, mask, context.data_ptr(), attributes)
        return self._prepared("mra_cuda", call, context, (query, key, value, mask))

    def prepare_yoso(self, query: Any, key: Any, value: Any, mask: Any, attributes: Any) -> Prepared:
        """mra::YosoAttention."""
        import torch

        from mra_export.operators.yoso_attention.reference import draw_hash_constants

        constants = [draw_hash_constants(attributes, HEAD_DIM, 0).to(query.device)] if attributes.mode else []
        inputs = self.host.yoso_inputs(query, key, value, mask, *constants, attributes=attributes)
        context = torch.empty_like(query)
        call = self.host.make_yoso_call(inputs, context.data_ptr(), attributes)
        return self._prepared("mra_yoso", call, context, inputs)

    def _prepared(self, name: str, call: Any, context: Any, inputs: Any) -> Prepared:
        import torch

        workspace_size, function = self.functions[name]
        size = int(workspace_size(ctypes.byref(call)))
        workspace = torch.empty(size, dtype=torch.uint8, device=context.device)

        def enqueue(_kept: Any = inputs) -> None:
            stream = torch.cuda.current_stream().cuda_stream
            error = function(ctypes.byref(call), workspace.data_ptr(), size, stream)
            if error:
                raise RuntimeError(f"cudaError_t {error}")

        return Prepared(context, workspace, enqueue)


def milliseconds(work: Callable[[int], object], sets: int, *, graph: bool = True, budget_s: float = 0.25) -> float:
    """Median time of one call; `work(i)` uses input set i, so that repeated calls do not measure the cache."""
    import torch

    for i in range(sets):
        work(i)
    torch.cuda.synchronize()
    if graph:
        captured = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for i in range(sets):
                work(i)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(captured):
            for i in range(sets):
                work(i)
        replay = captured.replay
    else:

        def replay() -> None:
            for i in range(sets):
                work(i)

    replay()
    torch.cuda.synchronize()
    times: list[float] = []
    began = time.monotonic()
    while len(times) < 5 or (time.monotonic() - began < budget_s and len(times) < 50):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / sets)
    return statistics.median(times)

"""Latency and throughput of an exported model by backend and length, side by side with the same model with dense attention."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.errors import InputError
from mra_export.optional import require_onnxruntime
from mra_export.runners.session import check_runtime, open_session, runtime_errors, session_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from mra_export.export.onnx_model import OnnxModel
    from mra_export.trace import Inputs

__all__ = ["BenchRow", "bench", "bound_run", "dense_twin", "in_turns"]

DENSE = "dense attention"


@dataclass(frozen=True)
class BenchRow:
    """One backend at one size.

    Attributes:
        backend: what ran; `DENSE` is the same model with ONNX Runtime's MultiHeadAttention in the place of each node, or the
            model itself where its own attention is dense.
        batch: rows.
        seq_len: tokens of each, none of them padding.
        latency_ms: median.
        latency_p90_ms: 90th percentile.
        tokens_per_second: at the median.
        faster_than_dense: median over turns of the dense model's time over this one's.
        turns: how often each was timed.
    """

    backend: str
    batch: int
    seq_len: int
    latency_ms: float
    latency_p90_ms: float
    tokens_per_second: float
    faster_than_dense: float
    turns: int


def bench(
    model: OnnxModel,
    *,
    batches: list[int],
    seq_lens: list[int],
    library: Path | None = None,
    threads: int = 0,
    seconds: float = 3.0,
    progress: Callable[[str], None] = lambda _: None,
) -> list[BenchRow]:
    """Times an exported file on the CPU, all backends in turns in one process.

    Args:
        model: a file of type fp32: ONNX Runtime's dense attention for CPUs has no other.
        batches: sizes to run.
        seq_lens: lengths to run.
        library: the ONNX Runtime library; None to run the function body only.
        threads: of a session, 0 for ONNX Runtime's choice.
        seconds: how long to time each size, at least five turns.
        progress: called with each size.

    Returns:
        A row for each backend and size.

    Raises:
        InputError: the file is not ours or not of type fp32.
        DependencyError: ONNX Runtime is not installed, or too old for the file or the library.
    """
    check_runtime(library if model.nodes else None)
    if model.dtype != "fp32":
        raise InputError(
            f"{model.path} is of type {model.dtype}; on a CPU only fp32 is compared, since ONNX Runtime's dense attention has no "
            "other. Export it without --fp16 and --bf16."
        )

    def session(source: str | bytes, custom: Path | None) -> Any:
        return open_session(source, session_options(custom, threads=threads), shown=str(model.path))

    if model.nodes:
        title = model.family.title
        sessions = {DENSE: session(dense_twin(model), None), f"{title}, function body": session(str(model.path), None)}
        if library is not None:
            sessions[f"{title}, native operator"] = session(str(model.path), library)
    else:  # its own attention is dense
        sessions = {DENSE: session(str(model.path), None)}
    rows = []
    for batch in batches:
        for seq_len in seq_lens:
            progress(f"timing {batch} x {seq_len} tokens")
            feed = _feed(model, batch, seq_len)
            with runtime_errors(str(model.path)):
                runs = {name: bound_run(each, feed) for name, each in sessions.items()}
                times = in_turns(runs, seconds)
            for name, values in times.items():
                median = statistics.median(values)
                ratios = [dense / own for dense, own in zip(times[DENSE], values, strict=True)]
                p90 = float(np.percentile(values, 90))
                speed = batch * seq_len / median * 1e3
                rows.append(BenchRow(name, batch, seq_len, median, p90, speed, statistics.median(ratios), len(values)))
    return rows


def dense_twin(model: OnnxModel) -> bytes:
    """The same model with dense attention: each attention node becomes ONNX Runtime's MultiHeadAttention.

    The interface is the same, the mask included (1 = token), and so are the weights.

    Args:
        model: an exported file.

    Returns:
        A serialized model without external data.
    """
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model.proto)
    onnx.load_external_data_for_model(twin, str(model.path.parent))
    for node in twin.graph.node:
        if (node.domain, node.op_type) == model.family.operator:
            node.CopyFrom(model.family.dense_node(node))
    del twin.functions[:]
    twin.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return twin.SerializeToString()


def bound_run(session: Any, feed: Inputs) -> Callable[[], Any]:
    """A call that runs a session with its inputs and outputs bound, so that no copy is timed."""
    onnxruntime = require_onnxruntime()
    binding = session.io_binding()
    for info in session.get_inputs():
        binding.bind_ortvalue_input(info.name, onnxruntime.OrtValue.ortvalue_from_numpy(feed[info.name]))
    for info in session.get_outputs():
        binding.bind_output(info.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def in_turns(runs: dict[str, Callable[[], Any]], seconds: float, at_least: int = 5) -> dict[str, list[float]]:
    """Times calls in turns, so that what else the machine does falls on all of them.

    Before each there is a pause: the threads of the one before spin for a while and would take its cores. Turns in which other
    programs used more than a twentieth of a core are left out; where too few would be left, time is added, up to twice
    `seconds`, and then the least disturbed are taken.

    Args:
        runs: name -> call.
        seconds: how long to go on.
        at_least: turns, however long they take.

    Returns:
        Name -> milliseconds of each turn.
    """
    turns: list[tuple[float, dict[str, float]]] = []  # cores that others used, milliseconds of each
    for run in runs.values():
        run()
    last: dict[str, float] = dict.fromkeys(runs, 0.0)
    started = time.monotonic()
    while True:
        quiet = sum(others <= _QUIET for others, _ in turns)
        spent = time.monotonic() - started
        if len(turns) >= at_least and ((spent >= seconds and quiet >= at_least) or spent >= 2 * seconds):
            break
        begin, busy, own = time.monotonic(), _busy_seconds(), time.process_time()
        for name, run in runs.items():
            time.sleep(0.01)
            if last[name] < 50:
                run()  # wakes its threads and fills the caches
            began = time.perf_counter()
            run()
            last[name] = (time.perf_counter() - began) * 1e3
        others = (_busy_seconds() - busy - (time.process_time() - own)) / (time.monotonic() - begin)
        turns.append((others, dict(last)))
    turns.sort(key=lambda turn: turn[0])
    kept = max(quiet, at_least)
    return {name: [times[name] for _, times in turns[:kept]] for name in runs}


_QUIET = 0.05  # cores that other programs may use


def _busy_seconds() -> float:
    """Processor time that all programs of the machine have used; 0 where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _feed(model: OnnxModel, batch: int, seq_len: int) -> Inputs:
    shape = (batch, 2, seq_len) if model.task == "multiple-choice" else (batch, seq_len)
    ids = np.random.default_rng(0).integers(4, min(100, model.vocabulary or 100), shape)
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {name: values[name] for name in model.inputs}

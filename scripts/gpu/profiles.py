"""Figures of single kernels: times from torch's profiler, and occupancy, bytes and instructions from NVIDIA's ncu."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu.build import REPO, run
from gpu.session import python

if TYPE_CHECKING:
    from gpu.session import Session

REPEATS = 10
OURS = r"(?:mra2|yoso)_\w*kernel"

# ncu's metric -> what a row calls it. Units are the base ones: ns, bytes, percent.
METRICS = {
    "gpu__time_duration.sum": "ns",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
    "sm__maximum_warps_per_active_cycle_pct": "occupancy_limit_percent",
    "launch__registers_per_thread": "registers",
    "launch__shared_mem_config_size": "carveout_bytes",
    "launch__grid_size": "thread_blocks",
    "dram__bytes_read.sum": "dram_read_bytes",
    "dram__bytes_write.sum": "dram_written_bytes",
    "lts__t_bytes.sum": "l2_bytes",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue_percent",
    "smsp__inst_executed.sum": "instructions",
}
# What ncu runs, once each, at batch 8: an operator, its tokens, and blocks per row (0: all) or hashes (0: the expectation).
COUNTED = (("mra", 4096, 4), ("mra", 512, 4), ("mra", 512, 0), ("mra", 16384, 4), ("yoso", 4096, 32), ("yoso", 4096, 0))


def short_name(kernel: str) -> str:
    """`mra2_mma_kernel<__half, 64>` of a demangled signature; other names as they are, cut to 60 characters."""
    found = re.search(rf"({OURS})(<[^()]*>)?", kernel)
    return "".join(part or "" for part in found.groups()) if found else kernel[:60]


def kernel_rows(calls: Sequence[Callable[[], None]], folder: Path) -> list[dict[str, Any]]:
    """A row for each kernel of a call; `calls` are the same call on input sets of their own.

    Raises:
        RuntimeError: the profiler saw no kernel.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    for call in calls:
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for number in range(max(REPEATS, len(calls))):
            calls[number % len(calls)]()
        torch.cuda.synchronize()
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    return rows_of_trace(json.loads(trace.read_text(encoding="utf-8")))


def rows_of_trace(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """The median time of each kernel of a Chrome trace of torch's profiler, its share of all, and how it was launched.

    Raises:
        RuntimeError: there is no kernel in it.
    """
    events: dict[str, list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        if event.get("cat") == "kernel":
            events.setdefault(short_name(event["name"]), []).append(event)
    if not events:
        raise RuntimeError("the profiler saw no kernel: another profiler, or a driver without counters for this user")
    times = {name: statistics.median(event["dur"] for event in group) for name, group in events.items()}
    rows = []
    for name, group in events.items():
        args = group[0].get("args", {})
        row = {"kernel": name, "us": times[name], "share": times[name] / sum(times.values()), "launches": len(group)}
        row["thread_blocks"] = _product(args.get("grid", []))
        row["threads"] = _product(args.get("block", []))
        row["registers"] = args.get("registers per thread")
        row["shared_bytes"] = args.get("shared memory")
        row["occupancy_limit_percent"] = args.get("est. achieved occupancy %")
        rows.append(row)
    return rows


def _product(sizes: Iterable[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def ncu_command(tool: str, session: Session, what: str) -> list[str]:
    """Counts the kernels of one call; no clock is changed."""
    options = ["--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
    options += ["--kernel-name-base", "function", "--kernel-name", f"regex:^{OURS}$", "--metrics", ",".join(METRICS)]
    script = REPO / "scripts" / "gpu_check.py"
    return [tool, *options, *python(str(script), "--once", what, "--build-dir", str(session.folder))]


def ncu_refusal(output: str) -> str:
    """Why ncu cannot count on this machine; empty where it can. That our program failed under it is another thing."""
    for line in output.splitlines():
        if line.startswith("==ERROR==") and re.search("ERR_NVGPUCTRPERM|initialize the profiler|not supported", line):
            return line.removeprefix("==ERROR==").strip()[:300]
    return ""


def rows_of_ncu(output: str) -> list[dict[str, Any]]:
    """A row for each kernel of ncu's raw page in CSV; metrics that this GPU does not have are left out.

    Raises:
        RuntimeError: there is no table in it; the message is what ncu said.
    """
    lines = output.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        said = [line for line in lines if "==ERROR==" in line] or lines[-3:]
        raise RuntimeError(f"ncu printed no table: {' '.join(said)[:300]}")
    rows = []
    for record in csv.DictReader(io.StringIO("\n".join(lines[first:]))):
        name = record.get("Kernel Name")
        if not name:
            continue  # the line of units
        row: dict[str, Any] = {"kernel": short_name(name)}
        for metric, short in METRICS.items():
            try:
                row[short] = float((record.get(metric) or "").replace(",", ""))
            except ValueError:
                continue
        rows.append(row)
    return rows


def count(session: Session, operator: str, seq_len: int, setting: int) -> None:
    """One call under ncu; a row for each of its kernels."""
    tool = shutil.which("ncu")
    what = f"{operator}:{seq_len}:{setting}"
    if tool is None:
        session.report.add(f"counters, {what}", "skipped", "ncu is not on the PATH")
        return
    log = session.folder / f"ncu.{operator}.{seq_len}.{setting}.log"
    done = run(ncu_command(tool, session, what), log, timeout=max(30.0, min(150.0, session.clock.left)))
    if refusal := ncu_refusal(done.stdout):
        session.report.add(f"counters, {what}", "skipped", refusal)
        return
    name = "blocks_per_row" if operator == "mra" else "num_hash"
    for row in rows_of_ncu(done.stdout):
        session.report.row("counters", {"operator": operator, "batch": 8, "seq_len": seq_len, name: setting} | row)


def call_once(what: str, library: Path) -> None:
    """What runs under ncu: "mra:SEQ_LEN:BLOCKS_PER_ROW" or "yoso:SEQ_LEN:HASHES", batch 8."""
    import torch

    from gpu.inputs import NUM_HEADS, attributes_for, make_inputs, make_mask
    from gpu.kernels import Operator

    operator, seq_len, setting = what.split(":")
    tensors, mask = make_inputs(8, int(seq_len), 0), make_mask(8, int(seq_len))
    kernels = Operator(library)
    if operator == "mra":
        call = kernels.prepare(*tensors, mask, attributes_for(int(seq_len), int(setting)))
    else:
        from mra_export.operators.yoso_attention.spec import YosoAttentionAttributes

        hashes = int(setting)
        attributes = YosoAttentionAttributes(NUM_HEADS, int(hashes > 0), 9, hashes, int(hashes > 0), 0)
        call = kernels.prepare_yoso(*tensors, mask, attributes)
    torch.cuda.synchronize()
    call.enqueue()
    torch.cuda.synchronize()

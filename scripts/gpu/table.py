"""The goals, which are judged apart from right and wrong, and the tables that a check ends in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpu.inputs import ALL_BLOCKS
from gpu.report import Report


@dataclass(frozen=True)
class Goal:
    """A figure of one row that has to be at least `wanted`."""

    table: str
    seq_len: int
    blocks_per_row: int
    figure: str
    wanted: float
    batch: int = 8

    @property
    def name(self) -> str:
        """For people."""
        blocks = "all blocks" if self.blocks_per_row == ALL_BLOCKS else f"{self.blocks_per_row} blocks per row"
        unit = {"speedup": "times as fast as dense attention", "share_of_copy": "of the speed of a copy"}[self.figure]
        return f"batch {self.batch}, {self.seq_len} tokens, {blocks}: {self.wanted:g} {unit}"


SPEEDUPS = {512: 0.8, 1024: 1.4, 2048: 2.5, 4096: 5.0, 8192: 10.0, 16384: 20.0}
GOALS = (
    *(Goal("benchmark", seq_len, 4, "speedup", wanted) for seq_len, wanted in SPEEDUPS.items()),
    *(Goal("benchmark", seq_len, 4, "share_of_copy", 0.5) for seq_len in (512, 1024, 4096, 16384)),
    Goal("benchmark", 4096, 8, "speedup", 3.0),
    Goal("cases", 512, ALL_BLOCKS, "speedup", 1.0),
)


def judge(report: Report) -> list[dict[str, Any]]:
    """Every goal with what was measured: "met" is None where nothing was."""
    judged = []
    for goal in GOALS:
        size = {"batch": goal.batch, "seq_len": goal.seq_len, "blocks_per_row": goal.blocks_per_row}
        found = [row[goal.figure] for row in report.data.get(goal.table, []) if size.items() <= row.items()]
        measured = next((value for value in found if value is not None), None)
        met = None if measured is None else measured >= goal.wanted
        judged.append({"goal": goal.name, "wanted": goal.wanted, "measured": measured, "met": met})
    return judged


def verdict(report: Report) -> tuple[str, int]:
    """The last line and the exit code: what is wrong comes before what is slow."""
    if report.failed:
        return "FAILED", 3
    goals = [goal["met"] for goal in judge(report) if goal["met"] is not None]
    if all(goals):
        return "PASSED", 0
    return f"PASSED, but {goals.count(False)} of {len(goals)} goals were missed", 5


def us(value: float | None) -> str:
    return f"{value * 1000:.0f}" if value else "-"


def ratio(value: float | None) -> str:
    return f"{value:.2f}" if value else "-"


def whole(value: float | None) -> str:
    return f"{value:.0f}" if value is not None else "-"


def megabytes(row: dict[str, Any], *names: str) -> str:
    return f"{sum(row[name] for name in names) / 1e6:.1f}" if row.keys() >= set(names) else "-"


def blocks(row: dict[str, Any]) -> str:
    return "all" if row["blocks_per_row"] == ALL_BLOCKS else str(row["blocks_per_row"])


def size_columns(row: dict[str, Any]) -> list[str]:
    return [str(row["batch"]), str(row["seq_len"])]


def pipeline_title(rows: list[dict[str, Any]]) -> str:
    """What ran in the place of MRA's CUDA kernels: only "sources" and "hub" are those."""
    names = {"torch": "plain torch us", "sources": "original CUDA us", "hub": "hub's CUDA us"}
    return " / ".join(names[kind] for kind in dict.fromkeys(row["kernels"] for row in rows))


def tables(data: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Titles and cells of each table of which there is a row."""

    def rows(name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = data.get(name, [])
        return found

    made: list[tuple[list[str], list[list[str]]]] = []
    for name, first in (("benchmark", []), ("cases", ["case"])):
        titles = [*first, "batch", "tokens", "blocks/row", "mra us", "dense us", "speed-up", "of copy"]
        cells = []
        for row in rows(name):
            times = [us(row["mra_ms"]), us(row["dense_ms"]), ratio(row["speedup"]), ratio(row["share_of_copy"])]
            cells.append([*(row[key] for key in first), *size_columns(row), blocks(row), *times])
        made.append((titles, cells))
    titles = [
        "batch",
        "tokens",
        "blocks/row",
        "us",
        "share",
        "thread blocks",
        "registers",
        "occupancy limit %",
        "kernel",
    ]
    cells = []
    for row in rows("kernels"):
        figures = [f"{row['us']:.1f}", ratio(row["share"]), str(row["thread_blocks"]), whole(row["registers"])]
        cells.append([*size_columns(row), blocks(row), *figures, whole(row["occupancy_limit_percent"]), row["kernel"]])
    made.append((titles, cells))
    titles = [
        "batch",
        "tokens",
        "blocks/row, hashes",
        "us",
        "occupancy %",
        "limit %",
        "issue %",
        "dram MB",
        "L2 MB",
        "kernel",
    ]
    cells = []
    for row in rows("counters"):
        setting = blocks(row) if "blocks_per_row" in row else f"{row['num_hash']} hashes"
        shares = [whole(row.get(key)) for key in ("occupancy_percent", "occupancy_limit_percent", "issue_percent")]
        moved = [megabytes(row, "dram_read_bytes", "dram_written_bytes"), megabytes(row, "l2_bytes")]
        time = f"{row['ns'] / 1000:.1f}" if "ns" in row else "-"
        cells.append([*size_columns(row), setting, time, *shares, *moved, row["kernel"]])
    made.append((titles, cells))
    cells = []
    for row in rows("yoso_benchmark"):
        name = f"LSH {row['num_hash']}" if row["num_hash"] else "E"
        cells.append([*size_columns(row), name, us(row["yoso_ms"]), us(row["dense_ms"]), ratio(row["speedup"])])
    made.append((["batch", "tokens", "YOSO", "yoso us", "dense us", "speed-up"], cells))
    pipeline = rows("pipeline")
    cells = [[*size_columns(row), blocks(row), us(row["pipeline_ms"])] for row in pipeline]
    made.append((["batch", "tokens", "blocks/row", f"transformers with {pipeline_title(pipeline)}"], cells))
    cells = [[*size_columns(row), blocks(row), us(row["flex_ms"])] for row in rows("flex")]
    made.append((["batch", "tokens", "blocks/row", "FlexAttention us, high-resolution blocks only"], cells))
    return [(titles, cells) for titles, cells in made if cells]


def table_lines(report: Report) -> list[str]:
    """Steps, tables, goals and the verdict, as they are printed; the most important come last."""
    machine = report.data["machine"]
    lines = [
        f"GPU check on {machine.get('gpu', 'an unknown GPU')}, kernels {machine.get('kernels')}, torch {machine.get('torch')}"
    ]
    for titles, cells in tables(report.data):
        widths = [max(len(line[n]) for line in [titles, *cells]) for n in range(len(titles))]
        lines += ["", *("  " + "  ".join(map(str.rjust, line, widths)) for line in [titles, *cells])]
    lines.append("")
    for step in report.data["steps"]:
        detail = step["detail"].splitlines()
        lines.append(f"  {step['outcome']:9} {step['step']}: {detail[-1][:160] if detail else ''}")
    judged = [goal for goal in judge(report) if goal["met"] is not None]
    for goal in judged:
        lines.append(f"  {'met' if goal['met'] else 'missed':9} {goal['goal']}: {goal['measured']:.2f}")
    return [*lines, verdict(report)[0]]

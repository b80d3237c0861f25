"""Throughput and latency of many callers with a text each: batched across callers against separate runs, by mra-embed.

    python scripts/benchmark_batcher.py ./serving/bin/mra-embed ./minilm-bundle [--json FILE]

Each line is measured in one process after the other, in turns, so that what else the machine does falls on both. Lengths are drawn
log-normally with median 64 and sigma 0.8, cut to the model's longest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from mra_export.outputs import staged_file

COLUMNS = ("texts_per_second", "p50_ms", "p90_ms", "p99_ms", "padding_share")


def measure(program: Path, bundle: Path, delay: int, clients: int, seconds: float, more: list[str]) -> dict[str, Any]:
    """One run of mra-embed: separate runs, then the batcher."""
    command = [program, bundle, "--bench", "--json", "--compare-batcher", "--batch", "1", "--clients", clients]
    command += ["--seconds", seconds, "--max-delay", delay, *more]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def middle(values: list[float]) -> float:
    """The median, the upper one of two."""
    return sorted(values)[len(values) // 2]


def main() -> None:
    """Measures, prints the table, and writes all figures where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("program", type=Path, help="mra-embed, as it was installed")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument(
        "--delays", default="0,1000,5000", help="microseconds that a text may wait (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each line (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns, of which the median counts (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every figure there")
    given, more = parser.parse_known_args()
    delays = [int(delay) for delay in given.delays.split(",")]
    runs = [
        (delay, measure(given.program, given.bundle, delay, given.clients, given.seconds, more))
        for _ in range(given.rounds)
        for delay in delays
    ]
    first = runs[0][1]
    print(
        f"{first['backend']} {first['backend_version']}, {first['precision']} on {first['device']}, {first['cores']} cores, ",
        end="",
    )
    print(f"{given.clients} clients with a text each")
    print(f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    separate = [line for _, run in runs for line in run["results"] if not line["batcher"]]
    rows = [("separate runs", separate)]
    for delay in delays:
        lines = [line for of, run in runs for line in run["results"] if of == delay and line["batcher"]]
        rows.append((f"batcher, {delay} us", lines))
    for name, lines in rows:
        print(f"| {name} | {' | '.join(f'{middle([line[column] for line in lines]):.4g}' for column in COLUMNS)} |")
    if given.json is not None:
        with staged_file(given.json, force=True) as stage:
            stage.write_text(
                json.dumps([{"max_delay": delay, **run} for delay, run in runs], indent=2) + "\n", encoding="utf-8"
            )


if __name__ == "__main__":
    main()

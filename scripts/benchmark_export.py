"""Measures the export of a base-sized model (time, peak memory) and `--help`; writes docs/benchmarks/export.md.

Example:
  python scripts/benchmark_export.py
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "export.md"
BASE = {
    "model_type": "mra",
    "architectures": ["MraForMaskedLM"],
    "type_vocab_size": 1,
}  # the rest is MraConfig's default
CONFIGURATIONS = {
    "512 tokens, 4 blocks per row": {"max_position_embeddings": 512, "block_per_row": 4},
    "4096 tokens, 8 blocks per row, diagonal prior 3": {
        "max_position_embeddings": 4096,
        "block_per_row": 8,
        "initial_prior_diagonal_n_blocks": 3,
    },
}
HELP_RUNS = 15


def command(*arguments: str) -> tuple[float, float]:
    """Runs the command line; returns seconds and the peak memory of its process in GB."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "mra_export", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"mra-export {' '.join(arguments)} failed with status {status}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, settings) in enumerate(CONFIGURATIONS.items()):
            source = Path(folder) / f"source{index}"
            source.mkdir()
            (source / "config.json").write_text(json.dumps({**BASE, **settings}))
            for dtype in ("fp32", "fp16"):
                target = str(Path(folder) / f"{index}-{dtype}")
                seconds, memory = command(
                    "onnx", str(source), "-o", target, "--random-init", "0", "--dtype", dtype, "--no-check"
                )
                rows.append(f"| export, {name}, {dtype} | {seconds:.1f} s | {memory:.2f} GB | 30 s, 3 GB |")
                print(rows[-1], flush=True)
    help_seconds = statistics.median(command("--help")[0] for _ in range(HELP_RUNS))
    rows.append(f"| `mra-export --help`, median of {HELP_RUNS} | {help_seconds:.2f} s | | 0.3 s |")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "onnx"))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(
        "# Export: time and memory\n\nA base-sized MRA model (12 layers, 768 wide, 50265 words) with random weights, whole "
        "process from start to exit,\nloading and writing included, without the parity check.\n\n"
        "| what | time | peak memory | goal |\n|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        f"Measured with `python scripts/benchmark_export.py` on {processor()}, {os.cpu_count()} cores, no GPU; "
        f"Python {platform.python_version()}, {versions}.\n"
    )
    print(TARGET.read_text())


if __name__ == "__main__":
    main()

"""Writes `mra_export/data/facts.json`, what the package says of speed and loss, from the benchmarks; with --check only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "docs" / "benchmarks"
TARGET = ROOT / "mra_export" / "data" / "facts.json"
BUDGETS = ("4", "8", "16")


def speed() -> dict[str, Any]:
    """How many times as fast as with dense attention a whole model is: tokens -> blocks per row -> times."""
    rows = json.loads((BENCHMARKS / "cpu.json").read_text(encoding="utf-8"))["model"]
    factors = {str(row["seq_len"]): {blocks: round(row[blocks]["vs_dense"], 3) for blocks in BUDGETS} for row in rows}
    what = (
        "a whole model of base size in float32, ONNX Runtime on a CPU: how many times as fast as with dense attention"
    )
    return {"source": "docs/benchmarks/cpu.md", "what": what, "tokens, blocks per row": factors}


def loss() -> dict[str, Any]:
    """The mean cosine that a model keeps with one budget for all layers: blocks per row -> cosine."""
    rows = json.loads((BENCHMARKS / "fidelity.json").read_text(encoding="utf-8"))["rows"]
    even = {row["name"].split(",")[0]: round(row["mean"], 4) for row in rows if row["name"].endswith(", even")}
    return {"source": "docs/benchmarks/fidelity.md", "what": "all-MiniLM-L6-v2 at 512 tokens", "blocks per row": even}


def render() -> str:
    """The text of the file."""
    return json.dumps({"speed": speed(), "loss": loss()}, indent=1) + "\n"


def main() -> int:
    text = render()
    if "--check" in sys.argv[1:]:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
            print(f"{TARGET.relative_to(ROOT)} is out of date: run python scripts/generate_facts.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

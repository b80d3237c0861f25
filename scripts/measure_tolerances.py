"""Prints the errors that the parity check's tolerances are set by: of the exported file, and of torch at the same type.

A half-type model differs from its float32 twin by the rounding of its weights and activations, whoever runs it. So beside each
exported file stands torch with the model cast to that type and the specification's operator, on the same cases.

Example:
  python scripts/measure_tolerances.py ./minilm-mra
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mra_export.checkpoint.load import load_checkpoint
from mra_export.checkpoint.text import read_contract
from mra_export.export.exporter import export_onnx
from mra_export.operators.judge import TOLERANCES
from mra_export.parity.cases import build_cases
from mra_export.parity.compare import check_candidate
from mra_export.parity.comparison import Comparison
from mra_export.pipeline.check import check
from mra_export.runners.torch import SpecificationRunner, TransformersRunner

METRICS = ("operator_error", "input_error", "relative_error", "cosine_min", "selection_agreement")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--max-seq-len", type=int)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    modules = read_contract(checkpoint.directory).modules
    cases, origin = build_cases(checkpoint, max_seq_len=arguments.max_seq_len)
    table = Table("type", "run by", *(name.replace("_", " ") for name in METRICS))

    def row(dtype: str, who: str, comparison: Comparison) -> None:
        values = [comparison.metrics[name] for name in METRICS]
        table.add_row(dtype, who, *("-" if v is None else f"{v:.6g}" for v in values))

    for dtype, kind in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        cast = dataclasses.replace(checkpoint, model=copy.deepcopy(checkpoint.model).to(kind))
        twin = check_candidate(
            checkpoint,
            TransformersRunner(checkpoint, modules),
            SpecificationRunner(cast, modules),
            dtype,
            cases,
            specification=SpecificationRunner(checkpoint, modules),
        )
        row(dtype, f"torch {torch.__version__}", twin[1])
        with tempfile.TemporaryDirectory() as folder:
            exported = export_onnx(checkpoint, Path(folder) / "o", dtype=dtype)
            for comparison in check(checkpoint, [exported.model], max_seq_len=arguments.max_seq_len)[1::2]:
                row(dtype, comparison.candidate.split(", ", 1)[1], comparison)
        limit = TOLERANCES[dtype]
        limits = (limit.operator, limit.inputs, limit.outputs, limit.cosine)
        table.add_row(dtype, "limit", *(f"{value:g}" for value in limits), "", end_section=True)
    Console(width=150).print(f"{checkpoint.directory.name}: {len(cases)} cases on {origin}", table)


if __name__ == "__main__":
    main()

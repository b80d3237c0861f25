"""What int8 files of an exported float32 directory lose in each runtime, as the table of docs/int8.md.

Beside them is ONNX Runtime's quantize_dynamic, which is not offered.

Example:
  python scripts/measure_int8.py ./minilm-onnx
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from mra_export.export.int8 import Int8Request
from mra_export.export.onnx_model import MODEL_FILE, OnnxModel, read_onnx
from mra_export.native.libraries import find_library
from mra_export.parity.fidelity import compare_vectors, vectors_of
from mra_export.parity.texts import proof_texts, samples_of
from mra_export.pipeline.quantize import to_int8
from mra_export.runners.onnxruntime import OnnxRuntimeRunner
from mra_export.runners.openvino import OpenVinoRunner
from mra_export.trace import Runner


def dynamic(source: OnnxModel, target: Path) -> OnnxModel:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source.path, target)
    return read_onnx(target)


def main() -> None:
    source = read_onnx(Path(sys.argv[1]) / MODEL_FILE)
    library, extension = find_library("onnxruntime"), find_library("openvino")
    samples = samples_of(source, proof_texts())
    reference = OnnxRuntimeRunner(source, library=library)
    expected = vectors_of(reference, samples)
    print("| | runtime | cosine mean | least | 10 neighbours | rows | alone | threads |\n|" + "---|" * 8)
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, OnnxModel] = {}
        for name, request in (("--int8", Int8Request()), ("--int8-all", Int8Request(every_layer=True))):
            notes: list[str] = []
            files[name] = to_int8(source, Path(folder) / f"{len(files)}.onnx", request, library=library, notes=notes)
            print(f"{name}: {' '.join(notes)}", file=sys.stderr)
        files["quantize_dynamic"] = dynamic(source, Path(folder) / "dynamic.onnx")
        for name, model in files.items():
            runs: list[tuple[str, Runner, Runner | None]] = [
                (
                    "ONNX Runtime",
                    OnnxRuntimeRunner(model, library=library, threads=1),
                    OnnxRuntimeRunner(model, library=library, threads=2),
                )
            ]
            if extension is not None and name != "quantize_dynamic":
                for precision in ("fp32", "bf16"):
                    runner = OpenVinoRunner(model, library=extension, precision=precision)
                    runs.append((f"OpenVINO, rest {precision}", runner, None))
            for runtime, runner, again in runs:
                found = compare_vectors(reference, runner, samples, "int8-all", again=again, expected=expected).metrics
                shown = [f"{found[key]:.5f}" for key in ("cosine_mean", "cosine_min")]
                shown.append(f"{found['neighbour_agreement']:.3f}")
                shown += [
                    "-" if found.get(key) is None else f"{found[key]:.0e}" if found[key] else "0"
                    for key in ("row_error", "batch_invariance_error", "thread_error")
                ]
                print(f"| {name} | {runtime} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()

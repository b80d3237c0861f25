"""One vector for each text of a file: in a stream, resumable, here or on a Ray cluster."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mra_export.embedding.chunks import CHUNK_ROWS, Source
from mra_export.embedding.encoder import (
    DEFAULT_BATCH_TOKENS,
    Encoder,
    TextOptions,
    require_embedding_bundle,
    text_options,
)
from mra_export.embedding.files import STANDARD_INPUT
from mra_export.embedding.input import scan
from mra_export.embedding.journal import Partial, partial_path, rows_kept
from mra_export.embedding.layout import OUTPUT_TYPES, Layout, companion, drop_companion
from mra_export.embedding.parquet_output import RESERVED, ROW_GROUP, write_parquet
from mra_export.embedding.pieces import Cut, check_cut
from mra_export.embedding.runtimes import Runtime, runtime_of, variant_of
from mra_export.embedding.spool import spooled
from mra_export.embedding.work import Part, Worker
from mra_export.errors import InputError
from mra_export.optional import require_pyarrow, require_tokenizers
from mra_export.outputs import check_target

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from mra_export.bundle.manifest import Bundle
    from mra_export.embedding.chunks import Chunk

__all__ = ["ENGINES", "OUTPUT_KINDS", "EmbedResult", "Interrupted", "Watcher", "embed"]

ENGINES = ("local", "ray")
OUTPUT_KINDS = (".npy", ".parquet")


class Watcher(Protocol):
    """Who is told of the progress."""

    def step(self, text: str) -> None:
        """Something begins."""

    def start(self, rows: int, size: int, *, rows_done: int, size_done: int) -> None:
        """The embedding begins: rows and bytes in all, and those that an earlier run did."""

    def advance(self, rows: int, size: int) -> None:
        """So many rows are embedded, so many bytes of the input are done."""


class _Nobody:
    def step(self, text: str) -> None:
        pass

    def start(self, rows: int, size: int, *, rows_done: int, size_done: int) -> None:
        pass

    def advance(self, rows: int, size: int) -> None:
        pass


class Interrupted(KeyboardInterrupt):
    """The work was interrupted; the text says what is kept."""


@dataclass(frozen=True)
class EmbedResult:
    """What `embed` did.

    Attributes:
        output: the file.
        outputs: all files that were written: the output, and that beside a .npy which says what its rows are.
        output_type: one of `OUTPUT_TYPES`.
        files: of the input.
        input_rows: of all of them.
        null_rows: of these, rows without a text, which were left out or taken as empty.
        rows: vectors in the output.
        dimension: numbers in a vector.
        prompt: what was put before each text, "" for nothing.
        prompt_name: its name in the bundle; None where it was given as text, or there is none.
        truncated: texts that were longer than `max_length` and were cut.
        max_length: tokens of a text at most, special tokens included.
        tokens: of all texts, after that.
        computed_tokens: that the model ran, padding included.
        resumed_rows: that an earlier run had left.
        seconds: of this run, from the first row.
        engine: one of `ENGINES`.
        workers: models that ran at the same time.
        runtime: one of `RUNTIMES`.
        precision: that it ran the model in: fp32, fp16, bf16, int8 or int8-weights.
        provider: ONNX Runtime's execution provider, or "OpenVINO".
    """

    output: Path
    outputs: tuple[Path, ...]
    output_type: str
    files: int
    input_rows: int
    null_rows: int
    rows: int
    dimension: int
    prompt: str
    prompt_name: str | None
    truncated: int
    max_length: int
    tokens: int
    computed_tokens: int
    resumed_rows: int
    seconds: float
    engine: str
    workers: int
    runtime: str
    precision: str
    provider: str

    @property
    def rows_per_second(self) -> float:
        """Of the rows of this run."""
        return (self.rows - self.resumed_rows) / self.seconds if self.seconds else 0.0

    @property
    def padded_share(self) -> float:
        """Of the tokens that the model ran."""
        return 1 - self.tokens / self.computed_tokens if self.computed_tokens else 0.0


def embed(
    bundle: Path,
    source: Path | str | Sequence[Path | str],
    output: Path,
    *,
    column: str = "text",
    id_columns: Sequence[str] = (),
    null: str = "error",
    input_format: str | None = None,
    delimiter: str | None = None,
    chunk: int | None = None,
    overlap: int = 0,
    output_type: str = "float32",
    prompt: str | None = None,
    prompt_text: str | None = None,
    dimensions: int | None = None,
    engine: str = "local",
    workers: int | None = None,
    runtime: str = "onnxruntime",
    threads: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    chunk_rows: int = CHUNK_ROWS,
    force: bool = False,
    watcher: Watcher | None = None,
) -> EmbedResult:
    """Embeds each text of an input; the output appears whole or not at all, and its bytes are the same however often the work
    was interrupted, with any number of threads and workers, and with both engines.

    That holds with the native operator in the bundle, on processors of the same kind. A bundle without it runs the function
    body, whose last bits depend on the number of threads.

    Memory does not grow with the input. What is done is kept in a hidden directory beside the output; the same call goes on
    from there. `engine`, `workers`, `threads`, `id_columns` and `force` may change in between: they do not change a vector.

    Args:
        bundle: the bundle's directory.
        source: a file, a pattern, a folder or "-" for standard input, or several of them; see `find_files` and `scan`.
        output: a .npy file, [rows, dimension]; or a .parquet file with the columns row (int64), file with several files,
            those of `id_columns`, chunk, begin and end with `chunk`, scale with int8, and embedding (fixed-size list). Beside
            a .npy file, where its rows are not those of the input one by one or are int8, is a .rows.npy file that says what
            they are.
        column: where the texts are, in all but .txt.
        id_columns: columns of the input to put into a parquet output.
        null: what is done with a row without a text: "error", "skip" or "empty".
        input_format: of all files and of standard input, one of `INPUT_FORMATS`; None for what their names say.
        delimiter: of csv and tsv; None for comma and tab.
        chunk: cut texts into pieces of so many tokens at most, special tokens and the prompt included; None for one vector a
            text, which leaves out what is beyond the maximum length.
        overlap: tokens at most that a piece has in common with the one before.
        output_type: of the vectors' numbers, one of `OUTPUT_TYPES`.
        prompt: name of the bundle's prompt that is put before each text; None for its default, which may be none.
        prompt_text: the prompt itself instead, "" for none.
        dimensions: numbers to which the vectors are cut; those of length 1 have length 1 again after that. None for all.
        engine: "local" for this process, "ray" for workers of Ray Data; the cluster that RAY_ADDRESS names, or one of this
            machine that lives as long as the call.
        workers: of Ray; None for as many as there are processors for.
        runtime: one of `RUNTIMES`: what runs the model.
        threads: of a model; 0 for the runtime's choice, or one for a worker of Ray.
        batch_tokens: most tokens of a batch, padding included.
        chunk_rows: rows that are batched and journalled together.
        force: replace an existing output, and throw away work that was begun with another input, bundle or option.
        watcher: is told of the progress.

    Raises:
        InputError: the bundle, the input, the output or an option is wrong.
        DependencyError: a package is missing.
        Interrupted: a KeyboardInterrupt while some rows are done; they are kept.
    """
    watcher = watcher or _Nobody()
    ids = tuple(id_columns)
    sources = [source] if isinstance(source, str | Path) else list(source)
    _check_options(output, ids, engine, workers, threads, batch_tokens)
    cut = _checked_cut(chunk, overlap)
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type={output_type!r} must be one of {', '.join(OUTPUT_TYPES)}.")
    targets = [output]
    if output.suffix == ".npy" and Layout(1, output_type, null == "skip", cut is not None).facts is not None:
        targets.append(companion(output))
    piped = [str(each) for each in sources].count(STANDARD_INPUT)
    if piped and (piped > 1 or input_format is None):
        raise InputError(
            "Standard input can be given once."
            if piped > 1
            else "Standard input has no name: say what it is with --input-format."
        )
    for target in targets:
        check_target(target, force=force, sources=[bundle, *(Path(each) for each in sources if Path(each).is_file())])
        if target.is_dir():
            raise InputError(f"{target} is a directory; the output is a file. Choose another path.")
    if output.suffix == ".parquet":
        require_pyarrow()
    if engine == "ray":
        from mra_export.embedding.ray import require_ray

        require_ray()
    watcher.step(f"verifying {bundle}")
    model = require_embedding_bundle(bundle)
    used = runtime_of(model, runtime)
    options = text_options(model, prompt=prompt, prompt_text=prompt_text, dimensions=dimensions)
    if cut is not None:
        tokenizer = require_tokenizers().Tokenizer.from_file(str(model.tokenizer_file))
        tokenizer.no_truncation()
        check_cut(cut, len(tokenizer.encode(options.prompt).ids), model.tokenizer_max_length)
    with contextlib.ExitStack() as stack:
        spool = None
        if piped:
            watcher.step("saving standard input")
            spool = stack.enter_context(spooled(sys.stdin.buffer, output))
        data = scan(
            sources,
            column=column,
            id_columns=ids,
            null=null,
            input_format=input_format,
            delimiter=delimiter,
            chunk_rows=chunk_rows,
            spooled=spool,
            progress=watcher.step,
        )
        _check_names(ids, data, cut, output_type)
        if {target.resolve() for target in targets} & {file.path.resolve() for file in data.files}:
            raise InputError(f"{output} is one of the input's files. Choose another output.")
        settings = {
            "manifest_sha256": model.manifest["manifest_sha256"],
            "input_format": sorted({f"{file.kind}{file.delimiter}" for file in data.files}),
            "column": data.column,
            "null": null,
            "chunk": chunk,
            "overlap": overlap,
            "prompt": options.prompt,
            "dimensions": options.dimensions,
            "batch_tokens": batch_tokens,
            "chunk_rows": chunk_rows,
            **used.settings,
        }
        if variant_of(model, runtime).library is None:  # the function body's sums depend on them
            settings["threads"] = threads or int(engine == "ray")
        layout = Layout(options.dimension, output_type, null == "skip", cut is not None)
        job = _Job(model, data, cut, options, engine, workers, threads, batch_tokens, used)
        return _embed(job, output, layout, settings, ids, force=force, watcher=watcher)


@dataclass(frozen=True)
class _Job:
    """What is embedded, with what and where."""

    model: Bundle
    data: Source
    cut: Cut | None
    options: TextOptions
    engine: str
    workers: int | None
    threads: int
    batch_tokens: int
    runtime: Runtime


def _embed(
    job: _Job,
    output: Path,
    layout: Layout,
    settings: dict[str, Any],
    ids: tuple[str, ...],
    *,
    force: bool,
    watcher: Watcher,
) -> EmbedResult:
    data = job.data
    partial: Partial | None = None
    try:
        with Partial.open(output, data, layout, settings, force=force) as partial:
            whole = [chunk for chunk in data.chunks if partial.is_done(chunk.index)]
            watcher.start(
                data.rows,
                sum(chunk.size for chunk in data.chunks),
                rows_done=sum(chunk.rows for chunk in whole) if layout.pieces else partial.found,
                size_done=sum(chunk.size for chunk in whole),
            )
            begun = time.monotonic()
            used = _run(job, partial, watcher)
            seconds = time.monotonic() - begun
            watcher.step(f"writing {output}")
            rows = partial.rows
            if output.suffix == ".parquet":
                made = write_parquet(partial, partial.path / "out.parquet", data, layout, ids, _stated(job))
                files = [(made, output)]
            else:
                files = partial.finish(ROW_GROUP)
            partial.publish(files)
            if output.suffix == ".npy" and layout.facts is None:
                drop_companion(output)
    except KeyboardInterrupt as error:
        if partial is not None and partial.published:
            raise Interrupted(f"Interrupted at the very end; {output} is complete.") from error
        if kept := rows_kept(output, data):
            share = f"{kept} vectors" if layout.pieces else f"{kept} of {data.rows} rows"
            raise Interrupted(
                f"Interrupted; {share} are kept in {partial_path(output)}. Run the same command again to go on from there."
            ) from error
        raise
    return EmbedResult(
        output=output,
        outputs=tuple(target for _, target in reversed(files)),
        output_type=layout.output_type,
        files=len(data.files),
        input_rows=data.input_rows,
        null_rows=data.nulls,
        rows=rows,
        dimension=layout.hidden_size,
        prompt=job.options.prompt,
        prompt_name=job.options.prompt_name,
        truncated=partial.truncated,
        max_length=job.model.tokenizer_max_length if job.cut is None else job.cut.tokens,
        tokens=partial.tokens,
        computed_tokens=partial.computed,
        resumed_rows=partial.found,
        seconds=seconds,
        engine=job.engine,
        workers=used,
        runtime=job.runtime.name,
        precision=job.runtime.precision,
        provider=job.runtime.provider,
    )


def _run(job: _Job, partial: Partial, watcher: Watcher) -> int:
    """Embeds what is not done yet; the number of sessions."""
    used = 1
    before = -1
    while pending := [chunk for chunk in job.data.chunks if not partial.is_done(chunk.index)]:
        if partial.rows == before:
            raise AssertionError(f"chunks {[chunk.index for chunk in pending[:5]]} were not computed")
        before = partial.rows
        results: Generator[Part]
        if job.engine == "ray":
            from mra_export.embedding.ray import ray_parts

            used, results = ray_parts(
                job.model, job.data, [(chunk, partial.done(chunk.index)) for chunk in pending], job.cut, job.options,
                workers=job.workers, threads=job.threads, batch_tokens=job.batch_tokens, runtime=job.runtime,
            )  # fmt: skip
        else:
            results = _local_parts(job, partial, pending, watcher)
        with contextlib.closing(results):
            for part in results:
                chunk = job.data.chunks[part.chunk]
                # Ray may run a chunk again whose worker died after its answer.
                was_done = partial.is_done(part.chunk)
                written = partial.write(part)
                complete = partial.is_done(part.chunk) and not was_done
                if job.cut is not None:
                    written = chunk.rows if complete else 0
                elif job.engine == "local":  # it has counted them batch by batch
                    written = 0
                watcher.advance(written, chunk.size if complete else 0)
    return used


def _local_parts(job: _Job, partial: Partial, pending: list[Chunk], watcher: Watcher) -> Generator[Part]:
    """The chunks in order, embedded in this process."""
    encoder = Encoder(job.model, job.options, threads=job.threads, batch_tokens=job.batch_tokens, runtime=job.runtime)
    worker = Worker(encoder, job.data, job.cut)
    for chunk in pending:
        advance = (lambda texts: None) if job.cut is not None else (lambda texts: watcher.advance(texts, 0))
        yield from worker.parts(chunk, partial.done(chunk.index), advance)


def _stated(job: _Job) -> dict[str, str]:
    """What a parquet file says of its vectors."""
    stated = {"manifest_sha256": job.model.manifest["manifest_sha256"], "prompt": job.options.prompt}
    return stated if job.options.dimensions is None else {**stated, "dimensions": str(job.options.dimensions)}


def _checked_cut(chunk: int | None, overlap: int) -> Cut | None:
    if overlap < 0:
        raise InputError(f"overlap={overlap} must not be negative.")
    if chunk is None:
        if overlap:
            raise InputError(f"--overlap {overlap} is for --chunk, which says how many tokens a chunk has.")
        return None
    if chunk < 1:
        raise InputError(f"chunk={chunk} must be at least 1.")
    return Cut(chunk, overlap)


def _check_names(ids: tuple[str, ...], data: Source, cut: Cut | None, output_type: str) -> None:
    """Refuses an id column that the output has already."""
    taken = {"file": data.named, "chunk": cut, "begin": cut, "end": cut, "scale": output_type == "int8"}
    for name in ids:
        if taken.get(name):
            raise InputError(
                f"--id-column {name} would be in the output twice. Leave it out, or rename it in the input."
            )


def _check_options(
    output: Path, ids: tuple[str, ...], engine: str, workers: int | None, threads: int, batch_tokens: int
) -> None:
    if output.suffix not in OUTPUT_KINDS:
        raise InputError(f"{output} must end in {' or '.join(OUTPUT_KINDS)}: that decides what is written.")
    if ids and output.suffix != ".parquet":
        raise InputError(f"{output} cannot hold --id-column {ids[0]}; write a .parquet file instead.")
    for name in ids:
        if name in RESERVED or ids.count(name) > 1:
            raise InputError(
                f"--id-column {name} would be in the output twice. Leave it out, or rename it in the input."
            )
    if engine not in ENGINES:
        raise InputError(f"engine={engine!r} must be one of {', '.join(ENGINES)}.")
    if workers is not None and engine != "ray":
        raise InputError(f"--workers {workers} is for --engine ray; --threads is what the engine {engine} has.")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers} must be at least 1.")
    if threads < 0:
        raise InputError(f"threads={threads} must not be negative; 0 leaves it to the runtime.")
    if batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens} must be at least 1.")
